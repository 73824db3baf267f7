"""A corpus translated in parts, by this process or by many: each part is one file that is there, whole, or not at all.

    FOLDER/corpus.json           what the parts are made of: a folder is continued with the same settings alone
    FOLDER/part-000000.parquet   rows id, source, text, log_prob, error, alternatives

A part that is there is not made again. Its rows depend on its number alone, so a worker that is lost loses nothing: its
part is made by another, and nothing is there twice.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import chdir, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from regard.data.files import plain_name, stream_lines
from regard.data.prepared import key_of
from regard.data.tables import read_cells
from regard.errors import BundleError, ConfigError, DataError, RegardError, shown
from regard.pipelines.load import files_of_model
from regard.storage import exclusive, make_folder, parse_json, replacing, without_halves, write_text
from regard.untrusted import first_line, read_object

ABOUT = "corpus.json"
TABLES = (".parquet", ".arrow", ".feather")


@dataclass(frozen=True)
class BulkConfig:
    """What a folder of parts is made of.

    Attributes:
        corpus: the file.
        size: its bytes.
        column: of its texts; for a table or JSON.
        model: its name or folder.
        settings: of the translation.
        part: rows of a part.
        weights: digest of the model, so that another one with its name is not taken for it.
        computing: precision and engine, where they are not the usual ones, since they change some texts.
    """

    corpus: str
    size: int
    column: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    part: int = 1024
    weights: str = ""
    computing: str = ""

    @classmethod
    def of(cls, corpus: Path, column: str, model: str, settings: dict[str, Any], computing: str = "") -> "BulkConfig":
        """That of a corpus and a model as they are now.

        Raises:
            DataError: a file of the model cannot be read.
        """
        weights = key_of(files_of_model(model), [])
        return cls(str(corpus), corpus.stat().st_size, column, model, settings, weights=weights, computing=computing)


@dataclass(frozen=True)
class PartDone:
    """What came of one part.

    Attributes:
        number: of the part.
        rows: of the part.
        refused: rows that could not be translated; their `error` says why.
    """

    number: int
    rows: int
    refused: int


def column_of(path: Path, column: str) -> Iterator[str]:
    """The texts of a corpus, in order.

    Args:
        path: a .parquet, .arrow or .feather table, JSON lines (.jsonl, .json), .csv or .tsv with a first line of names,
            or a text of lines; text may be compressed.
        column: the name of the texts' column or key; not for a text of lines.

    Raises:
        DataError: there is no such file or column, or it cannot be read; a row has no text.
    """
    name = plain_name(path)
    if name.endswith(TABLES):
        from regard.data.arrow import stream_column

        yield from stream_column(path, column)
    elif name.endswith((".jsonl", ".json")):
        for number, line in enumerate(stream_lines(path), 1):
            if line.strip():
                yield _of_json(line, column, f"{path}:{number}")
    elif name.endswith((".csv", ".tsv")):
        for where, row in read_cells(path):
            if column not in row:
                known = ", ".join(map(repr, row))
                raise DataError(f"{where}: no column {column!r}: it has {known}; name one with --column")
            yield row[column]
    else:
        yield from stream_lines(path)


def _of_json(line: str, column: str, where: str) -> str:
    try:
        found = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get(column), str):
        raise DataError(f"{where}: expected an object with a text {column!r}; name another with --column")
    return str(found[column])


class PartWriter:
    """Translates the rows of a part and writes its file.

    Args:
        config: of the folder.
        into: the folder.
        load: gives the model.

    Raises:
        ConfigError: pyarrow, which writes the files, is not installed.
    """

    def __init__(self, config: BulkConfig, into: Path, load: Callable[[str], Any]) -> None:
        if find_spec("pyarrow") is None:
            raise ConfigError("translating a corpus writes Parquet files and needs pyarrow: pip install 'regard[data]'")
        self.config, self.into = config, into
        self.model = load(config.model)

    def write(self, number: int, texts: list[str]) -> PartDone:
        """Translate a part and write it.

        Args:
            number: of the part.
            texts: its rows.
        """
        import pyarrow as pa
        from pyarrow import parquet

        first = number * self.config.part
        made = self.model.each(texts, first_index=first, **{"record": False, **self.config.settings})
        wrong = [str(one) if isinstance(one, Exception) else None for one in made]
        columns = {
            "id": pa.array(range(first, first + len(texts)), pa.int64()),
            "source": pa.array(texts, pa.string()),
            "text": pa.array(["" if isinstance(one, Exception) else one.text for one in made], pa.string()),
            "log_prob": pa.array([None if isinstance(one, Exception) else one.log_prob for one in made], pa.float64()),
            "error": pa.array(wrong, pa.string()),
            "alternatives": pa.array([[other.text for other in getattr(one, "alternatives", [])] for one in made],
                                     pa.list_(pa.string())),
        }  # fmt: skip
        path = part_file(self.into, number)
        with replacing(path) as file:
            parquet.write_table(pa.table(columns), file)
        return PartDone(number, len(texts), sum(one is not None for one in wrong))


def part_file(into: Path, number: int) -> Path:
    """The file of a part."""
    return into / f"part-{number:06d}.parquet"


Submit = Callable[[int, list[str]], "Future[PartDone]"]


def translate_corpus(
    config: BulkConfig, into: Path, submit: Submit, waiting: int, done: Callable[[PartDone], None]
) -> None:
    """Make every part of a folder that is not there.

    Args:
        config: of the folder.
        into: the folder; made where there is none.
        submit: has a part made, here or by a worker.
        waiting: parts that are submitted at a time; no more rows are held.
        done: called with each part, those that were there included.

    Raises:
        ConfigError: the folder holds something else, or parts made with other settings or of other texts.
        DataError: the corpus cannot be read.
    """
    _check_ours(into)
    make_folder(into)
    with exclusive(into):
        _check(config, into)
        open_: list[Future[PartDone]] = []
        number = -1
        for number, texts in enumerate(_parts(column_of(Path(config.corpus), config.column), config.part)):
            if part_file(into, number).exists():
                done(_there(into, number, texts))
                continue
            open_.append(submit(number, texts))
            while len(open_) >= waiting:
                done(open_.pop(0).result())
        for one in open_:
            done(one.result())
        if part_file(into, number + 1).exists():
            raise ConfigError(
                f"{part_file(into, number + 1)}: made of texts that the corpus has no longer: name another folder with "
                "--to, or restore the corpus"
            )


def _parts(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    rows = iter(texts)
    while some := list(islice(rows, size)):
        yield some


def _there(into: Path, number: int, texts: list[str]) -> PartDone:
    """A part that was made before, of the same texts."""
    path = part_file(into, number)
    table = _table(path, ["source", "error"])
    if table["source"].to_pylist() != texts:
        raise ConfigError(
            f"{path}: made of other texts than the corpus has now: name another folder with --to, or restore the corpus"
        )
    errors = table["error"]
    return PartDone(number, len(errors), len(errors) - errors.null_count)


def rows_of(into: Path) -> Iterator[dict[str, Any]]:
    """The rows of all parts of a folder, in the corpus's order.

    Raises:
        DataError: a part is damaged.
    """
    for path in sorted(into.glob("part-*.parquet")):
        yield from _table(path).to_pylist()


def _table(path: Path, columns: list[str] | None = None) -> Any:
    """A part's table."""
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(path, columns=columns)
    except (ArrowException, OSError, KeyError) as error:
        raise DataError(
            f"{path}: damaged: {first_line(error)}: remove it, and the same command makes it anew"
        ) from error


