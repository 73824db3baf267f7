"""The bar of a training run keeps steps and time, however narrow the terminal is."""

import io

import pytest
from rich.console import Console

from regard.cli import progress

START = {
    "event": "start", "max_steps": 12000, "step": 0, "training": "9 training pairs", "development": "1 for development",
    "vocabulary": 9, "padding": 0.1, "precision": "float32", "device": "cpu", "run": "runs/x",
}  # fmt: skip
EVENTS = (
    START,
    {"event": "step", "step": 7654, "loss": 1.25, "seconds": 1.0, "tokens": 900},
    {"event": "evaluation", "step": 7654, "dev_loss": 1.5, "dev_bleu": 41.25, "dev_chrf": 60.0},
    {"event": "step", "step": 7655, "loss": 1.25, "seconds": 2.0, "tokens": 900},
)


@pytest.mark.parametrize("width", [80, 160])
def test_steps_and_time_are_shown(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "err", console)
    with progress.training_bar() as report:
        for event in EVENTS:
            report(event)
    bar = [line for line in file.getvalue().replace("\r", "\n").splitlines() if "7655" in line][-1]
    assert " 7655/12000 " in bar
    assert "loss 1.250" in bar
    assert "BLEU 41.2" in bar
    assert "0:00:0" in bar.split("left")[0]
    assert "…" not in bar
    assert ("tokens/s" in bar) == (width == 160)
