"""Parallel text: reading it, refusing what is crooked by file and line, and splitting it."""

import codecs
import gzip
import hashlib
import json
import os
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from regard.data.align import Link, phrase_links, phrases
from regard.errors import DataError


class DataConfig(BaseModel):
    """Where the pairs are and what is done with them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    train: str | tuple[str, str]
    """A .tsv or .jsonl file of pairs, or two parallel text files [source, target]; each may end in .gz.

    $NAME is taken from the environment."""
    dev: str | tuple[str, str] | None = None
    """Development pairs; taken from `train` by `dev_share` unless given."""
    source: int | str = 0
    """The source's column in a TSV file (from 0), or its key in a JSONL file."""
    target: int | str = 1
    """The target's column, or key."""
    split_by: Literal["source", "target"] = "source"
    """Pairs that share this side stay on one side of the split."""
    dev_share: float = Field(0.015, ge=0, lt=1)
    """Share of the sentences that become development data."""
    test_share: float = Field(0.0, ge=0, lt=1)
    """Share of the sentences kept apart for one last test."""
    on_empty: Literal["skip", "error"] = "error"
    """What to do with a pair of which a side is empty."""
    fragments: float = Field(0.0, ge=0, le=1)
    """Share of the training pairs shown again without final full stop and initial capital, as people type."""
    loose_spacing: float = Field(0.0, ge=0, le=1)
    """Share of the training sources whose narrow spaces before ? ! : ; become plain ones or vanish."""
    phrases: float = Field(0.0, ge=0)
    """How many phrases that translate word by word are shown on their own, per training pair on average, at most."""
    turned: bool = False
    """Show phrases whose words change their order ("chat noir", "black cat") rather than others of the same pair."""
    crossed: int = Field(0, ge=0)
    """How many times every phrase whose words change their order is shown besides, in small letters, once for all
    the pairs it stands in: a rare adjective is seen before or after its noun as often as a frequent one."""
    longest: int = Field(100, gt=0)
    """Training pairs with more tokens than this on a side are left out, and counted."""


@dataclass(frozen=True)
class Pairs:
    """Parallel sentences."""

    source: list[str]
    target: list[str]

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(zip(self.source, self.target, strict=True))

    def sample(self, count: int) -> "Pairs":
        """At most `count` pairs, evenly spaced: corpora are often sorted by length."""
        positions = [n * len(self) // count for n in range(count)] if len(self) > count else range(len(self))
        return Pairs([self.source[n] for n in positions], [self.target[n] for n in positions])

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> "Pairs":
        """Pairs from (source, target) tuples."""
        both = list(pairs)
        return cls([s for s, _ in both], [t for _, t in both])


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, plain or .gz; a line ends at \\n and nowhere else. A byte order mark is no text.

    Raises:
        DataError: the file is missing, damaged, or not UTF-8 (with the line's number).
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    lines = split_lines(raw.removeprefix(codecs.BOM_UTF8))
    return [_utf8(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def split_lines(raw: bytes) -> list[bytes]:
    """Lines that end at \\n only; a last line without one counts, an end after it does not; \\r\\n loses its \\r."""
    lines = raw.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def _utf8(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start}): convert the file first, "
            "for example with iconv -t utf-8"
        ) from error


def read_pairs(where: str | tuple[str, str], config: DataConfig) -> Pairs:
    """Pairs from two parallel files, a TSV or a JSONL file.

    Raises:
        DataError: sides of different length, a bad line, or an empty side under on_empty = "error"; with file:line.
    """
    if isinstance(where, tuple):
        paths = [expand(name) for name in where]
        sides = [read_lines(path) for path in paths]
        if len(sides[0]) != len(sides[1]):
            raise DataError(
                f"{paths[0]} has {len(sides[0])} lines and {paths[1]} has {len(sides[1])}: "
                f"line {min(map(len, sides)) + 1} has no partner; parallel files need a line for a line"
            )
        pairs = list(zip(*sides, strict=True))
        names = [f"{paths[0]}:{n}" for n in range(1, len(pairs) + 1)]
    else:
        path = expand(where)
        lines = read_lines(path)
        names = [f"{path}:{n}" for n in range(1, len(lines) + 1)]
        parse = _from_json if ".jsonl" in path.suffixes[-2:] else _from_tsv
        pairs = [parse(line, config, name) for line, name in zip(lines, names, strict=True)]
    return Pairs.of(_without_empty(pairs, names, config.on_empty))


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


def _from_tsv(line: str, config: DataConfig, where: str) -> tuple[str, str]:
    columns = line.split("\t")
    indices = [config.source, config.target]
    if any(not isinstance(i, int) for i in indices):
        raise DataError(
            f"{where}: a TSV file has columns by number; got source = {indices[0]!r}, target = {indices[1]!r}"
        )
    wanted = max(int(i) for i in indices)
    if len(columns) <= wanted:
        raise DataError(f"{where}: expected at least {wanted + 1} columns divided by tabs; got {len(columns)}")
    return columns[int(config.source)], columns[int(config.target)]


def _from_json(line: str, config: DataConfig, where: str) -> tuple[str, str]:
    keys = ["source" if config.source == 0 else config.source, "target" if config.target == 1 else config.target]
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not a JSON object: {error}") from error
    if not isinstance(record, dict) or any(not isinstance(record.get(key), str) for key in keys):
        raise DataError(f"{where}: expected a JSON object with strings under {keys[0]!r} and {keys[1]!r}")
    pair = record[keys[0]], record[keys[1]]
    if any("\ud800" <= letter <= "\udfff" for side in pair for letter in side):
        raise DataError(f"{where}: half a surrogate pair (\\ud800 to \\udfff) is no character")
    return pair


def _without_empty(pairs: list[tuple[str, str]], names: list[str], on_empty: str) -> Iterator[tuple[str, str]]:
    for pair, name in zip(pairs, names, strict=True):
        if all(side.strip() for side in pair):
            yield pair
        elif on_empty == "error":
            side = "source" if not pair[0].strip() else "target"
            raise DataError(f'{name}: the {side} is empty: remove the pair, or set on_empty = "skip"')


def split(pairs: Pairs, config: DataConfig) -> tuple[Pairs, Pairs, Pairs]:
    """Training, development and test pairs; a sentence's place depends on nothing but the sentence itself."""
    parts: tuple[list[tuple[str, str]], ...] = ([], [], [])
    for source, target in pairs:
        own = place(source if config.split_by == "source" else target)
        part = 1 if own < config.dev_share else 2 if own < config.dev_share + config.test_share else 0
        parts[part].append((source, target))
    train, dev, test = (Pairs.of(part) for part in parts)
    return train, dev, test


def place(sentence: str) -> float:
    """A number in [0, 1) that is the sentence's own."""
    return int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8], "big") / 2**64


