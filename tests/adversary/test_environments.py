"""Closed streams, locales, bad arguments, backends, interrupts: the command answers in one sentence and an exit code.

The whole matrix runs processes, and is slow; the fast tests run a sample of it in this process.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import tiny
from regard.config import to_toml, validate
from regard.errors import harmless
from regard.tasks.config import ExperimentConfig

SENTENCE = ("translate", "le chat noir", "--beam", "1")
LOCALES: dict[str, dict[str, str]] = {
    "utf-8": {"LC_ALL": "C.UTF-8"},
    "ascii": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
}


def shell(command: str, arguments: tuple[str, ...], more: dict[str, str] | None = None) -> tuple[int, bytes, bytes]:
    """Run `python -m regard` by a shell, whose redirections `command` holds after `"$@"`."""
    path = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **(more or {})}
    done = subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-m", "regard", *arguments],
        capture_output=True, env=environment, timeout=120, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def check_errors(err: bytes) -> None:
    """One sentence a line, no traceback, nothing that a terminal obeys."""
    assert b"Traceback" not in err
    assert all(line.startswith(b"regard: ") for line in err.splitlines()), err
    assert b"\x1b" not in err


STREAMS = {
    '"$@" <&-': (0, True), '"$@" >&-': (1, False), '"$@" 2>&-': (0, True), '"$@" >/dev/full': (1, False),
    '"$@" 2>/dev/full': (0, True), '"$@" <&- >&- 2>&-': (1, False), '"$@" | head -c 0': (0, False),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", STREAMS)
def test_streams_that_are_closed_or_full(command: str) -> None:
    code, out, err = shell(command, SENTENCE)
    check_errors(err)
    wanted, answered = STREAMS[command]
    assert (code, out) == (wanted, b"the black cat\n" if answered else b"")
    if code and "2>&-" not in command:
        assert err.count(b"\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ['"$@" 2>&-', '"$@" 2>/dev/full'])
def test_errors_never_reach_standard_output(command: str) -> None:
    assert shell(command, ("translate", "x", "--model", "nonsense")) == (2, b"", b"")


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCALES)
def test_results_are_utf8_in_every_locale(name: str) -> None:
    code, out, err = shell('"$@"', ("translate", "I was at school.", "--beam", "1", "--model", "en-fr"), LOCALES[name])
    assert (code, err) == (0, b"")
    assert "école" in out.decode("utf-8")
    code, _, err = shell('"$@"', ("translate", "x", "--model", "école"), LOCALES[name])
    check_errors(err)
    assert code == 2


@pytest.mark.slow
def test_a_backend_that_does_not_exist(tmp_path: Path) -> None:
    for backend in ("nonsense", "module://nonsense", "TkAgg"):
        code, _, err = shell('"$@"', (*SENTENCE, "--look", str(tmp_path / "x.svg")), {"MPLBACKEND": backend})
        assert (code, err[:14]) == (0, b"regard: drawn:")


def test_settings_of_matplotlib_in_the_working_directory_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "latex").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    (tmp_path / "latex").chmod(0o755)
    settings = {"MATPLOTLIBRC": "/dev/zero", "SOURCE_DATE_EPOCH": "x", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    pictures = []
    for number, rules in enumerate((None, "text.usetex: True\nimage.origin: lower\n", "pipe")):
        place = tmp_path / str(number)
        place.mkdir()
        if rules == "pipe":
            os.mkfifo(place / "matplotlibrc")
        elif rules:
            (place / "matplotlibrc").write_text(rules)
        code, _, err = shell(f'cd {place} && "$@"', (*SENTENCE, "--look", "x.svg"), settings)
        assert (code, err) == (0, b"regard: drawn: x.svg\n")
        pictures.append((place / "x.svg").read_bytes())
    assert pictures[0] == pictures[1] == pictures[2]
    assert not (tmp_path / "ran").exists()


BAD: tuple[tuple[int, tuple[str, ...]], ...] = (
    (2, ("nonsense",)), (2, ("non\x1b[31m\nregard: forged",)), (2, ("translate", "--nonsense")),
    (2, ("translate", "--beam", "0", "x")), (2, ("translate", "--beam", "\x1b[31m", "x")),
    (2, ("translate", "--model", "x\x1b[31m\nregard: forged", "y")), (1, ("translate", "--model", "r[/bold]x/y", "x")),
    (2, ("train", "/dev/zero")), (2, ("train", "/")), (2, ("train", "nonsense.toml")),
    (2, ("export", "fr-en")), (2, ("evaluate", "fr-en")), (2, ("train", "x", "--set", "nonsense")),
    (1, ("complete", "a" * 10**6)), (1, ("fill", "[MASK] " * 10**5)), (1, ("translate", "a" * 10**6)),
)  # fmt: skip


@pytest.mark.parametrize(("code", "arguments"), BAD)
def test_bad_arguments_get_one_sentence(talk: Any, code: int, arguments: tuple[str, ...]) -> None:
    found, out, err = talk(*arguments)
    assert found == code
    assert out in ("", "\n")
    check_errors(err.encode())
    assert err.count("\n") == 1, err


def test_a_config_of_a_stranger_is_one_sentence(talk: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    for raw in (b'"a\\u001b[31m\\nregard: forged" = 1', b"\xff", b"a = " + b"[" * 10**5, b"a = ", b""):
        path.write_bytes(raw)
        code, out, err = talk("train", path)
        assert (code, out) == (2, "")
        check_errors(err.encode())
        assert err.count("\n") == 1
    path.unlink()
    os.mkfifo(path)
    assert talk("train", path) == (2, "", f"regard: {path}: a pipe or a device, not a config file\n")


def test_a_folder_of_the_user_is_no_run(talk: Any, tmp_path: Path, data_folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    config = tmp_path / "own" / "config.toml"
    config.parent.mkdir()
    config.write_text(to_toml(validate(ExperimentConfig, tiny("recurrent"), "made")))
    for name in ("journal.jsonl", "best-000001.safetensors", "tokenizer.json", "best.toml"):
        (config.parent / name).write_text("mine")
    before = {path.name: path.read_text() for path in config.parent.iterdir()}
    for verb in (("train",), ("prepare",), ("distill", "fr-en")):
        code, out, err = talk(*verb, config, "--folder", config.parent)
        assert (code, out) == (2, "")
        assert "not made by regard ('best-000001.safetensors' is there): a run needs a folder of its own" in err
    code, _, err = talk("tune", config, "--range", "training.seed=1|2", "--folder", config.parent)
    assert code == 2
    assert "a search needs a folder of its own" in err
    assert {path.name: path.read_text() for path in config.parent.iterdir()} == before


def test_text_from_outside_is_shown_and_not_obeyed() -> None:
    for number in (*range(32), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202E, 0x2066, 0xDC80):
        assert harmless(f"a{chr(number)}b").isascii()
        assert len(harmless(f"a{chr(number)}b").splitlines()) == 1
    assert harmless("\x1b[31m\n") == "\\x1b[31m\\n"
    assert harmless("a\tb\n\x1b", keep="\n\t") == "a\tb\n\\x1b"
    assert harmless("l'œuf 猫 مرحبا 🐈") == "l'œuf 猫 مرحبا 🐈"


@pytest.mark.slow
def test_interrupted_at_any_moment_there_is_no_traceback() -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    silent = 0
    for tenths in range(2, 42, 4):
        process = subprocess.Popen(
            [sys.executable, "-m", "regard", *SENTENCE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        time.sleep(tenths / 10)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (130, -signal.SIGINT, 0)
        assert b"Traceback" not in err, (tenths, err)
        silent += process.returncode == -signal.SIGINT
    print(f"early interrupts: 10, without a traceback: 10 ({silent} before the first import was done)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda one: str(one)
)
def test_signals_save_and_exit_and_twice_end_at_once(
    number: signal.Signals, code: int, tmp_path: Path, data_folder: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    settings = tiny("recurrent", max_steps=100_000, evaluate_every=50_000)
    config, run = tmp_path / "config.toml", tmp_path / "run"
    config.write_text(to_toml(validate(ExperimentConfig, settings, "made")), "utf-8")
    path = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])

    def start(*more: str) -> subprocess.Popen[bytes]:
        found = subprocess.Popen(
            [sys.executable, "-m", "regard", "train", str(config), "--folder", str(run), *more],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )  # fmt: skip
        while found.poll() is None and not (run / "machine.json").exists():
            time.sleep(0.05)
        time.sleep(1.0)
        return found

    process = start()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert b"interrupted; everything is saved" in err
    assert (run / "last.safetensors").exists()
    assert not (run / ".lock").exists()
    (run / "machine.json").unlink()
    process = start("--resume")
    sent = time.monotonic()
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.01)
    process.communicate(timeout=60)
    assert process.returncode in (code, -number)
    assert time.monotonic() - sent < 5
    again = subprocess.run(  # a lock that is left is taken over
        [sys.executable, "-m", "regard", "train", str(config), "--folder", str(run), "--resume", "--max-minutes=0.15"],
        capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    print(f"{number.name}: saved and exit {code}: 1 of 1; three times within 30 ms: ended in under 5 s")
