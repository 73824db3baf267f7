"""Pairs of sentences from Arrow and Parquet files, read in parts (by pyarrow, which comes with datasets).

A file may be a stranger's, and pyarrow reads beyond its memory where offsets are wrong: each column of texts is
validated before its cells are read, and those of no other column are.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from regard.data.files import DAMAGED, LONGEST_LINE, check_regular
from regard.errors import DataError
from regard.untrusted import first_line


def stream_table(path: Path, source: str, target: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every row's number, as "file:row", and its pair.

    Args:
        path: a .parquet, .arrow (file or stream format) or .feather file.
        source, target: names of the columns; or keys of a column "translation", as in data sets of translations.

    Raises:
        DataError: the package is not installed; the file is damaged or has no such columns; a cell is no text.
    """
    way = "set data.source and data.target to the names of the columns"
    for number, pair in enumerate(_rows(path, (source, target), way, "translation"), 1):
        yield f"{path}:{number}", (pair[0], pair[1])


def stream_column(path: Path, column: str) -> Iterator[str]:
    """The texts of a column, in order; the file as in `stream_table`.

    Raises:
        DataError: the package is not installed; the file is damaged or has no such column; a cell is no text.
    """
    for (text,) in _rows(path, (column,), "name one of them"):
        yield text


def _rows(path: Path, names: Sequence[str], way: str, within: str = "") -> Iterator[tuple[str, ...]]:
    """The texts of some columns, row by row.

    Args:
        path: of the file.
        names: of the columns.
        way: what to do where there is no such column.
        within: a column of structures that may hold them.

    Raises:
        DataError: the package is not installed; there is no such file, or it is damaged; as `stream_table`.
    """
    check_regular(path)
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DataError(f"{path}: reading it needs the package datasets: pip install 'regard[data]'") from error
    number = 0
    try:
        for batch in _batches(path):
            held = _held(batch, within) if names[0] not in batch.schema.names else None
            of = dict(zip(batch.schema.names, batch.columns, strict=True)) if held is None else held
            known = batch.schema.names if held is None else list(held)
            for name in names:
                if known.count(name) != 1:
                    fault = "several columns" if name in known else "no column"
                    raise DataError(f"{path}: {fault} {name!r}: it has {', '.join(map(repr, known))}; {way}")
            for row in zip(*(_texts(of[name], f"{path}: {name}") for name in names), strict=True):
                number += 1
                wrong = next((name for name, text in zip(names, row, strict=True) if not isinstance(text, str)), None)
                if wrong is not None:
                    raise DataError(f"{path}:{number}: expected a text in column {wrong!r}")
                yield row
    except DataError:
        raise
    except (pa.ArrowException, *DAMAGED) as error:
        after = f" after row {number:,}" if number else ""
        raise DataError(f"{path}: cannot be read{after}: {first_line(error)}") from error


def _held(batch: Any, within: str) -> dict[str, Any] | None:
    """The columns that a column of structures holds; None where it is not there, or holds something else."""
    import pyarrow as pa

    number = batch.schema.get_field_index(within)
    if number < 0 or not pa.types.is_struct(batch.schema.types[number]):
        return None
    column = batch.column(number)
    column.validate(full=True)
    return dict(zip((field.name for field in column.type), column.flatten(), strict=True))


def _texts(column: Any, where: str) -> Sequence[str | None]:
    """The cells of a column; None for one that is no text.

    Raises:
        DataError: one is longer than a line of a text file may be; `where` says in which column.
    """
    import pyarrow as pa
    from pyarrow import compute as pc

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        return [None] * len(column)
    column.validate(full=True)
    texts = column.dictionary if pa.types.is_dictionary(column.type) else column
    longest = pc.max(pc.binary_length(texts if not pa.types.is_string_view(kind) else texts.cast(pa.string()))).as_py()
    if longest is not None and longest > LONGEST_LINE:
        raise DataError(
            f"{where}: a text of {longest:,} bytes; expected at most {LONGEST_LINE:,}, as in a line of text"
        )
    found: list[str | None] = column.to_pylist()
    return found


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        yield from parquet.ParquetFile(path).iter_batches(10_000)
        return
    with pa.memory_map(str(path)) as file:
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid:
            file.seek(0)
            yield from pa.ipc.open_stream(file)
        else:
            yield from (reader.get_batch(n) for n in range(reader.num_record_batches))
