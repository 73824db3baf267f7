"""Pictures and sounds of unknown origin: whatever is changed in them, they are read, or refused in one sentence."""

import random
import sys
from collections.abc import Callable, Iterator

import pytest

from adversary.attempts import Outcome, attempt, count, judged, run_apart
from adversary.media import bombs, damaged, hear, picture_files, sound_files
from regard.data.pictures import read_frames

SEED, EACH = 23, 30  # damaged files of each kind
MEGABYTES = 1000.0  # of the whole process: a picture of 100 million pixels is read


def files() -> dict[str, tuple[bytes, Callable[[bytes], object]]]:
    """Every file and its reader."""
    pictures = {name: (raw, read_frames) for name, raw in picture_files().items()}
    return {**pictures, **{name: (raw, hear) for name, raw in sound_files().items()}}


def test_whole_ones_are_read() -> None:
    for name, (raw, read) in files().items():
        assert judged(lambda raw=raw, read=read: read(raw)) == ("read", ""), name


def test_one_change_of_each() -> None:
    for name, (raw, read) in files().items():
        changed, what = damaged(raw, random.Random(f"fast {name}"))
        verdict, text = judged(lambda changed=changed, read=read: read(changed))
        assert verdict in ("read", "refused"), f"{name}: {what}: {text}"


@pytest.mark.parametrize("name", [name for name in bombs() if "EPS" in name or "Hz" in name or "2147483647×" in name])
def test_what_asks_for_much_is_refused_or_read_in_parts(name: str) -> None:
    verdict, text = judged(bombs()[name])
    assert verdict == ("read" if "768000" in name else "refused"), text
    assert text.count("x.wav") <= 1  # a sentence names its file once


def outcomes(seed: int, each: int) -> Iterator[tuple[str, Outcome]]:
    """Every file in turn, then those that ask for much."""
    for name, (raw, read) in files().items():
        for n in range(each):
            changed, what = damaged(raw, random.Random(f"{seed} {name} {n}"))
            yield (
                f"{name} {n} ({what})",
                attempt(lambda changed=changed, read=read: read(changed), seconds=15, megabytes=MEGABYTES - 200),
            )
    for name, read in bombs().items():
        yield name, attempt(read, seconds=15, megabytes=MEGABYTES - 200)


@pytest.mark.slow
def test_a_thousand_changes() -> None:
    run_apart(__file__, SEED, EACH)


if __name__ == "__main__":
    faults = count("media", int(sys.argv[1]), outcomes(int(sys.argv[1]), int(sys.argv[2])))
    print(*faults, sep="\n")
    sys.exit(bool(faults))
