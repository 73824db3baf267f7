"""Message catalogs (gettext's .po and .mo) as parallel sentences.

Every program that is translated with gettext comes with catalogs, and those of games and of teaching programs hold
prose: dialogues, stories, instructions. A catalog's texts have their program's license.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from regard.data.datasets.catalogues import find_catalogues, read_catalogue
from regard.data.datasets.debian import plausible, sentences

LONGEST = 1_000_000  # characters of a message; more are no prose
# what a program fills in, its markup and its file formats: not sentences
CODE = re.compile(r"[<>{}|\\^~=_@]|\$\w|(?<!\d)(?<!\d[ \u00a0\u202f])%|&\w+;")
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\ufeff]")


def messages(catalogues: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Sentences of the messages and their translations, (original, translation), each pair once.

    A message's paragraphs and sentences are matched in their order; where the two sides have different numbers of
    them, where their lengths differ much, or where a program fills something in, they are left out. So are entries
    marked fuzzy.

    Args:
        catalogues: files .po, .mo or .gmo, or folders, which are searched.

    Raises:
        DataError: a file is missing or damaged, or holds no catalog; a folder without one.
    """
    seen = set()
    for path in find_catalogues(catalogues):
        for original, translation in read_catalogue(path):
            if max(len(original), len(translation)) > LONGEST:
                continue
            here, there = ([INVISIBLE.sub("", text) for text in side.split("\n")] for side in (original, translation))
            if len(here) != len(there):
                continue
            for sides in zip(map(sentences, here), map(sentences, there), strict=True):
                if len(sides[0]) != len(sides[1]):
                    continue
                for pair in zip(*sides, strict=True):
                    pair = (" ".join(pair[0].split()), " ".join(pair[1].split()))
                    if pair not in seen and plausible(*pair) and not CODE.search("\n".join(pair)):
                        seen.add(pair)
                        yield pair