def augment(pairs: Pairs, config: DataConfig, seed: int) -> Pairs:
    """Training pairs as people type them too: fragments without full stop and capital, phrases, loose spacing.

    A first word loses its capital only if the training text writes it small more often than not
    inside sentences, so that I, Tom and Paris keep theirs.
    """
    dice = random.Random(seed)
    usual = [_usual_case(side) for side in (pairs.source, pairs.target)]
    aligned = config.phrases or config.crossed
    links = phrase_links(list(pairs)) if aligned else [set()] * len(pairs)
    result = []
    for (source, target), known in zip(pairs, links, strict=True):
        shown = [(source, target)]
        if dice.random() < config.fragments:
            shown.append((source, target))
        wanted = int(config.phrases + dice.random())
        found = phrases(source.split(), target.split(), known, turned=config.turned) if wanted else []
        shown += dice.sample(found, min(wanted, len(found)))
        shown[1:] = [(_fragment(s, usual[0]), _fragment(t, usual[1])) for s, t in shown[1:]]
        for s, t in shown:
            loose = dice.random() < config.loose_spacing
            result.append((re.sub("[\u00a0\u202f](?=[?!:;»])", dice.choice(["", " "]), s) if loose else s, t))
    return Pairs.of(result + _crossed(pairs, links) * config.crossed)


def _crossed(pairs: Pairs, links: Sequence[set[Link]]) -> list[tuple[str, str]]:
    """Every phrase whose words change their order, in small letters, each once."""
    found = {
        (here.lower(), there.lower())
        for (source, target), known in zip(pairs, links, strict=True)
        for here, there in phrases(source.split(), target.split(), known, crossed=True)
    }
    return sorted(found)


def _usual_case(sentences: list[str]) -> Counter[str]:
    """How often each word stands inside sentences, not at their start."""
    return Counter(word for sentence in sentences for word in re.findall(r"\w+", sentence)[1:])


def _fragment(sentence: str, usual: Counter[str]) -> str:
    if sentence.strip(".,").strip() and not sentence.endswith(".."):
        sentence = sentence.removesuffix(",").removesuffix(".")
    first = re.match(r"\w+", sentence)
    if first and usual[first[0].lower()] > usual[first[0]]:
        return sentence[0].lower() + sentence[1:]
    return sentence
