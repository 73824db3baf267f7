"""One run by one, two or three processes: the same loss curve, the same evaluations, every example once; and what
happens when a process is killed or hangs."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import made_pairs, tiny
from regard.config import to_toml, validate
from regard.tasks.config import ExperimentConfig

STEPS = 12


def write_config(folder: Path, kind: str = "transformer", **training: Any) -> Path:
    settings = tiny(kind, max_steps=STEPS, evaluate_every=4, **training)
    settings["model"] |= {"dropout": 0.0}
    path = folder / "config.toml"
    path.write_text(to_toml(validate(ExperimentConfig, settings, "made")), "utf-8")
    return path


def start(count: int, config: Path, run: Path, *more: str, restarts: int = 0) -> subprocess.Popen[str]:
    """`regard train` by torchrun, in `count` processes on this machine."""
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={count}",
        f"--max-restarts={restarts}",
    ]
    verb = ["-m", "regard", "train", str(config), "--folder", str(run), *more]
    command = [sys.executable, *(torchrun if count > 1 else []), *verb]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one)


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, err[:3000]
    return out, err


def entries(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "journal.jsonl").read_text("utf-8").splitlines()]
    return [entry for entry in found if entry["event"] == "evaluation"]


def same_curve(one: Path, other: Path) -> None:
    """Losses equal to rounding, decoded measures equal."""
    for a, b in zip(entries(one), entries(other), strict=True):
        for name in ("step", "epoch", "batch", "dev_bleu", "dev_chrf"):
            assert a[name] == b[name], name
        for name in ("train_loss", "dev_loss"):
            assert a[name] == pytest.approx(b[name], rel=2e-5), name


@pytest.fixture
def data(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))


@pytest.fixture
def one(data: None, tmp_path: Path) -> Path:
    finish(start(1, write_config(tmp_path), tmp_path / "one"))
    return tmp_path / "one"


def test_two_processes_train_what_one_trains(one: Path, tmp_path: Path) -> None:
    out, _ = finish(start(2, tmp_path / "config.toml", tmp_path / "two"))
    assert out.strip() == str(tmp_path / "two")  # one line, of one process
    same_curve(one, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformer", "recurrent"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_any_number_of_processes_trains_the_same(data: None, tmp_path: Path, kind: str, parallel: str) -> None:
    config = write_config(tmp_path, kind, parallel=parallel, accumulate=2, ema=0.5)
    for count in (1, 2, 3):
        finish(start(count, config, tmp_path / str(count)))
    same_curve(tmp_path / "1", tmp_path / "2")
    same_curve(tmp_path / "1", tmp_path / "3")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_is_resumed_on_another_number_of_processes(data: None, tmp_path: Path, parallel: str) -> None:
    config = write_config(tmp_path, parallel=parallel, checkpoint_seconds=0.01)
    finish(start(1, config, tmp_path / "whole"))
    run = tmp_path / "run"
    for count in (2, 3, 1):
        if (run / "bundle.json").exists():
            break
        more = ["--resume"] if run.exists() else []
        process = start(count, config, run, *more)
        kept = run / ("last" if parallel == "fsdp" else "last.safetensors")
        before = kept.stat().st_mtime_ns if kept.exists() else 0
        while process.poll() is None and not (kept.exists() and kept.stat().st_mtime_ns > before):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    if not (run / "bundle.json").exists():
        finish(start(1, config, run, "--resume"))
    same_curve(tmp_path / "whole", run)


def children(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]


@pytest.mark.slow
@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_run_with_its_number(data: None, tmp_path: Path, what: signal.Signals) -> None:
    settings = {"checkpoint_seconds": 0.01, "timeout": 10.0}
    config = write_config(tmp_path, **settings)
    config.write_text(config.read_text("utf-8").replace(f"max_steps = {STEPS}", "max_steps = 100000"), "utf-8")
    run = tmp_path / "run"
    process = start(2, config, run)
    while process.poll() is None and not (run / "last.safetensors").exists():
        time.sleep(0.05)
    victim = max(children(process))
    os.kill(victim, what)
    begun = time.monotonic()
    if what == signal.SIGSTOP:
        time.sleep(30)
        os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=90)
    assert process.returncode != 0
    assert time.monotonic() - begun < 90
    assert "process 1 of 2" in err or f"exitcode  : -9 (pid: {victim})" in err
    assert "--resume" in err or "-9" in err


@pytest.mark.slow
def test_torchrun_starts_a_run_again_that_lost_a_process(one: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        config.read_text("utf-8").replace("checkpoint_seconds = 120", "checkpoint_seconds = 0.01"), "utf-8"
    )
    run = tmp_path / "run"
    process = start(2, config, run, restarts=3)
    while process.poll() is None and not (run / "last.safetensors").exists():
        time.sleep(0.01)
    if process.poll() is None:
        os.kill(max(children(process)), signal.SIGKILL)
    finish(process)
    same_curve(one, run)


def wait_for_checkpoints(process: subprocess.Popen[str], kept: Path, number: int) -> None:
    """Wait until a checkpoint has been written so many times, or the process has ended."""
    before = kept.stat().st_mtime_ns if kept.exists() else 0
    while process.poll() is None and number:
        now = kept.stat().st_mtime_ns if kept.exists() else 0
        number -= now != before
        before = now
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(1,), (2, 1, 3)])
def test_a_run_that_is_killed_at_twenty_random_steps(data: None, tmp_path: Path, counts: tuple[int, ...]) -> None:
    """SIGKILL for all processes at once, wherever they are; equal bit for bit on one process, else to rounding."""
    config = write_config(tmp_path, checkpoint_seconds=1e-6)
    longer = config.read_text("utf-8").replace(f"max_steps = {STEPS}", "max_steps = 120")
    config.write_text(longer.replace("evaluate_every = 4", "evaluate_every = 20"), "utf-8")
    finish(start(1, config, tmp_path / "whole"))
    run, dice, kills = tmp_path / "run", random.Random(5), 0
    kept = run / "last.safetensors"
    while kills < 20 and not (run / "bundle.json").exists():
        process = start(counts[kills % len(counts)], config, run, *(["--resume"] if kept.exists() else []))
        wait_for_checkpoints(process, kept, dice.randint(1, 5))
        time.sleep(dice.random() * 0.1)
        if process.poll() is None:
            for victim in [process.pid, *children(process)]:  # torchrun's own first: it would end the others gently
                os.kill(victim, signal.SIGKILL)
            kills += 1
        process.communicate(timeout=60)
    assert kills == 20
    finish(start(1, config, run, "--resume"))
    same_curve(tmp_path / "whole", run)
    if counts == (1,):
        weights = [(folder / "weights.safetensors").read_bytes() for folder in (tmp_path / "whole", run)]
        assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_thousand_sentences_are_measured_alike_by_one_two_three_and_seven_processes(
    tiny_run: Path, tmp_path: Path
) -> None:
    pairs = (made_pairs() * 12)[:1001]
    assert len(pairs) == 1001
    paths = tmp_path / "source", tmp_path / "reference"
    for path, side in zip(paths, zip(*pairs, strict=True), strict=True):
        path.write_text("".join(f"{line}\n" for line in side), "utf-8")
    found = []
    for count in (1, 2, 3, 7):
        out = tmp_path / f"{count}.txt"
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        verb = ["-m", "regard", "evaluate", str(tiny_run), "--source", str(paths[0]), "--reference", str(paths[1])]
        command = [sys.executable, *(torchrun if count > 1 else []), *verb, "--json", "--output", str(out)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append((json.loads(done.stdout), out.read_text("utf-8")))
    for numbers, outputs in found[1:]:
        assert outputs == found[0][1]
        assert numbers.pop("loss") == pytest.approx(found[0][0]["loss"], rel=1e-9)
        assert numbers.pop("perplexity") == pytest.approx(found[0][0]["perplexity"], rel=1e-8)
        assert numbers.items() <= found[0][0].items()


INTERRUPTED = """
import torch
from regard.decoding.generate import check_wanted
from regard.errors import DataError
from regard.experiment import _until
from regard.training.distributed import together
from regard.training.loop import Interrupted

