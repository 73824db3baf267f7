"""Scenes of emoji: pictures without end, whose captions and places are known exactly.

The pictures come from a colour font (Debian's fonts-noto-color-emoji), or from a folder of pictures named by their
code points as OpenMoji's are (1F408-200D-2B1B.png); the names from the package `emoji`, in 14 languages.
"""

import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from regard.data.corpus import expand, place
from regard.errors import DataError

FONTS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf", "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
)  # fmt: skip
POINTS = 109  # the only size of the font's bitmaps
SEPARATE = 1.3  # one of two things is beside or above the other where its distance that way is so much larger
NOT_THINGS = (
    "face button sign symbol mark arrow keycap o’clock thirty suit circle square diamond pointing index hand hands",
    "finger fingers fist palm thumb thumbs man woman person people men women boy girl family child couple kiss",
    "moon Japanese flag triangle exclamation question track input no with worker",
)


class SceneConfig(BaseModel):
    """Settings of the scenes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    pictures: str | None = None
    """A colour font, or a folder of pictures named by their code points; the installed Noto Color Emoji by default.

    $NAME is taken from the environment."""
    styles: tuple[str, ...] = ()
    """More folders of pictures, or fonts: a thing is drawn in one of the styles that have it, by chance."""
    language: Literal["en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar"] = "en"
    """Of the names."""
    longest: int = Field(3, gt=0)
    """Names of more words are left out."""
    without: tuple[str, ...] = tuple(" ".join(NOT_THINGS).split())
    """What has one of these words in its English name is left out: faces and hands and signs differ by a hair."""
    ranges: tuple[str, ...] = ()
    """Only emoji whose first code point lies in one of these ranges of Unicode, "1F400-1F43E"; all, unless given."""
    first: int | None = Field(None, gt=0)
    """Only so many things, evenly chosen; all, unless given."""
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
    dyes: dict[str, str] = {}
    """Colours that things are dyed in, each by chance: {red = "#d02020"}; a colour's name stands before the thing's."""
    frames: int = Field(1, gt=0)
    """Frames of a scene; from 2 on it is a moving picture of one thing, and the caption says how it moves."""
    moves: dict[Literal["left", "right", "up", "down", "near", "away"], str] = {
        "left": "moves to the left",
        "right": "moves to the right",
        "up": "moves up",
        "down": "moves down",
        "near": "comes nearer",
        "away": "goes away",
    }
    """What stands behind the name of a thing that moves."""
    scenes: int = Field(20_000, gt=0)
    """Training scenes of an epoch; every epoch has others."""
    alone: int = Field(0, ge=0)
    """Epochs at the beginning whose scenes have one thing each: who knows the things learns to look for them faster."""
    dev_scenes: int = Field(1000, ge=0)
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


class Sprites:
    """The single pictures with their names.

    Args:
        config: the settings.

    Raises:
        DataError: there is neither font nor folder.
    """

    def __init__(self, config: SceneConfig) -> None:
        names = _names(config)
        found = _drawn(config.pictures, names)
        if config.first is not None and config.first < len(found):
            found = [found[n * len(found) // config.first] for n in range(config.first)]
        if len(found) < config.most:
            raise DataError(f"{config.pictures or 'the font'}: only {len(found)} of the wanted pictures are there")
        self.names = [name for name, _ in found]
        others = [dict(_drawn(style, names)) for style in config.styles]
        for style, other in zip(config.styles, others, strict=True):
            if not set(self.names) & set(other):
                raise DataError(f"scenes.styles: {style} has none of the wanted pictures")
        self.pictures = [[picture, *(o[name] for o in others if name in o)] for name, picture in found]

    def __len__(self) -> int:
        return len(self.names)

    def draw(self, number: int, dice: random.Random) -> Image.Image:
        """A thing in one of its styles."""
        drawn = self.pictures[number]
        return drawn[0] if len(drawn) == 1 else dice.choice(drawn)


def make_scene(
    sprites: Sprites, config: SceneConfig, dice: random.Random, dev: bool, count: int | None = None
) -> Scene:
    """A scene of `count` things (1 to `config.most`, if None), drawn by `dice`; it is either a training or a
    development scene for good."""
    if config.frames > 1:
        return _make_moving(sprites, config, dice, dev)
    count = dice.randint(1, config.most) if count is None else count
    while True:
        chosen = dice.sample(range(len(sprites)), count)
        key = " + ".join(sorted(sprites.names[i] for i in chosen))
        if count == 1 or (place(key) < config.dev_share) == dev:
            break
    boxes = _arrange(config.size, count, dice)
    colours = [dice.choice(sorted(config.dyes)) if config.dyes else None for _ in chosen]
    called = [f"{colour or ''} {sprites.names[i]}".strip() for i, colour in zip(chosen, colours, strict=True)]
    order, caption, words = _describe(called, boxes, config)
    canvas = _background(config.size, dice)
    for i, box, colour in zip(chosen, boxes, colours, strict=True):
        drawn = sprites.draw(i, dice)
        _paste(canvas, _dyed(drawn, config.dyes[colour]) if colour else drawn, box, dice)
    things = [
        Thing(sprites.names[chosen[n]], _shares(boxes[n], config.size), span, colours[n])
        for n, span in zip(order, words, strict=True)
    ]
    return Scene(np.asarray(canvas), caption, things)


def _make_moving(sprites: Sprites, config: SceneConfig, dice: random.Random, dev: bool) -> Scene:
    """One thing that moves; a thing and a way that are kept for development are in no training scene."""
    while True:
        chosen, way = dice.randrange(len(sprites)), dice.choice(sorted(config.moves))
        if (place(f"{sprites.names[chosen]} + {way}") < config.dev_share) == dev:
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
    sprites: Sprites, config: SceneConfig, numbers: Iterable[int], seed: int | str, dev: bool, count: int | None = None
) -> Iterator[Scene]:
    """Scenes by their numbers; the same seed gives the same ones."""
    for number in numbers:
        yield make_scene(sprites, config, random.Random(f"{seed} {dev} {number}"), dev, count)


def _names(config: SceneConfig) -> dict[str, str]:
    """Emoji and their names: one picture each, no skin tones, no flags of countries."""
    try:
        import emoji
    except ImportError as error:
        raise DataError("scenes of emoji need the package emoji: pip install 'regard[scenes]'") from error
    emoji.config.load_language(config.language)
    left_out = set(config.without)
    ranges = [_ends(one) for one in config.ranges] or [(0, sys.maxunicode)]
    names: dict[str, str] = {}
    for glyph, facts in emoji.EMOJI_DATA.items():
        whole = facts["status"] == emoji.STATUS["fully_qualified"] and config.language in facts
        if not whole or any("\U0001f3fb" <= c <= "\U0001f3ff" or "\U0001f1e6" <= c <= "\U0001f1ff" for c in glyph):
            continue
        english = facts["en"].strip(":").replace("_", " ").replace("-", " ")
        name = facts[config.language].strip(":").replace("_", " ")
        wanted = any(low <= ord(glyph[0]) <= high for low, high in ranges)
        plain = name.replace(" ", "").isalnum()  # a word with a hyphen or apostrophe is several tokens to some
        if wanted and plain and len(name.split()) <= config.longest and not left_out & set(english.split()):
            names[glyph] = name
    return names


def _ends(span: str) -> tuple[int, int]:
    low, _, high = span.partition("-")
    try:
        return int(low, 16), int(high or low, 16)
    except ValueError as error:
        raise DataError(f"scenes.ranges: expected hexadecimal code points, 1F400-1F43E; got {span!r}") from error


def _drawn(where: str | None, names: dict[str, str]) -> list[tuple[str, Image.Image]]:
    """The names that a font or folder has, each with its picture."""
    if where is not None and expand(where).is_dir():
        return _from_folder(expand(where), names)
    return _from_font(where, names)


def _from_folder(folder: Path, names: dict[str, str]) -> list[tuple[str, Image.Image]]:
    found = []
    for glyph, name in names.items():
        codes = [f"{ord(c):X}" for c in glyph]
        for spelling in ("-".join(codes), "-".join(c for c in codes if c != "FE0F")):
            path = folder / f"{spelling}.png"
            if path.exists():
                found.append((name, _cropped(Image.open(path).convert("RGBA"))))
                break
    return found


@lru_cache(maxsize=2)
def _font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, POINTS)


def _from_font(where: str | None, names: dict[str, str]) -> list[tuple[str, Image.Image]]:
    wanted = [str(expand(where))] if where else list(FONTS)
    path = next((p for p in wanted if Path(p).exists()), None)
    if path is None:
        hint = "apt-get install fonts-noto-color-emoji" if sys.platform == "linux" else "install Noto Color Emoji"
        if where:
            raise DataError(
                f"no colour font at {where}: expected a font or folder of pictures (scenes.pictures, scenes.styles)"
            )
        raise DataError(f"no colour font at {' or '.join(wanted)}: {hint}, or set scenes.pictures to a font or folder")
    font = _font(path)
    nothing = _draw(font, "\U0010fffd")
    found = []
    for glyph, name in names.items():
        picture = _draw(font, glyph)
        # a sequence that the font does not know comes as several pictures, a new emoji as none
        if picture is not None and picture.width < 1.25 * POINTS + 12 and not _same(picture, nothing):
            found.append((name, picture))
    return found


def _draw(font: ImageFont.FreeTypeFont, glyph: str) -> Image.Image | None:
    canvas = Image.new("RGBA", (4 * POINTS, 2 * POINTS), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((8, 8), glyph, font=font, embedded_color=True)
    return _cropped(canvas) if canvas.getbbox() else None


def _same(picture: Image.Image, other: Image.Image | None) -> bool:
    return other is not None and picture.size == other.size and picture.tobytes() == other.tobytes()


def _cropped(picture: Image.Image) -> Image.Image:
    """The picture without its empty margin."""
    return picture.crop(picture.getchannel("A").getbbox() or (0, 0, *picture.size))


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


def _dyed(picture: Image.Image, colour: str) -> Image.Image:
    """The picture in shades of one colour, from dark to light."""
    dyed = ImageOps.colorize(ImageOps.grayscale(picture), "black", "white", colour, midpoint=140).convert("RGBA")
    dyed.putalpha(picture.getchannel("A"))
    return dyed


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


def _paste(canvas: Image.Image, picture: Image.Image, box: Box, dice: random.Random) -> None:
    side = box[2] - box[0]
    scale = side / max(picture.size)
    wide, high = (max(1, round(n * scale)) for n in picture.size)
    small = picture.resize((wide, high), Image.Resampling.BILINEAR, reducing_gap=2.0)
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
