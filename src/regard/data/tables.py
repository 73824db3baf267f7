"""Files with texts: a table that names both, and a folder or archive that holds the files."""

import csv
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from regard.data.parallel import expand, place, read_lines, split_lines
from regard.errors import DataError


class TableConfig(BaseModel):
    """Where files and their texts are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    layout: Literal["table", "prompts", "an4", "fsdd"] = "table"
    """How the texts are kept: in a table; in lines "name: text", as Asterisk's prompts are (columns file, text); as
    CMU's AN4 keeps them (etc/….transcription; columns file, text, speaker); or in the files' names, as the Free Spoken
    Digit Dataset does (7_theo_12.wav; columns file, text, speaker, index)."""
    table: str | None = None
    """A .csv or .tsv file (.gz too) whose first line names the columns, or the file of the lines. $NAME is taken from
    the environment."""
    files: str
    """The folder, or .tar archive, that holds the files; names in the table are relative to it."""
    file: str = "file"
    """The column of a file's name."""
    text: str = "text"
    """The column of its text."""
    group: str | None = None
    """What has the same value in this column stays on one side of the split: a speaker. The file's name unless set."""
    dev_share: float = Field(0.1, ge=0, lt=1)
    """Share of the groups that become development data."""
    dev_groups: tuple[str, ...] = ()
    """The groups that become development data, by name, instead of a share."""
    lower: bool = False
    """Texts in small letters."""
    plain: bool = False
    """Texts without punctuation, as they are heard: letters, digits and apostrophes."""

    @model_validator(mode="after")
    def _has_its_table(self) -> "TableConfig":
        if (self.table is None) == (self.layout in ("table", "prompts")):
            raise ValueError(
                'files.table and files.layout: layout = "table" or "prompts" needs a table, the others have none'
            )
        return self


@dataclass(frozen=True)
class Row:
    """A file and its text; where they stand in the table, for complaints."""

    file: str
    text: str
    group: str
    where: str


class Files:
    """The files of a folder or a .tar archive, by their names."""

    def __init__(self, where: str) -> None:
        self.path = expand(where)
        if not self.path.exists():
            raise DataError(f"{self.path}: no such folder or archive")

    def names(self) -> list[str]:
        """Of all files, sorted."""
        if self._members is None:
            return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file())
        return sorted(self._members)

    @cached_property
    def _members(self) -> dict[str, tuple[int, int]] | None:
        """Where each file of an archive begins, and its bytes; None for a folder."""
        if self.path.is_dir():
            return None
        try:
            with tarfile.open(self.path, "r:") as archive:
                return {m.name.removeprefix("./"): (m.offset_data, m.size) for m in archive if m.isfile()}
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{self.path}: neither a folder nor a .tar archive: {error}") from error

    def named(self, row: Row) -> str:
        """A row's file and where the row stands, for complaints."""
        return f"{row.where}: {self.path / row.file}"

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            DataError: there is no such file.
        """
        if self._members is None:
            path = self.path / name
            if not path.is_file():
                raise DataError(f"{path}: no such file")
            return path.read_bytes()
        if name not in self._members:
            raise DataError(f"{self.path}: holds no {name}")
        offset, size = self._members[name]
        with self.path.open("rb") as archive:
            archive.seek(offset)
            return archive.read(size)


Cells = tuple[str, dict[str, str]]  # where a row stands, and its values by column


def read_table(config: TableConfig) -> list[Row]:
    """The rows of a table.

    Raises:
        DataError: a column is missing, a row is crooked, or there is none; with file and line.
    """
    found: Iterator[Cells] = {"table": _cells, "prompts": _prompts, "an4": _an4, "fsdd": _fsdd}[config.layout](config)
    wanted = [config.file, config.text, config.group or config.file]
    rows = []
    for where, cells in found:
        missing = [name for name in wanted if name not in cells]
        if missing:
            raise DataError(f"{where}: no column {missing[0]!r}: there are {', '.join(cells)}")
        file, text, group = (cells[name].strip() for name in wanted)
        if config.plain:
            text = " ".join(re.sub(r"[^\w'’]|_", " ", text).split())
        rows.append(Row(file, text.lower() if config.lower else text, group, where))
    if not rows:
        raise DataError(f"{config.table or config.files}: there is no file with a text")
    return rows


def split_rows(rows: list[Row], config: TableConfig) -> tuple[list[Row], list[Row]]:
    """Training and development rows; a group's side depends on nothing but its name.

    Raises:
        DataError: a group that was named is nowhere.
    """
    unknown = sorted(set(config.dev_groups) - {row.group for row in rows})
    if unknown:
        raise DataError(f"files.dev_groups: no row has {config.group or config.file} = {unknown[0]!r}")
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        dev = row.group in config.dev_groups if config.dev_groups else place(row.group) < config.dev_share
        parts[dev].append(row)
    return parts


def _cells(config: TableConfig) -> Iterator[Cells]:
    assert config.table is not None  # the settings have been checked
    path = expand(config.table)
    name = path.name.removesuffix(".gz")
    lines = io.StringIO("\n".join(read_lines(path)))
    reader = csv.reader(lines, delimiter="\t" if name.endswith(".tsv") else ",")
    header = next(reader, [])
    for cells in reader:
        if cells and len(cells) != len(header):
            raise DataError(f"{path}:{reader.line_num}: expected {len(header)} columns; got {len(cells)}")
        if cells:
            yield f"{path}:{reader.line_num}", dict(zip(header, cells, strict=True))


def _prompts(config: TableConfig) -> Iterator[Cells]:
    """Lines `name: text` of recordings that are there; `;` begins a comment, `[…]` says what is no speech."""
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


def _an4(config: TableConfig) -> Iterator[Cells]:
    """Lines `<s> TEXT </s> (id)` of etc/….transcription; the recording of an id is wav/…/SPEAKER/id.…"""
    files = Files(config.files)
    names = files.names()
    sounds = {PurePosixPath(name).stem: name for name in names if "wav/" in name}
    for table in (name for name in names if name.endswith(".transcription")):
        for number, line in enumerate(split_lines(files.read(table)), 1):
            where = f"{files.path}: {table}:{number}"
            match = re.fullmatch(r"(?:<s>)?(.*?)(?:</s>)?\s*\((.+)\)\s*", line.decode("utf-8", "replace"))
            if match is None:
                raise DataError(f"{where}: expected '<s> TEXT </s> (id)'")
            if match[2] in sounds:  # the table may tell of the other half of the set
                file = sounds[match[2]]
                yield where, {"file": file, "text": match[1], "speaker": PurePosixPath(file).parent.name}


DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def _fsdd(config: TableConfig) -> Iterator[Cells]:
    """Files named DIGIT_SPEAKER_INDEX.*"""
    files = Files(config.files)
    for name in files.names():
        match = re.fullmatch(r"(\d)_(\w+)_(\d+)", PurePosixPath(name).stem)
        if match is not None:
            digit, speaker, index = match.groups()
            yield (
                f"{files.path}: {name}",
                {"file": name, "text": DIGITS[int(digit)], "speaker": speaker, "index": index},
            )
