"""Scenes of emoji: pictures without end, whose captions and places are known exactly."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from pydantic import Field

from regard.data.files import share_of
from regard.data.scenes.glyphs import Glyphs, SpriteConfig, dyed, varied
from regard.errors import DataError

SEPARATE = 1.3  # one of two things is beside or above the other where its distance that way is so much larger


class SceneConfig(SpriteConfig):
    """Settings of the scenes."""

    size: int = Field(96, ge=32)
    """Height and width of a picture, in points."""
    most: int = Field(3, ge=1, le=3)
    """How many things a scene has at most."""
    beside: str = "left of"
    """Between the names of two things, the left one's first."""
    above: str = "above"
    """Between the names of two things, the upper one's first."""
    listed: str = "and"
    """Between the names of three things, from left to right."""
    dyes: dict[str, str] = Field({})
    """Colours that things are dyed in, each by chance: {red = "#d02020"}; a colour's name stands before the thing's."""
    frames: int = Field(1, gt=0)
    """Frames of a scene; from 2 on it is a moving picture of one thing, and the caption says how it moves."""
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
    """What stands behind the name of a thing that moves."""
    scenes: int = Field(20_000, gt=0)
    """Training scenes of an epoch; every epoch has others."""
    single_epochs: int = Field(0, ge=0)
    """Epochs at the beginning whose scenes have one thing each: attention is learned faster once the things are
    known."""
    dev_scenes: int = Field(1000, gt=0)
    """Development scenes: what stands together in one never does in a training scene."""
    dev_share: float = Field(0.1, gt=0, lt=1)
    """Share of all pairs and triples of things that is kept for development."""


@dataclass(frozen=True)
class Thing:
    """What stands in a scene.

    Attributes:
        name: in the scene's language.
        box: left, upper, right, lower edge, as shares of the picture.
        words: which words of the caption name it.
        colour: what it is dyed in, if it is.
    """

    name: str
    box: tuple[float, float, float, float]
    words: range
    colour: str | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture `[size, size, 3]` of bytes, its caption, and what stands where.

    Attributes:
        frames: of a moving picture, `picture` the first of them; their `things` are where they stand in the first.
        paths: of a moving thing, its box in every frame.
    """

    picture: np.ndarray
    caption: str
    things: list[Thing]
    frames: tuple[np.ndarray, ...] = ()
    paths: tuple[tuple[float, float, float, float], ...] = ()


def make_scene(sprites: Glyphs, config: SceneConfig, dice: random.Random, dev: bool, count: int | None = None) -> Scene:
    """A scene of `count` things (1 to `config.most`, if None), drawn by `dice`; it is either a training or a
    development scene for good."""
    if config.frames > 1:
        return _make_moving(sprites, config, dice, dev)
    if count is None:
        if len(sprites) < config.most:
            raise DataError(f"scenes.most = {config.most}, and only {len(sprites)} of the wanted pictures are there")
        count = dice.randint(1, config.most)
    while True:
        chosen = dice.sample(range(len(sprites)), count)
        key = " + ".join(sorted(sprites.names[i] for i in chosen))
        if count == 1 or (share_of(key) < config.dev_share) == dev:
            break
    boxes = _arrange(config.size, count, dice)
    colours = [dice.choice(sorted(config.dyes)) if config.dyes else None for _ in chosen]
    called = [f"{colour or ''} {sprites.names[i]}".strip() for i, colour in zip(chosen, colours, strict=True)]
    order, caption, words = _describe(called, boxes, config)
    canvas = _background(config.size, dice)
    other = not dev and config.varied > 0 and dice.random() < config.varied
    for i, box, colour in zip(chosen, boxes, colours, strict=True):
        drawn = sprites.draw(i, dice)
        _paste(canvas, dyed(drawn, config.dyes[colour]) if colour else drawn, box, dice, other)
    things = [
        Thing(sprites.names[chosen[n]], _shares(boxes[n], config.size), span, colours[n])
        for n, span in zip(order, words, strict=True)
    ]
    return Scene(np.asarray(canvas), caption, things)


def _make_moving(sprites: Glyphs, config: SceneConfig, dice: random.Random, dev: bool) -> Scene:
    """One thing that moves; a thing and a way that are kept for development are in no training scene."""
    while True:
        chosen, way = dice.randrange(len(sprites)), dice.choice(sorted(config.moves))
        if (share_of(f"{sprites.names[chosen]} + {way}") < config.dev_share) == dev:
            break
    boxes = _path(config.size, config.frames, way, dice)
    ground, picture = _background(config.size, dice), sprites.draw(chosen, dice)
    frames = []
    for box in boxes:
        canvas = ground.copy()
        _paste(canvas, picture, box, random.Random(0))
        frames.append(np.asarray(canvas))
    name = sprites.names[chosen]
    shares = tuple(_shares(box, config.size) for box in boxes)
    thing = Thing(name, shares[0], range(len(name.split())))
    return Scene(frames[0], f"{name} {config.moves[way]}", [thing], tuple(frames), shares)


def _path(size: int, frames: int, way: str, dice: random.Random) -> "list[Box]":
    """A thing's box in every frame."""
    side = float(round(size * dice.uniform(0.3, 0.45)))
    room = size - side
    if way in ("near", "away"):
        small, large = size * dice.uniform(0.22, 0.3), size * dice.uniform(0.55, 0.8)
        sides = np.linspace(small, large, frames) if way == "near" else np.linspace(large, small, frames)
        across, down = (dice.uniform(0.42, 0.58) * size for _ in range(2))
        return [_box(across - s / 2, down - s / 2, s) for s in sides]
    travel = dice.uniform(0.5, 1.0) * room
    first = dice.uniform(0, room - travel)
    along = np.linspace(first, first + travel, frames)
    along = along[::-1] if way in ("left", "up") else along
    still = dice.uniform(0, room)
    return [_box(a, still, side) if way in ("left", "right") else _box(still, a, side) for a in along]


