"""Subtitles (.srt, .vtt): the texts of cues change; numbers, times and settings stay as they are."""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regard.data.files import SMALL, decode_text, read_bytes
from regard.errors import DataError

ENDINGS = (".srt", ".vtt")
# also those that players read, or that were written badly: the lines stay as they are, and their texts are translated
_TIMES = re.compile(r"-?\d+\s*:[\d\s:.,]*-+>\s*-?\d+\s*:[\d\s:.,]*\d")
_WORD = re.compile(r"(?:</?\w[^<>]*>|\S)+")  # a tag is not divided, whatever spaces it has
_MARKUP = re.compile(r"\A(?:<[^>]*>|\{\\[^}]*\}|\s)*")
# before the words of a speaker; not the sign of "-5"
_DASH = re.compile(rf"({_MARKUP.pattern})([-–—]+\s+(?=\S)|[-–—](?=[^-–—\s\d.,]))")


@dataclass(frozen=True)
class Subtitles:
    """A file of subtitles.

    Attributes:
        lines: all of its lines.
        cues: the lines [first, last) of each text: of a cue, or of one speaker in it.
        end: what ends each line.
    """

    lines: list[str]
    cues: list[tuple[int, int]]
    end: str = "\n"

    @property
    def texts(self) -> list[str]:
        """The text of each cue, on one line, without the dash before a speaker's words."""
        return [_DASH.sub(r"\1", text) for text in self._joined]

    def with_texts(self, texts: Sequence[str]) -> str:
        """The file with other texts in its cues, each on as many lines as before, of about equal length.

        A text with fewer words than that has one word on each line.
        """
        made, end = [], 0
        for (first, last), old, text in zip(self.cues, self._joined, texts, strict=True):
            if dash := _DASH.match(old):
                text = _MARKUP.sub(rf"\g<0>{dash[2]}", text) if dash[1] else dash[2] + text
            made += [*self.lines[end:first], *_divided(_WORD.findall(text), last - first)]
            end = last
        return self.end.join([*made, *self.lines[end:]])

    @property
    def _joined(self) -> list[str]:
        """The lines of each cue's text, as one."""
        return [" ".join(line.strip() for line in self.lines[first:last]) for first, last in self.cues]


def read_subtitles(path: Path) -> Subtitles:
    """The cues of a file.

    Raises:
        DataError: there is no such file, it is not UTF-8, or no line has a cue's times.
    """
    raw = read_bytes(path, SMALL)
    if b"\n" not in raw:  # \r alone ended a line on old systems
        raw = raw.replace(b"\r", b"\n")
    line_end = "\r\n" if 2 * raw.count(b"\r\n") > raw.count(b"\n") else "\n"
    lines = decode_text(raw, path).split("\n")
    times = [number for number, line in enumerate(lines) if _TIMES.match(line.strip())]
    if not times:
        raise DataError(f"{path}: no subtitles: expected lines of times such as 00:00:01,000 --> 00:00:02,500")
    alone = lines[0].startswith("WEBVTT")  # what follows a blank line there is no text: a comment, a style
    cues = []
    for number, following in zip(times, [*times[1:], len(lines)], strict=True):
        end = next((n for n in range(number + 1, following) if alone and not lines[n].strip()), following)
        cues += _blocks(lines, number + 1, end, end == following < len(lines))
    return Subtitles(lines, cues, line_end)


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
        if found and found[-1][1] == n and not _DASH.match(lines[n]):
            found[-1] = found[-1][0], n + 1
        else:
            found.append((n, n + 1))
    return found


def _divided(words: list[str], count: int) -> list[str]:
    """Words on `count` lines of about equal length; on fewer lines where there are fewer words."""
    made, rest, size = [], deque(words), len(" ".join(words))
    for left in range(min(count, len(words)), 1, -1):
        line = rest.popleft()
        while len(rest) >= left and 2 * (size / left - len(line)) > len(rest[0]) + 1:  # nearer with the next word
            line += " " + rest.popleft()
        made.append(line)
        size -= len(line) + 1
    return [*made, " ".join(rest)]
