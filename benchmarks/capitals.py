"""BLEU of the shipped translators on sources in capitals, as rows of a Markdown table.

    python benchmarks/capitals.py [MODEL …]

Every seventh development pair of fr-en and en-fr, its source in capitals, translated without and with
`decoding.sentence_case`; beside it, the source as it is. BLEU of sacreBLEU, in lower case. Needs REGARD_DATA.
"""

import sys
from typing import Any

import sacrebleu
from glossary import development

import regard

MODELS = ("fr-en", "en-fr", "fr-en-fast", "en-fr-fast", "fr-en-rnn", "en-fr-rnn")


def bleu(model: Any, sources: list[str], references: list[str]) -> float:
    """Of the translations, in lower case."""
    texts = [found.text for found in model.many(sources, record=False, split=False)]
    return float(sacrebleu.corpus_bleu(texts, [references], lowercase=True).score)


def main() -> None:
    """Print the table."""
    print("| model | in capitals, as they are | read as a sentence | not in capitals |\n|---|---|---|---|")
    for name in sys.argv[1:] or MODELS:
        model: Any = regard.load(name)
        pairs = development("-".join(model.bundle.languages))
        some = pairs.at(list(range(0, len(pairs), 7)))
        sources, references = list(some.source), list(some.target)
        capitals = [text.upper() for text in sources]
        read, plain = (bleu(model, texts, references) for texts in (capitals, sources))
        model.decoding = model.decoding.model_copy(update={"sentence_case": False})
        print(f"| `{name}` | {bleu(model, capitals, references):.1f} | {read:.1f} | {plain:.1f} |", flush=True)


if __name__ == "__main__":
    main()
