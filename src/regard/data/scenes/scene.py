"""A scene of emoji: its settings, its parts, and the drawing of one thing on a background."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from pydantic import Field

from regard.data.files import share_of
from regard.data.scenes.glyphs import SpriteConfig, varied
from regard.errors import DataError

Drawn = TypeVar("Drawn")
DRAWS = 10_000  # of what stands in a scene, until one is found that belongs to training, or to development
Box = tuple[int, int, int, int]  # left, upper, right, lower edge in pixels


class SceneConfig(SpriteConfig):
    """Settings of the scenes."""

    size: int = Field(96, ge=32, le=4096)
    """Height and width of a picture in pixels."""
    most: int = Field(3, ge=1, le=3)
    """Largest number of things in a scene."""
    beside: str = "left of"
    """Words between the names of two things side by side, the left one first."""
    above: str = "above"
    """Words between the names of two things one above the other, the upper one first."""
    listed: str = "and"
    """Word between the names of three things, from left to right."""
    dyes: dict[str, str] = Field({})
    """Colors that things are tinted with at random, {red = "#d02020"}; the caption puts the color first."""
    frames: int = Field(1, gt=0)
    """Frames of a scene; from 2 on it is a moving picture of one thing, and the caption describes the motion."""
    moves: dict[Literal["left", "right", "up", "down", "near", "away"], str] = Field(
        {
            "left": "moves to the left",
            "right": "moves to the right",
            "up": "moves up",
            "down": "moves down",
            "near": "comes nearer",
            "away": "goes away",
        }
    )
    """Words behind the name of a moving thing, by direction."""
    scenes: int = Field(20_000, gt=0)
    """Training scenes of an epoch, generated anew for every epoch."""
    single_epochs: int = Field(0, ge=0)
    """Epochs at the beginning whose scenes have one thing each: attention is learned faster once the things are
    known."""
    dev_scenes: int = Field(1000, gt=0)
    """Development scenes; their combinations of things never occur in training scenes."""
    dev_share: float = Field(0.1, gt=0, lt=1)
    """Share of all pairs and triples of things that is reserved for development."""


@dataclass(frozen=True)
class Thing:
    """A thing in a scene.

    Attributes:
        name: in the scene's language.
        box: left, upper, right, lower edge, as shares of the picture.
        words: indices of the caption's words that name it.
        colour: name of its tint, if it has one.
    """

    name: str
    box: tuple[float, float, float, float]
    words: range
    colour: str | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture `[size, size, 3]` of bytes with its caption and its things.

    Attributes:
        frames: of a moving picture, `picture` being the first; `things` has the boxes of the first frame.
        paths: the boxes of a moving thing, one a frame.
    """

    picture: np.ndarray
    caption: str
    things: list[Thing]
    frames: tuple[np.ndarray, ...] = ()
    paths: tuple[tuple[float, float, float, float], ...] = ()


def shares(box: Box, size: int) -> tuple[float, float, float, float]:
    """A box as shares of a picture of `size` pixels."""
    return box[0] / size, box[1] / size, box[2] / size, box[3] / size


def background(size: int, dice: random.Random) -> Image.Image:
    """A random background: white, one color, a gradient, or blurred spots."""
    kind = dice.random()
    if kind < 0.35:
        return Image.new("RGB", (size, size), (255, 255, 255))
    colours = [tuple(dice.randint(0, 255) for _ in range(3)) for _ in range(16)]
    if kind < 0.6:
        return Image.new("RGB", (size, size), colours[0])
    side = 2 if kind < 0.8 else 4
    small = Image.new("RGB", (side, side))
    small.putdata(colours[: side * side])
    whole = small.resize((size, size), Image.Resampling.BILINEAR)
    return whole.filter(ImageFilter.GaussianBlur(dice.uniform(0, 3))) if dice.random() < 0.3 else whole


def paste(canvas: Image.Image, picture: Image.Image, box: Box, dice: random.Random, other: bool = False) -> None:
    """Draw a thing into its box with random rotation and contrast; `other` augments the drawing."""
    side = box[2] - box[0]
    scale = side / max(picture.size)
    wide, high = (max(1, round(n * scale)) for n in picture.size)
    small = picture.resize((wide, high), Image.Resampling.BILINEAR, reducing_gap=2.0)
    if other:
        small = varied(small, dice)
    if dice.random() < 0.5:
        small = small.rotate(dice.uniform(-12, 12), Image.Resampling.BILINEAR)
    if dice.random() < 0.5:
        alpha = small.getchannel("A")
        plain = ImageEnhance.Brightness(small.convert("RGB")).enhance(dice.uniform(0.75, 1.2))
        small = ImageEnhance.Contrast(plain).enhance(dice.uniform(0.8, 1.2)).convert("RGBA")
        small.putalpha(alpha)
    left = box[0] + (side - small.width) // 2
    top = box[1] + (side - small.height) // 2
    canvas.paste(small, (left, top), small)


def of_part(draw: Callable[[], tuple[Drawn, str]], dev: bool, config: SceneConfig, what: str) -> Drawn:
    """The first draw that belongs to training, or to development, as the share of its key says.

    Args:
        draw: gives a choice and its key; without a key it belongs to both.
        dev: whether it is to belong to development.
        config: the settings.
        what: what is combined, for the refusal.

    Raises:
        DataError: nothing of this part was found.
    """
    for _ in range(DRAWS):
        chosen, key = draw()
        if not key or (share_of(key) < config.dev_share) == dev:
            return chosen
    part = "development" if dev else "training"
    raise DataError(
        f"scenes: no combination of {what} was found that belongs to {part} (scenes.dev_share = {config.dev_share:g}): "
        "take more things, a smaller scenes.most, or another dev_share"
    )
