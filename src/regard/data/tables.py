"""Files with texts: a table that names both, and a folder or archive that holds the files."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from regard.arguments import check_arguments
from regard.data.archive import Cells, Files
from regard.data.datasets import an4, fsdd
from regard.data.files import expand, plain_name, read_lines, share_of, stream_lines
from regard.errors import DataError
from regard.storage import parse_json


class TableConfig(BaseModel):
    """Settings of files with texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    layout: Literal["table", "prompts", "an4", "fsdd"] = "table"
    """Layout of the texts: a table; lines "name: text" as in Asterisk's prompts (columns file, text); CMU's AN4
    (etc/….transcription; columns file, text, speaker); or the Free Spoken Digit Dataset, whose file names hold the
    digit (7_theo_12.wav; columns file, text, speaker, index)."""
    table: str | None = None
    """A .csv or .tsv file whose first line names the columns, a .jsonl file of objects, or the file of prompts; it may
    be compressed. $NAME is taken from the environment."""
    files: str
    """The folder, or .tar archive, that holds the files; names in the table are relative to it."""
    file: str = "file"
    """The column of a file's name."""
    text: str = "text"
    """The column of its text."""
    group: str | None = None
    """Rows with the same value in this column (a speaker) go to the same part of the split; the file's name unless
    set."""
    dev_share: float = Field(0.1, ge=0, lt=1)
    """Share of the groups that become development data."""
    dev_groups: tuple[str, ...] = ()
    """The groups that become development data, by name, instead of a share."""
    lower: bool = False
    """Lowercase the texts."""
    plain: bool = False
    """Remove punctuation from texts: letters, digits and apostrophes stay."""

    @model_validator(mode="after")
    def _has_its_table(self) -> "TableConfig":
        if (self.table is None) == (self.layout in ("table", "prompts")):
            raise ValueError(
                'files.table and files.layout: layout = "table" or "prompts" needs a table, the others have none'
            )
        return self


@dataclass(frozen=True)
class Row:
    """A file and its text; `where` is file and line of the table's row, for messages."""

    file: str
    text: str
    group: str
    where: str


def read_table(config: TableConfig) -> list[Row]:
    """The rows of a table.

    Raises:
        DataError: a column is missing, a row is malformed, or there is none; with file and line.
    """
    found = READERS[config.layout](config)
    wanted = [config.file, config.text, config.group or config.file]
    rows = []
    for where, cells in found:
        missing = [name for name in wanted if name not in cells]
        if missing:
            raise DataError(f"{where}: no column {missing[0]!r}: there are {', '.join(cells)}")
        file, text, group = (cells[name].strip() for name in wanted)
        if config.plain:
            text = " ".join(re.sub(r"[^\w'’]|_", " ", text).split())
        if not file or not text:
            raise DataError(f"{where}: the {'text' if file else 'file'} is empty: remove the row")
        rows.append(Row(file, text.lower() if config.lower else text, group, where))
    if not rows:
        raise DataError(f"{config.table or config.files}: there is no file with a text")
    return rows


def named(row: Row, files: Files) -> str:
    """File and line of a row, and the path of its file, for messages."""
    return f"{row.where}: {files.path / row.file}"


def split_rows(rows: list[Row], config: TableConfig) -> tuple[list[Row], list[Row]]:
    """Training and development rows; the part of a group depends on its name alone.

    Raises:
        DataError: no row is of a group in `dev_groups`.
    """
    unknown = sorted(set(config.dev_groups) - {row.group for row in rows})
    if unknown:
        raise DataError(f"files.dev_groups: no row has {config.group or config.file} = {unknown[0]!r}")
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        dev = row.group in config.dev_groups if config.dev_groups else share_of(row.group) < config.dev_share
        parts[dev].append(row)
    return parts


def _cells(config: TableConfig) -> Iterator[Cells]:
    assert config.table is not None  # the settings have been checked
    return read_cells(expand(config.table))


@check_arguments
def read_cells(path: Path) -> Iterator[Cells]:
    """The rows of a .csv, .tsv or .jsonl table (compressed too), blank lines left out.

    Raises:
        DataError: a malformed row; with file and line.
    """
    name = plain_name(path)
    if name.endswith(".jsonl"):
        yield from _json_cells(path)
        return
    header: list[str] | None = None
    for number, cells in _of_tabs(path) if name.endswith(".tsv") else _of_commas(path):
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = cells
            if twice := next((name for name, times in Counter(cells).items() if times > 1 and name.strip()), ""):
                raise DataError(f"{path}:{number}: several columns {twice!r}: rename all but one")
            continue
        where = f"{path}:{number}"
        if len(cells) != len(header):
            raise DataError(f"{where}: expected {len(header)} columns; got {len(cells)}")
        yield where, dict(zip(header, cells, strict=True))


def _of_tabs(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines and their cells: there are no quotes, and a line is a row, as in data.train."""
    return ((number, line.split("\t")) for number, line in enumerate(stream_lines(path), 1))


def _of_commas(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((f"{line}\n" for line in stream_lines(path)), strict=True)
    while True:
        begins = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}:{begins}: not a row of a table: {error}") from error
        if cells is None:
            return
        yield reader.line_num, cells


def _json_cells(path: Path) -> Iterator[Cells]:
    for number, line in enumerate(stream_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not a JSON object: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: expected a JSON object; got {line[:60]}")
        yield f"{path}:{number}", {key: value for key, value in record.items() if isinstance(value, str)}


def _prompts(config: TableConfig) -> Iterator[Cells]:
    """Lines `name: text` of recordings that exist; `;` begins a comment, a text in brackets is no speech."""
    assert config.table is not None  # the settings have been checked
    path = expand(config.table)
    sounds = {str(PurePosixPath(name).with_suffix("")): name for name in Files(config.files).names()}
    for number, line in enumerate(read_lines(path), 1):
        name, colon, text = line.partition(": ")
        if not line.strip() or line.startswith(";"):
            continue
        if not colon:
            raise DataError(f"{path}:{number}: expected 'name: text'; got {line[:60]!r}")
        if name.strip() in sounds and not text.strip().startswith("["):
            yield f"{path}:{number}", {"file": sounds[name.strip()], "text": text}


READERS: dict[str, Callable[[TableConfig], Iterator[Cells]]] = {
    "table": _cells,
    "prompts": _prompts,
    "an4": lambda config: an4.read(Files(config.files)),
    "fsdd": lambda config: fsdd.read(Files(config.files)),
}
