"""Text files as users have them: plain or compressed, with a byte order mark or without, refused by file and line."""

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from regard.errors import DataError, not_utf8

COMPRESSED = (".gz", ".bz2", ".xz", ".zip")
_UNREADABLE = {  # first bytes of formats that are refused by name
    b"\x28\xb5\x2f\xfd": "Zstandard data: decompress it first, for example with unzstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"PAR1": "a Parquet file: export its columns as .tsv or .jsonl first",
    b"Rar!": "a RAR archive: unpack it first",
}


def expand(name: str) -> Path:
    """A path with $NAME taken from the environment.

    Raises:
        DataError: the variable is not set.
    """
    full = os.path.expandvars(os.path.expanduser(name))
    missing = re.search(r"\$\{?(\w+)", full)
    if missing:
        raise DataError(
            f"{name}: the environment variable {missing[1]} is not set: set it to the folder that holds the data"
        )
    return Path(full)


def plain_name(path: Path) -> str:
    """The name that tells a text file's format: in lower case, without the ending of its compression.

    A .zip archive takes the name of the one file it holds.
    """
    name = path.name.lower()
    if name.endswith(".zip") and path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
        return members[0].lower() if len(members) == 1 else name.removesuffix(".zip")
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name


def read_bytes(path: Path) -> bytes:
    """The contents of a file; .gz, .bz2, .xz and a .zip of one file are decompressed.

    Raises:
        DataError: the file is missing, damaged, or an archive of several files.
    """
    try:
        raw = path.read_bytes()
        ending = path.suffix.lower()
        if ending == ".gz" or raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
        elif ending == ".bz2" or raw.startswith(b"BZh"):
            raw = bz2.decompress(raw)
        elif ending == ".xz" or raw.startswith(b"\xfd7zXZ\x00"):
            raw = lzma.decompress(raw)
        elif ending == ".zip" or raw.startswith(b"PK\x03\x04"):
            raw = _unzip(raw, path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    for begin, reason in _UNREADABLE.items():
        if raw.startswith(begin):
            raise DataError(f"{path}: {reason}")
    if raw[257:262] == b"ustar":
        raise DataError(f"{path}: a .tar archive: unpack it first")
    return raw


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; a line ends at \\n and nowhere else, and a byte order mark is dropped.

    Raises:
        DataError: as `read_bytes`; or the file is not UTF-8 (with the line's number).
    """
    return _decoded(read_bytes(path), path)


def stream_lines(path: Path) -> Iterator[str]:
    """The lines that `read_lines` gives, one at a time: the file is never in memory as a whole.

    Raises:
        DataError: as `read_lines`, when the line is reached.
    """
    number = 0
    try:
        with _opened(path) as file:
            for number, raw in enumerate(file, 1):
                line = raw.removesuffix(b"\n").removesuffix(b"\r")
                yield _utf8(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, f"{path}:{number}")
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{path}: no such file") from error
        raise DataError(f"{path}: cannot be read after line {number}: {error}") from error


def _opened(path: Path) -> io.BufferedIOBase:
    """A file, decompressed as it is read; what is refused by name, and archives, are read by `read_bytes`."""
    with path.open("rb") as file:
        begin = file.read(262)
    ending = path.suffix.lower()
    if ending == ".gz" or begin.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(path)
    if ending == ".bz2" or begin.startswith(b"BZh"):
        return bz2.BZ2File(path)
    if ending == ".xz" or begin.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(path)
    other = ending == ".zip" or begin.startswith(b"PK\x03\x04") or begin[257:262] == b"ustar"
    if other or any(begin.startswith(first) for first in _UNREADABLE):
        return io.BytesIO(read_bytes(path))
    return path.open("rb")


def read_text(path: Path) -> str:
    """The whole text of a file, \\r\\n as \\n, without a byte order mark.

    Raises:
        DataError: as `read_lines`.
    """
    raw = read_bytes(path)
    return "\n".join(_decoded(raw, path)) + ("\n" if raw.endswith(b"\n") else "")


def _decoded(raw: bytes, path: Path) -> list[str]:
    lines = split_lines(raw.removeprefix(codecs.BOM_UTF8))
    return [_utf8(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def split_lines(raw: bytes) -> list[bytes]:
    """Lines that end at \\n only; the last line may lack its \\n; \\r\\n loses its \\r."""
    lines = raw.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def share_of(name: str) -> float:
    """A number in [0, 1) that depends on `name` alone, for splits that stay the same when data are added."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _unzip(raw: bytes, path: Path) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = _members(archive)
        if len(members) != 1:
            raise DataError(
                f"{path}: an archive of {len(members)} files ({', '.join(members[:3])}): unpack it, and name the file"
            )
        try:
            return archive.read(members[0])
        except RuntimeError as error:  # zipfile's own error for encrypted members
            raise DataError(f"{path}: cannot be read: {error}") from error


def _members(archive: zipfile.ZipFile) -> list[str]:
    """The files of an archive, without those that macOS adds."""
    return [one.filename for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX")]


def _utf8(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: {not_utf8(error)}: convert the file first, for example with iconv -t utf-8"
        ) from error
