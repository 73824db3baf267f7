"""Threads of one program that use regard at once: results are those of one thread, the process stays as it was."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import regard
from adversary.test_state import as_found
from conftest import tiny
from regard.errors import ConfigError
from regard.training.checkpoint import load_checkpoint
from regard.training.engine import LAST

TEXTS = ["le chat noir", "Je suis fatigué.", "Le chien dort. La maison est grande."]
ROUNDS = 3


def together(works: list[Callable[[], Any]]) -> list[Any]:
    """Results of calls that begin at the same time, one thread each."""
    gate = threading.Barrier(len(works))

    def begun(work: Callable[[], Any]) -> Any:
        gate.wait(30)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [one.result(timeout=300) for one in [pool.submit(begun, work) for work in works]]


def translated(model: Any) -> list[tuple[str, str]]:
    return [(one.text, f"{one.log_prob:.4f}") for one in model(TEXTS, beam=2)]


def drawn(model: Any) -> list[str]:
    return [one.text for one in model(TEXTS, sample=True, seed=7)]


def observed(model: Any) -> list[list[float]]:
    ids = torch.tensor([[*model.tokenizer.encode(TEXTS[0]), model.tokenizer.eos]])
    with torch.inference_mode(), regard.observe(model.model, sites=["encoder.*"]) as seen:
        model.model.encode(ids)
    return [one.entropy().flatten().tolist() for maps in seen.values() for one in maps]


def plotted(model: Any, path: Path) -> int:
    model(TEXTS[0]).alignment.plot(path)
    return path.stat().st_size


def test_threads_that_translate_give_what_one_gives() -> None:
    model = regard.load("fr-en")
    wanted, sampled = translated(model), drawn(model)
    with as_found():
        found = together([lambda: translated(model), lambda: drawn(model)] * 2)
    assert found == [wanted, sampled] * 2


@pytest.mark.slow
def test_threads_that_load_observe_draw_and_plot(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each thread has a model of its own, and what it observes is its own forward."""
    names = ("fr-en", "fr-en-rnn")
    alone = {name: (translated(regard.load(name)), drawn(regard.load(name))) for name in names}
    seen = observed(regard.load("fr-en"))
    plotted(regard.load("fr-en"), tmp_path / "first.png")
    calls = 0
    for number in range(ROUNDS):
        works: list[Callable[[], Any]] = []
        wanted: list[Any] = []
        for name in names:
            works += [lambda name=name: translated(regard.load(name)), lambda name=name: drawn(regard.load(name))]
            wanted += alone[name]
        works.append(lambda n=number: plotted(regard.load("fr-en"), tmp_path / f"{n}.png") > 0)
        wanted.append(True)
        with as_found():
            found = together(works)
        assert found == wanted
        calls += len(works)
    with as_found():  # alone: a forward in another thread while a model is observed is that thread's
        assert together([lambda: observed(regard.load("fr-en"))]) == [seen]
    with capfd.disabled():
        print(f"threads: {calls + 1} calls, {calls + 1} as alone")


def test_two_trainings_at_once_are_one(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would draw from one generator: the second is refused, and the first ends as it does alone."""
    monkeypatch.setenv("REGARD_DATA", str(data_folder))

    def trained(folder: str) -> str | dict[str, torch.Tensor]:
        try:
            regard.train(tiny("transformer", max_steps=2, evaluate_every=2), run=tmp_path / folder)
        except ConfigError as error:
            return str(error)
        return load_checkpoint(tmp_path / folder / LAST)[0]

    with as_found():
        found = together([lambda: trained("one"), lambda: trained("other")])
    (refused,) = (one for one in found if isinstance(one, str))
    assert refused.startswith("another training runs in this process")
    (made,) = (one for one in found if not isinstance(one, str))
    assert len([path for path in tmp_path.iterdir() if path.name in ("one", "other")]) == 1
    alone = trained("alone")  # the refusal has released nothing that the first one held
    assert not isinstance(alone, str)
    assert [name for name in alone if name.startswith("model") and not torch.equal(alone[name], made[name])] == []