def _check_ours(into: Path) -> None:
    """Refuse a folder of others, before anything is written to it."""
    there = [path.name for path in into.iterdir() if not path.name.startswith(".")] if into.is_dir() else []
    if not there:
        return
    try:
        begun = ABOUT in there and {"corpus", "column", "model"} <= read_object(into / ABOUT).keys()
    except BundleError as error:
        raise ConfigError(f"{error}: name another folder with --to") from error
    if not begun:
        raise ConfigError(f"--to {into}: not empty, and not a folder of translated parts: name another")


def _check(config: BulkConfig, into: Path) -> None:
    """Begin a folder, or see that it holds parts of the same corpus and settings."""
    about, now = into / ABOUT, json.loads(without_halves(json.dumps(asdict(config), ensure_ascii=False)))
    if not about.exists() and any(path.name != ABOUT and not path.name.startswith(".") for path in into.iterdir()):
        raise ConfigError(f"--to {into}: not empty, and not a folder of translated parts: name another")
    try:
        before = read_object(about) if about.exists() else now
    except BundleError as error:
        raise ConfigError(f"{error}: name another folder with --to") from error
    # a corpus whose last rows were corrected is of another size: each part is compared with its rows
    if "computing" not in before and now["computing"] and any(into.glob("part-*.parquet")):
        raise ConfigError(
            f"--to {into}: begun before precision and engine were written down: name another folder; if its parts were "
            "made with neither, give neither"
        )
    before.setdefault("computing", "")
    other = next((name for name in now if name != "size" and before.get(name) != now[name]), None)
    if other and any(into.glob("part-*.parquet")):  # a corpus that was refused has left no part
        raise ConfigError(
            f"--to {into}: its parts were made with {other} = {before.get(other)!r}, not {now[other]!r}: name "
            "another folder, or take the same settings"
        )
    if before != now or not about.exists():
        write_text(about, json.dumps(now, indent=1, ensure_ascii=False) + "\n")


