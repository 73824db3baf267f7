"""Public data sets where the configs look for them, from the file that their publisher offers.

The file may have been fetched by other means; `fetch` reads an address within bounds of size and time.
"""

import gzip
import io
import re
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from babel.core import get_global

from regard.data.files import check_regular, read_bytes, split_lines, unpacking
from regard.errors import DataError
from regard.storage import write_bytes
from regard.untrusted import named

LARGEST = 256 * 1024**2  # bytes of a file, fetched or unpacked
SILENCE = 30.0  # seconds without a byte
LONGEST = 1_800.0  # seconds of a whole download


@dataclass(frozen=True)
class Download:
    """A data set.

    Attributes:
        name: what `regard data` calls it.
        address: the publisher's file.
        file: where the configs look for it, in the folder that REGARD_DATA names; of several files, the first.
        licence: under which it may be used, and what it asks for.
        unit: what a line of it is.
        begins: the first words of the text.
    """

    name: str
    address: str
    file: str
    licence: str
    unit: str
    begins: str = field(default="", kw_only=True)

    def write(self, folder: Path, file: Path | None = None) -> tuple[Path, int]:
        """Write the data set, and its license beside it.

        Args:
            folder: what REGARD_DATA names.
            file: the publisher's file, if it is here already; it is fetched otherwise.

        Returns:
            The file written, and the number of its lines.

        Raises:
            DataError: it exists; it cannot be fetched or read; it is not the publisher's file.
        """
        path = folder / self.file
        if path.exists():
            raise DataError(f"{path} exists: remove it to make it anew")
        licence = path.parent / "LICENCE.txt"
        terms = f"{self.file}, made from {self.address}\n{self.licence}\n".encode()
        if licence.exists() and not (licence.is_file() and licence.read_bytes() == terms):
            raise DataError(f"{licence} exists, and says something else: move it away")
        source = str(file or self.address)
        raw = read_publisher(file) if file else fetch(self.address, f"regard data {self.name} FILE")
        files, count = self.packed(raw, source)
        for name, content in files.items():
            there = path.with_name(name)
            if there.exists() and not (there.is_file() and there.read_bytes() == content):
                raise DataError(f"{there} exists, and holds something else: move it away")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(licence, terms)  # first, and `path` last: once it is there, nothing is made anew
            for name in sorted(files, key=lambda name: name == path.name):
                write_bytes(path.with_name(name), files[name])
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error}") from error
        return path, count

    def packed(self, raw: bytes, source: str) -> tuple[dict[str, bytes], int]:
        """The files to write, by name, and how many of the unit they hold."""
        lines = list(self.lines(raw, source))
        packed = gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)
        return {Path(self.file).name: packed}, len(lines)

    def lines(self, raw: bytes, source: str) -> Iterator[str]:
        """The lines to write, from the publisher's bytes."""
        text = _text(raw, source)
        if len(text) < 100 or not text.startswith(self.begins):
            begun = f", which begins with {self.begins!r}" if self.begins else ""
            raise DataError(f"{source}: {len(text)} characters: that is not the text of {self.address}{begun}")
        yield from text.removesuffix("\n").split("\n")


class PairsDownload(Download):
    """Sentence pairs as manythings.org/anki packs them: English, tab, the other language, tab, attribution."""

    def lines(self, raw: bytes, source: str) -> Iterator[str]:
        """English, tab, the other language.

        Raises:
            DataError: a line has no second column.
        """
        for number, line in enumerate(_text(raw, source).removesuffix("\n").split("\n"), 1):
            cells = line.removesuffix("\r").split("\t")
            if len(cells) < 2 or not all(map(str.strip, cells[:2])):
                raise DataError(f"{source}:{number}: expected English, tab, the other language; got {line[:60]!r}")
            yield "\t".join(cells[:2])


@dataclass(frozen=True)
class MembersDownload(Download):
    """Some members of a repository's .zip.

    Attributes:
        members: a regular expression; its first group is the name under which a member is kept.
    """

    members: str

    def found(self, raw: bytes, source: str) -> Iterator[tuple[str, bytes]]:
        """Names and contents of the members.

        Raises:
            DataError: a damaged archive, two members of one name, or more than the bound.
        """
        size, seen = 0, set()
        with _unzipped(raw, source) as archive:
            for one in archive.infolist():
                match = re.fullmatch(self.members, one.filename)
                if match is None or one.is_dir():
                    continue
                if match[1] in seen:
                    raise DataError(f"{source}: two files {named(match[1])}: that is not the publisher's archive")
                seen.add(match[1])
                with archive.open(one) as member:
                    content = member.read(LARGEST - size + 1)
                size += len(content)
                if size > LARGEST:
                    raise DataError(f"{source}: unpacks to more than {LARGEST:,} bytes")
                yield match[1], content


