"""Parallel text: reading, refusing malformed lines by file and line, mixing, splitting."""

import csv
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from regard.data.arrow import stream_table
from regard.data.augment import AugmentConfig
from regard.data.files import expand, plain_name, share_of, stream_lines
from regard.data.pairs import Pairs
from regard.errors import DataError
from regard.storage import parse_json

CHUNK = 200_000  # pairs that are read, augmented and tokenized at a time


class Corpus(BaseModel):
    """One corpus of a mixture: `{path = "…", weight = 0.5}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str | tuple[str, str]
    """A file of pairs, or two parallel text files [source, target]."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
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
    """A .tsv, .csv, .jsonl, .arrow or .parquet file of pairs, two parallel text files [source, target], or a mixture: a
    list of tables of path and weight. A name may be a pattern (`part-*.tsv`), a text file compressed (.gz, .bz2, .xz,
    .zip); $NAME is taken from the environment."""
    dev: str | tuple[str, str] | None = None
    """Development pairs; taken from `train` by `dev_share` unless given."""
    test: str | tuple[str, str] | None = None
    """Test pairs, which training never reads; taken from `train` by `test_share` unless given."""
    dev_sets: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], str | tuple[str, str]] = Field({})
    """Further development pairs, by name, which are measured too but do not choose the best model: {name = "…"} gives
    `dev_name_loss`, `dev_name_bleu` and so on in the journal."""
    source: int | str = 0
    """The source's column in a TSV or CSV file (from 0), its name in the first line of a CSV file, or its key in a
    JSONL file."""
    target: int | str = 1
    """The target's column, or key."""
    split_by: Literal["source", "target"] = "source"
    """Pairs with the same sentence on this side go to the same part of the split."""
    dev_share: float = Field(0.015, ge=0, lt=1)
    """Share of the sentences that become development data."""
    test_share: float = Field(0.0, ge=0, lt=1)
    """Share of the sentences held out for a final test."""
    on_empty: Literal["skip", "error"] = "error"
    """What happens to a pair with an empty side."""
    longest: int = Field(100, gt=0)
    """Training pairs with more tokens than this on either side are left out, and their number is reported."""


def read_parts(config: DataConfig) -> tuple[Pairs, Pairs, Pairs]:
    """Training, development and test pairs of all corpora of `config.train`, each pair as often as its weight says.

    Raises:
        DataError: as `read_pairs`.
    """
    parts: tuple[list[Pairs], ...] = ([], [], [])
    for chunk in stream_parts(config):
        for part, pairs in zip(parts, chunk, strict=True):
            part.append(pairs)
    train, dev, test = map(Pairs.together, parts)
    return train, dev, test


def stream_parts(config: DataConfig) -> Iterator[tuple[Pairs, Pairs, Pairs]]:
    """What `read_parts` gives, in chunks of at most `CHUNK` lines.

    Raises:
        DataError: as `read_pairs`.
    """
    given = {"dev_share": config.dev, "test_share": config.test}  # a part with a file of its own takes nothing
    config = config.model_copy(update={share: 0.0 for share, file in given.items() if file is not None})
    for corpus in corpora(config):
        own = {name: value for name in ("source", "target") if (value := getattr(corpus, name)) is not None}
        for pairs in stream_pairs(corpus.path, config.model_copy(update=own)):
            train, dev, test = split(pairs, config)
            none = Pairs([], [])
            yield repeated(train, corpus.weight), dev if corpus.held_out else none, test if corpus.held_out else none


def corpora(config: DataConfig) -> tuple[Corpus, ...]:
    """The corpora of `config.train`."""
    train = config.train
    if isinstance(train, tuple) and isinstance(train[0], Corpus):
        return train
    return (Corpus(path=train),)


def files_of(config: DataConfig) -> list[Path]:
    """Every file that training and development pairs are read from."""
    named = [corpus.path for corpus in corpora(config)] + ([config.dev] if config.dev is not None else [])
    return [
        path for where in named for side in (where if isinstance(where, tuple) else (where,)) for path in found(side)
    ]


def found(name: str) -> list[Path]:
    """The files that a name stands for: one, or those that match its pattern of * and ?, in order.

    Raises:
        DataError: no file matches.
    """
    path = expand(name)
    if not any(sign in path.name for sign in "*?[") or path.exists():
        return [path]
    matches = sorted(path.parent.glob(path.name))
    if not matches:
        raise DataError(f"{path}: no file matches")
    return matches


