"""Message catalogues (gettext's .po and .mo) as parallel sentences.

Every program that is translated with gettext comes with catalogues, and those of games and of teaching programs hold
prose: dialogues, stories, instructions. A catalogue's texts have their program's licence.
"""

import gettext
import io
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from regard.data.datasets.debian import plausible, sentences
from regard.data.files import read_bytes
from regard.errors import DataError

ENDINGS = (".po", ".mo", ".gmo")
# what a program fills in, its markup and its file formats: not sentences
CODE = re.compile(r"[<>{}|\\^~=_@]|\$\w|(?<!\d)(?<!\d[ \u00a0\u202f])%|&\w+;")
DATES = re.compile(
    rb'^"(POT-Creation|PO-Revision)-Date:.*\n', re.MULTILINE
)  # in every form; Babel refuses most of them
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\ufeff]")


def messages(catalogues: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Sentences of the messages and their translations, (original, translation), each pair once.

    A message's paragraphs and sentences are matched in their order; where the two sides have different numbers of
    them, where their lengths differ much, or where a program fills something in, they are left out. So are entries
    marked fuzzy.

    Args:
        catalogues: files .po, .mo or .gmo, or folders, which are searched.

    Raises:
        DataError: a file is missing or damaged, or holds no catalogue; a folder without one.
    """
    seen = set()
    for path in _files(catalogues):
        for original, translation in _entries(path):
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


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
        if not found:
            raise DataError(f"{path}: no message catalog in this folder: expected files {', '.join(ENDINGS)}")
        yield from found


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    """The messages of one catalogue that have a translation; of plural forms the first one."""
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path}: no message catalog: expected a file {', '.join(ENDINGS)}, or a folder of them")
    content = read_bytes(path)
    entries = _compiled(path, content) if path.suffix.lower() != ".po" else _text(path, content)
    for original, translation in entries:
        if original and translation:
            yield original, translation


def _compiled(path: Path, content: bytes) -> Iterator[tuple[str, str]]:
    try:
        catalogue = gettext.GNUTranslations(io.BytesIO(content))
    except (OSError, ValueError, IndexError, LookupError, struct.error) as fault:
        raise DataError(f"{path}: a damaged message catalog: {fault}") from None
    for key, translation in catalogue._catalog.items():  # type: ignore[attr-defined]  # the only way to all of them
        original = key[0] if isinstance(key, tuple) else key
        if not isinstance(key, tuple) or key[1] == 0:
            yield original.split("\x04", 1)[-1], translation  # what comes before \x04 is the message's context


def _text(path: Path, content: bytes) -> Iterator[tuple[str, str]]:
    from babel.messages.pofile import PoFileError, read_po

    try:
        catalogue = read_po(io.BytesIO(DATES.sub(b"", content)), abort_invalid=True)
    except (PoFileError, ValueError, LookupError) as fault:
        raise DataError(f"{path}: a damaged message catalog: {fault}") from None
    for message in catalogue:
        first = [form if isinstance(form, str) else form[0] for form in (message.id, message.string) if form]
        if len(first) == 2 and not message.fuzzy:
            yield first[0], first[1]
