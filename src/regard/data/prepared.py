"""A parallel corpus, tokenized once into memory-mapped files beside the run.

    prepared/
      prepared.json   what it was made from, how many pairs, what was left out
      source.*  target.*  links.*      rows of ids (`regard.data.ragged`)
      sample.jsonl  dev.jsonl          pairs of sentences: for word alignment, and for development

Writing it can be interrupted and goes on at the last whole chunk.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regard.data.files import check_regular
from regard.data.pairs import Pairs
from regard.data.ragged import ENDS, VALUES, LinkRows, Ragged, RaggedWriter, TokenPairs
from regard.errors import DataError
from regard.storage import is_aside, naming, parse_json, remove, replace_folder, write_text

FOLDER, NOTE, STATE = "prepared", "prepared.json", "state.json"
SIDES = ("source", "target", "links")
TEXTS = ("sample.jsonl", "dev.jsonl")
ARRAYS = tuple(side + ending for side in SIDES for ending in (VALUES, ENDS))
SAMPLE = 100_000  # pairs kept as text

Ids = list[int]
Links = list[tuple[int, int]]


@dataclass(frozen=True)
class Chunk:
    """Some training pairs as ids.

    Attributes:
        source, target: ids of each pair.
        links: (target token, source token) links of each pair, for guided alignment.
        dropped: names of the pairs that were too long.
    """

    source: Sequence[Ids]
    target: Sequence[Ids]
    links: Sequence[Links] | None = None
    dropped: Sequence[str] = ()


@dataclass
class Note:
    """What is known of a prepared corpus.

    Attributes:
        key: digest of the files and settings that it was made from.
        pairs: number of training pairs.
        read: number of training pairs before augmentation.
        dropped: number of pairs that were too long.
        first_dropped: the first one's name.
        linked: whether there are links.
        texts: SHA-256 of the other files; those of token ids are missing in a folder of an earlier version, or all.
        tokenizer: digest of the tokenizer that the token ids are of; empty in a folder of an earlier version.
    """

    key: str
    pairs: int = 0
    read: int = 0
    dropped: int = 0
    first_dropped: str = ""
    linked: bool = False
    texts: dict[str, str] = field(default_factory=dict)
    tokenizer: str = ""


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus, opened.

    Attributes:
        pairs: token ids of the training pairs.
        links: of each pair, if there are any.
        sample: evenly spaced training pairs as text; all of a small corpus.
        dev: development pairs.
        note: what is known of it.
    """

    pairs: TokenPairs
    links: LinkRows | None
    sample: Pairs
    dev: Pairs
    note: Note


@dataclass
class Thinned:
    """At most twice `most` evenly spaced pairs of a stream of unknown length; all of a short one."""

    most: int
    pairs: list[tuple[str, str]] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    stride: int = 1
    seen: int = 0

    def add(self, pairs: Pairs) -> None:
        """Take some of the pairs of a chunk."""
        for n, pair in enumerate(pairs):
            if self.seen % self.stride == 0:
                self.pairs.append(pair)
                self.where.append(pairs.where[n] if pairs.where else "")
                if len(self.pairs) > 2 * self.most:
                    self.pairs, self.where, self.stride = self.pairs[::2], self.where[::2], 2 * self.stride
            self.seen += 1

    def taken(self) -> Pairs:
        """The pairs that were kept."""
        return Pairs.of(self.pairs, self.where)


def key_of(paths: Sequence[Path], settings: Sequence[Any]) -> str:
    """Digest of the contents of files and of settings.

    Raises:
        DataError: a file cannot be read, or is no regular file.
    """
    note = json.dumps(list(settings), default=str, ensure_ascii=False)
    total = hashlib.sha256(note.encode("utf-8", "surrogatepass"))  # names of files that are not UTF-8
    for path in paths:
        check_regular(path)
        try:
            total.update(bytes.fromhex(_digest(path)))
        except OSError as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
            raise DataError(f"{path}: {reason}") from error
    return total.hexdigest()


def prepared_in(folder: Path) -> Prepared | None:
    """The corpus that was prepared in a folder; None where there is none, or half of one.

    Raises:
        DataError: a file of it is damaged.
    """
    path = folder / NOTE
    if not path.exists():
        return None
    for file in folder.iterdir():
        check_regular(file)
    try:
        note = Note(**parse_json(path.read_text("utf-8")))
        texts = dict(note.texts)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}): remove {folder}, and prepare the data again") from error
    rows = {side: Ragged.open(folder / side) for side in SIDES[: 3 if note.linked else 2]}
    for side, some in rows.items():
        if len(some) != note.pairs:
            raise DataError(
                f"{folder / side}: {len(some):,} rows, and {NOTE} counts {note.pairs}: remove {folder}, and prepare "
                "the data again"
            )
    for name in ARRAYS:
        if name in texts and (not (folder / name).is_file() or _digest(folder / name) != texts[name]):
            raise DataError(
                f"{folder / name}: changed since it was written: remove {folder}, and prepare the data again"
            )
    sample, dev = (_read(folder / name, texts.get(name)) for name in TEXTS)
    links = LinkRows(rows["links"]) if note.linked else None
    return Prepared(TokenPairs(rows["source"], rows["target"]), links, sample, dev, note)


