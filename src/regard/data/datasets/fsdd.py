"""The Free Spoken Digit Dataset (Jackson et al. 2018): the files' names hold everything, DIGIT_SPEAKER_INDEX.wav."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from regard.data.archive import Cells, Files

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def found(files: Files) -> bool:
    """Whether a folder or archive has this layout."""
    return next(read(files), None) is not None


def read(files: Files) -> Iterator[Cells]:
    """Rows with columns file, text, speaker, index."""
    for name in files.names():
        match = re.fullmatch(r"(\d)_(\w+)_(\d+)", PurePosixPath(name).stem)
        if match is not None:
            digit, speaker, index = match.groups()
            cells = {"file": name, "text": DIGITS[int(digit)], "speaker": speaker, "index": index}
            yield f"{files.path}: {name}", cells
