"""Draw the figures of docs/gallery.md: python docs/gallery.py FOLDER; the documentation's build draws them too.

Every kind of figure that regard draws, each in a light and a dark theme. What models say is computed; what stands for
models that do not ship (other scripts, long sequences) is made by hand here, and the page says so.
"""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import regard
from regard.analysis.reasons import reasons as reasons_of
from regard.figures.calibration import draw_calibration
from regard.figures.files import finished
from regard.figures.heatmap import heatmap
from regard.figures.overlay import draw_film
from regard.figures.tables import draw_tables

THEMES = "light", "dark"
SENTENCE = "Quand il est arrivé à la gare, le dernier train était déjà parti depuis une heure."
Drawer = Callable[[str], Any]


@cache
def load(name: str) -> Any:
    """A shipped model."""
    return regard.load(name)


@cache
def translate(text: str, name: str = "fr-en") -> Any:
    """A translation with its attention."""
    return load(name)(text)


def aligned(pairs: list[tuple[int, ...]], columns: int, seed: int) -> Tensor:
    """Weights `[rows, columns]` that look mostly at some columns, made by hand."""
    torch.manual_seed(seed)
    scores = 0.6 * torch.randn(len(pairs), columns)
    for row, best in zip(scores, pairs, strict=True):
        row[list(best)] += 4.0
    return scores.softmax(-1)


def alignment(theme: str) -> Any:
    """Four words."""
    return translate("le chat noir dort").alignment.plot(theme=theme)


def alignment_long(theme: str) -> Any:
    """A sentence of everyday length."""
    return translate(SENTENCE).alignment.plot(theme=theme)


def right_to_left(theme: str) -> Any:
    """Arabic, made by hand."""
    source, target = (
        ["جلست", "القطة", "السوداء", "على", "الطاولة"],
        ["the", "black", "cat", "sat", "on", "the", "table"],
    )
    weights = aligned([(1,), (2,), (1,), (0,), (3,), (4,), (4,)], 5, 1)
    return heatmap(weights.tolist(), target, source, "Arabic to English", ("output ↓", "source →"),
                   note="made by hand: every word reads from right to left", theme=theme)  # fmt: skip


def hebrew(theme: str) -> Any:
    """Hebrew with digits and punctuation, made by hand."""
    target, source = ["החתול,", "בן", "5,", "ישן."], ["the", "cat,", "aged", "5,", "sleeps."]
    return heatmap(aligned([(0, 1), (2,), (3,), (4,)], 5, 2).tolist(), target, source, "English to Hebrew",
                   ("output ↓", "source →"), note="made by hand", theme=theme)  # fmt: skip


def cjk(theme: str) -> Any:
    """Japanese and Chinese, made by hand."""
    source, target = ["黒い", "猫", "が", "机", "の", "上", "で", "眠る"], ["黑", "猫", "睡", "在", "桌子", "上"]
    weights = aligned([(0,), (1,), (7,), (6,), (3,), (5,)], 8, 3)
    return heatmap(weights.tolist(), target, source, "Japanese to Chinese", ("output ↓", "source →"),
                   note="made by hand", theme=theme)  # fmt: skip


def long_words(theme: str) -> Any:
    """One long word among short ones."""
    source, target = ["die", "Donaudampfschifffahrt", "ist", "alt"], ["Danube", "steam", "shipping", "is", "old"]
    return heatmap(aligned([(1,), (1,), (1,), (2,), (3,)], 4, 4).tolist(), target, source, "One long word",
                   ("output ↓", "source →"), note="made by hand", theme=theme)  # fmt: skip


def heads(theme: str) -> Any:
    """All heads of a layer."""
    return translate("le chat noir dort").attention["decoder.layers.1.cross"].plot(theme=theme)


def one_head(theme: str) -> Any:
    """One head of a longer sentence."""
    return translate(SENTENCE).attention["decoder.layers.1.cross"].plot(heads=0, theme=theme)


def some_rows(theme: str) -> Any:
    """Three rows."""
    found = translate(SENTENCE).attention["decoder.layers.1.cross"]
    return found.plot(rows=slice(3, 6), heads=[0, 2], title="Three tokens, two heads", theme=theme)