def searched(part):
    check_wanted()
    return part

def wrong(part):
    if group.rank == 1:
        raise DataError("row 7")
    return part

with together(torch.device("cpu"), 60) as group:
    def shared():
        return group.share_out([1, 2, 3], searched)
    def counted():
        group.all_or_none(check_wanted)
        return group.total(torch.ones(1)).item()
    for work in (shared, counted, check_wanted):
        for number in (0, 1):
            try:
                _until(lambda: group.rank == number, work, group)()
            except Interrupted:
                continue
            raise AssertionError("one process went on")
        assert _until(lambda: False, shared, group)() == [1, 2, 3]
        assert _until(lambda: False, counted, group)() == 2
    try:
        group.share_out([1, 2, 3], wrong)
    except DataError as error:
        assert str(error) == "row 7"
    else:
        raise AssertionError("one process went on")
"""


def test_where_one_process_is_to_stop_the_evaluation_of_all_ends(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED, "utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        torchrun, capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_evaluation_of_two_processes(data: None, tmp_path: Path, what: signal.Signals) -> None:
    """Both are signaled in an evaluation, are saved as before it, and continue as the run that was not interrupted."""
    config = write_config(tmp_path)
    finish(start(2, config, tmp_path / "whole"))
    run = tmp_path / "run"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "STOPPED": str(int(what))}
    stopping = tmp_path / "stopping.py"
    stopping.write_text(STOPPING, "utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(stopping)]
    done = subprocess.run(
        [*torchrun, str(config), str(run)], capture_output=True, text=True, timeout=400, env=environment
    )
    assert f"exitcode  : {128 + what}" in done.stderr, done.stderr[-3000:]
    assert "went on" not in done.stderr
    assert [entry["step"] for entry in entries(run)] == [4]
    finish(start(2, config, run, "--resume"))
    same_curve(tmp_path / "whole", run)


STOPPING = """
import os, signal, sys
from regard.tasks import translation
made, calls = translation.translations, 0

def signalled(*given, **named):
    global calls
    calls += 1
    if calls == (2 if int(os.environ["RANK"]) else 3):  # the first process also translates what it watches
        signal.raise_signal(int(os.environ["STOPPED"]))
        made(*given, **named)
        print("went on", file=sys.stderr)
    return made(*given, **named)

translation.translations = signalled
sys.argv = ["regard", "train", sys.argv[1], "--folder", sys.argv[2]]
from regard.__main__ import main
main()
"""
