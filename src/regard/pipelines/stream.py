"""An output in pieces: each comes as soon as it is final, and the last one brings the whole result."""

from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

import torch

from regard.attention.watch import unwatched
from regard.errors import RegardError

Made = TypeVar("Made")


class Streamed(Iterator[str], Generic[Made]):
    """Pieces of an output's text, none of which changes later; joined, they are its text.

    Args:
        pieces: gives them, and returns the result.
    """

    def __init__(self, pieces: Generator[str, None, Made]) -> None:
        self._pieces = pieces
        self._results: list[Made] = []

    def __next__(self) -> str:
        """The next piece."""
        try:  # the modes hold while a piece is computed, not in the code that reads it
            with torch.inference_mode(), unwatched():
                return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self._results.append(end.value)
            raise

    @property
    def result(self) -> Made:
        """The whole result; pieces that were not read yet are computed, and not given any more.

        Raises:
            RegardError: an error ended the stream before its result.
        """
        for _ in self:
            pass
        if not self._results:
            raise RegardError("there is no result: an error ended this stream before it; start another")
        return self._results[0]


def whole_words(text: str) -> str:
    """The words of a growing text that are complete: all but the last, to which characters may still be added."""
    return text[: max(0, text.rfind(" "))].rstrip()
