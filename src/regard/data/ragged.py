"""Rows of integers of different lengths in two flat arrays, in memory or memory-mapped: a corpus larger than memory.

    values  the rows, one after the other
    ends    for each row, the number of values up to its end

A row is read from the file when it is asked for; the operating system keeps what is used often.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.errors import DataError

Integers = NDArray[Any]
VALUES, ENDS = ".values", ".ends"
CHANGED = "the prepared corpus was changed (remove the folder `prepared` of the run, and the data are prepared again)"


class Ragged(Sequence[Integers]):
    """Rows of integers.

    Args:
        values: the rows, one after the other.
        ends: for each row, the number of values up to its end.
    """

    def __init__(self, values: Integers, ends: Integers) -> None:
        self.values, self.ends = values, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: Any) -> Any:
        """Row number `row`."""
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.values[self.ends[row - 1] if row else 0 : self.ends[row]]

    def lengths(self, rows: Any = slice(None)) -> Integers:
        """The lengths of some rows (a slice or indices), or of all."""
        ends = np.asarray(self.ends[rows])
        if isinstance(rows, slice):
            first = rows.indices(len(self))[0]
            before = np.concatenate([[self.ends[first - 1] if first else 0], ends[:-1]]) if len(ends) else ends
        else:
            before = np.where(rows > 0, self.ends[np.maximum(rows - 1, 0)], 0)
        return np.asarray(ends - before, np.int64)

    def are_below(self, count: int) -> bool:
        """Whether all values are numbers from 0 to `count` - 1."""
        return not len(self.values) or (int(self.values.min()) >= 0 and int(self.values.max()) < count)

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> "Ragged":
        """Rows in memory."""
        some = list(rows)
        ends = np.cumsum([len(row) for row in some], dtype=np.int64)
        return cls(np.fromiter(chain.from_iterable(some), np.int32, count=int(ends[-1]) if len(ends) else 0), ends)

    @classmethod
    def open(cls, path: Path) -> "Ragged":
        """Rows that `RaggedWriter` wrote, memory-mapped.

        Raises:
            DataError: a file is missing, cut short, or has ends that no rows have.
        """
        try:
            arrays = [_mapped(path.with_name(path.name + ending)) for ending in (VALUES, ENDS)]
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}): remove its folder, and prepare the data again"
            ) from error
        if (int(arrays[1][-1]) if len(arrays[1]) else 0) != len(arrays[0]) or (np.diff(arrays[1], prepend=0) < 0).any():
            raise DataError(f"{path}: cut short or changed: remove its folder, and prepare the data again")
        return cls(*arrays)


class RaggedWriter:
    """Appends rows to the files that `Ragged.open` reads; nothing is kept in memory.

    Args:
        path: of the files, without ending.
        rows, values: how much of files that are there already is kept; the rest is overwritten.
    """

    def __init__(self, path: Path, rows: int = 0, values: int = 0) -> None:
        self.rows, self.values = rows, values
        self.files = []
        for ending, size in ((VALUES, 4 * values), (ENDS, 8 * rows)):
            file = path.with_name(path.name + ending).open("r+b" if rows else "w+b")
            file.truncate(size)
            file.seek(size)
            self.files.append(file)

    @staticmethod
    def sizes(path: Path) -> tuple[int, int]:
        """How many values and rows the files hold.

        Raises:
            OSError: one is missing.
        """
        values, ends = (path.with_name(path.name + ending).stat().st_size for ending in (VALUES, ENDS))
        return values // 4, ends // 8

    def append(self, rows: Sequence[Sequence[int]]) -> None:
        """Append rows."""
        some = Ragged.of(rows)
        self.files[0].write(some.values.astype("<i4").tobytes())
        self.files[1].write((some.ends + self.values).astype("<i8").tobytes())
        self.rows, self.values = self.rows + len(some), self.values + len(some.values)

    def flush(self) -> None:
        """Write everything to the disk, so that what is noted as written survives a power failure."""
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()

    def __enter__(self) -> "RaggedWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TokenPairs(Sequence[tuple[list[int], list[int]]]):
    """Token ids of sentence pairs.

    Args:
        source, target: the ids of each side, without BOS and EOS.
    """

    def __init__(self, source: Ragged, target: Ragged) -> None:
        self.source, self.target = source, target

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, pair: Any) -> Any:
        """(source ids, target ids) of a pair."""
        return self.source[pair].tolist(), self.target[pair].tolist()

    def __iter__(self) -> Iterator[tuple[list[int], list[int]]]:
        return ((s.tolist(), t.tolist()) for s, t in zip(self.source, self.target, strict=True))

    def lengths(self, rows: Any = slice(None)) -> Integers:
        """`[n, 2]`, the lengths of source and target of some pairs, or of all."""
        return np.stack([self.source.lengths(rows), self.target.lengths(rows)], 1)


class LinkRows(Sequence[list[tuple[int, int]]]):
    """Links of sentence pairs, as (target token, source token).

    Args:
        rows: for each pair target, source, target, source, …
    """

    def __init__(self, rows: Ragged) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, pair: Any) -> Any:
        """The links of a pair.

        Raises:
            DataError: half of one is there.
        """
        flat = self.rows[pair].tolist()
        if len(flat) % 2:
            raise DataError(f"{CHANGED}: pair {pair} has half a link")
        return list(zip(flat[::2], flat[1::2], strict=True))


def lengths_of(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], rows: Any = slice(None)) -> Integers:
    """`[n, 2]`, the lengths of source and target of some pairs (a slice or indices), or of all."""
    if isinstance(pairs, TokenPairs):
        return pairs.lengths(rows)
    some = pairs[rows] if isinstance(rows, slice) else [pairs[i] for i in rows]
    return np.array([(len(s), len(t)) for s, t in some], np.int64).reshape(-1, 2)


def _mapped(path: Path) -> Integers:
    kind = np.dtype("<i4" if path.suffix == VALUES else "<i8")
    if not path.stat().st_size:
        return np.zeros(0, kind)
    return np.memmap(path, kind, "r")