@cache
def observed() -> Any:
    """What an untrained torch model does with two sequences."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(64, 4, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with regard.observe(model) as seen:
        model(3 * torch.randn(2, 50, 64))
    return seen


def batch(theme: str) -> Any:
    """Two sequences, four heads."""
    return observed()["layers.1.self_attn"][0].plot(theme=theme)


@cache
def long_map() -> Any:
    """4,096 queries and keys, two heads: one by content, one in a window."""
    torch.manual_seed(0)
    at = torch.arange(4096) / 4096
    waves = torch.stack(
        [torch.cos(6.28 * n * at) for n in range(1, 33)] + [torch.sin(6.28 * n * at) for n in range(1, 33)], -1
    )
    query = torch.stack([waves * 1.2, torch.randn(4096, 64)])[None]
    key = torch.stack([waves.roll(512, 0) * 1.2, torch.randn(4096, 64)])[None]
    bias = regard.alibi(2)
    return regard.attention_map(query, key, mask=regard.causal(), bias=bias)


def pooled(theme: str) -> Any:
    """A long sequence, pooled."""
    return long_map().plot(title="4,096 positions, causal, with ALiBi", theme=theme)


SAMPLES = Path(regard.__file__).parent / "samples"


def blob(side: int, row: float, column: float, size: float) -> Tensor:
    """Weights over a square grid around a place, made by hand."""
    at = (torch.arange(side) + 0.5) / side
    scores = -((at[:, None] - row) ** 2 + (at[None] - column) ** 2) / (2 * size**2)
    return scores.flatten().softmax(-1)


def strip(theme: str) -> Any:
    """A caption over a picture."""
    return load("emoji")(str(SAMPLES / "picture.png")).plot(theme=theme)


def film(theme: str) -> Any:
    """A moving picture."""
    frames = []
    for n in range(5):
        frame = Image.new("RGB", (128, 128), "#f3efe6")
        ImageDraw.Draw(frame).ellipse((8 + 22 * n, 60 - 18 * (n == 2), 38 + 22 * n, 90 - 18 * (n == 2)), fill="#c4473a")
        frames.append(frame)
    centres = [(0.58 - 0.14 * (n == 2), 0.18 + 0.172 * n) for n in range(5)]
    ball = torch.cat([blob(8, *place, 0.1) for place in centres]) / 5
    jumps = torch.cat([blob(8, *place, 0.1) * (0.8 if n == 2 else 0.05) for n, place in enumerate(centres)])
    return draw_film(frames, ["ball", "jumps"], torch.stack([ball, jumps]), title="film.gif → ball jumps",
                     note="made by hand", theme=theme)  # fmt: skip


def sound(theme: str) -> Any:
    """Speech: a wave, a spectrogram, and words."""
    return load("spelling")(str(SAMPLES / "recording.flac")).plot(theme=theme)


def lens(theme: str) -> Any:
    """The logit lens."""
    return regard.logit_lens(load("fr-en"), "le chat noir dort sur la table").plot(theme=theme)


def parts(theme: str) -> Any:
    """Where a logit comes from."""
    return regard.contributions(translate("le chat noir dort sur la table"), 2).plot(theme=theme)


def why(theme: str) -> Any:
    """Where a score comes from."""
    found = translate("le chat noir dort sur la table").attention["decoder.layers.2.cross"]
    return regard.why(found.select(2), 2, 1).plot(theme=theme)


def reasons(theme: str) -> Any:
    """What each output word came from."""
    return reasons_of(translate("le chat noir dort sur la table")).plot(theme=theme)


def faithfulness(theme: str) -> Any:
    """Explanations, tested."""
    return regard.faithfulness(translate("le chat noir dort sur la table"), 2).plot(theme=theme)


@cache
def patches() -> Any:
    """What carries the colour."""
    model = load("fr-en")
    black, white = (model.tokenizer.encode(word)[0] for word in ("black", "white"))
    return regard.patch(
        model, "le chat noir dort .", "le chat blanc dort .", lambda out: out[0, 1, black] - out[0, 1, white]
    )


def patching(theme: str) -> Any:
    """Patched heads."""
    return patches().plot(theme=theme)


def tables(theme: str) -> Any:
    """Several tables on one scale."""
    torch.manual_seed(1)
    some = {kind: torch.randn(6, 8) * spread for kind, spread in (("zero", 0.6), ("mean", 0.3), ("resample", 0.4))}
    return draw_tables(some, [f"layer {n}" for n in range(6)], [str(n) for n in range(8)], ("site ↓", "head →"),
                       "Change of the metric without each head", note="made by hand", label="change of the metric",
                       theme=theme)  # fmt: skip


def trace(theme: str) -> Any:
    """A decoding worked through."""
    return translate("le chat noir", "fr-en-rnn").trace.plot(theme=theme)


def meaning(theme: str) -> Any:
    """A word in three texts."""
    texts = ["She did not answer me.", "Please answer the question.", "Her answer was wrong."]
    return load("english").meaning("answer", texts).plot(theme=theme)


def calibration(theme: str) -> Any:
    """Confidence and how often it is right."""
    confidence = [0.05 + 0.1 * n for n in range(10)]
    right = [0.04, 0.12, 0.2, 0.33, 0.41, 0.5, 0.61, 0.7, 0.8, 0.93]
    count = [40, 60, 75, 90, 120, 150, 190, 260, 400, 1100]
    error = sum(n * abs(p - q) for n, p, q in zip(count, confidence, right, strict=True)) / sum(count)
    return draw_calibration(confidence, right, count, error, "made by hand", theme=theme)


def nothing(theme: str) -> Any:
    """An empty output."""
    return heatmap([], [], [], "An empty output", theme=theme)


FIGURES: dict[str, Drawer] = {
    one.__name__.replace("_", "-"): one
    for one in (
        alignment, alignment_long, long_words, right_to_left, hebrew, cjk, heads, one_head, some_rows, batch, pooled,
        strip, film, sound, lens, parts, why, reasons, faithfulness, patching, tables, trace, meaning, calibration,
        nothing,
    )
}  # fmt: skip
PICTURES = ("strip", "film", "sound", "pooled")  # whose points an SVG would hold one by one


def file_of(name: str, theme: str) -> str:
    """The name of a figure's file."""
    return f"{name}-{theme}.{'png' if name in PICTURES else 'svg'}"


def draw_all(folder: Path, ending: str = "") -> None:
    """Draw every figure into a folder; `ending` draws all as that."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        for theme in THEMES:
            path = folder / file_of(name, theme)
            finished(draw(theme), path.with_suffix(ending) if ending else path)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1] if len(sys.argv) > 1 else "gallery"), *sys.argv[2:])
