"""Subtitles (.srt, .vtt): the texts of cues change; numbers, times and settings stay as they are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regard.data.files import SMALL, read_text
from regard.errors import DataError

ENDINGS = (".srt", ".vtt")
_TIMES = re.compile(r"(?:\d+:)?\d+:\d+[.,]\d+ +--> +(?:\d+:)?\d+:\d+[.,]\d+")


@dataclass(frozen=True)
class Subtitles:
    """A file of subtitles.

    Attributes:
        lines: all of its lines.
        cues: the lines [first, last) of each cue's text.
    """

    lines: list[str]
    cues: list[tuple[int, int]]

    @property
    def texts(self) -> list[str]:
        """The text of each cue, on one line."""
        return [" ".join(line.strip() for line in self.lines[first:last]) for first, last in self.cues]

    def with_texts(self, texts: Sequence[str]) -> str:
        """The file with other texts in its cues, each on as many lines as before, of about equal length."""
        made, end = [], 0
        for (first, last), text in zip(self.cues, texts, strict=True):
            made += [*self.lines[end:first], *_divided(text.split(), last - first)]
            end = last
        return "\n".join([*made, *self.lines[end:]])


def read_subtitles(path: Path) -> Subtitles:
    """The cues of a file.

    Raises:
        DataError: there is no such file, it is not UTF-8, or no line has a cue's times.
    """
    lines = [line.removesuffix("\r") for line in read_text(path, SMALL).split("\n")]
    times = [number for number, line in enumerate(lines) if _TIMES.match(line.strip())]
    if not times:
        raise DataError(f"{path}: no subtitles: expected lines of times such as 00:00:01,000 --> 00:00:02,500")
    cues = []
    for number, following in zip(times, [*times[1:], len(lines)], strict=True):
        numbered = following < len(lines) and lines[following - 1].strip().isdecimal()
        end = following - numbered  # a cue without a blank line behind it ends where the next one begins
        last = next((n for n in range(number + 1, end) if not lines[n].strip()), end)
        if last > number + 1:
            cues.append((number + 1, last))
    return Subtitles(lines, cues)


def _divided(words: list[str], count: int) -> list[str]:
    """Words on at most `count` lines of about equal length."""
    made: list[str] = []
    for left in range(count, 0, -1):
        share = len(" ".join(words)) / left
        size = next((n for n in range(1, len(words)) if len(" ".join(words[:n])) >= share), len(words))
        if left == 1:
            size = len(words)
        made.append(" ".join(words[:size]))
        words = words[size:]
    return [line for line in made if line] or [""]
