"""Glossaries of up to 1,000 terms: how many are there, what they cost in time, and BLEU with and without them.

    python benchmarks/glossary.py [--model fr-en] [--sentences 1000] [--terms 1000]

Terms are source words with the word of the reference that the model aligns with each, given the reference; a term has
one translation, the most frequent. Two glossaries:

    consistent    terms of the sentences that are translated, whose translation every reference has
    imposed       the most frequent words of other sentences: half of the references say something else, so that even
                  a perfect translation with these words loses BLEU

"Elsewhere" is BLEU where the translations of terms are left out of outputs and references. Sentences without a term are
the same with and without a glossary.
"""

import argparse
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import sacrebleu

import regard
from regard.data.pairs import Pairs
from regard.decoding.phrases import Glossary, has_phrase
from regard.experiment import held_out
from regard.pipelines.translator import Translator
from regard.process import keep_freed_memory, leave_out_what_is_loaded


def terms_of(model: Translator, pairs: Pairs) -> dict[str, str]:
    """Source words with their most frequent translation in references, as the model's attention has them; the most
    frequent words first."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for source, target in pairs:
        made = model(source, prefix=target, split=False, beam=1)
        for i, j in made.alignment.pairs:
            word, term = made.text.split()[i].strip(".,?!;:\"'"), made.alignment.source[j].strip(".,?!;:\"'")
            if len(word) > 3 and len(term) > 3 and word.isalpha() and term.isalpha():
                found[term.lower()][word.lower()] += 1
    ranked = sorted(found.items(), key=lambda item: -sum(item[1].values()))
    return {term: words.most_common(1)[0][0] for term, words in ranked}


def consistent(terms: Mapping[str, str], pairs: Pairs) -> dict[str, str]:
    """The terms whose translation is in the reference of every sentence that has the term."""
    own = Glossary({term: term for term in terms})
    wrong = {term for source, target in pairs for term in own.of(source) if not has_phrase(target, terms[term])}
    return {term: translation for term, translation in terms.items() if term not in wrong}


def without(texts: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[str]:
    """Texts without the translations of their terms."""
    patterns = ["|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words) or r"(?!)" for words in wanted]
    return [re.sub(some, "", text, flags=re.IGNORECASE) for some, text in zip(patterns, texts, strict=True)]


def compare(model: Translator, pairs: Pairs, terms: dict[str, str]) -> None:
    """Print the figures of one glossary."""
    glossary = Glossary(terms)
    wanted = [glossary.of(source) for source in pairs.source]
    texts: dict[str, list[str]] = {}
    seconds: dict[str, list[float]] = defaultdict(list)
    for name, setting in 2 * (("without", {}), ("with", terms)):
        start = time.process_time()
        texts[name] = [one.text for one in model(list(pairs.source), record=False, glossary=setting, split=False)]
        seconds[name].append(time.process_time() - start)

    def count(some: Sequence[str]) -> int:
        return sum(has_phrase(text, word) for text, words in zip(some, wanted, strict=True) for word in words)

    def bleu(name: str, elsewhere: bool) -> float:
        some, references = texts[name], list(pairs.target)
        if elsewhere:
            some, references = without(some, wanted), without(references, wanted)
        return float(sacrebleu.corpus_bleu(some, [references], force=True).score)

    none = [n for n, words in enumerate(wanted) if not words]
    assert all(texts["with"][n] == texts["without"][n] for n in none)
    total, there = sum(map(len, wanted)), count(texts["with"])
    print(f"  {len(terms):,} terms; {len(pairs):,} sentences, {len(pairs) - len(none):,} with {total:,} terms")
    print(f"  in references {count(pairs.target):,}, in outputs without {count(texts['without']):,}, with {there:,}")
    for name, elsewhere in (("BLEU", False), ("BLEU elsewhere", True)):
        print(f"  {name} {bleu('without', elsewhere):.2f} without, {bleu('with', elsewhere):.2f} with")
    free, bound = min(seconds["without"]), min(seconds["with"])
    print(f"  {free:.1f} s without, {bound:.1f} s with: {bound / free:.2f} times", flush=True)


def development(name: str) -> Pairs:
    """The development pairs of a shipped translator."""
    return held_out(name, "dev")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fr-en")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--terms", type=int, default=1000)
    given = parser.parse_args()
    keep_freed_memory()  # as a command does
    model = regard.load(given.model)
    leave_out_what_is_loaded()
    dev = development(given.model)
    half = len(dev) // 2
    known, pairs = dev.at(list(range(half))), dev.at(list(range(half, min(len(dev), half + given.sentences))))
    own = list(consistent(terms_of(model, pairs), pairs).items())
    imposed = list(terms_of(model, known).items())
    for name, terms in (("consistent", own), ("imposed", imposed)):
        print(name)
        compare(model, pairs, dict(terms[: given.terms]))


if __name__ == "__main__":
    main()
