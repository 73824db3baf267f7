"""Pictures of single things with their names: from a color font, or from folders of drawings.

The pictures come from a color font (Debian's fonts-noto-color-emoji), or from a folder of pictures named by their
code points as OpenMoji's are (1F408-200D-2B1B.png); the names from the package `emoji`, in 14 languages.
"""

import random
import sys
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter, ImageFont, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from regard.data.files import expand
from regard.data.pictures import read_drawing
from regard.errors import DataError

FONTS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf", "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
)  # fmt: skip
POINTS = 109  # the only size of the font's bitmaps
NOT_THINGS = (
    "face button sign symbol mark arrow keycap o’clock thirty suit circle square diamond pointing index hand hands",
    "finger fingers fist palm thumb thumbs man woman person people men women boy girl family child couple kiss",
    "moon Japanese flag triangle exclamation question track input no with worker",
)


class SpriteConfig(BaseModel):
    """Settings of the glyphs: which things there are, their names and their drawings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    pictures: str | None = None
    """A color font, or a folder of pictures named by their code points; the installed Noto Color Emoji by default.

    $NAME is taken from the environment."""
    styles: tuple[str, ...] = ()
    """Further folders of pictures or fonts; every drawing of a thing is sampled from the styles that have it."""
    own: float | None = Field(None, ge=0, le=1)
    """Probability of the first style for things that other styles have too; uniform over the styles unless set."""
    varied: float = Field(0.0, ge=0, le=1)
    """Share of the training scenes whose things are augmented: mirrored, squeezed, in other hues, in few colors,
    blurred, outlined."""
    language: Literal["en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar"] = "en"
    """Language of the names."""
    longest: int = Field(3, gt=0)
    """Largest number of words of a name; things with longer names are left out."""
    without: tuple[str, ...] = tuple(" ".join(NOT_THINGS).split())
    """Things with one of these words in their English name are left out: faces, hands, signs are nearly identical."""
    ranges: tuple[str, ...] = ()
    """Only emoji whose first code point lies in one of these ranges of Unicode, "1F400-1F43E"; all unless set."""
    first: int | None = Field(None, gt=0)
    """Number of things, evenly chosen; all unless set."""


class Glyphs:
    """Pictures of single things, with their names.

    Args:
        config: the settings.

    Raises:
        DataError: there is neither font nor folder.
    """

    def __init__(self, config: SpriteConfig) -> None:
        names = _names(config)
        found = _drawn(config.pictures, names)
        if config.first is not None and config.first < len(found):
            found = [found[n * len(found) // config.first] for n in range(config.first)]
        if not found:
            raise DataError(f"{config.pictures or 'the font'}: none of the wanted pictures is there")
        self.own = config.own
        self.names = [name for name, _ in found]
        others = [dict(_drawn(style, names)) for style in config.styles]
        for style, other in zip(config.styles, others, strict=True):
            if not set(self.names) & set(other):
                raise DataError(f"scenes.styles: {style} has none of the wanted pictures")
        self.pictures = [[picture, *(o[name] for o in others if name in o)] for name, picture in found]

    def __len__(self) -> int:
        """Number of things."""
        return len(self.names)

    def only(self, numbers: Sequence[int]) -> "Glyphs":
        """A subset, by index."""
        some = copy(self)
        some.names, some.pictures = [self.names[n] for n in numbers], [self.pictures[n] for n in numbers]
        return some

    def draw(self, number: int, dice: random.Random) -> Image.Image:
        """A thing in a sampled style."""
        drawn = self.pictures[number]
        if len(drawn) == 1:
            return drawn[0]
        if self.own is not None:
            return drawn[0] if dice.random() < self.own else dice.choice(drawn[1:])
        return dice.choice(drawn)


def dyed(picture: Image.Image, colour: str) -> Image.Image:
    """The picture in shades of one color, from dark to light.

    Raises:
        DataError: there is no such color.
    """
    try:
        middle = ImageColor.getrgb(colour)[:3]
    except ValueError as error:
        raise DataError(f"scenes.dyes: no color {colour!r}: expected a name, or a number such as '#ff8800'") from error
    shades = ImageOps.colorize(ImageOps.grayscale(picture), "black", "white", middle, midpoint=140).convert("RGBA")
    shades.putalpha(picture.getchannel("A"))
    return shades


def varied(picture: Image.Image, dice: random.Random) -> Image.Image:
    """A drawing with random changes of hue, colors, outline and shape; of the same size."""
    alpha, plain = picture.getchannel("A"), picture.convert("RGB")
    if dice.random() < 0.4:  # other hues, stronger or paler
        hue, saturation, value = plain.convert("HSV").split()
        turn, strength = dice.randint(-12, 12), dice.uniform(0.6, 1.4)
        turned = hue.point([(h + turn) % 256 for h in range(256)])
        plain = Image.merge("HSV", (turned, saturation.point(lambda s: s * strength), value)).convert("RGB")
    if dice.random() < 0.4:  # few colors, without shades
        plain = plain.filter(ImageFilter.ModeFilter(3)).quantize(dice.randint(3, 8)).convert("RGB")
    elif dice.random() < 0.4:
        plain = plain.filter(ImageFilter.GaussianBlur(dice.uniform(0.5, 1.5)))
    ink = tuple(dice.randint(0, 50) for _ in range(3))
    if dice.random() < 0.4:  # lines where colors change
        edges = plain.convert("L").filter(ImageFilter.FIND_EDGES).point(lambda e: min(255, 6 * max(0, e - 25)))
        plain.paste(ink, mask=edges)
    if dice.random() < 0.4:  # a line round it
        inside = alpha.filter(ImageFilter.MinFilter(dice.choice((3, 3, 5))))
        plain.paste(ink, mask=ImageChops.subtract(alpha, inside))
    plain.putalpha(alpha)
    if dice.random() < 0.5:
        plain = ImageOps.mirror(plain)
    if dice.random() < 0.5:  # narrower or lower, leaning
        across, down, lean = dice.uniform(1, 1.35), dice.uniform(1, 1.35), dice.uniform(-0.2, 0.2)
        wide, high = plain.size
        middle = (wide - across * wide - lean * high) / 2, (high - down * high) / 2
        plain = plain.transform(
            plain.size, Image.Transform.AFFINE, (across, lean, middle[0], 0, down, middle[1]),
            Image.Resampling.BILINEAR,
        )  # fmt: skip
    return plain


def _names(config: SpriteConfig) -> dict[str, str]:
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
                found.append((name, _cropped(read_drawing(path))))
                break
    return found


@lru_cache(maxsize=2)
def _font(path: str) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(path, POINTS)
    except OSError as error:
        raise DataError(f"{path}: expected a color font or a folder of pictures: {error}") from error


def _from_font(where: str | None, names: dict[str, str]) -> list[tuple[str, Image.Image]]:
    wanted = [str(expand(where))] if where else list(FONTS)
    path = next((p for p in wanted if Path(p).exists()), None)
    if path is None:
        hint = "apt-get install fonts-noto-color-emoji" if sys.platform == "linux" else "install Noto Color Emoji"
        if where:
            raise DataError(
                f"no color font at {where}: expected a font or folder of pictures (scenes.pictures, scenes.styles)"
            )
        raise DataError(f"no color font at {' or '.join(wanted)}: {hint}, or set scenes.pictures to a font or folder")
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
