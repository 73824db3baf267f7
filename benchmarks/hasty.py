"""BLEU of the shipped translators on sources typed in haste, in capitals or without accents, as rows of a table.

    python benchmarks/hasty.py [MODEL …]

Every seventh development pair of fr-en and en-fr, its source in capitals, translated without and with
`decoding.sentence_case`; French sources without accents, without and with `decoding.diacritics`; beside them, the
source as it is. BLEU of sacreBLEU, in lower case. Needs REGARD_DATA.
"""

import sys
from typing import Any

import sacrebleu
from glossary import development

import regard
from regard.text.diacritics import without_diacritics

MODELS = ("fr-en", "en-fr", "fr-en-fast", "en-fr-fast", "fr-en-rnn", "en-fr-rnn")
HASTE = {"sentence_case": ("in capitals", str.upper), "diacritics": ("without accents", without_diacritics)}


def bleu(model: Any, sources: list[str], references: list[str]) -> float:
    """Of the translations, in lower case."""
    texts = [found.text for found in model.many(sources, record=False, split=False)]
    return float(sacrebleu.corpus_bleu(texts, [references], lowercase=True).score)


def main() -> None:
    """Print the table."""
    print("| model | source | read as it is | restored | source of the data |\n|---|---|---|---|---|")
    for name in sys.argv[1:] or MODELS:
        model: Any = regard.load(name)
        pairs = development("-".join(model.bundle.languages))
        some = pairs.at(list(range(0, len(pairs), 7)))
        sources, references = list(some.source), list(some.target)
        plain, own = bleu(model, sources, references), model.decoding
        for setting, (how, change) in HASTE.items():
            if getattr(own, setting):
                changed = [change(text) for text in sources]
                found = []
                for on in (False, True):
                    model.decoding = own.model_copy(update={setting: on})
                    found.append(f"{bleu(model, changed, references):.1f}")
                model.decoding = own
                print(f"| `{name}` | {how} | {' | '.join(found)} | {plain:.1f} |", flush=True)


if __name__ == "__main__":
    main()