class RecordingsDownload(MembersDownload):
    """Recordings, packed as a .tar."""

    def packed(self, raw: bytes, source: str) -> tuple[dict[str, bytes], int]:
        """A .tar of the members, and the number of recordings.

        Raises:
            DataError: a damaged archive, one without recordings, or more than the bound.
        """
        made, count = io.BytesIO(), 0
        with tarfile.open(fileobj=made, mode="w") as tar:
            for name, content in self.found(raw, source):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
                count += name.lower().endswith((".wav", ".flac", ".sph"))
        if not count:
            raise DataError(f"{source}: holds none of the recordings of {self.address}")
        return {Path(self.file).name: made.getvalue()}, count


@dataclass(frozen=True)
class TextsDownload(MembersDownload):
    """Parallel texts, a gzip file for each part and language.

    Attributes:
        texts: names of those that are always there.
    """

    texts: tuple[str, ...]

    def packed(self, raw: bytes, source: str) -> tuple[dict[str, bytes], int]:
        """The members, gzipped where they are not, and the number of lines of `file`.

        Raises:
            DataError: a damaged archive, one without a text or with parts of unequal length, or more than the bound.
        """
        files = {}
        for name, content in self.found(raw, source):
            gzipped = name.endswith(".gz")
            files[name if gzipped else f"{name}.gz"] = content if gzipped else gzip.compress(content, mtime=0)
        first = Path(self.file).name
        if first not in files:
            raise DataError(f"{source}: holds none of the texts of {self.address}")
        counts = {name: _lines_of(content, f"{source}: {name}") for name, content in files.items()}
        of_part: dict[str, str] = {}  # one file of each part: train, val, …
        for name, count in counts.items():
            other = of_part.setdefault(name.split(".")[0], name)
            if count != counts[other]:
                raise DataError(
                    f"{source}: {other} has {counts[other]:,} lines and {name} has {count:,}: parallel texts need a "
                    "line for a line"
                )
        if not counts[first]:
            raise DataError(f"{source}: {first} is empty: that is not the publisher's archive")
        if missing := [name for name in self.texts if name not in files]:
            raise DataError(f"{source}: {missing[0]} is missing: that is not the publisher's archive")
        return files, counts[first]


def _lines_of(content: bytes, where: str) -> int:
    """The number of lines of a gzipped text."""
    with unpacking(where), gzip.open(io.BytesIO(content)) as text:
        raw = text.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise DataError(f"{where}: unpacks to more than {LARGEST:,} bytes")
    return len(split_lines(raw))


def fsdd() -> Download:
    """The Free Spoken Digit Dataset: 3,000 recordings of six speakers."""
    return RecordingsDownload(
        "fsdd",
        "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.zip",
        "fsdd/fsdd.tar",
        "CC BY-SA 4.0: attribute the Free Spoken Digit Dataset (Jackson et al. 2018).",
        "recordings",
        r"[^/]+/recordings/(\d_\w+_\d+\.wav)",
    )


def an4() -> Download:
    """The training half of CMU's AN4: 948 recordings of 74 speakers."""
    return RecordingsDownload(
        "an4",
        "https://github.com/cmusphinx/an4/archive/refs/heads/master.zip",
        "an4/an4-train.tar",
        "Free for any use under the terms of the repository's LICENSE (Carnegie Mellon University 1991-2005).",
        "recordings",
        r"[^/]+/(etc/an4_train\.(?:transcription|fileids)|etc/an4\.dic|wav/an4_clstk/\w+/[\w-]+\.(?:wav|sph|flac))",
    )


def multi30k() -> Download:
    """Multi30k: captions of photographs, 29,000 for training, in English, German and French."""
    return TextsDownload(
        "multi30k",
        "https://github.com/multi30k/dataset/archive/refs/heads/master.zip",
        "multi30k/train.en.gz",
        "For research, not for commerce: cite Elliott et al. 2016 (German), Elliott et al. 2017 (French).",
        "captions in each of en, de, fr",
        r"[^/]+/data/task1/(?:raw|tok)/((?:train|val|test_2016_flickr)\.(?:en|de|fr)\.gz"
        r"|test_2016_flickr\.lc\.norm\.tok\.(?:en|de))",
        tuple(f"{part}.{lang}.gz" for part in ("train", "val", "test_2016_flickr") for lang in ("en", "de", "fr")),
    )


