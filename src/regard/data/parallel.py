"""Parallel text: reading, refusing malformed lines by file and line, mixing, splitting."""

import json
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from regard.data.augment import AugmentConfig
from regard.data.files import expand, plain_name, read_lines, share_of
from regard.data.pairs import Pairs
from regard.errors import DataError


class Corpus(BaseModel):
    """One corpus of a mixture: `{path = "…", weight = 0.5}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str | tuple[str, str]
    """A file of pairs, or two parallel text files [source, target]."""
    weight: float = Field(1.0, gt=0)
    """Number of times that each pair is shown in an epoch; of a fraction, the share of the pairs that are shown."""
    source: int | str | None = None
    """The source's column or key; data.source unless set."""
    target: int | str | None = None
    """The target's column or key; data.target unless set."""
    held_out: bool = True
    """Whether dev_share and test_share take development and test pairs from it. A pair whose sentence belongs to either
    is no training pair in any case."""


class DataConfig(AugmentConfig):
    """Settings of parallel text: files, split, augmentation."""

    train: str | tuple[str, str] | Annotated[tuple[Corpus, ...], Field(min_length=1)]
    """A .tsv or .jsonl file of pairs, two parallel text files [source, target], or a mixture: a list of tables of path
    and weight. Each file may be compressed (.gz, .zip), and $NAME is taken from the environment."""
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
    longest: int = Field(100, gt=0)
    """Training pairs with more tokens than this on either side are left out, and their number is reported."""


def read_parts(config: DataConfig) -> tuple[Pairs, Pairs, Pairs]:
    """Training, development and test pairs of all corpora of `config.train`, each pair as often as its weight says.

    Raises:
        DataError: as `read_pairs`.
    """
    mixture = config.train
    if not (isinstance(mixture, tuple) and mixture and isinstance(mixture[0], Corpus)):
        return split(read_pairs(mixture, config), config)  # type: ignore[arg-type]
    parts: tuple[list[Pairs], ...] = ([], [], [])
    for corpus in mixture:
        assert isinstance(corpus, Corpus)
        own = {name: value for name in ("source", "target") if (value := getattr(corpus, name)) is not None}
        train, dev, test = split(read_pairs(corpus.path, config.model_copy(update=own)), config)
        parts[0].append(repeated(train, corpus.weight))
        if corpus.held_out:
            parts[1].append(dev)
            parts[2].append(test)
    train, dev, test = map(Pairs.together, parts)
    return train, dev, test


def repeated(pairs: Pairs, weight: float) -> Pairs:
    """Every pair `weight` times; of a fraction, as many evenly spaced pairs as it says."""
    whole = int(weight)
    some = pairs.sample(round((weight - whole) * len(pairs)))
    return Pairs.together([*[pairs] * whole, some])


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