def repeated(pairs: Pairs, weight: float) -> Pairs:
    """Every pair `weight` times; of a fraction, as many evenly spaced pairs as it says."""
    if weight == 1:
        return pairs
    whole = int(weight)
    some = pairs.sample(round((weight - whole) * len(pairs)))
    return Pairs.together([*[pairs] * whole, some])


def read_pairs(where: str | tuple[str, str], config: DataConfig) -> Pairs:
    """Pairs from two parallel files, or from a TSV, CSV, JSONL, Arrow or Parquet file. Blank lines at the end of a file
    are ignored.

    Raises:
        DataError: sides of different length, a malformed line, or an empty side under on_empty = "error"; with file
            and line.
    """
    return Pairs.together(stream_pairs(where, config))


def stream_pairs(where: str | tuple[str, str], config: DataConfig) -> Iterator[Pairs]:
    """What `read_pairs` gives, in chunks of at most `CHUNK` pairs.

    Raises:
        DataError: as `read_pairs`, when the line is reached.
    """
    named = _from_two(where) if isinstance(where, tuple) else _from_files(where, config)
    kept = _filled(named, config.on_empty)
    while some := list(islice(kept, CHUNK)):
        yield Pairs.of([pair for _, pair in some], [name for name, _ in some])


Named = Iterator[tuple[str, tuple[str, str]]]  # file and line, and the pair


def _from_files(where: str, config: DataConfig) -> Named:
    for path in found(where):
        kind = plain_name(path)
        if kind.endswith((".parquet", ".arrow", ".feather")):
            yield from stream_table(path, *_keys(config))
            continue
        if kind.endswith(".csv"):
            yield from _from_csv(path, config)
            continue
        parse = _from_json if kind.endswith(".jsonl") else _from_tsv
        for number, lines in _to_the_last(stream_lines(path)):
            name, line = f"{path}:{number}", lines[0] or ""
            yield name, parse(_whole(line, name), config, name) if line.strip() else ("", "")


def _from_two(where: tuple[str, str]) -> Named:
    sides = [found(side) for side in where]
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"{where[0]} matches {len(sides[0])} files and {where[1]} matches {len(sides[1])}: parallel files come in "
            "pairs"
        )
    for paths in zip(*sides, strict=True):
        counts = [0, 0]
        alone = None
        for number, lines in _to_the_last(*map(stream_lines, paths)):
            counts = [number if line is not None and (line.strip() or not alone) else count
                      for line, count in zip(lines, counts, strict=True)]  # fmt: skip
            if alone is None and None in lines:
                alone = number
            if alone is None:
                here = [_whole(line or "", f"{path}:{number}") for line, path in zip(lines, paths, strict=True)]
                yield f"{paths[0]}:{number}", (here[0], here[1])
        if alone is not None:
            raise DataError(
                f"{paths[0]} has {counts[0]} lines and {paths[1]} has {counts[1]}: "
                f"line {alone} has no partner; parallel files need a line for a line"
            )


def _whole(line: str, where: str) -> str:
    """A line without a carriage return within it: lines that end so would be one, and all but the first be lost."""
    if "\r" in line:
        raise DataError(f"{where}: a carriage return within a line: end the lines in \\n (tr '\\r' '\\n')")
    return line


def _to_the_last(*sides: Iterator[str]) -> Iterator[tuple[int, tuple[str | None, ...]]]:
    """Lines of all sides together, numbered from 1, up to the last one that is not blank; None beyond a side's end."""
    blank: list[tuple[range, tuple[str | None, ...]]] = []  # runs of them: a small file may unpack to millions
    for number, lines in enumerate(zip_longest(*sides), 1):
        if any(line is not None and line.strip() for line in lines):
            yield from ((n, alike) for run, alike in blank for n in run)
            yield number, lines
            blank = []
            continue
        sides_ended = tuple(None if line is None else "" for line in lines)
        if blank and blank[-1][1] == sides_ended:
            blank[-1] = range(blank[-1][0].start, number + 1), sides_ended
        else:
            blank.append((range(number, number + 1), sides_ended))


