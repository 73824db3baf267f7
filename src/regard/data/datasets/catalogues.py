"""The files of gettext: `.po`, text, and `.mo`, compiled. Nothing that stands in one is executed.

The standard library's reader compiles a header's `Plural-Forms` to Python, and Babel's allocates as many forms as the
header announces; neither needs a limit here, since of a message's plural forms only the first is read.
"""

import codecs
import io
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from regard.data.files import read_small
from regard.errors import DataError, not_utf8, shown
from regard.untrusted import named

ENDINGS = (".po", ".mo", ".gmo")
_MAGIC = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}  # of a .mo, with its byte order
_HEADER = struct.calcsize("7I")
_CHARSET = re.compile(rb"""\bcharset=([^\s;\\"]+)""")
# decoders of Python that are no character sets; those of internet names need quadratic time
_NO_CHARSETS = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "mbcs", "oem"}
# possessive: a text without its closing quote is read once
_LINE = re.compile(r"""(?:(msgctxt|msgid_plural|msgid|msgstr(?:\[\d{1,9}\])?)\s*+)?"((?:[^"\\]++|\\.)*+)"\s*$""")
_ESCAPE = re.compile(r"""\\([\\nrt"])""")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def find_catalogues(paths: Sequence[Path]) -> Iterator[Path]:
    """The files themselves, and the catalogs in the folders and the folders within, sorted.

    A link to a folder is not followed: it may lead back.

    Raises:
        DataError: a folder without a catalog, or one that cannot be read.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found, folders = [], [path]
        while folders:  # no recursion: a tree may be deeper than Python's stack
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    for one in entries:
                        if one.is_dir(follow_symlinks=False):
                            folders.append(Path(one.path))
                        elif (file := Path(one.path)).suffix.lower() in ENDINGS and file.is_file():
                            found.append(file)
            except OSError as error:
                raise DataError(f"{named(str(folder))}: cannot be read: {error.strerror}") from error
        if not found:
            raise DataError(f"{path}: no message catalog in this folder: expected files {', '.join(ENDINGS)}")
        yield from sorted(found)


def read_catalogue(path: Path) -> Iterator[tuple[str, str]]:
    """The messages of a catalog that have a translation; of plural forms the first one, no fuzzy and no obsolete one.

    Raises:
        DataError: the file is missing, is no catalog, or is damaged (of a `.po` with the line).
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(f"{path}: no message catalog: expected a file {', '.join(ENDINGS)}, or a folder of them")
    content = read_small(path)
    for original, translation in _text(path, content) if ending == ".po" else _compiled(path, content):
        if original and translation:
            yield original, translation


def _compiled(path: Path, content: bytes) -> Iterator[tuple[str, str]]:
    order = _MAGIC.get(content[:4])
    if order is None or len(content) < _HEADER:
        raise _damaged(path, "it does not begin as a .mo file does")
    version, count, *tables = struct.unpack_from(f"{order}4I", content, 4)
    if version >> 16 > 1:
        raise _damaged(path, f"its format is {version >> 16}; expected 0 or 1")
    if any(table + 8 * count > len(content) for table in tables):
        raise _damaged(path, f"its tables of {count:,} messages go beyond its end")

    def texts(table: int) -> Iterator[bytes]:
        left = len(content)  # messages do not overlap: thousands of long ones in one place would fill the memory
        for size, begin in struct.iter_unpack(f"{order}2I", content[table : table + 8 * count]):
            left -= size
            if begin + size > len(content) or left < 0:
                raise _damaged(path, "a message goes beyond its end, or messages overlap")
            yield content[begin : begin + size]

    header = next((there for here, there in zip(*map(texts, tables), strict=True) if not here), b"")
    charset = _charset(path, header)
    for sides in zip(*map(texts, tables), strict=True):
        try:
            original, translation = (side.split(b"\0", 1)[0].decode(charset) for side in sides)  # forms stand behind \0
        except ValueError as error:
            raise _damaged(path, _not_charset(error, charset)) from error
        yield original.split("\x04", 1)[-1], translation  # what comes before \x04 is the message's context


def _text(path: Path, content: bytes) -> Iterator[tuple[str, str]]:
    content = content.removeprefix(codecs.BOM_UTF8)
    charset = _charset(path, content)
    parts: dict[str, list[str]] = {}  # of the message: its texts by their keywords
    current, begun, fuzzy = "", 0, False

    def whole() -> Iterator[tuple[str, str]]:
        if not parts:
            return
        if "msgid" not in parts or not parts.keys() & {"msgstr", "msgstr[0]"}:
            missing = "msgstr" if "msgid" in parts else "msgid"
            raise DataError(f"{path}:{begun}: a damaged message catalog: a message without {missing}")
        translation = parts.get("msgstr") or parts.get("msgstr[0]") or []
        if not fuzzy:
            yield _unescaped(parts["msgid"]), _unescaped(translation)

    for number, raw in enumerate(io.BytesIO(content), 1):
        try:
            line = raw.decode(charset).strip()
        except ValueError as error:
            raise _damaged(f"{path}:{number}", _not_charset(error, charset)) from error
        if not line:
            continue
        if line.startswith("#"):
            if parts:
                yield from whole()
                parts, current, fuzzy = {}, "", False
            if line.startswith("#,"):
                fuzzy = fuzzy or "fuzzy" in (flag.strip() for flag in line[2:].split(","))
            elif line.startswith("#~"):
                fuzzy = False  # the flag of an obsolete message
            continue
        found = _LINE.match(line)
        keyword = found[1] if found else None
        if found is None or not (keyword or current):
            raise _damaged(f"{path}:{number}", f"expected a keyword and a text in quotes; got {shown(line[:80])}")
        if keyword == "msgctxt" or (keyword == "msgid" and "msgid" in parts):
            yield from whole()
            fuzzy = fuzzy and not parts
            parts = {}
        if keyword:
            if keyword in parts:
                raise _damaged(f"{path}:{number}", f"a second {keyword} of one message")
            begun = begun if parts else number
            current = keyword
        parts.setdefault(current, []).append(found[2])
    yield from whole()


def _unescaped(parts: list[str]) -> str:
    return _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), "".join(parts))


def _charset(path: Path, header: bytes) -> str:
    """The name of the character set that a catalog's header announces; UTF-8 where it announces none.

    Raises:
        DataError: it is none that is known.
    """
    found = _CHARSET.search(header)
    name = found[1].decode("ascii", "replace") if found else "utf-8"
    if name == "CHARSET":  # a template's
        return "utf-8"
    try:
        charset = codecs.lookup(name) if len(name) <= 40 else None
    except (LookupError, ValueError):
        charset = None
    if charset is None or charset.name.replace("_", "-") in _NO_CHARSETS or not _decodes(charset.name):
        raise _damaged(path, f"unknown character set {shown(name)}")
    return charset.name


def _decodes(name: str) -> bool:
    """Whether a codec gives texts."""
    try:
        return b"a".decode(name) == "a"
    except (LookupError, ValueError):
        return False


def _not_charset(error: ValueError, charset: str) -> str:
    if isinstance(error, UnicodeDecodeError) and charset == "utf-8":
        return not_utf8(error)
    return f"not {charset}: {shown(str(error))}"


def _damaged(where: Path | str, why: str) -> DataError:
    return DataError(f"{where}: a damaged message catalog: {why}")
