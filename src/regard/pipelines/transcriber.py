"""Transcripts: from a recording of any length to a `Description`."""

import os
import select
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from regard.data.sound import RATE, log_mel, segments, sound_blocks
from regard.errors import DataError
from regard.pipelines.base import InputError, as_inputs
from regard.pipelines.description import Describer, Description, MediaInput, check_media
from regard.storage import check_possible

NOTHING = torch.zeros(0)
LARGEST_STREAM, CHUNK = 2**30, 2**20  # bytes read of a pipe, in all and at a time
PATIENCE = 30.0  # seconds for the first of them


class Transcriber(Describer):
    """A transcriber ready to use: what `regard.load` returns for a run with task = "transcribe"."""

    task = "transcribe"

    def prepare(self, source: str | Path | bytes | Image.Image) -> Path | bytes:
        """The file's path, or its bytes.

        Raises:
            InputError: it is neither.
        """
        check_media(source)
        if isinstance(source, Image.Image):
            raise InputError(f"{self.name} transcribes sound; got a picture")
        return source if isinstance(source, bytes) else Path(source)

    def _check(self, settings: dict[str, Any]) -> None:
        super()._check({name: one for name, one in settings.items() if name not in ("report", "collect")})

    def run(self, prepared: Sequence[Path | bytes], **settings: Any) -> list[Description]:
        """The transcripts of recordings; settings as in `describe`.

        Raises:
            InputError: a file that cannot be read.
        """
        return [self.hear(one, **settings) for one in prepared]

    def each(self, sources: Iterable[str | Path | bytes], **settings: Any) -> list[Description | InputError]:
        """The transcript of every recording, or the error in its place; a file may turn out damaged halfway."""
        self._check(settings)
        made: list[Description | InputError] = []
        for one in as_inputs(sources):
            try:
                made.append(self.hear(one, **settings))
            except InputError as error:
                made.append(error)
        return made

    def hear(
        self, source: str | Path | bytes | Image.Image, report: Callable[[float], None] = lambda _: None,
        collect: Callable[[Description], None] | None = None, **settings: Any,
    ) -> Description:  # fmt: skip
        """One recording of any length: a long one is cut at quiet moments into segments of at most 15 seconds.

        Args:
            source: a file or its bytes; a pipe, such as /dev/stdin, is read to its end first.
            report: called with the seconds read so far.
            collect: called with the description of every segment of a long recording; its sound and attention are
                not kept then, which would take gigabytes for a long one.
            settings: as in `describe`; without `record` sound and attention are not kept, either.

        Raises:
            InputError: it cannot be read.
        """
        file = self.prepare(source)
        name = "recording" if isinstance(file, bytes) else str(file)
        found: list[Description] = []
        given = 0
        rest, start, end = torch.zeros(0), 0.0, False
        try:
            blocks = sound_blocks(_stream(file) if isinstance(file, Path) and _is_pipe(file) else file, name)
        except (DataError, OSError) as error:
            raise InputError(str(error)) from error
        while not end:
            try:
                block = next(blocks, None)
            except DataError as error:
                raise InputError(str(error)) from error
            end = block is None
            rest = rest if block is None else torch.cat([rest, block])
            cuts = segments(rest) if end else segments(rest)[:-1]
            heard = [self.heard(name, rest[a:b].clone(), start + a / RATE) for a, b in cuts]
            found += self.describe(heard, **settings)
            if len(found) > 1 and (collect or not settings.get("record", True)):
                for n in range(given, len(found)):
                    if collect:
                        collect(found[n])
                    found[n] = _light(found[n])
                given = len(found)
            if cuts:
                rest, start = rest[cuts[-1][1] :], start + cuts[-1][1] / RATE
            report(start)
        if len(found) == 1:
            return found[0]
        return replace(
            _light(found[0]), text=" ".join(one.text for one in found if one.text), pieces=found,
            tokens=[token for one in found for token in one.tokens], ids=[i for one in found for i in one.ids],
            log_prob=sum(one.log_prob for one in found), score=sum(one.score for one in found),
        )  # fmt: skip

    def heard(self, name: str, samples: Tensor, start: float = 0.0) -> MediaInput:
        """Samples as the encoder takes them."""
        return MediaInput(name, log_mel(samples, self.encoder_config.bands), samples=samples, start=start)


def _is_pipe(path: Path) -> bool:
    check_possible(path)
    return path.exists() and stat.S_ISFIFO(path.stat().st_mode)


def _stream(path: Path) -> bytes:
    """What comes through a pipe.

    Raises:
        DataError: nothing comes for half a minute, or too much.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # or opening it would wait for a writer
        waiting, found = select.poll(), bytearray()
        waiting.register(file, select.POLLIN)
        while len(found) <= LARGEST_STREAM:
            if not waiting.poll(int(1000 * PATIENCE)):
                raise DataError(f"{path}: nothing was written to this pipe for {PATIENCE:g} seconds")
            some = file.read(CHUNK)
            if not some:
                break
            found += some
    if len(found) > LARGEST_STREAM:
        raise DataError(f"{path}: more than {LARGEST_STREAM // 2**20:,} MiB: write it to a file first")
    return bytes(found)


def _light(piece: Description) -> Description:
    """A segment's description without its sound and its attention."""
    media = replace(piece.media, features=NOTHING, samples=NOTHING)
    return replace(piece, alternatives=[], attention={}, positions=torch.zeros(0, 1), media=media)