class Here:
    """Parts made by this process, one after the other."""

    def __init__(self, writer: PartWriter) -> None:
        self.writer = writer

    def __call__(self, number: int, texts: list[str]) -> "Future[PartDone]":
        """The finished part."""
        made: Future[PartDone] = Future()
        made.set_result(self.writer.write(number, texts))
        return made

    def close(self) -> None:
        """Nothing is left to end."""


class OnRay:
    """Parts made by workers of a Ray cluster, or of this machine where there is none; a lost worker is replaced and its
    part made again. All machines must see the corpus's folder and the model.

    Args:
        config: of the folder.
        into: the folder.
        load: gives the model, in a worker.
        workers: processes.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(self, config: BulkConfig, into: Path, load: Callable[[str], Any], workers: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--engine ray: pip install 'regard[ray]'") from error
        self.ray = ray
        self.empty = TemporaryDirectory()
        if not ray.is_initialized():
            with chdir(self.empty.name):  # workers import modules from where Ray is started: a stranger's, perhaps
                ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        remote: Any = ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=1)(PartWriter)
        load_there = partial(_load_in, os.getcwd(), load)
        self.workers: list[Any] = [remote.remote(config, into.resolve(), load_there) for _ in range(workers)]

    def __call__(self, number: int, texts: list[str]) -> "Future[PartDone]":
        """The part that a worker makes."""
        made: Future[PartDone] = Future()

        def pass_on(done: "Future[PartDone]") -> None:
            try:
                made.set_result(done.result())
            except BaseException as error:
                cause = getattr(error, "cause", error)  # what the worker raised
                known = isinstance(cause, RegardError | OSError)
                lines = [line for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
                why = lines[-1] if getattr(cause, "actor_init_failed", False) else lines[0]
                made.set_exception(cause if known else RegardError(f"--engine ray: a worker failed: {shown(why)}"))

        self.workers[number % len(self.workers)].write.remote(number, texts).future().add_done_callback(pass_on)
        return made

    def close(self) -> None:
        """End the workers."""
        self.ray.shutdown()
        self.empty.cleanup()


def _load_in(folder: str, load: Callable[[str], Any], name: str) -> Any:
    """`load`, for a name as it is meant in a folder."""
    with suppress(OSError):  # of another machine, which has no such folder
        os.chdir(folder)
    return load(name)