def tatoeba(languages: str = "fra-eng") -> Download:
    """Sentence pairs of Tatoeba, by way of manythings.org/anki.

    Args:
        languages: the publisher's name, such as "fra-eng": a language in three letters, then English.

    Raises:
        DataError: another kind of name.
    """
    first, _, second = languages.partition("-")
    if second != "eng" or len(first) != 3 or not (first.isascii() and first.isalpha() and first.islower()):
        raise DataError(f"{languages!r}: expected a language's three letters and -eng, such as fra-eng or deu-eng")
    other = get_global("language_aliases").get(first, first)
    return PairsDownload(
        "tatoeba", f"https://www.manythings.org/anki/{languages}.zip",
        f"tatoeba-{languages}/pairs.en-{other}.tsv.gz",
        "CC BY 2.0 (FR): attribute tatoeba.org and its authors; the publisher's file names them line by line.",
        "pairs",
    )  # fmt: skip


def shakespeare() -> Download:
    """Tiny Shakespeare: 40,000 lines of the plays."""
    return Download(
        "shakespeare",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "tinyshakespeare/input.txt.gz",
        "The plays are in the public domain; the selection is Andrej Karpathy's (char-rnn, MIT).",
        "lines",
        begins="First Citizen:",
    )


def fetch(address: str, instead: str) -> bytes:
    """The bytes at an address of the web.

    Args:
        address: http or https.
        instead: the command that takes the file, for the error's sentence.

    Raises:
        DataError: another scheme; no answer, not the file, or more than the bounds allow.
    """
    if not address.startswith(("http://", "https://")):
        raise DataError(f"{address}: expected an http or https address")
    parts: list[bytes] = []
    ends: list[Exception | None] = []

    def work() -> None:
        try:
            parts.extend(_received(address))
            ends.append(None)
        except (URLError, OSError, EOFError, HTTPException, ValueError) as error:
            if isinstance(error, HTTPError):
                error.close()  # it is the answer, too
            ends.append(error)

    # in a thread that may be left behind: SILENCE ends a silent server, but not one that sends headers without end
    thread = threading.Thread(target=work, name="download", daemon=True)
    thread.start()
    thread.join(LONGEST)
    error = ends[0] if ends else TimeoutError(f"not there after {LONGEST:g} seconds")
    if error is not None:
        why = " ".join(str(error).split())
        raise DataError(f"{address} cannot be fetched ({why}): download it another way, then run {instead}") from error
    return b"".join(parts)


def _received(address: str) -> Iterator[bytes]:
    """The bytes of an answer as they come.

    Raises:
        EOFError: more than the bound, or less than was promised.
    """
    opener = OpenerDirector()  # not urllib's own, whose redirects may lead to ftp
    for handler in (
        ProxyHandler, HTTPHandler, HTTPSHandler, HTTPDefaultErrorHandler, SameSchemeRedirects, HTTPErrorProcessor,
        UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    size, begun = 0, time.monotonic()
    with opener.open(Request(address, headers={"User-Agent": "regard"}), timeout=SILENCE) as answer:
        while part := answer.read1(1 << 16):
            size += len(part)
            if size > LARGEST or time.monotonic() - begun > LONGEST:
                raise EOFError(f"more than {LARGEST:,} bytes or {LONGEST:g} seconds: stopped")
            yield part
        promised = int(answer.headers.get("Content-Length") or size)
    if size < promised:
        raise EOFError(f"the connection ended after {size:,} of {promised:,} bytes")


class SameSchemeRedirects(HTTPRedirectHandler):
    """Follows redirects from http to http or https, and from https to https."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        """The request that follows.

        Raises:
            URLError: another scheme.
        """
        if not newurl.startswith(("https://", f"{req.type}://")):
            fp.close()
            raise URLError(f"it redirects to {newurl[:200]}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def read_publisher(file: Path) -> bytes:
    """The bytes of a file that is here: an archive as it is, anything else unpacked.

    Raises:
        DataError: it is missing, no regular file, damaged, or larger than the bound, as it is or unpacked.
    """
    if check_regular(file) > LARGEST:
        raise DataError(f"{file}: more than {LARGEST:,} bytes: that is not the publisher's file")
    with unpacking(file):
        if zipfile.is_zipfile(file):
            return file.read_bytes()
    return read_bytes(file, LARGEST)


@contextmanager
def _unzipped(raw: bytes, source: str) -> Iterator[zipfile.ZipFile]:
    """The archive; what is wrong with it is one sentence."""
    with unpacking(source, "a damaged archive"), zipfile.ZipFile(io.BytesIO(raw)) as archive:
        yield archive


def _text(raw: bytes, source: str) -> str:
    """The text of the bytes, or of the one .txt file in an archive that does not begin with _."""
    if raw.startswith(b"PK\x03\x04"):
        with _unzipped(raw, source) as archive:
            members = [one for one in archive.infolist() if one.filename.endswith(".txt") and one.filename[0] != "_"]
            if len(members) != 1:
                raise DataError(f"{source}: expected one .txt file beside those with _, found {len(members)}")
            with archive.open(members[0]) as member:
                raw = member.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise DataError(f"{source}: unpacks to more than {LARGEST:,} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 at byte {error.start:,}: that is not the publisher's file") from error
