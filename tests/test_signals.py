"""Signals that end a process: the first one is a flag, and the handlers before are back for the second."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from regard.signals import ENDING, Ended, end_on_signals, stop_on_signal


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The default handlers: where tests run in the background, or under nohup, some signals are ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_the_first_signal_is_a_flag_and_the_second_finds_the_handler_before(number: signal.Signals) -> None:
    seen = []
    signal.signal(number, lambda *_: seen.append(1))
    before = signal.getsignal(number)
    with stop_on_signal() as stopped:
        assert not stopped()
        signal.raise_signal(number)
        assert stopped()
        assert stopped.number == number
        assert not seen
        signal.raise_signal(number)
        assert seen == [1]
    assert signal.getsignal(number) is before


def test_what_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signal() as stopped:
        signal.raise_signal(signal.SIGHUP)
        assert not stopped()
    end_on_signals()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("number", ENDING)
def test_a_command_ends_by_an_exception_and_by_the_second_signal_at_once(number: signal.Signals) -> None:
    end_on_signals()
    with pytest.raises(Ended) as found:
        signal.raise_signal(number)
    assert found.value.number == number
    assert {signal.getsignal(one) for one in ENDING} == {signal.SIG_DFL}


def test_other_threads_have_no_signals() -> None:
    seen = []

    def work() -> None:
        with stop_on_signal() as stopped:
            seen.append(stopped())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize("number", ENDING)
def test_of_blocks_within_one_another_all_have_the_flag(number: signal.Signals) -> None:
    seen = []
    signal.signal(number, lambda *_: seen.append(1))
    before = signal.getsignal(number)
    with stop_on_signal() as outer:
        with stop_on_signal() as inner:
            assert not inner()
        with stop_on_signal() as inner:
            signal.raise_signal(number)
            assert (inner.number, outer.number) == (number, number)
        with stop_on_signal() as late:  # begun after the signal
            assert late.number == number
            assert not seen
            signal.raise_signal(number)
            assert seen == [1]
    assert signal.getsignal(number) is before


def test_a_signal_within_an_import_ends_the_process_at_once(tmp_path: Path) -> None:
    # as libraries do, the module catches whatever is raised while it is imported
    (tmp_path / "caught.py").write_text(
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(9)\n"
        "except BaseException:\n    print('caught')\n"
    )
    code = "from regard.signals import end_on_signals; end_on_signals(); import caught; print('went on')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False, text=True,
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1] / 'src'}:{tmp_path}"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "regard: interrupted\n")


def test_a_signal_that_a_library_has_caught_is_an_interrupt(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from regard import cli
from regard.cli import main
from regard.errors import DataError

def caught(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt as error:
        raise DataError("damaged") from error

main.app = caught
sys.argv = ["regard", "doctor"]
main.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (143, "regard: interrupted\n")
