"""Pairs of sentences from Arrow and Parquet files, read in parts (by pyarrow, which comes with datasets)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regard.errors import DataError


def stream_table(path: Path, source: str, target: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every row's number, as "file:row", and its pair.

    Args:
        path: a .parquet, .arrow (file or stream format) or .feather file.
        source, target: names of the columns; or keys of a column "translation", as in data sets of translations.

    Raises:
        DataError: the package is not installed; the file is damaged or has no such columns; a cell is no text.
    """
    number = 0
    for batch in _read(path):
        columns = batch.to_pydict()
        if source not in columns and "translation" in columns:
            rows = columns["translation"]
            columns = {side: [(row or {}).get(side) for row in rows] for side in (source, target)}
        missing = [side for side in (source, target) if side not in columns]
        if missing:
            raise DataError(
                f"{path}: no column {missing[0]!r}: it has {', '.join(map(repr, columns))}; set data.source and "
                "data.target to the names of the columns"
            )
        for pair in zip(columns[source], columns[target], strict=True):
            number += 1
            if not all(isinstance(side, str) for side in pair):
                wrong = source if not isinstance(pair[0], str) else target
                raise DataError(f"{path}:{number}: expected a text in column {wrong!r}")
            yield f"{path}:{number}", pair


def stream_column(path: Path, column: str) -> Iterator[str]:
    """The texts of a column, in order; the file as in `stream_table`.

    Raises:
        DataError: the package is not installed; the file is damaged or has no such column; a cell is no text.
    """
    number = 0
    for batch in _read(path):
        if column not in batch.schema.names:
            known = ", ".join(map(repr, batch.schema.names))
            raise DataError(f"{path}: no column {column!r}: it has {known}; name one of them")
        for text in batch.column(column).to_pylist():
            number += 1
            if not isinstance(text, str):
                raise DataError(f"{path}:{number}: expected a text in column {column!r}")
            yield text


def _read(path: Path) -> Iterator[Any]:
    """The batches of a file.

    Raises:
        DataError: the package is not installed; there is no such file, or it is damaged.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DataError(f"{path}: reading it needs the package datasets: pip install 'regard[data]'") from error
    try:
        yield from _batches(path)
    except (OSError, pa.ArrowInvalid) as error:
        if not path.exists():
            raise DataError(f"{path}: no such file") from error
        raise DataError(f"{path}: cannot be read: {error}") from error


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    if path.suffix == ".parquet":
        from pyarrow import parquet

        yield from parquet.ParquetFile(path).iter_batches(10_000)
        return
    with pa.memory_map(str(path)) as file:
        try:
            reader = pa.ipc.open_file(file)
            yield from (reader.get_batch(n) for n in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            file.seek(0)
            yield from pa.ipc.open_stream(file)
