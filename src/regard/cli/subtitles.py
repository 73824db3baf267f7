"""Subtitles (.srt, .vtt): the texts of cues change; numbers, times and settings stay as they are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regard.data.files import SMALL, read_text
from regard.errors import DataError

ENDINGS = (".srt", ".vtt")
# also those that players read, or that were written badly: the lines stay as they are, and their texts are translated
_TIMES = re.compile(r"-?\d+\s*:[\d\s:.,]*-+>\s*-?\d+\s*:[\d\s:.,]*\d")
_SPEAKER = re.compile(r"\s*[-–—]+\s*(?=\S)")  # the dash before what one of several speakers says


@dataclass(frozen=True)
class Subtitles:
    """A file of subtitles.

    Attributes:
        lines: all of its lines.
        cues: the lines [first, last) of each text: of a cue, or of one speaker in it.
    """

    lines: list[str]
    cues: list[tuple[int, int]]

    @property
    def texts(self) -> list[str]:
        """The text of each cue, on one line, without a speaker's dash."""
        whole = (" ".join(line.strip() for line in self.lines[first:last]) for first, last in self.cues)
        return [text[dash.end() :] if (dash := _SPEAKER.match(text)) else text for text in whole]

    def with_texts(self, texts: Sequence[str]) -> str:
        """The file with other texts in its cues, each on as many lines as before, of about equal length."""
        made, end = [], 0
        for (first, last), text in zip(self.cues, texts, strict=True):
            dash = _SPEAKER.match(self.lines[first])
            written = _divided(text.split(), last - first)
            made += [*self.lines[end:first], (dash[0] if dash else "") + written[0], *written[1:]]
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
    alone = lines[0].startswith("WEBVTT")  # what follows a blank line there is no text: a comment, a style
    cues = []
    for number, following in zip(times, [*times[1:], len(lines)], strict=True):
        end = next((n for n in range(number + 1, following) if alone and not lines[n].strip()), following)
        cues += _blocks(lines, number + 1, end, end == following < len(lines))
    return Subtitles(lines, cues)


def _blocks(lines: Sequence[str], start: int, following: int, is_followed: bool) -> list[tuple[int, int]]:
    """The texts between the times of a cue and those of the next one, without its number: each ends at a blank line, or
    before the line of another speaker.

    Args:
        lines: of the file.
        start: the line after the times.
        following: the line of the next cue's times; the number of lines, where there is none.
        is_followed: whether there is a next cue.
    """
    filled = [n for n in range(start, following) if lines[n].strip()]
    if is_followed and filled and lines[filled[-1]].strip().isdecimal():
        filled.pop()  # the next cue's number, whether or not a blank line precedes it
    found: list[tuple[int, int]] = []
    for n in filled:
        if found and found[-1][1] == n and not _SPEAKER.match(lines[n]):
            found[-1] = found[-1][0], n + 1
        else:
            found.append((n, n + 1))
    return found


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
