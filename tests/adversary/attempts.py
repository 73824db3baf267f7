"""One attempt on regard in a process of its own, whose processor time and memory are measured."""

import io
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from regard import cli
from regard.errors import RegardError

SECONDS, MEGABYTES = 2.0, 300.0  # of an attempt, after the imports
WALL = 30.0  # seconds after which a silent process is killed
ADDRESSES = 6 * 2**30  # bytes that a process may ask for beyond those it has: more ends it, not the machine


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt.

    Attributes:
        verdict: "read", "refused" (one sentence of ours) or "fault".
        text: the sentence, or the fault.
        seconds: of the processor.
        megabytes: of resident memory beyond what the process had before.
    """

    verdict: str
    text: str
    seconds: float
    megabytes: float


def judged(work: Callable[[], object]) -> tuple[str, str]:
    """Verdict and text of a call in this process."""
    try:
        work()
    except RegardError as error:
        text = str(error)
        return ("refused" if text and text.isprintable() and len(text) < 2000 else "fault", text)
    except Exception as error:
        return "fault", f"{type(error).__name__}: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return "fault", f"{type(error).__name__}: {error}"
    return "read", ""


def attempt(work: Callable[[], object], seconds: float = SECONDS, megabytes: float = MEGABYTES) -> Outcome:
    """The outcome of a call in a fork of this process, which should have imported what the call needs.

    Args:
        work: the call.
        seconds, megabytes: more of them is a fault.
    """
    answer, given = os.pipe()
    child = os.fork()
    if not child:
        os.close(answer)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES,) * 2)
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        verdict, text = judged(work)
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        os.write(given, json.dumps([verdict, text[:3000], time.process_time() - begun, peak]).encode())
        os._exit(0)
    os.close(given)
    ready, _, _ = select.select([answer], [], [], WALL)
    raw = os.read(answer, 2**16) if ready else b""
    os.close(answer)
    if not ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not raw:
        end = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.waitstatus_to_exitcode(status)}"
        return Outcome("fault", f"no answer: {end}" + ("" if ready else f" after {WALL:g} s"), WALL, 0.0)
    verdict, text, used, peak = json.loads(raw)
    if verdict != "fault" and (used > seconds or peak > megabytes):
        return Outcome("fault", f"{verdict} after {used:.1f} s and {peak:.0f} MB: {text}", used, peak)
    return Outcome(verdict, text, used, peak)


def verb(*arguments: str) -> Callable[[], object]:
    """A verb of the command line as work that raises what it refuses."""

    def work() -> None:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = cli.run(list(arguments))
        if "Traceback" in err.getvalue():
            raise AssertionError(err.getvalue()[-900:])
        if code:
            raise RegardError(" ".join(err.getvalue().split()) if code in (1, 2) else "")

    return work


def count(name: str, seed: int, outcomes: Iterable[tuple[str, Outcome]]) -> list[str]:
    """Print seed, counts and the greatest cost of some attempts; returns the faults, each with its attempt's name."""
    verdicts: Counter[str] = Counter()
    faults, slowest, largest = [], ("", 0.0), ("", 0.0)
    for label, one in outcomes:
        verdicts[one.verdict] += 1
        slowest = max(slowest, (label, one.seconds), key=lambda pair: pair[1])
        largest = max(largest, (label, one.megabytes), key=lambda pair: pair[1])
        if one.verdict == "fault":
            faults.append(f"{label}: {one.text[:300]!r}")
    counts = ", ".join(f"{verdicts[kind]} {kind}" for kind in ("refused", "read", "fault"))
    print(f"{name}: seed {seed}: {verdicts.total()} attempts: {counts}")
    print(f"  slowest {slowest[1]:.2f} s ({slowest[0]}), largest {largest[1]:.0f} MB ({largest[0]})", flush=True)
    return faults


def run_apart(file: str, seed: int, each: int, *more: str) -> None:
    """Run a file of attempts in a process of its own, print its counts, and fail where it found faults."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, file, str(seed), str(each), *more],
        capture_output=True, text=True, timeout=3600, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
