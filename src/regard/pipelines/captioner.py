"""Captions: from a picture, or a moving one, to a `Description`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from regard.data.pictures import as_tensor, given_picture, read_frames, read_picture, square, thinned
from regard.errors import DataError
from regard.pipelines.base import InputError
from regard.pipelines.description import Describer, Description, MediaInput, check_media
from regard.pretrained.features import prepared


class Captioner(Describer):
    """A captioner ready to use: what `regard.load` returns for a run with task = "caption"."""

    task = "caption"

    def prepare(self, source: str | Path | bytes | Image.Image) -> MediaInput:
        """A picture, a file or the bytes of one, as the encoder takes it.

        Raises:
            InputError: it cannot be read.
        """
        check_media(source)
        moving = self.encoder_config.kind == "frames"
        try:
            if isinstance(source, Image.Image):
                whole = given_picture(source)
                return self.moving("picture", [whole]) if moving else self.seen("picture", whole)
            name, file = ("picture", source) if isinstance(source, bytes) else (str(source), Path(source))
            if moving:
                return self.moving(name, read_frames(file, name))
            return self.seen(name, read_picture(file, name))
        except DataError as error:
            raise InputError(str(error)) from error

    def run(self, prepared: Sequence[MediaInput], **settings: Any) -> list[Description]:
        """The captions of pictures that have been read; settings as in `describe`."""
        return self.describe(prepared, **settings)

    def seen(self, name: str, picture: Image.Image) -> MediaInput:
        """A picture as the encoder takes it."""
        (points,) = prepared([picture], self.encoder_config)
        return MediaInput(name, points, picture=square(picture.convert("RGB"), self.encoder_config.size))

    def moving(self, name: str, frames: list[Image.Image]) -> MediaInput:
        """The frames of a moving picture as the encoder takes them."""
        config = self.encoder_config
        shown = [square(one.convert("RGB"), config.size) for one in thinned(frames, config.frames)]
        return MediaInput(name, torch.stack([as_tensor(one) for one in shown]), picture=shown[0], frames=tuple(shown))
