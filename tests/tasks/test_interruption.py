"""A signal during an evaluation ends it at once; the run is saved as before it, and resumed with it."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny
from regard.experiment import prepare, train
from regard.storage import aside_of
from regard.tasks import translation
from regard.training.checkpoint import load_checkpoint
from regard.training.engine import LAST
from regard.training.journal import Journal
from regard.training.loop import Interrupted


@pytest.mark.parametrize("during", ["mean_loss", "_decoded_scores", "translations"])
def test_a_signal_ends_an_evaluation(
    during: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`translations` is called by the evaluation first, and later for the watched sentences."""
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    config = tiny("transformer", max_steps=5, evaluate_every=2)
    train(config, run=tmp_path / "whole")
    made = getattr(translation, during)
    calls = 0

    def signalled(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGTERM)
            made(*given, **named)
            raise AssertionError("the evaluation went on")
        return made(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(translation, during, signalled)
        with pytest.raises(Interrupted) as error:
            train(config, run=tmp_path / "run")
    assert error.value.number == signal.SIGTERM
    step = load_checkpoint(tmp_path / "run" / LAST)[1]["step"]
    train(config, run=tmp_path / "run", resume=True)
    found, wanted = (load_checkpoint(tmp_path / name / LAST)[0] for name in ("run", "whole"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    journals = [Journal(tmp_path / name / "journal.jsonl").entries() for name in ("run", "whole")]
    assert step in (2, 4)
    assert [entry | {"seconds": 0} for entry in journals[0]] == [entry | {"seconds": 0} for entry in journals[1]]


def test_prepare_removes_what_a_killed_one_left(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    config = tiny("transformer")
    left = aside_of(prepare(config, run=tmp_path / "run") / ".regard")
    left.write_text("half")
    prepare(config, run=tmp_path / "run")
    assert not left.exists()
