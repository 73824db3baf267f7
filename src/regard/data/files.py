"""Text files as users have them: plain or compressed, with a byte order mark or without, refused by file and line."""

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regard.errors import BundleError, DataError, not_utf8

COMPRESSED = (".gz", ".bz2", ".xz", ".zip")
CHUNK = 2**16  # bytes that are decompressed at a time
SMALL = 2**26  # bytes of a file that is read as a whole: subtitles, a glossary
LONGEST_LINE = 2**26  # bytes: a file that unpacks to one endless line is refused before it fills the memory
# what the modules that unpack raise for a damaged file; zipfile lets those of its decoders through
DAMAGED = (OSError, EOFError, ValueError, ArithmeticError, RuntimeError, struct.error, zlib.error, lzma.LZMAError,
           zipfile.BadZipFile, tarfile.TarError)  # fmt: skip
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
    missing = next((one for one in re.findall(r"\$\{?(\w+)", name) if one not in os.environ), "")
    if missing:
        made = " (regard data --help lists what regard can fetch or make)" if missing == "REGARD_DATA" else ""
        raise DataError(
            f"{name}: the environment variable {missing} is not set: set it to the folder that holds the data{made}"
        )
    return Path(os.path.expandvars(os.path.expanduser(name)))


def plain_name(path: Path) -> str:
    """The name that tells a text file's format: in lower case, without the ending of its compression.

    A .zip archive takes the name of the one file it holds.
    """
    name = path.name.lower()
    if name.endswith(".zip") and path.is_file() and zipfile.is_zipfile(path):
        with unpacking(path), zipfile.ZipFile(path) as archive:
            members = _members(archive)
        return members[0].lower() if len(members) == 1 else name.removesuffix(".zip")
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The contents of a file; .gz, .bz2, .xz and a .zip of one file are decompressed.

    Args:
        path: a regular file, or a link to one.
        limit: bytes at most, decompressed; no more than these are unpacked.

    Raises:
        DataError: the file is missing, damaged, a pipe or a device, an archive of several files, or beyond the limit.
    """
    with unpacking(path), _opened(path) as file:
        raw: bytes = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(raw) > limit:
        raise DataError(f"{path}: expected at most {limit:,} bytes, unpacked; got more")
    _check_format(raw, path)
    return raw


def read_small(path: Path) -> bytes:
    """The contents of a file of at most `SMALL` bytes.

    Raises:
        DataError: as `read_bytes`.
    """
    return read_bytes(path, SMALL)


@contextmanager
def unpacking(path: Path | str, wrong: str = "cannot be read") -> Iterator[None]:
    """A block that reads a file, in which whatever is wrong with it is one sentence.

    Args:
        path: the file, or its name.
        wrong: what the sentence says.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except DAMAGED as error:
        raise DataError(f"{path}: {wrong}: {error}") from error


def check_regular(path: Path) -> int:
    """The bytes of a file; a pipe or a device is refused without being opened, since it may never end.

    Raises:
        DataError: it is missing, or is no regular file.
    """
    from regard.untrusted import file_size  # which imports torch; a command that is refused does not

    try:
        return file_size(path)
    except BundleError as error:
        raise DataError(str(error)) from error


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
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(raw) > LONGEST_LINE:
                    raise DataError(f"{path}:{number}: a line of more than {LONGEST_LINE:,} bytes")
                line = raw.removesuffix(b"\n").removesuffix(b"\r")
                yield _utf8(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, f"{path}:{number}")
    except DataError:
        raise
    except DAMAGED as error:
        raise DataError(f"{path}: cannot be read after line {number}: {error}") from error


def _opened(path: Path) -> io.BufferedIOBase:
    """A regular file, decompressed as it is read."""
    check_regular(path)
    with path.open("rb") as file:
        begin = file.read(262)
    _check_format(begin, path)
    ending = path.suffix.lower()
    if ending == ".gz" or begin.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(path)
    if ending == ".bz2" or begin.startswith(b"BZh"):
        return io.BufferedReader(_Streams(path, bz2.BZ2Decompressor))
    if ending == ".xz" or begin.startswith(b"\xfd7zXZ\x00"):
        return io.BufferedReader(_Streams(path, lzma.LZMADecompressor))
    if ending == ".zip" or begin.startswith(b"PK\x03\x04"):
        return _unzipped(path)
    return path.open("rb")


class _Streams(io.RawIOBase):
    """The contents of compressed streams that stand one behind the other.

    Python's own readers take a damaged one behind the first for the end of the file.
    """

    def __init__(self, path: Path, make: Callable[[], Any]) -> None:
        super().__init__()
        self._file, self._make, self._inner = path.open("rb"), make, make()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what comes next; 0 at the end.

        Raises:
            EOFError: the file is cut short.
        """
        while True:
            inner = self._inner
            raw = b""
            if inner.eof:
                raw = inner.unused_data.lstrip(b"\0")  # which may stand between streams of .xz
                while not raw and (chunk := self._file.read(CHUNK)):
                    raw = chunk.lstrip(b"\0")
                if not raw:
                    return 0
                inner = self._inner = self._make()
            elif inner.needs_input and not (raw := self._file.read(CHUNK)):
                raise EOFError("cut short")
            if data := inner.decompress(raw, len(buffer)):
                buffer[: len(data)] = data
                return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def read_text(path: Path, limit: int | None = None) -> str:
    """The whole text of a file, \\r\\n as \\n, without a byte order mark.

    Raises:
        DataError: as `read_lines`; it has more bytes than the limit.
    """
    return decode_text(read_bytes(path, limit), path)


def decode_text(raw: bytes, path: Path) -> str:
    """The whole text of a file's bytes, \\r\\n as \\n, without a byte order mark.

    Raises:
        DataError: it is not UTF-8; the line is named.
    """
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


def _check_format(begin: bytes, path: Path) -> None:
    """Refuse formats that hold texts in a way that is not read here, by what a file begins with."""
    for first, reason in _UNREADABLE.items():
        if begin.startswith(first):
            raise DataError(f"{path}: {reason}")
    if begin[257:262] == b"ustar":
        raise DataError(f"{path}: a .tar archive: unpack it first")


def _unzipped(path: Path) -> io.BufferedIOBase:
    """The one file of an archive; it keeps the archive open for as long as it is read."""
    with zipfile.ZipFile(path) as archive:
        members = _members(archive)
        if len(members) != 1:
            raise DataError(
                f"{path}: an archive of {len(members)} files ({', '.join(members[:3])}): unpack it, and name the file"
            )
        found: io.BufferedIOBase = archive.open(members[0])  # type: ignore[assignment]
        return found


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
