"""Pictures: reading files of any kind, and resizing them to a model's input."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from regard.errors import DataError
from regard.untrusted import first_line

# kinds of files that are opened; Pillow knows more, some of which run other programs (EPS: Ghostscript)
KINDS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF")
POINTS = 100_000_000  # pixels; a larger picture is refused before it is decoded
SIDE = 50_000  # rows or columns
WHOLE_KINDS = {"WEBP": 40_000_000, "AVIF": 40_000_000}  # pixels of kinds whose decoders need several times as much
MOVING_POINTS = 25_000_000  # pixels of a frame of a moving picture
MOVING_TOTAL = 1_000_000_000  # pixels of all its frames, each of which is decoded
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aiff", ".sph")
DRAFT = 1024  # smallest size at which a JPEG is decoded, which saves time and memory
WHOLE = 2**24  # pixels that are converted at once
BAND = 2**22  # pixels of a large picture that are reduced at a time
DEEP = ("I;16", "I;16B", "I;16L", "I", "F")  # modes of more than 8 bits a pixel
_FAILURES = (  # of Pillow's readers
    OSError, ValueError, SyntaxError, EOFError, MemoryError, TypeError, KeyError, IndexError, AttributeError,
    ArithmeticError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
FRAMES = 64  # of a moving picture at most; longer ones are subsampled evenly


def read_picture(source: Path | bytes, name: str = "") -> Image.Image:
    """A picture of any kind as RGB: rotated by its EXIF tag, transparency white, the first frame of a moving one.

    Raises:
        DataError: the file is missing, damaged or of no kind that is read (PNG, JPEG, GIF, WebP, TIFF, BMP, PPM,
            AVIF), or has more than 100 million pixels (WebP and AVIF: 40 million) or 50,000 rows or columns.
    """
    return read_frames(source, name, 1)[0]


def read_frames(source: Path | bytes, name: str = "", most: int = FRAMES) -> list[Image.Image]:
    """The frames of a moving picture, evenly subsampled to `most`; one frame of a still picture.

    Raises:
        DataError: as `read_picture`; frames of more than 25 million pixels, or of a thousand million together.
    """
    name = name or ("picture" if isinstance(source, bytes) else str(source))
    with _opened(source, name) as picture:
        picture.draft("RGB", (DRAFT, DRAFT))
        count = getattr(picture, "n_frames", 1) if most > 1 else 1
        wanted = sorted({n * count // min(most, count) for n in range(min(most, count))})
        if wanted == [0]:
            return [_as_rgb(picture, WHOLE)]
        found = []
        for n, frame in enumerate(ImageSequence.Iterator(picture)):
            _check_frames(frame, count, name)  # each may have a size of its own
            if n in wanted:
                found.append(_as_rgb(frame, WHOLE // len(wanted)))
            if n == wanted[-1]:
                break
        return found


def given_picture(picture: Image.Image, name: str = "picture") -> Image.Image:
    """A picture of Pillow's as `read_picture` reads its file; the picture itself is left as it is.

    Raises:
        DataError: as `read_picture`; it is closed, or has no points.
    """
    with _said(name):
        _check_size(picture, name)
        if not all(picture.size):
            raise DataError(f"{name}: a picture without points ({picture.size[0]} × {picture.size[1]})")
        picture.load()
        return _as_rgb(picture.copy(), WHOLE)


def read_drawing(path: Path) -> Image.Image:
    """A picture with its transparency (RGBA).

    Raises:
        DataError: as `read_picture`.
    """
    with _opened(path, str(path)) as picture:
        return picture.convert("RGBA")


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """A picture of a kind and a size that are read; what fails while it is decoded is one sentence.

    Raises:
        DataError: as `read_picture`.
    """
    with _said(name):
        if isinstance(source, Path):
            if not source.exists():
                raise DataError(f"{name}: no such file")
            if source.is_dir():
                raise DataError(f"{name}: a folder, not a picture")
            if not source.is_file():
                raise DataError(f"{name}: a pipe or a device, not a picture: write it to a file first")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large picture is measured below
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=_kinds()) as picture:
                _check_size(picture, name)
                yield picture


@contextmanager
def _said(name: str) -> Iterator[None]:
    """Whatever fails in the block while a picture is decoded is one sentence.

    Raises:
        DataError: the sentence.
    """
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(name, POINTS)) from error
    except UnidentifiedImageError as error:
        hint = ": a recording? `regard transcribe` hears" if name.lower().endswith(SOUNDS) else ""
        raise DataError(f"{name}: no picture that can be read: of no kind that is known here{hint}") from error
    except _FAILURES as error:
        raise DataError(f"{name}: no picture that can be read: {first_line(error)}") from error


@lru_cache(maxsize=1)
def _kinds() -> tuple[str, ...]:
    """Those of `KINDS` that this Pillow was built with."""
    Image.init()
    return tuple(kind for kind in KINDS if kind in Image.OPEN)


def _check_size(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if max(width, height) > SIDE:
        raise DataError(f"{name}: a picture of {width} × {height} points; expected at most {SIDE:,} rows and columns")
    most = WHOLE_KINDS.get(picture.format or "", POINTS)
    if width * height > most:
        raise DataError(_too_large(name, most))


def _check_frames(picture: Image.Image, count: int, name: str) -> None:
    points = picture.size[0] * picture.size[1]
    if points > MOVING_POINTS:
        raise DataError(_too_large(name, MOVING_POINTS).replace("a picture", "a moving picture"))
    if points * count > MOVING_TOTAL:
        raise DataError(
            f"{name}: a moving picture of {count:,} frames of {picture.size[0]} × {picture.size[1]} points is too "
            "large: take a part of it, or make it smaller first"
        )


def _as_rgb(picture: Image.Image, whole: int) -> Image.Image:
    """A picture as RGB; one of more than `whole` pixels is reduced band by band to bound the memory."""
    picture.load()
    span = _span(picture)
    wide, high = picture.size
    factor = max(1, min(wide, high) // DRAFT, ceil((wide * high / whole) ** 0.5))
    if factor == 1:
        return _flat(ImageOps.exif_transpose(picture), span, picture.info)
    small = Image.new("RGB", (-(-wide // factor), -(-high // factor)))
    rows = factor * max(1, BAND // (wide * factor))
    for upper in range(0, high, rows):
        band = picture.crop((0, upper, wide, min(high, upper + rows)))
        small.paste(_flat(band, span, picture.info).reduce(factor), (0, upper // factor))
    small.getexif().update(picture.getexif())
    return ImageOps.exif_transpose(small)


def _span(picture: Image.Image) -> float:
    """The pixel value that means white in a picture of more than 8 bits."""
    if picture.mode not in DEEP:
        return 255.0
    most = float(picture.getextrema()[1])  # type: ignore[arg-type]
    return 65535.0 if most > 255 else 255.0 if most > 1 else 1.0


def _flat(picture: Image.Image, span: float, info: dict[Any, Any]) -> Image.Image:
    """Some rows of a picture as RGB, transparency white."""
    if picture.mode in DEEP:
        values = np.asarray(picture, dtype=np.float32)
        seen = (values / span * 255).clip(0, 255)
        if isinstance(clear := info.get("transparency"), int):  # the value that is transparent, in the file's own units
            seen[values == clear] = 255
        return Image.fromarray(seen.astype(np.uint8)).convert("RGB")
    if "transparency" in info:
        picture.info["transparency"] = info["transparency"]
    if picture.has_transparency_data:
        whole = picture.convert("RGBA")
        white = Image.new("RGBA", whole.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, whole).convert("RGB")
    return picture.convert("RGB")


def square(picture: Image.Image, size: int) -> Image.Image:
    """The whole picture centered in a white square of `size` pixels."""
    return ImageOps.pad(picture, (size, size), Image.Resampling.BICUBIC, color=(255, 255, 255))


def as_tensor(picture: Image.Image | np.ndarray) -> Float[Tensor, "3 H W"]:
    """A picture's pixels as `[3, H, W]`, 0 … 1."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def thinned(frames: list[Image.Image], count: int) -> list[Image.Image]:
    """`count` frames, evenly chosen; a still picture is repeated."""
    return [frames[n * len(frames) // count] for n in range(count)]


def _too_large(name: str, most: int) -> str:
    return f"{name}: a picture of more than {most // 10**6} million points is too large: make it smaller first"
