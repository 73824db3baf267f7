"""A run that is killed at any moment goes on from its last checkpoint; Ctrl-C saves and exits with 130."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import tiny
from regard.config import to_toml, validate
from regard.experiment import train
from regard.pipelines.load import load
from regard.tasks.config import ExperimentConfig
from regard.training.checkpoint import load_checkpoint
from regard.training.engine import LAST

STEPS = 40


@pytest.fixture(params=["recurrent", "transformer"])
def config(request: pytest.FixtureRequest, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    settings = tiny(request.param, max_steps=STEPS, evaluate_every=10, checkpoint_seconds=0.01)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(validate(ExperimentConfig, settings, "made")), "utf-8")
    return path


def start(config: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "regard", "train", str(config), "--run", str(run), *more]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one)


def wait_for_a_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    """Until the run has written one and is some steps beyond it."""
    while process.poll() is None and not (run / LAST).exists():
        time.sleep(0.01)
    time.sleep(0.1)


def journal(run: Path) -> list[dict[str, object]]:
    """The journal without what a clock wrote."""
    entries = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(config: Path, tmp_path: Path) -> None:
    train(config, run=tmp_path / "whole")
    process = start(config, tmp_path / "killed")
    wait_for_a_checkpoint(tmp_path / "killed", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    train(config, run=tmp_path / "killed", resume=True)
    whole, killed = (load_checkpoint(tmp_path / name / LAST)[0] for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name
    assert journal(tmp_path / "whole") == journal(tmp_path / "killed")
    assert load(tmp_path / "killed")("le chat noir").ids == load(tmp_path / "whole")("le chat noir").ids


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_with_130(config: Path, tmp_path: Path) -> None:
    process = start(config, tmp_path / "run")
    wait_for_a_checkpoint(tmp_path / "run", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "interrupted; everything is saved" in errors
    load_checkpoint(tmp_path / "run" / LAST)
    again = start(config, tmp_path / "run", "--resume")
    _, errors = again.communicate()
    assert again.returncode == 0, errors