def _box(left: float, upper: float, side: float) -> "Box":
    return round(left), round(upper), round(left) + round(side), round(upper) + round(side)


def scenes(
    sprites: Glyphs, config: SceneConfig, numbers: Iterable[int], seed: int | str, dev: bool, count: int | None = None
) -> Iterator[Scene]:
    """Scenes by their numbers; the same seed gives the same ones."""
    for number in numbers:
        yield make_scene(sprites, config, random.Random(f"{seed} {dev} {number}"), dev, count)


Box = tuple[int, int, int, int]


def _shares(box: Box, size: int) -> tuple[float, float, float, float]:
    return box[0] / size, box[1] / size, box[2] / size, box[3] / size


def _arrange(size: int, count: int, dice: random.Random) -> list[Box]:
    """Boxes that hardly touch, and of which it is plain which stands left of or above which."""
    largest, smallest = {1: (0.98, 0.34), 2: (0.56, 0.28), 3: (0.42, 0.25)}[count]
    while True:
        boxes: list[Box] = []
        for _ in range(count):
            side = round(size * dice.uniform(smallest, largest))
            x, y = (dice.randint(0, size - side) for _ in range(2))
            boxes.append((x, y, x + side, y + side))
        if all(_apart(a, b, count) for n, a in enumerate(boxes) for b in boxes[:n]):
            return boxes


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _apart(a: Box, b: Box, count: int) -> bool:
    wide, high = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    if wide > 0 and high > 0 and wide * high > 0.06 * min((a[2] - a[0]) ** 2, (b[2] - b[0]) ** 2):
        return False
    dx, dy = (abs(p - q) for p, q in zip(_centre(a), _centre(b), strict=True))
    small = min(a[2] - a[0], b[2] - b[0])
    return max(dx, dy) >= SEPARATE * min(dx, dy) if count == 2 else dx >= 0.25 * small


def _describe(names: list[str], boxes: list[Box], config: SceneConfig) -> tuple[list[int], str, list[range]]:
    """The order in which things are named, the caption, and the words that name each."""
    centres = [_centre(box) for box in boxes]
    axis = 0
    if len(names) == 2:
        axis = 0 if abs(centres[0][0] - centres[1][0]) >= abs(centres[0][1] - centres[1][1]) else 1
    order = sorted(range(len(names)), key=lambda n: centres[n][axis])
    caption, spans = "", []
    for number, n in enumerate(order):
        if number:
            pair = f" {config.beside if axis == 0 else config.above} "
            caption += pair if len(names) == 2 else f" {config.listed} "
        before = len(caption.split())
        caption += names[n]
        spans.append(range(before, len(caption.split())))
    return order, caption, spans


def _background(size: int, dice: random.Random) -> Image.Image:
    """White, one colour, a slope between two, or blurred spots."""
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


def _paste(canvas: Image.Image, picture: Image.Image, box: Box, dice: random.Random, other: bool = False) -> None:
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
