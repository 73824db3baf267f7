"""CMU's AN4: recordings of spelled names, numbers and commands (Acero 1990).

`etc/….transcription` has lines `<s> TEXT </s> (id)`; the recording of an id is `wav/…/SPEAKER/id.…`.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from regard.data.archive import Cells, Files
from regard.data.files import split_lines
from regard.errors import DataError


def found(files: Files) -> bool:
    """Whether a folder or archive has this layout."""
    return any(name.endswith(".transcription") for name in files.names())


def read(files: Files) -> Iterator[Cells]:
    """Rows with columns file, text, speaker.

    Raises:
        DataError: a malformed line of a transcription; with file and line.
    """
    names = files.names()
    sounds = {PurePosixPath(name).stem: name for name in names if "wav/" in name}
    for table in (name for name in names if name.endswith(".transcription")):
        for number, line in enumerate(split_lines(files.read(table)), 1):
            where = f"{files.path}: {table}:{number}"
            if not line.strip():
                continue
            text, _, end = line.decode("utf-8", "replace").partition("(")
            name = end.rstrip().removesuffix(")")
            if not name or name == end.rstrip():
                raise DataError(f"{where}: expected '<s> TEXT </s> (id)'")
            if name in sounds:  # a transcription may list recordings of the set's other half
                text = text.rstrip().removesuffix("</s>").removeprefix("<s>")
                yield where, {"file": sounds[name], "text": text, "speaker": PurePosixPath(sounds[name]).parent.name}
