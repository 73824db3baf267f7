"""Disks that are full: a verb that writes ends in one sentence, and what was there is there.

A process that may write no file beyond some bytes (RLIMIT_FSIZE) meets a full disk at every size; a small disk of its
own is used where this machine lets one be mounted.
"""

import errno
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from adversary.killing import contents
from conftest import tiny
from regard import cli

LIMITS = (0, 1_000, 300_000)  # bytes of a file


@pytest.fixture
def verbs(tiny_run: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Verbs that write, as their arguments.

    A name without a folder is in the folder that is nearly full.
    """
    from regard.config import to_toml
    from regard.experiment import read_config

    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    config, corpus, publisher = tmp_path / "small.toml", tmp_path / "corpus.txt", tmp_path / "input.txt"
    config.write_text(to_toml(read_config(tiny("transformer", max_steps=2, evaluate_every=1), {})))
    corpus.write_text("le chat noir\n" * 3)
    publisher.write_text("First Citizen:\n" + "ROMEO:\nO Romeo!\n" * 10)
    here, lines = str(tiny_run), str(corpus)
    return {
        "prepare": ["prepare", str(config), "--folder", "run"],
        "average": ["average", here, "mean"],
        "export": ["export", "fr-en", "model"],
        "look": ["look", "fr-en", "le chat", "--save", "page.html"],
        "translate": ["translate", "--output", "out", "le chat"],
        "picture": ["translate", "--look", "cat.png", "--look", "cat.svg", "--look", "cat.pdf", "le chat"],
        "corpus": ["translate", "--from", lines, "--to", "parts", "--column", "text"],
        "evaluate": ["evaluate", "fr-en", "--source", lines, "--reference", lines, "--output", "out",
                     "--calibration", "cal.png"],
        "report": ["report", here, "--output", "report.html"],
        "trace": ["trace", "fr-en-rnn", "le chat", "--look", "t.png"],
        "samples": ["samples", "samples"], "shakespeare": ["data", "shakespeare", str(publisher), "--folder", "data"],
        "expressions": ["data", "expressions", "fr", "en", "--count", "50", "--output", "pairs.tsv"],
    }  # fmt: skip


@dataclass(frozen=True)
class Done:
    """What a verb ended with."""

    code: int
    err: str


def run(arguments: list[str], folder: Path, limit: int | None) -> Done:
    """A verb in a fork of this process, in a folder; `limit` bytes a file may have."""

    def bounded() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # EFBIG instead
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    if {"look", "--look"} & {*arguments}:  # which computes gradients: no fork may
        command = [sys.executable, "-m", "regard", *arguments]
        done = subprocess.run(command, cwd=folder, preexec_fn=bounded, capture_output=True, text=True, timeout=120)
        return Done(done.returncode, done.stderr)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.chdir(folder)
        bounded()
        sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
        try:
            code = cli.run(arguments)
        except BaseException:
            code = 99
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        err = file.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    return Done(os.waitstatus_to_exitcode(status), err)


def check(name: str, done: Done, folder: Path, before: dict[str, bytes]) -> None:
    """One sentence of what went wrong; files that were there are there, and no part of a new one."""
    said = done.err.strip().splitlines()
    assert "Traceback" not in done.err, f"{name}: {done.err[-900:]}"
    assert done.code in (0, 1, 2), f"{name}: {done.code}: {done.err[-900:]}"
    if done.code:
        assert said, name
        assert said[-1].startswith("regard: "), f"{name}: {said[-1]}"
        reasons = (
            os.strerror(errno.EFBIG),
            os.strerror(errno.ENOSPC),
            "written",
            "No space",
            "disk is full",
            "temporary directory",
        )
        assert any(reason in done.err for reason in reasons), f"{name}: {done.err[-900:]}"
    after = contents(folder)
    assert {one: after.get(one) for one in before} == before, name
    left = [path.name for path in folder.rglob("*.aside") if path.name not in done.err]  # `--output` names its own
    assert left == [], name


def attempts(
    verbs: dict[str, list[str]], make: Callable[[str], Path], limit: int | None
) -> dict[str, int]:  # fmt: skip
    """The exit code of every verb."""
    codes = {}
    for name, arguments in verbs.items():
        folder = make(name)
        (folder / "mine").write_text("mine")
        before = contents(folder)
        done = run(arguments, folder, limit)
        check(f"{name}, {limit} bytes", done, folder, before)
        codes[name] = done.code
    return codes


def numbered(place: Path, limit: int) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        folder = place / f"{limit}-{name}"
        folder.mkdir()
        return folder

    return make


one_run = pytest.mark.parametrize("tiny_run", ["transformer"], indirect=True)
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE, mounts")


@needs_linux
@one_run
def test_a_full_disk_is_one_sentence(verbs: dict[str, list[str]], tmp_path: Path) -> None:
    few = {name: verbs[name] for name in ("translate", "samples")}
    assert set(attempts(few, numbered(tmp_path, 0), 0).values()) == {1}


@needs_linux
@one_run
@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_files_that_may_not_grow(
    limit: int, verbs: dict[str, list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    codes = attempts(verbs, numbered(tmp_path, limit), limit)
    with capfd.disabled():
        print(f"full at {limit:,} bytes a file: {len(codes)} verbs, {sum(map(bool, codes.values()))} refused: all held")
    if limit == 0:
        assert set(codes.values()) == {1}


@needs_linux
@pytest.mark.slow
def test_torchs_own_layout_on_a_full_disk(tmp_path: Path) -> None:
    """In a process of its own: torch's writer of files would end this one."""
    command = [sys.executable, "-m", "regard", "export", "fr-en", "graphs", "--layout", "torch"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_003, 2_003))  # noqa: E731
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"regard: {tmp_path / 'graphs'}: File too large\n")
    assert list(tmp_path.iterdir()) == []


@needs_linux
@one_run
@pytest.mark.slow
def test_a_small_disk(verbs: dict[str, list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A disk of 1 MB of which all but a few kilobytes are taken."""
    disks: list[Path] = []
    codes: dict[str, int] = {}
    try:
        for free in (4_096, 200_000):
            for name, arguments in verbs.items():
                disk = tmp_path / f"disk-{free}-{name}"
                disk.mkdir()
                mounted = subprocess.run(
                    ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
                )
                if mounted.returncode:
                    pytest.skip("this machine lets nothing be mounted")
                disks.append(disk)
                (disk / "filler").write_bytes(b"x" * (2**20 - free))
                before = contents(disk)
                done = run(arguments, disk, None)
                check(f"{name}, {free} bytes free", done, disk, before)
                codes[f"{name} {free}"] = done.code
    finally:
        for disk in disks:
            subprocess.run(["umount", str(disk)], check=False)
    with capfd.disabled():
        print(f"small disks: {len(codes)} verbs, {sum(map(bool, codes.values()))} refused: all held")
