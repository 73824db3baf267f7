"""A process that is killed before or after any of its file operations, played in this one.

From the chosen operation on, no operation has an effect any more: what a process would clean up, a killed one does not.
"""

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from regard import storage

OPERATIONS = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync")


class Killed(BaseException):
    """The process is dead."""


class Killer:
    """Counts file operations, and kills at one of them.

    Args:
        at: the operation, from 0; -1 kills at none.
        after: kill after it instead of before.
    """

    def __init__(self, at: int = -1, after: bool = False) -> None:
        self.at, self.after, self.count, self.dead = at, after, 0, False

    def around(self, operation: Callable[..., Any], counts: Callable[..., bool] = lambda *_, **__: True) -> Any:
        """The operation, counted."""

        def call(*given: Any, **named: Any) -> Any:
            if not counts(*given, **named):
                return operation(*given, **named)
            if self.dead:
                raise Killed
            mine = self.count == self.at
            self.count += 1
            if mine and not self.after:
                self.dead = True
                raise Killed
            result = operation(*given, **named)
            if mine:
                self.dead = True
                if hasattr(result, "close"):
                    result.close()
                raise Killed
            return result

        return call


def _writes(_: Any, mode: str = "r", *__: Any, **___: Any) -> bool:
    return any(letter in mode for letter in "wax+")


@contextmanager
def killing(at: int = -1, after: bool = False) -> Iterator[Killer]:
    """A block whose file operations are counted; it ends where the process is killed."""
    killer = Killer(at, after)
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, killer.around(getattr(os, name)))
        for module in (io, builtins):
            patch.setattr(module, "open", killer.around(module.open, _writes))
        patch.setattr(storage, "_exchange", killer.around(storage._exchange))
        with suppress(Killed):
            yield killer


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder and of those in it, by name, without what a killed process left aside."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".aside" not in str(path.relative_to(folder)) and path.name != ".lock"
    }


def kill_everywhere(
    prepare: Callable[[], Path], work: Callable[[Path], object], check: Callable[[Path], object], every: int = 1
) -> int:
    """Kill some work before and after every one of its file operations, and check what is left.

    Args:
        prepare: makes a fresh place and returns it.
        work: what is killed.
        check: what must hold of the place afterward.
        every: of how many operations one is tried.

    Returns:
        the number of kills.
    """
    place = prepare()
    with killing() as counter:
        work(place)
    assert counter.count > 0
    kills = 0
    for at in range(0, counter.count, every):
        for after in (False, True):
            place = prepare()
            with killing(at, after) as killer:
                work(place)
            check(place)
            kills += killer.dead  # the first time, a module that is imported late may have written more
    return kills
