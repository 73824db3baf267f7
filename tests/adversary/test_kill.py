"""Every verb that writes, killed before and after each of its file operations: the old is there, or the new, whole.

The fast tests kill single files at every operation, and `make test-slow` a run at every twelfth.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adversary.killing import contents, kill_everywhere, killing
from conftest import tiny
from regard import cli, experiment
from regard.attention.maps.map import AttentionMap
from regard.bundle import load_bundle
from regard.errors import RegardError
from regard.experiment import average_run, export_bundle, prepare, train
from regard.figures.heatmap import heatmap
from regard.pipelines.load import load
from regard.serving.bulk import BulkConfig, PartDone, part_file, translate_corpus
from regard.storage import replace_folder, replacing, write_text
from regard.training.checkpoint import load_checkpoint
from regard.training.engine import LAST
from regard.training.journal import Journal

Place = Callable[[], Path]


@pytest.fixture
def fresh(tmp_path: Path) -> Place:
    """Makes empty folders."""
    numbers = count()

    def make() -> Path:
        place = tmp_path / f"place{next(numbers)}"
        place.mkdir()
        return place

    return make


def told(verb: str, kills: int) -> None:
    print(f"{verb}: {kills} kills, {kills} held")


def test_the_killer_finds_a_file_that_is_written_in_place(fresh: Place) -> None:
    """The tests below can fail."""

    def prepare() -> Path:
        place = fresh()
        (place / "x").write_text("old")
        return place

    def check(place: Path) -> None:
        assert (place / "x").read_text() in ("old", "new")

    with pytest.raises(AssertionError):
        kill_everywhere(prepare, lambda place: (place / "x").write_text("new"), check)


slow = pytest.mark.slow
# a killed process closes nothing
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("name", ["text", "map", pytest.param("figure", marks=slow), "output", "journal", "data"])
def test_one_file(name: str, fresh: Place) -> None:
    def work(place: Path) -> object:
        path = place / {"map": "x.safetensors", "figure": "x.svg"}.get(name, "x")
        match name:
            case "text":
                return write_text(path, "new")
            case "map":
                return AttentionMap.from_weights(torch.eye(3)[None]).save(path)
            case "figure":
                return heatmap(np.eye(2).tolist(), ["a", "b"], ["c", "d"], path=path)
            case "output":
                with replacing(path, keep=True) as file:
                    return file.write(b"new\n")
            case "journal":
                return Journal(path).rewind(1)
            case "data":
                return cli.run(["data", "expressions", "fr", "en", "--count", "3", "--output", str(path)])
        return None

    def prepare() -> Path:
        place = fresh()
        for ending in ("", ".safetensors", ".svg"):
            Path(place / f"x{ending}").write_text('{"step": 1}\n{"step": 2}\n')
        return place

    before, whole = contents(prepare()), prepare()
    work(whole)
    after = contents(whole)
    assert before != after

    def check(place: Path) -> None:
        assert contents(place) in (before, after)

    told(name, kill_everywhere(prepare, work, check))


def test_a_folder_in_the_place_of_another(fresh: Place) -> None:
    def prepare() -> Path:
        place = fresh()
        for name in ("new", "there"):
            (place / name).mkdir()
            (place / name / "x").write_text(name)
        return place

    def check(place: Path) -> None:
        assert (place / "there" / "x").read_text() in ("new", "there")

    told("folder", kill_everywhere(prepare, lambda at: replace_folder(at / "new", at / "there"), check))


@pytest.mark.parametrize("layout", ["regard", "average"])
def test_a_model_is_exported_whole_or_not_at_all(layout: str, fresh: Place, tiny_run: Path) -> None:
    model = load(tiny_run)

    def work(place: Path) -> None:
        if layout == "average":
            average_run(tiny_run, place / "model")
        else:
            export_bundle(model, place / "model", "float32", layout)

    def check(place: Path) -> None:
        assert [one.name for one in place.iterdir() if not one.name.endswith(".aside")] in ([], ["model"])
        if (place / "model").exists():
            load(place / "model")

    told(f"export {layout}", kill_everywhere(fresh, work, check, every=3))


def test_parts_of_a_corpus_are_there_once(fresh: Place, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{n}\n" for n in range(7)))
    config = BulkConfig(str(corpus), 14, "", "made", part=3)

    def work(place: Path) -> None:
        def submit(number: int, texts: list[str]) -> "Future[PartDone]":
            import pyarrow as pa
            from pyarrow import parquet

            errors = pa.array([None] * len(texts), pa.string())
            with replacing(part_file(place / "parts", number)) as file:
                parquet.write_table(pa.table({"source": texts, "error": errors}), file)
            made: Future[PartDone] = Future()
            made.set_result(PartDone(number, len(texts), 0))
            return made

        translate_corpus(config, place / "parts", submit, 1, lambda _: None)

    def check(place: Path) -> None:
        from pyarrow import parquet

        work(place)  # goes on
        tables = map(parquet.read_table, sorted((place / "parts").glob("part-*")))
        rows = [source for table in tables for source in table["source"].to_pylist()]
        assert rows == [str(n) for n in range(7)]

    told("bulk", kill_everywhere(fresh, work, check))


class Training:
    """A tiny run, what it ends with, and what must hold of one that was killed."""

    def __init__(self, kind: str) -> None:
        self.config = tiny(kind, max_steps=2, evaluate_every=1, keep_best=2)
        self.whole: dict[str, torch.Tensor] = {}

    def work(self, place: Path) -> None:
        train(self.config, run=place / "run")
        self.whole = self.whole or load_checkpoint(place / "run" / LAST)[0]

    def check(self, place: Path) -> None:
        run = place / "run"
        try:
            train(self.config, run=run, resume=(run / LAST).exists())
        except RegardError as error:
            raise AssertionError(f"cannot go on: {error}") from error
        found = load_checkpoint(run / LAST)[0]
        assert found.keys() == self.whole.keys()
        assert all(torch.equal(found[name], self.whole[name]) for name in found)
        load_bundle(run)


@pytest.fixture
def training(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Training]:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    monkeypatch.setattr(experiment, "_machine", lambda *_: {})  # seconds
    return Training


@slow
@pytest.mark.parametrize("kind", ["recurrent", "transformer"])
def test_a_run_killed_at_every_twelfth_operation_goes_on_to_the_same_bits(
    kind: str, fresh: Place, training: Any
) -> None:
    one = training(kind)
    told(f"train {kind}", kill_everywhere(fresh, one.work, one.check, every=12))


@slow
def test_a_run_killed_while_it_ends_goes_on_to_the_same_bits(fresh: Place, training: Any) -> None:
    one = training("recurrent")
    with killing() as counter:
        one.work(fresh())
    place = fresh()
    with killing(counter.count - 4):  # the files of the finished model are being written
        one.work(place)
    one.check(place)


@slow
def test_a_corpus_that_is_prepared(fresh: Place, training: Any) -> None:
    config = tiny("recurrent")
    whole = fresh()
    prepare(config, run=whole / "run")
    wanted = contents(whole / "run")

    def check(place: Path) -> None:
        prepare(config, run=place / "run")
        assert contents(place / "run") == wanted

    told("prepare", kill_everywhere(fresh, lambda place: prepare(config, run=place / "run"), check))


@slow
def test_a_finished_run_that_goes_on_stays_loadable_or_resumable(fresh: Place, training: Any) -> None:
    one = training("transformer")
    done = fresh()
    one.work(done)
    more = {"training.max_steps": 3}

    def prepare() -> Path:
        place = fresh()
        shutil.copytree(done / "run", place / "run")
        return place

    def check(place: Path) -> None:
        train(one.config, more, run=place / "run", resume=True)
        assert load_checkpoint(place / "run" / LAST)[1]["step"] == 3
        load_bundle(place / "run")

    work = lambda place: train(one.config, more, run=place / "run", resume=True)  # noqa: E731
    told("resume", kill_everywhere(prepare, work, check, every=12))