def write_prepared(
    folder: Path, key: str, sample: Pairs, dev: Pairs, read: int, chunks: Callable[[int], Iterator[Chunk]],
    progress: Callable[[int], None] = lambda _: None, tokenizer: str = "",
) -> Prepared:  # fmt: skip
    """Prepare a corpus in a folder.

    Args:
        folder: the prepared corpus's own; it appears when it is whole.
        key: digest of what it is made from; a half-made one of the same key is continued.
        sample, dev: pairs of sentences to keep as text.
        read: number of training pairs before augmentation.
        chunks: from a number to the chunks from that number on.
        progress: called with the number of pairs written so far.
        tokenizer: digest of the one that the chunks are made with; a half-made one of another is begun anew.
    """
    folder = _place(folder)
    aside = folder.with_name(folder.name + ".aside")
    state = _state(aside, key)
    if state is None or state["note"].get("tokenizer", "") != tokenizer:
        remove(aside)
        aside.mkdir(parents=True)
        state = {
            "key": key,
            "chunk": 0,
            "rows": 0,
            "values": [0, 0, 0],
            "note": asdict(Note(key, read=read, tokenizer=tokenizer)),
        }
    note = Note(**state["note"])
    with naming(folder, aside), ExitStack() as files:
        places = zip(SIDES, state["values"], strict=True)
        writers = [files.enter_context(RaggedWriter(aside / side, state["rows"], values)) for side, values in places]
        for number, chunk in enumerate(chunks(state["chunk"]), state["chunk"] + 1):
            if number > 1:  # a small corpus is one chunk
                progress(note.pairs)
            _append(writers, chunk, note)
            so_far = {"key": key, "chunk": number, "rows": writers[0].rows, "note": asdict(note)}
            write_text(aside / STATE, json.dumps(so_far | {"values": [writer.values for writer in writers]}))
    for name, pairs in zip(TEXTS, (sample.sample(SAMPLE), dev), strict=True):
        note.texts[name] = _save(aside / name, pairs)
    note.texts |= {name: _digest(aside / name) for name in ARRAYS}
    write_text(aside / NOTE, json.dumps(asdict(note), ensure_ascii=False))
    (aside / STATE).unlink(missing_ok=True)
    replace_folder(aside, folder)
    found = prepared_in(folder)
    assert found is not None  # it has just been written
    return found


def _place(folder: Path) -> Path:
    """Where a corpus is prepared: a link may lead to a larger disk, but to nothing that regard has not made.

    Raises:
        DataError: something else stands there, or where the half-made corpus would; the link leads to no folder.
    """
    named, linked = folder, folder.is_symlink()
    folder = Path(os.path.realpath(folder))
    if linked and not folder.is_dir():
        raise DataError(f"{named}: a link to no folder, but to {folder}: remove it")
    known = {NOTE, STATE, *TEXTS, *ARRAYS}
    for place in (folder, folder.with_name(folder.name + ".aside")):
        if not os.path.lexists(place) or (place.is_symlink() and not linked):  # a link in a run is replaced
            continue
        if place.is_symlink() or not place.is_dir():
            raise DataError(f"{place}: not made by regard, and in the place of a prepared corpus: move it away")
        names = sorted(one.name for one in place.iterdir())
        if others := [name for name in names if name not in known and not (is_aside(name) and name[1:-15] in known)]:
            raise DataError(f"{place}: not made by regard ({others[0]!r} is there): move it away, or the link to it")
    return folder


def _append(writers: Sequence[RaggedWriter], chunk: Chunk, note: Note) -> None:
    """Append a chunk to the files, and count it."""
    links = chunk.links or [[]] * len(chunk.source)
    rows = chunk.source, chunk.target, [[i for link in of for i in link] for of in links]
    for writer, some in zip(writers, rows, strict=True):
        writer.append(some)
        writer.flush()
    note.linked = chunk.links is not None
    note.pairs += len(chunk.source)
    note.dropped += len(chunk.dropped)
    note.first_dropped = note.first_dropped or next(iter(chunk.dropped), "")


def _state(aside: Path, key: str) -> dict[str, Any] | None:
    """How far a half-made corpus of this key is; None where it cannot be continued."""
    if (
        aside.is_symlink()
        or not aside.is_dir()
        or any(one.is_symlink() or not one.is_file() for one in aside.iterdir())
    ):
        return None  # its files are written to as they are
    try:
        state: dict[str, Any] = parse_json((aside / STATE).read_text("utf-8"))
        numbers = (state["chunk"], state["rows"], *state["values"])
        if state["key"] != key or not all(type(number) is int and number >= 0 for number in numbers):
            return None
        note = Note(**state["note"])
        if not all(type(number) is int for number in (note.pairs, note.dropped, note.read)):
            return None
        sizes = [RaggedWriter.sizes(aside / side) for side in SIDES]
        needed = [(values, state["rows"]) for values in state["values"]]
        lacks = [have < need for pair in zip(sizes, needed, strict=True) for have, need in zip(*pair, strict=True)]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return None if any(lacks) else state


def _digest(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save(path: Path, pairs: Pairs) -> str:
    """Write pairs of sentences; returns the file's digest."""
    where = pairs.where or [""] * len(pairs)
    rows = zip(pairs.source, pairs.target, where, strict=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path, digest: str | None) -> Pairs:
    """The pairs that `_save` wrote."""
    try:
        raw = path.read_bytes()
        if digest is not None and hashlib.sha256(raw).hexdigest() != digest:
            raise ValueError("changed since it was written")
        rows = [parse_json(line) for line in raw.decode("utf-8").split("\n") if line]
        return Pairs.of([(s, t) for s, t, _ in rows], [w for _, _, w in rows])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}): remove {path.parent}, and prepare the data again") from error
