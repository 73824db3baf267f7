"""Folders of unknown origin: whatever is changed in them, they are read, or refused in one sentence."""

import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from adversary.attempts import Outcome, attempt, count, judged, run_apart
from adversary.folders import KINDS, change, make, use

SEED, EACH = 23, 60  # changed folders of each kind


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One unchanged model of each kind."""
    place = tmp_path_factory.mktemp("sound")
    return {kind: make(kind, place / kind.replace(" ", "-")) for kind in KINDS}


def changed(kind: str, sound: Path, place: Path, seed: str) -> tuple[Path, str]:
    """A changed copy, and what was changed."""
    if sound.is_file():
        place.mkdir()
        target = Path(shutil.copy(sound, place))
    else:
        target = Path(shutil.copytree(sound, place))
    return target, change(kind, target, random.Random(seed))


def test_unchanged_ones_are_read(sound: dict[str, Path]) -> None:
    for kind, path in sound.items():
        assert judged(lambda path=path: use(path)) == ("read", ""), kind


@pytest.mark.parametrize("number", range(2))
def test_a_few_changes(sound: dict[str, Path], tmp_path: Path, number: int) -> None:
    for kind, path in list(sound.items())[number::2]:
        target, what = changed(kind, path, tmp_path / kind.replace(" ", "-"), f"fast {number} {kind}")
        verdict, text = judged(lambda target=target: use(target))
        assert verdict in ("read", "refused"), f"{kind}: {what}: {text}"


def outcomes(seed: int, each: int, place: Path) -> Iterator[tuple[str, Outcome]]:
    """Every kind in turn."""
    for kind in KINDS:
        whole = make(kind, place / "sound")
        use(whole)
        for n in range(each):
            target, what = changed(kind, whole, place / "changed", f"{seed} {kind} {n}")
            yield f"{kind} {n} ({what})", attempt(lambda target=target: use(target))
            shutil.rmtree(place / "changed")
        shutil.rmtree(place / "sound")


@pytest.mark.slow
def test_a_thousand_changes() -> None:
    run_apart(__file__, SEED, EACH)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        faults = count("folders", int(sys.argv[1]), outcomes(int(sys.argv[1]), int(sys.argv[2]), Path(folder)))
    print(*faults, sep="\n")
    sys.exit(bool(faults))
