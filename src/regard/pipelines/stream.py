"""An output in pieces: each comes as soon as it is final, and the last one brings the whole result."""

import threading
from collections.abc import Generator, Iterator
from typing import Any, Generic, NoReturn, TypeVar

import torch

from regard.attention.watch import unwatched
from regard.errors import RegardError

Made = TypeVar("Made")


class Streamed(Iterator[str], Generic[Made]):
    """Pieces of an output's text, none of which changes later; joined, they are its text.

    Several threads may read one stream: each piece goes to one of them.

    Args:
        pieces: gives them, and returns the result.
    """

    def __init__(self, pieces: Generator[str, None, Made]) -> None:
        self._pieces = pieces
        self._reading = threading.RLock()  # a generator refuses a second reader with an error of Python's own
        self._results: list[Made] = []

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise RegardError("a stream is read once, and is not copied: copy its .result")

    def __next__(self) -> str:
        """The next piece."""
        try:  # the modes hold while a piece is computed, not in the code that reads it
            with self._reading, torch.inference_mode(), unwatched():
                return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self._results.append(end.value)
            raise

    def close(self) -> None:
        """End the stream: no further piece is computed, and there is no result."""
        with self._reading:
            self._pieces.close()

    @property
    def result(self) -> Made:
        """The whole result; pieces that were not read yet are computed, and not given any more.

        Raises:
            RegardError: an error ended the stream before its result, or it was closed.
        """
        for _ in self:
            pass
        if not self._results:
            raise RegardError(
                "there is no result: an error ended this stream before it, or it was closed; start another"
            )
        return self._results[0]


def whole_words(text: str) -> str:
    """The words of a growing text that are complete: all but the last, to which characters may still be added."""
    return text[: max(0, text.rfind(" "))].rstrip()
