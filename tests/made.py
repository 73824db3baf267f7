"""Made pictures and sounds for tests: seven shapes as emoji's files, and tones that spell words."""

import gzip
from math import pi
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

GLYPHS = {  # code points of: cat, dog, red apple, banana, key, bell, fish
    "1F408": "gray", "1F415": "brown", "1F34E": "red", "1F34C": "yellow", "1F511": "gold", "1F514": "orange",
    "1F41F": "blue",
}  # fmt: skip


def made_glyphs(folder: Path) -> Path:
    """A folder of seven pictures named by their code points."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (code, colour) in enumerate(GLYPHS.items()):
        picture = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
        draw = ImageDraw.Draw(picture)
        draw.regular_polygon((36, 36, 30), 3 + number, fill=colour)
        picture.save(folder / f"{code}.png")
    return folder


def tone(word: str, rate: int = 16_000, seconds: float = 0.3) -> np.ndarray:
    """A sound of its own for every word of `yes`, `no`, `go`."""
    times = np.arange(int(seconds * rate)) / rate
    return 0.3 * np.sin(2 * pi * {"yes": 400, "no": 900, "go": 2100}[word] * times)


def made_sounds(folder: Path) -> Path:
    """Recordings as AN4 keeps them: five speakers, six recordings each."""
    lines = []
    for speaker in ("fash", "mblb", "fclc", "mtcv", "mkem"):
        place = folder / "wav" / "an4_clstk" / speaker
        place.mkdir(parents=True)
        for number, text in enumerate(("yes", "no", "go", "yes no", "go yes", "no no go")):
            name = f"an{number}-{speaker}-b"
            samples = np.concatenate([part for w in text.split() for part in (tone(w), np.zeros(1600))])
            soundfile.write(place / f"{name}.flac", samples, 16_000)
            lines.append(f"<s> {text.upper()} </s> ({name})\n")
    (folder / "etc").mkdir()
    (folder / "etc" / "an4_train.transcription").write_text("".join(lines))
    return folder


def made_table(folder: Path) -> Path:
    """Four pictures with two captions each, in a folder with its table captions.csv.gz."""
    (folder / "images").mkdir(parents=True)
    rows = ["image,caption"]
    for number, colour in enumerate(("red", "green", "blue", "yellow")):
        Image.new("RGB", (40 + number, 50), colour).save(folder / "images" / f"{number}.png")
        rows += [f'{number}.png,"a {colour} wall, plain"', f"{number}.png,it is {colour}"]
    (folder / "captions.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    return folder
