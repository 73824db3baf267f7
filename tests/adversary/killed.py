"""Commands in processes that are killed at random moments, and what they leave."""

import gzip
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load

from adversary.killing import contents
from conftest import made_pairs, tiny
from regard import cli
from regard.config import to_toml
from regard.experiment import read_config
from regard.training.engine import LAST

CHANGES = ("journal.jsonl", "machine.json")  # hold times


@dataclass
class Killed:
    """What some runs of a command, each killed and begun again, came to.

    Attributes:
        kills: SIGKILLs that met a living process.
        faults: what did not hold, each with its run's number.
    """

    kills: int
    faults: list[str]


def begun(arguments: list[str], said: Path) -> int:
    """The process id of a command in a fork of this process, whose output goes to a file."""
    child = os.fork()
    if not child:
        number = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(number, 1)
        os.dup2(number, 2)
        code = 99
        try:
            code = cli.run(arguments)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def ended(child: int) -> int:
    """The exit code of a process; minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at_random(
    command: Callable[[Path, bool], list[str]], place: Path, runs: int, seed: int, most: int = 3
) -> Killed:
    """Kill a command at random moments, up to `most` times in each of some runs, and then let it end.

    Args:
        command: (folder, whether it was begun) -> its arguments.
        place: an empty folder for the folders.
        runs: how many.
        seed: of the moments.
        most: kills of a run.
    """
    moments, said, whole = random.Random(seed), place / "said", place / "whole"
    begin = time.monotonic()
    assert ended(begun(command(whole, False), said)) == 0, said.read_text()
    length, wanted = time.monotonic() - begin, contents(whole)
    found = Killed(0, [])
    for number in range(runs):
        folder = place / f"run{number}"
        for _ in range(moments.randint(1, most)):
            child = begun(command(folder, True), said)
            time.sleep(moments.uniform(0, length))
            os.kill(child, signal.SIGKILL)
            found.kills += ended(child) == -signal.SIGKILL
        code, text = ended(begun(command(folder, True), said)), said.read_text(errors="replace")
        left = [path.name for path in folder.rglob("*.aside")]
        if code or left or "Traceback" in text or not _same(contents(folder), wanted):
            found.faults.append(f"run {number}: exit {code}, left {left}: {text[-500:]}")
    return found


def _same(found: dict[str, bytes], wanted: dict[str, bytes]) -> bool:
    """Whether files are the same, of checkpoints the tensors: the order of notes in their headers is random."""
    if found.keys() != wanted.keys():
        return False
    for name in wanted.keys() - set(CHANGES):
        if not name.endswith(".safetensors"):
            if found[name] != wanted[name]:
                return False
            continue
        ours, theirs = load(found[name]), load(wanted[name])
        if ours.keys() != theirs.keys() or any(
            ours[one].numpy().tobytes() != theirs[one].numpy().tobytes() for one in ours
        ):
            return False
    return True


def main(seed: int, runs: int, verb: str) -> int:
    """Kill `train` or `prepare` of a tiny Transformer; the number of faults."""
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        data = place / "tatoeba-fra-eng"
        data.mkdir()
        lines = "".join(f"{english}\t{french}\n" for french, english in made_pairs())
        (data / "pairs.en-fr.tsv.gz").write_bytes(gzip.compress(lines.encode() * (60 if verb == "prepare" else 1)))
        os.environ["REGARD_DATA"] = made
        config, folders = place / "config.toml", place / "runs"
        settings = tiny("transformer", max_steps=21, evaluate_every=7, keep_best=2)
        config.write_text(to_toml(read_config(settings)), "utf-8")
        folders.mkdir()

        def command(folder: Path, begun: bool) -> list[str]:
            resume = ["--resume"] if verb == "train" and begun and (folder / LAST).exists() else []
            return [verb, str(config), "--folder", str(folder), *resume]

        found = killed_at_random(command, folders, runs, seed)
    print(
        f"{verb}: seed {seed}: {runs} runs, {found.kills} kills, {runs - len(found.faults)} held",
        *found.faults,
        sep="\n",
    )
    return len(found.faults)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]) > 0)
