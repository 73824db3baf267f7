"""Debian's package descriptions as parallel sentences.

The files are `dists/RELEASE/main/i18n/Translation-LANGUAGE` of any Debian mirror (.bz2 or .xz, or unpacked). Debian
distributes the descriptions, and their translations by its volunteers, under the licenses of the packages or of the
Debian Description Translation Project; attribute "Debian and its translation teams".
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from regard.data.files import read_lines
from regard.errors import DataError

SHORTEST, LONGEST = 3, 60  # words of a sentence
NONE = "no package descriptions: expected dists/RELEASE/main/i18n/Translation-LANGUAGE of a Debian mirror"
MOST_UNEVEN = 1.8  # times as many characters on one side as on the other


def descriptions(source: Path, target: Path) -> Iterator[tuple[str, str]]:
    """Sentences of the descriptions that both files have, in the same order on both sides.

    Descriptions are matched by the hash of their English original; paragraphs with different numbers of sentences, and
    sentences of very different length, are left out; each pair comes once.

    Args:
        source, target: the two languages' files.

    Raises:
        DataError: a file is missing or damaged, or has no descriptions.
    """
    there = dict(_records(target))
    if not there:
        raise DataError(f"{target}: {NONE}")
    seen, count = set(), 0
    for count, (key, paragraphs) in enumerate(_records(source), 1):  # noqa: B007
        for here, other in zip(paragraphs, there.get(key, ()), strict=False):
            sides = sentences(here), sentences(other)
            if len(sides[0]) != len(sides[1]):
                continue
            for pair in zip(*sides, strict=True):
                if pair not in seen and plausible(*pair):
                    seen.add(pair)
                    yield pair
    if not count:
        raise DataError(f"{source}: {NONE}")


def _records(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The hash and the paragraphs of every description; lists are left out, and the first paragraph is the summary."""
    key, paragraphs, last = "", [""], False
    for line in [*read_lines(path), ""]:
        if line.startswith("Description-md5: "):
            key, paragraphs = line.removeprefix("Description-md5: "), [""]
        elif line.startswith("Description-"):
            paragraphs = [line.split(": ", 1)[-1], ""]
            last = True
        elif line.startswith(" .") or re.match(r"\s+[*•-] |\s{2,}", line):
            paragraphs.append("")
        elif line.startswith(" ") and last:
            paragraphs[-1] = f"{paragraphs[-1]} {line.strip()}".strip()
        elif not line and last:
            yield key, paragraphs
            last = False


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph: they end at . ! or ? before a space and a capital."""
    places = [
        0,
        *(found.end() for found in re.finditer(r"[.!?](?:\s?»|[”\"')])*\s+(?=[A-ZÀ-ÝŒ«“\"])", paragraph)),
        None,
    ]
    return [text for a, b in pairwise(places) if (text := paragraph[a:b].strip())]


def plausible(here: str, there: str) -> bool:
    """Whether two sentences may be translations: 3 to 60 words, of similar length, not the same."""
    lengths = len(here.split()), len(there.split())
    uneven = max(len(here), len(there)) / max(1, min(len(here), len(there)))
    return min(lengths) >= SHORTEST and max(lengths) <= LONGEST and uneven <= MOST_UNEVEN and here != there
