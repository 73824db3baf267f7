"""Signals that end a process: SIGINT (Ctrl-C), SIGTERM (docker stop, a batch system), SIGHUP (a closed terminal).

Only entry points call these functions (`regard.experiment`, the servers, the command line). torch is not imported, so
that the command can use them before anything else.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
EXIT_OF_SIGNALS = 128  # a command that a signal ended exits with this and the signal's number


class Ended(KeyboardInterrupt):
    """A signal that ends the process was received.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Stop:
    """Whether a signal was received: called, True or False.

    Attributes:
        number: of the signal; 0 before one was received.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def __call__(self) -> bool:
        return self.number != 0


_received = 0
_standing: list[tuple[Stop, Callable[[], None]]] = []  # of the main thread's blocks, the outermost first


@contextmanager
def stop_on_signal(*signals: signal.Signals) -> Iterator[Stop]:
    """Turn the first signal (SIGINT, SIGTERM and SIGHUP by default) into a flag.

    With the first signal the handlers before are back, so a second one ends the work at once. Of blocks within one
    another, all have the flag, from the first signal on. A signal that was ignored (by nohup, say) stays ignored. In
    any other thread than the main one the flag stays False, because Python delivers signals to the main thread only.
    """
    here = threading.current_thread() is threading.main_thread()
    stop = Stop(_standing[-1][0].number if here and _standing else 0)
    if stop() or not here:
        yield stop
        return
    previous: dict[signal.Signals, Any] = {}

    def receive(number: int, _: object) -> None:
        for one, back in reversed(_standing):
            one.number = number
            back()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous.update(_heard(signals or ENDING))
    _standing.append((stop, restore))
    for number in previous:
        signal.signal(number, receive)
    try:
        yield stop
    finally:
        _standing.pop()
        if not stop():  # else all handlers are back
            restore()


def end_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise `Ended`; a second one ends the process at once. For the command alone.

    Within an import the first one, too, ends it at once, with the same exit code: libraries catch what is raised there,
    or are left half imported.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        global _received
        _received = number
        for other in heard:
            signal.signal(other, signal.SIG_DFL)
        if _imports(frame):
            with suppress(OSError):
                os.write(2, b"regard: interrupted\n")
            os._exit(EXIT_OF_SIGNALS + number)
        raise Ended(number)

    heard = _heard(ENDING)
    for one in heard:
        signal.signal(one, receive)


def received() -> int:
    """The number of the signal that `end_on_signals` has raised since the last call; 0 where there was none."""
    global _received
    number, _received = _received, 0
    return number


@contextmanager
def on_signals(receive: Callable[[int, Any], None]) -> Iterator[None]:
    """Call `receive(number, frame)` for each SIGINT, SIGTERM and, unless it was ignored (by nohup), SIGHUP.

    SIGINT is received where a shell started the process in the background, too, and ignores it: a server has no other
    work that it would interrupt. Afterward the handlers before are back. In any other thread than the main one nothing
    is received, because Python delivers signals to the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} | _heard(ENDING)
    try:
        for number in previous:
            signal.signal(number, receive)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _imports(frame: FrameType | None) -> bool:
    """Whether code runs because it is imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def end_quietly() -> None:
    """Let a signal end the process without Python code, which would print a traceback. For a command that is done."""
    for number in _heard(ENDING):
        signal.signal(number, signal.SIG_DFL)


def _heard(signals: Sequence[signal.Signals]) -> dict[signal.Signals, Any]:
    """The signals that are not ignored, with their handlers."""
    handlers = {number: signal.getsignal(number) for number in signals}
    return {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