def _from_tsv(line: str, config: DataConfig, where: str) -> tuple[str, str]:
    columns = line.split("\t")
    indices = [config.source, config.target]
    if any(not isinstance(i, int) for i in indices):
        raise DataError(
            f"{where}: a TSV file has columns by number; got source = {indices[0]!r}, target = {indices[1]!r}"
        )
    wanted = _furthest(indices)
    if len(columns) <= wanted:
        raise DataError(f"{where}: expected at least {wanted + 1} columns divided by tabs; got {len(columns)}")
    return columns[int(config.source)], columns[int(config.target)]


def _furthest(columns: Sequence[int | str]) -> int:
    """The largest number that a column has, counted from the left or, where it is negative, from the right."""
    return max(int(i) if int(i) >= 0 else -int(i) - 1 for i in columns)


def _from_csv(path: Path, config: DataConfig) -> Named:
    """Records as RFC 4180 has them: fields in double quotes may hold commas and line breaks, which become spaces."""
    records = csv.reader((f"{line}\n" for line in stream_lines(path)), strict=True)
    columns = [config.source, config.target]
    blank = ""  # the first of records that are an error unless they are the last ones
    try:
        header: list[str] = []
        if any(isinstance(column, str) for column in columns):
            header = next(records, [])
            if missing := [column for column in columns if isinstance(column, str) and column not in header]:
                raise DataError(
                    f"{path}:1: no column {missing[0]!r} among {', '.join(map(repr, header))}: set data.source and "
                    "data.target to the names of the first line, or to numbers where there is no such line"
                )
            if twice := [column for column in columns if isinstance(column, str) and header.count(column) > 1]:
                raise DataError(f"{path}:1: several columns {twice[0]!r}: rename all but one")
            columns = [header.index(column) if isinstance(column, str) else column for column in columns]
        wanted, named = _furthest(columns), len(header) if columns != [config.source, config.target] else 0
        for record in records:
            name = f"{path}:{records.line_num}"
            if not any(map(str.strip, record)):
                blank = blank or name
                continue
            if blank:
                yield blank, ("", "")
                blank = ""
            if named and len(record) != named:
                raise DataError(f"{name}: expected {named} columns; got {len(record)}")
            if len(record) <= wanted:
                raise DataError(f"{name}: expected at least {wanted + 1} columns divided by commas; got {len(record)}")
            source, target = (" ".join(record[int(column)].splitlines()) for column in columns)
            yield name, (source, target)
    except csv.Error as error:
        raise DataError(f"{path}:{records.line_num}: not CSV: {error}") from error


def _keys(config: DataConfig) -> tuple[str, str]:
    """The names of the sides in JSONL, Arrow and Parquet."""
    source = "source" if config.source == 0 else config.source
    return str(source), str("target" if config.target == 1 else config.target)


def _from_json(line: str, config: DataConfig, where: str) -> tuple[str, str]:
    keys = _keys(config)
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where}: not a JSON object: {error}") from error
    if not isinstance(record, dict) or any(not isinstance(record.get(key), str) for key in keys):
        raise DataError(f"{where}: expected a JSON object with strings under {keys[0]!r} and {keys[1]!r}")
    pair = record[keys[0]], record[keys[1]]
    if any("\ud800" <= letter <= "\udfff" for side in pair for letter in side):
        raise DataError(f"{where}: half a surrogate pair (\\ud800 to \\udfff) is no character")
    return pair


def _filled(named: Named, on_empty: str) -> Named:
    """The pairs without an empty side."""
    for name, pair in named:
        if all(side.strip() for side in pair):
            yield name, pair
        elif on_empty == "error":
            side = "source" if not pair[0].strip() else "target"
            raise DataError(f'{name}: the {side} is empty: remove the pair, or set on_empty = "skip"')


def split(pairs: Pairs, config: DataConfig) -> tuple[Pairs, Pairs, Pairs]:
    """Training, development and test pairs; the part of a pair depends on its sentence (`split_by`) alone."""
    parts: tuple[list[int], ...] = ([], [], [])
    for number, sentence in enumerate(pairs.source if config.split_by == "source" else pairs.target):
        own = share_of(sentence)
        parts[1 if own < config.dev_share else 2 if own < config.dev_share + config.test_share else 0].append(number)
    train, dev, test = map(pairs.at, parts)
    return train, dev, test
