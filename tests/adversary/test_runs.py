"""Folders of runs that something has changed between two verbs: each gives a result or one sentence.

Changed are bytes, lengths, numbers and names of files; files are exchanged, removed, and replaced by links and folders.
"""

import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from adversary.attempts import Outcome, attempt, count, judged, run_apart, verb
from adversary.small import KINDS, config, inputs, task_of
from regard import experiment

SEED, EACH = 29, 120  # calls on runs of each kind


def change(run: Path, dice: random.Random) -> str:
    """Change one file of a run; returns which, and how."""
    paths = sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())
    path, other = dice.choice(paths), dice.choice(paths)
    raw = bytearray(path.read_bytes())

    def flip() -> None:
        for _ in range(dice.randint(1, 8) if raw else 0):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        path.write_bytes(raw)

    def number() -> None:
        found = list(re.finditer(rb"\d+", raw))
        if found:
            one, value = dice.choice(found), dice.choice([b"-1", b"0", b"9" * 20, b"1e5", b"2.5", b"NaN"])
            path.write_bytes(raw[: one.start()] + value + raw[one.end() :])

    def replace(make: str) -> None:
        path.unlink()
        path.mkdir() if make == "folder" else path.symlink_to(other if make == "link" else run.parent / "whole.txt")

    ways = {
        "flip": flip, "number": number, "cut": lambda: path.write_bytes(raw[: dice.randrange(len(raw) + 1)]),
        "empty": lambda: path.write_bytes(b""), "longer": lambda: path.write_bytes(raw + dice.randbytes(9)),
        "remove": path.unlink, "exchange": lambda: path.write_bytes(other.read_bytes()),
        "text": lambda: path.write_text(dice.choice(["{}", "[]", "null", "\n\n", "a = 1", "[data]\n"])),
        "folder": lambda: replace("folder"), "link": lambda: replace("link"), "outside": lambda: replace("outside"),
    }  # fmt: skip
    way = dice.choice(sorted(ways))
    ways[way]()
    return f"{path.relative_to(run)}: {way}"


def call(kind: str, settings: Path, run: Path, place: Path, dice: random.Random) -> list[str]:
    """A verb that takes a run, with arguments."""
    task, source, given = task_of(kind), place / "texts.txt", inputs(kind, place.parent, dice)
    source.write_text("the cat sat.\nle chat noir\n")
    measured = {"caption": "pictures.csv", "answer": "questions.csv", "transcribe": "sounds.csv"}.get(task)
    train = ["train", str(settings), "--run", str(run)]
    calls = [
        train, [*train, "--resume"], [*train, "--resume", "--set", "training.max_steps=5"],
        ["prepare", str(settings), "--folder", str(run)], [task, *given, "--model", str(run)],
        [task, *given, "--model", str(run), "--json"], ["evaluate", str(run), "--part", "dev"],
        ["evaluate", str(run), "--source", str(place.parent / measured if measured else source)]
        + (["--reference", str(source)] if task == "translate" else []),
        ["report", str(run)], ["export", str(run), str(place / "out")], ["average", str(run), str(place / "mean")],
        ["look", str(run), *given, "--save", str(place / "page.html")], ["trace", str(run), *given],
        ["look", str(run), *given, "--checkpoints", "--save", str(place / "page.html")], ["why", str(run), *given],
    ]  # fmt: skip
    return dice.choice(calls)


def outcomes(kind: str, seed: int, each: int, place: Path) -> Iterator[tuple[str, Outcome]]:
    """Runs with one to three changes, and up to three verbs on each."""
    settings = place / "settings.toml"
    experiment.train(config(kind, place), run=place / "whole")
    shutil.copy(place / "whole" / "config.toml", settings)
    (place / "whole.txt").write_text("not of the run")
    before = contents(place / "whole")
    done = 0
    while done < each:
        dice = random.Random(f"{seed} {kind} {done}")
        scratch = place / "scratch"
        run = Path(shutil.copytree(place / "whole", scratch / "run"))
        (scratch / "whole.txt").symlink_to(place / "whole.txt")
        what = [change(run, dice) for _ in range(dice.randint(1, 3))]
        for _ in range(dice.randint(1, 3)):
            words = call(kind, settings, run, scratch, dice)
            label = f"{kind} {done} ({'; '.join(what)}): {' '.join(words)}"
            yield label, attempt(verb(*words), 30.0, 1000.0)
            done += 1
        untouched = contents(place / "whole") == before and (place / "whole.txt").read_text() == "not of the run"
        yield f"{label}: outside", Outcome("read" if untouched else "fault", "something outside changed", 0.0, 0.0)
        shutil.rmtree(scratch)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_changed_runs_are_used(kind: str) -> None:
    run_apart(__file__, SEED, EACH, kind)


def test_a_few(tmp_path: Path) -> None:
    run, settings = tmp_path / "run", tmp_path / "settings.toml"
    experiment.train(config("transformer", tmp_path), run=run)
    shutil.copy(run / "config.toml", settings)
    (tmp_path / "whole.txt").write_text("not of the run")
    for n in range(3):
        dice = random.Random(f"fast {n}")
        copy = Path(shutil.copytree(run, tmp_path / str(n)))
        change(copy, dice)
        assert judged(verb(*call("transformer", settings, copy, tmp_path, dice)))[0] in ("read", "refused")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        seed, each, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
        faults = count(f"runs, {kind}", seed, outcomes(kind, seed, each, Path(folder)))
    print(*faults, sep="\n")
    sys.exit(bool(faults))
