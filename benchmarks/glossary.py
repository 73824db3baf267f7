"""A glossary of 1,000 terms: how many are there, what it costs in time, and BLEU with and without it.

    python benchmarks/glossary.py [--model fr-en] [--sentences 1000] [--terms 1000]

The terms are words of development references with the source words that the model aligns them with, given the
reference (each source word has one translation, the most frequent). BLEU rises where the model would have said
something else than the reference; sentences without a term are the same with and without a glossary.
"""

import argparse
import time
from collections import Counter, defaultdict
from pathlib import Path

import sacrebleu

import regard
from regard.data.pairs import Pairs
from regard.decoding.phrases import Glossary, has_phrase
from regard.experiment import read_config
from regard.pipelines.translator import Translator
from regard.tasks.translation import read_data

ROOT = Path(__file__).parents[1]


def terms_of(model: Translator, pairs: Pairs, count: int) -> dict[str, str]:
    """The most frequent translations of source words in references, as the model's attention has them."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for source, target in zip(pairs.source, pairs.target, strict=True):
        made = model(source, prefix=target, split=False, beam=1)
        for i, j in made.alignment.pairs:
            word, term = made.text.split()[i].strip(".,?!;:\"'"), made.alignment.source[j].strip(".,?!;:\"'")
            if len(word) > 3 and len(term) > 3 and word.isalpha() and term.isalpha():
                found[term.lower()][word.lower()] += 1
    ranked = sorted(found.items(), key=lambda item: -sum(item[1].values()))
    return {term: words.most_common(1)[0][0] for term, words in ranked[:count]}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fr-en")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--terms", type=int, default=1000)
    given = parser.parse_args()
    model = regard.load(given.model)
    dev = read_data(read_config(given.model))[1]
    half = len(dev) // 2
    known, pairs = dev.at(list(range(half))), dev.at(list(range(half, min(len(dev), half + given.sentences))))
    terms = terms_of(model, known, given.terms)
    glossary = Glossary(terms)
    wanted = [glossary.of(source) for source in pairs.source]
    texts, seconds = {}, {}
    for name, setting in (("without", {}), ("with", terms), ("again", {})):
        start = time.perf_counter()
        texts[name] = [one.text for one in model(list(pairs.source), record=False, glossary=setting, split=False)]
        seconds[name] = time.perf_counter() - start
    there = [has_phrase(text, word) for text, words in zip(texts["with"], wanted, strict=True) for word in words]
    bleu = {name: sacrebleu.corpus_bleu(some, [list(pairs.target)]).score for name, some in texts.items()}
    none = [n for n, words in enumerate(wanted) if not words]
    assert all(texts["with"][n] == texts["without"][n] for n in none)
    print(f"{len(terms):,} terms; {len(pairs):,} sentences, {len(pairs) - len(none):,} with a term")
    print(f"{sum(there):,} of {len(there):,} terms are there ({100 * sum(there) / len(there):.1f} %)")
    print(f"BLEU {bleu['without']:.2f} without, {bleu['with']:.2f} with")
    without = min(seconds["without"], seconds["again"])
    print(f"{without:.1f} s without, {seconds['with']:.1f} s with: {seconds['with'] / without:.2f} times")


if __name__ == "__main__":
    main()
