"""How many of 200 everyday sentences a French–English translator gets right, by kind, and their chrF.

    python benchmarks/everyday.py MODEL [MODEL …] [--beam 4] [--wrong]

MODEL translates French to English or English to French: a shipped name or a run's folder. everyday/sentences.tsv
has 100 sentences in each direction: greetings, single words, questions, negation, statements, numbers, times, dates,
figures (telephone numbers, prices, per cent, addresses), names, long sentences, sloppy ones (capitals, no accents, no
apostrophes) and texts of several sentences. The list was written before the models were trained and is not changed.

A translation is right if it is one of the reference translations, all of which a pattern spells out: (a|b) is a choice,
|| divides patterns. Capitals, final full stops and exclamation marks, the kind of apostrophe and the spaces around
punctuation do not count; numbers, words and their order do. chrF is against the nearest reference.
"""

import argparse
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import sacrebleu

LIST = Path(__file__).with_name("everyday") / "sentences.tsv"
MOST = 20_000  # references of one sentence, all choices combined


class Sentence(NamedTuple):
    """One line of the list."""

    direction: str
    kind: str
    source: str
    references: list[str]


def read() -> list[Sentence]:
    """The sentences, with their patterns spelled out."""
    lines = LIST.read_text("utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    return [Sentence(direction, kind, source, spell_out(patterns)) for direction, kind, source, patterns in rows]


def spell_out(patterns: str) -> list[str]:
    """All references that patterns stand for, as `same` writes them."""
    return sorted({same(text) for pattern in patterns.split("||") for text in expand(pattern)})


def expand(pattern: str) -> Iterator[str]:
    """The texts of one pattern: (a|b) is a choice, and choices may stand inside choices."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(pattern):
        if character == "(":
            if not depth:
                parts.append([pattern[start:place]])
                start = place + 1
            depth += 1
        elif character == ")":
            depth -= 1
            if not depth:
                parts.append([text for choice in _choices(pattern[start:place]) for text in expand(choice)])
                start = place + 1
    parts.append([pattern[start:]])
    yield from ("".join(chosen) for chosen in product(*parts))


def _choices(inside: str) -> list[str]:
    """The alternatives between one pair of parentheses."""
    found, depth = [""], 0
    for character in inside:
        depth += (character == "(") - (character == ")")
        if character == "|" and not depth:
            found.append("")
        else:
            found[-1] += character
    return found


def same(text: str) -> str:
    """The form in which two texts are compared: what does not count is made equal."""
    text = text.casefold().replace("’", "'").replace("œ", "oe").replace("\u202f", " ").replace("\u00a0", " ")
    text = re.sub(r"\s*([?!:;,.])", r"\1", text)  # "là ?" and "là?"
    text = re.sub(r"[.!]+$", "", text.strip()).strip()
    return re.sub(r"([.!])\s+", ". ", re.sub(r"\s+", " ", text))


def judge(sentence: Sentence, output: str) -> tuple[bool, float]:
    """Whether a translation is right, and its chrF against the nearest reference."""
    found = same(output)
    if found in sentence.references:
        return True, 100.0
    near = sorted(sentence.references, key=lambda text: abs(len(text) - len(found)))[:200]
    return False, max(sacrebleu.sentence_chrf(found, [text]).score for text in near)


class Judged(NamedTuple):
    """A translation of one line of the list."""

    sentence: Sentence
    output: str
    right: bool
    chrf: float


def measure(model: Any, beam: int = 4) -> list[Judged]:
    """The list in a model's direction, translated and judged."""
    direction = "-".join(model.bundle.languages)
    sentences = [sentence for sentence in read() if sentence.direction == direction]
    outputs = [one.text for one in model([sentence.source for sentence in sentences], beam=beam)]
    return [Judged(one, output, *judge(one, output)) for one, output in zip(sentences, outputs, strict=True)]


def table(found: list[Judged]) -> str:
    """What is right, by kind, as Markdown."""
    lines = ["| kind | right | of | chrF |", "|---|---|---|---|"]
    for kind in [*dict.fromkeys(one.sentence.kind for one in found), "all"]:
        of = [one for one in found if kind in (one.sentence.kind, "all")]
        chrf = sum(one.chrf for one in of) / len(of)
        lines.append(f"| {kind} | {sum(one.right for one in of)} | {len(of)} | {chrf:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Print one table per model."""
    import regard

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--wrong", action="store_true", help="print the translations that are not right")
    given = parser.parse_args()
    for name in given.models:
        model = regard.load(name)
        found = measure(model, given.beam)
        print(f"\n{name}, {'-'.join(model.bundle.languages)}, beam {given.beam}\n\n{table(found)}")
        for one in found if given.wrong else ():
            if not one.right:
                print(
                    f"{one.sentence.kind}: {one.sentence.source}\n    {one.output}\n    [{one.sentence.references[0]}]"
                )


if __name__ == "__main__":
    main()
