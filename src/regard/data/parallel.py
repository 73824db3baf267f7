"""Parallel text: reading, refusing malformed lines by file and line, splitting, augmenting."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from regard.data.align import Link, phrase_links, phrases
from regard.data.files import expand, plain_name, read_lines, share_of
from regard.errors import DataError


class DataConfig(BaseModel):
    """Settings of parallel text: files, split, augmentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    train: str | tuple[str, str]
    """A .tsv or .jsonl file of pairs, or two parallel text files [source, target]; each may be compressed (.gz, .zip).

    $NAME is taken from the environment."""
    dev: str | tuple[str, str] | None = None
    """Development pairs; taken from `train` by `dev_share` unless given."""
    source: int | str = 0
    """The source's column in a TSV file (from 0), or its key in a JSONL file."""
    target: int | str = 1
    """The target's column, or key."""
    split_by: Literal["source", "target"] = "source"
    """Pairs with the same sentence on this side go to the same part of the split."""
    dev_share: float = Field(0.015, ge=0, lt=1)
    """Share of the sentences that become development data."""
    test_share: float = Field(0.0, ge=0, lt=1)
    """Share of the sentences held out for a final test."""
    on_empty: Literal["skip", "error"] = "error"
    """Treatment of a pair with an empty side."""
    fragments: float = Field(0.0, ge=0, le=1)
    """Share of the training pairs that are repeated without final full stop and initial capital, as users type."""
    loose_spacing: float = Field(0.0, ge=0, le=1)
    """Share of the training sources whose no-break spaces before ? ! : ; are replaced by a space or removed."""
    phrases: float = Field(0.0, ge=0)
    """Average number of phrases per training pair that are added as pairs of their own: phrases whose words are aligned
    one to one."""
    turned: bool = False
    """Prefer phrases whose words change their order ("chat noir", "black cat")."""
    crossed: int = Field(0, ge=0)
    """Number of copies of every distinct phrase whose words change their order, in lower case: a rare adjective is
    then reordered as often in training as a frequent one."""
    longest: int = Field(100, gt=0)
    """Training pairs with more tokens than this on either side are left out, and their number is reported."""


@dataclass(frozen=True)
class Pairs:
    """Parallel sentences.

    Attributes:
        source, target: the sentences.
        where: file and line of each pair, for messages; empty where the pairs were not read from files.
    """

    source: list[str]
    target: list[str]
    where: list[str] = field(default_factory=list, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(zip(self.source, self.target, strict=True))

    def sample(self, count: int) -> "Pairs":
        """At most `count` pairs, evenly spaced: corpora are often sorted by length."""
        return self.at([n * len(self) // count for n in range(count)]) if len(self) > count else self

    def at(self, positions: Sequence[int]) -> "Pairs":
        """The pairs at these positions."""
        where = [self.where[n] for n in positions] if self.where else []
        return Pairs([self.source[n] for n in positions], [self.target[n] for n in positions], where)

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]], where: Iterable[str] = ()) -> "Pairs":
        """Pairs from (source, target) tuples."""
        both = list(pairs)
        return cls([s for s, _ in both], [t for _, t in both], list(where))


def read_pairs(where: str | tuple[str, str], config: DataConfig) -> Pairs:
    """Pairs from two parallel files, a TSV or a JSONL file. Blank lines at the end of a file are ignored.

    Raises:
        DataError: sides of different length, a malformed line, or an empty side under on_empty = "error"; with file
            and line.
    """
    if isinstance(where, tuple):
        paths = [expand(name) for name in where]
        sides = [read_lines(path) for path in paths]
        _drop_blank_end(*sides)
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
        _drop_blank_end(lines)
        names = [f"{path}:{n}" for n in range(1, len(lines) + 1)]
        parse = _from_json if plain_name(path).endswith(".jsonl") else _from_tsv
        pairs = [
            parse(line, config, name) if line.strip() else ("", "") for line, name in zip(lines, names, strict=True)
        ]
    kept = list(_filled(pairs, names, config.on_empty))
    return Pairs.of([pairs[n] for n in kept], [names[n] for n in kept])


def _drop_blank_end(*sides: list[str]) -> None:
    """Remove blank lines from the end of parallel sides: those that all sides have, and those without a partner."""
    while any(sides):
        longest = max(map(len, sides))
        ends = [side for side in sides if len(side) == longest]
        if any(side[-1].strip() for side in ends):
            return
        for side in ends:
            side.pop()


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


def _filled(pairs: list[tuple[str, str]], names: list[str], on_empty: str) -> Iterator[int]:
    """The indices of pairs without an empty side."""
    for number, pair in enumerate(pairs):
        if all(side.strip() for side in pair):
            yield number
        elif on_empty == "error":
            side = "source" if not pair[0].strip() else "target"
            raise DataError(f'{names[number]}: the {side} is empty: remove the pair, or set on_empty = "skip"')


def split(pairs: Pairs, config: DataConfig) -> tuple[Pairs, Pairs, Pairs]:
    """Training, development and test pairs; the part of a pair depends on its sentence (`split_by`) alone."""
    parts: tuple[list[int], ...] = ([], [], [])
    for number, sentence in enumerate(pairs.source if config.split_by == "source" else pairs.target):
        own = share_of(sentence)
        parts[1 if own < config.dev_share else 2 if own < config.dev_share + config.test_share else 0].append(number)
    train, dev, test = map(pairs.at, parts)
    return train, dev, test


def augment(pairs: Pairs, config: DataConfig, seed: int) -> Pairs:
    """Training pairs, and variants of them as users type: fragments without full stop and capital, phrases, loose
    spacing.

    A first word is put in lower case only if it occurs in lower case more often than not inside the training
    sentences, so that I, Tom and Paris keep their capital.
    """
    dice = random.Random(seed)
    usual = [_usual_case(side) for side in (pairs.source, pairs.target)]
    aligned = config.phrases or config.crossed
    links = phrase_links(list(pairs)) if aligned else [set()] * len(pairs)
    result: list[tuple[str, str]] = []
    where: list[str] = []
    for number, ((source, target), known) in enumerate(zip(pairs, links, strict=True)):
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
            where.append(pairs.where[number] if pairs.where else "")
    crossed = _crossed(pairs, links) * config.crossed
    return Pairs.of(result + crossed, where + [""] * len(crossed))


def _crossed(pairs: Pairs, links: Sequence[set[Link]]) -> list[tuple[str, str]]:
    """Every phrase whose words change their order, in lower case, each once."""
    found = {
        (here.lower(), there.lower())
        for (source, target), known in zip(pairs, links, strict=True)
        for here, there in phrases(source.split(), target.split(), known, crossed=True)
    }
    return sorted(found)


def _usual_case(sentences: list[str]) -> Counter[str]:
    """Counts of words inside sentences, their first words left out."""
    return Counter(word for sentence in sentences for word in re.findall(r"\w+", sentence)[1:])


def _fragment(sentence: str, usual: Counter[str]) -> str:
    if sentence.strip(".,").strip() and not sentence.endswith(".."):
        sentence = sentence.removesuffix(",").removesuffix(".")
    first = re.match(r"\w+", sentence)
    if first and usual[first[0].lower()] > usual[first[0]]:
        return sentence[0].lower() + sentence[1:]
    return sentence
