"""Draw the architectures of the course: python docs/architectures.py

Each is an SVG in a light and in a dark variant, in the colours of regard's figures (`regard.figures.style`).
`tests/test_pictures.py` draws all of them again and compares.
"""

from collections.abc import Callable
from html import escape
from math import atan2, cos, sin
from pathlib import Path
from re import split

from regard.figures.style import THEMES, Theme

FOLDER = Path(__file__).parent / "course" / "architectures"
FAMILY = "Liberation Sans, Arial, Helvetica, DejaVu Sans, sans-serif"
TINTS = {"light": 0.13, "dark": 0.24}  # how much of its colour the inside of a box has
BLUE, RED, GREEN, VIOLET, GREY = 0, 1, 2, 3, 5  # of the theme's series
SECOND_STEP = (0.05, 0.26, 0.68, 0.00)  # weights of fr-en-rnn for "le chat noir" at step 2, from its trace
Point = tuple[float, float]


class Canvas:
    """A drawing: shapes are added in order and lie above those before them; y grows downwards."""

    def __init__(self, width: float, height: float, theme: str) -> None:
        self.width, self.height = width, height
        self.theme: Theme = THEMES[theme]
        self.tint = TINTS[theme]
        self.parts: list[str] = []

    def mixed(self, series: int) -> str:
        """The inside of a box: the colour of a series on the theme's paper."""
        ink, paper = (
            [int(colour[n : n + 2], 16) for n in (1, 3, 5)] for colour in (self.theme.series[series], self.theme.paper)
        )
        return "#" + "".join(
            f"{round(self.tint * one + (1 - self.tint) * other):02x}" for one, other in zip(ink, paper, strict=True)
        )

    def text(
        self, at: Point, words: str, size: float = 13, *, soft: bool = False, anchor: str = "middle",
        bold: bool = False, series: int | None = None,
    ) -> None:  # fmt: skip
        """One line centred on a point; `_x` or `_{xy}` is a subscript."""
        colour = self.theme.soft if soft else self.theme.ink if series is None else self.theme.series[series]
        spans = ""
        for number, piece in enumerate(split(r"_(?:\{([^}]*)\}|(\w))", words)):
            if piece and number % 3 == 0:
                spans += escape(piece)
            elif piece:
                down, small = size * 0.28, size * 0.72
                spans += f'<tspan dy="{down:.1f}" font-size="{small:.1f}">{escape(piece)}</tspan>'
                spans += f'<tspan dy="{-down:.1f}">\u200b</tspan>'
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{at[0]:.1f}" y="{at[1] + size * 0.35:.1f}" font-size="{size:g}" fill="{colour}" '
            f'text-anchor="{anchor}"{weight}>{spans}</text>'
        )

    def box(
        self, at: Point, width: float, height: float, words: str = "", series: int = GREY, size: float = 13, *,
        empty: bool = False, dashed: bool = False,
    ) -> None:  # fmt: skip
        """A rounded box centred on a point, with one line of words or several."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        fill = "none" if empty else self.mixed(series)
        self.parts.append(
            f'<rect x="{at[0] - width / 2:.1f}" y="{at[1] - height / 2:.1f}" width="{width:g}" height="{height:g}" '
            f'rx="6" fill="{fill}" stroke="{self.theme.series[series]}" stroke-width="1.3"{dash}/>'
        )
        lines = words.split("\n") if words else []
        for number, line in enumerate(lines):
            self.text((at[0], at[1] + (number - (len(lines) - 1) / 2) * size * 1.25), line, size)

    def circle(self, at: Point, words: str, radius: float = 10) -> None:
        self.parts.append(
            f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}" fill="{self.theme.paper}" '
            f'stroke="{self.theme.ink}" stroke-width="1.2"/>'
        )
        self.text(at, words, radius * 1.5)

    def arrow(self, *points: Point, series: int | None = None, weight: float = 1.4, head: bool = True) -> None:
        """A line through points, with a head at the last one."""
        colour = self.theme.ink if series is None else self.theme.series[series]
        (x0, y0), (x1, y1) = points[-2:]
        angle, length = atan2(y1 - y0, x1 - x0), 4.5 + 1.6 * weight
        line = [*points[:-1], (x1 - 0.8 * length * cos(angle), y1 - 0.8 * length * sin(angle))] if head else points
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{weight:g}" '
            'stroke-linejoin="round"/>'
        )
        if head:
            tips = [(x1 + length * cos(angle + turn), y1 + length * sin(angle + turn)) for turn in (2.72, -2.72)]
            corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in ((x1, y1), *tips))
            self.parts.append(f'<polygon points="{corners}" fill="{colour}"/>')

    def cell(self, at: Point, side: float, series: int | None) -> None:
        """A square with its upper left corner at a point; series None: empty."""
        fill = "none" if series is None else self.theme.series[series]
        self.parts.append(
            f'<rect x="{at[0]:.1f}" y="{at[1]:.1f}" width="{side:g}" height="{side:g}" fill="{fill}" '
            f'stroke="{self.theme.line}" stroke-width="1"/>'
        )

    def svg(self, title: str) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'width="{self.width:g}" height="{self.height:g}" font-family="{FAMILY}" role="img">\n'
            f'<title>{escape(title)}</title>\n<rect width="100%" height="100%" fill="{self.theme.paper}"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def one_head(to: Canvas) -> None:
    for letter, y, series in (("Q", 60, BLUE), ("K", 140, RED), ("V", 220, GREEN)):
        to.text((48, y), "x", 15, bold=True)
        to.text((48, y + 24), "[T, d]" if letter == "Q" else "[S, d]", 11, soft=True)
        to.arrow((70, y), (119, y))
        to.box((150, y), 62, 36, f"W_{letter}", series)
        to.arrow((181, y), (222, y))
        to.box((254, y), 64, 36, letter.lower(), series, 14)
    to.arrow((286, 60), (328, 92))
    to.arrow((286, 140), (328, 110))
    to.box((372, 100), 88, 46, "scores\nq · k / √d_k", GREY, 12)
    to.arrow((416, 100), (450, 100))
    to.box((488, 100), 76, 46, "mask\n(if any)", GREY, 12, dashed=True)
    to.arrow((526, 100), (562, 100))
    to.box((604, 100), 84, 46, "softmax\nof each row", VIOLET, 12)
    to.arrow((604, 123), (604, 197))
    to.text((614, 160), "weights A", 12, soft=True, anchor="start")
    to.arrow((286, 220), (562, 220))
    to.box((604, 220), 84, 46, "weighted\nsum A v", GREEN, 12)
    to.arrow((646, 220), (696, 220))
    to.text((716, 220), "z", 15, bold=True)
    shapes = ((254, 88, "[T, d_k]"), (254, 168, "[S, d_k]"), (254, 248, "[S, d_v]"), (372, 134, "[T, S]"))
    for x, y, words in (*shapes, (604, 66, "[T, S]"), (716, 246, "[T, d_v]")):
        to.text((x, y), words, 11, soft=True)


def multi_head(to: Canvas) -> None:
    to.text((46, 150), "x", 15, bold=True)
    to.text((46, 174), "[T, d]", 11, soft=True)
    heads = (("1", 60), ("2", 130), ("h", 240))
    for name, y in heads:
        to.arrow((66, 150), (96, 150), (96, y), (132, y))
        to.box((172, y), 78, 44, f"W_Q, W_K, W_V\nof head {name}", BLUE, 11)
        to.arrow((211, y), (250, y))
        to.box((304, y), 108, 44, "attention", VIOLET, 13)
        to.text((304, y + 34), f"its own map A_{name}, [T, T]", 11, soft=True)
        to.arrow((358, y), (408, y))
        to.box((442, y), 66, 34, f"z_{name}", GREEN, 13)
        to.arrow((475, y), (536, y))
    for x in (172, 304, 442):
        to.text((x, 192), "⋮", 18, soft=True)
    to.text((442, 272), "[T, d/h]", 11, soft=True)
    to.box((576, 150), 80, 224, "concatenate\n\n[T, d]", GREY, 12)
    to.arrow((616, 150), (668, 150))
    to.box((696, 150), 56, 44, "W_O", RED, 13)
    to.arrow((724, 150), (762, 150))
    to.text((780, 150), "y", 15, bold=True)
    to.text((780, 174), "[T, d]", 11, soft=True)


def recurrent(to: Canvas) -> None:
    words = ("le", "chat", "noir", "</s>")
    places = [70 + 110 * n for n in range(4)]
    to.text((235, 392), "encoder: reads the source in both directions", 12, soft=True)
    for n, (x, word, weight) in enumerate(zip(places, words, SECOND_STEP, strict=True)):
        to.text((x, 364), word, 13)
        to.arrow((x, 352), (x, 329))
        to.box((x, 310), 62, 38, f"h_{n + 1}", BLUE, 14)
        if n:
            to.arrow((x - 79, 304), (x - 31, 304), weight=1.1)
            to.arrow((x - 31, 317), (x - 79, 317), weight=1.1)
        top = (290 + (x - 235) * 0.14, 151)
        to.arrow((x, 291), top, series=GREEN, weight=0.8 + 6 * weight)
        share = 0.24 if n == 0 else 0.14
        beside = (x + share * (top[0] - x) + (-10 if x < 290 else 10), 291 - share * 140)
        to.text(beside, f"{weight:.2f}".lstrip("0"), 12, series=GREEN, bold=True, anchor="end" if x < 290 else "start")
    to.text((22, 178), "the weights α_{2i} are the softmax", 12, soft=True, anchor="start")
    to.text((22, 196), "of the scores of s_1 and h_i", 12, soft=True, anchor="start")
    to.box((290, 130), 96, 42, "context c_2", GREEN, 13)
    states = [540 + 112 * n for n in range(4)]
    outputs, inputs = ("the", "black", "cat"), ("<s>", "the", "black")
    to.text((708, 392), "decoder: one step for each output token", 12, soft=True)
    for n, x in enumerate(states):
        to.box((x, 230), 62, 38, f"s_{n}", RED, 14)
        if n:
            to.arrow((x - 81, 230), (x - 31, 230))
            to.text((x, 364), inputs[n - 1], 13)
            to.arrow((x, 352), (x, 249))
            to.text((x, 106), outputs[n - 1], 13, bold=True)
            to.arrow((x, 211), (x, 118))
    to.arrow((431, 310), (540, 310), (540, 249), weight=1.1)
    to.text((468, 298), "first state", 11, soft=True)
    to.arrow((338, 130), (744, 130), (744, 211), series=GREEN, weight=2)
    to.text((440, 146), "c_2 enters the next state", 12, series=GREEN)
    to.arrow((634, 211), (634, 56), (290, 56), (290, 109), series=RED, weight=1.4)
    to.text((462, 42), "the state s_1 is the query of step 2", 12, series=RED)


def _block(to: Canvas, x: float, below: float, parts: list[tuple[str, int]]) -> float:
    """Sublayers from below to above, each with its norm and its residual connection; returns the height reached."""
    y = below
    for name, series in parts:
        to.arrow((x, y), (x, y - 26))
        to.box((x, y - 38), 136, 24, "norm", GREY, 12)
        to.arrow((x, y - 50), (x, y - 64))
        to.box((x, y - 82), 136, 36, name, series, 12)
        to.arrow((x, y - 100), (x, y - 112))
        to.arrow((x, y - 12), (x - 88, y - 12), (x - 88, y - 122), (x - 10, y - 122))
        to.circle((x, y - 122), "+")
        y -= 132
    return y


def encoder_decoder(to: Canvas) -> None:
    left, right, ground = 190.0, 520.0, 520.0
    for x, words, below in (
        (left, "source tokens", "le chat noir </s>"),
        (right, "target tokens so far", "<s> the black"),
    ):
        to.text((x, ground + 74), words, 12, soft=True)
        to.text((x, ground + 56), below, 13)
        to.arrow((x, ground + 46), (x, ground + 34))
        to.box((x, ground + 17), 170, 34, "embedding + positions", GREY, 12)
    top = _block(to, left, ground, [("self-attention", BLUE), ("feed-forward", GREEN)])
    to.box((left - 10, (ground + top) / 2 - 6), 212, ground - top, series=GREY, empty=True, dashed=True)
    to.text((left - 138, (ground + top) / 2), "× N", 15, soft=True)
    high = _block(
        to, right, ground, [("causal self-attention", BLUE), ("cross-attention", RED), ("feed-forward", GREEN)]
    )
    to.box((right - 10, (ground + high) / 2 - 6), 212, ground - high, series=GREY, empty=True, dashed=True)
    to.text((right + 118, (ground + high) / 2), "× N", 15, soft=True)
    to.arrow((left, top), (left, top - 22))
    to.box((left, top - 34), 136, 24, "norm", GREY, 12)
    to.arrow((left, top - 46), (left, top - 60))
    to.box((left, top - 78), 120, 36, "memory", RED, 13)
    across = ground - 132 - 82
    to.arrow((left + 60, top - 78), (340, top - 78), (340, across), (right - 68, across), series=RED, weight=2)
    to.text((322, top - 92), "keys and values", 12, series=RED)
    to.arrow((right, high), (right, high - 22))
    to.box((right, high - 38), 150, 32, "norm, linear, softmax", GREY, 12)
    to.arrow((right, high - 54), (right, high - 72))
    to.text((right, high - 84), "p(next token): “cat”", 13, bold=True)


def three_shapes(to: Canvas) -> None:
    def grid(x: float, y: float, rows: str, series: int) -> None:
        for i, row in enumerate(rows.split()):
            for j, one in enumerate(row):
                to.cell((x + 15 * j, y + 15 * i), 15, series if one == "1" else None)

    full, causal = "11111 " * 5, "10000 11000 11100 11110 11111"
    panels = (
        (120, "encoder only", "all tokens attend to all", "vectors, filling gaps (BERT)"),
        (370, "decoder only", "each token: itself and earlier ones", "continuing a text (GPT)"),
        (700, "encoder–decoder", "target: earlier ones, and all of the source", "translation, captions"),
    )
    for x, name, reach, use in panels:
        to.text((x, 24), name, 15, bold=True)
        to.text((x, 46), reach, 12, soft=True)
        to.text((x, 358), use, 12, soft=True)
    for x, words, series in ((120, "N blocks", BLUE), (370, "N blocks", RED)):
        to.arrow((x, 178), (x, 160))
        to.arrow((x, 100), (x, 82))
        to.box((x, 130), 130, 58, words, series, 13)
    to.text((120, 70), "one vector a token", 12)
    to.text((370, 70), "the next token, at each", 12)
    to.text((120, 188), "tokens", 12)
    to.text((370, 188), "tokens", 12)
    to.box((610, 130), 120, 58, "N blocks", BLUE, 13)
    to.box((790, 130), 120, 58, "N blocks with\ncross-attention", RED, 12)
    to.arrow((610, 178), (610, 160))
    to.arrow((790, 178), (790, 160))
    to.arrow((670, 130), (729, 130), weight=2)
    to.text((700, 116), "memory", 11, soft=True)
    to.arrow((790, 100), (790, 82))
    to.text((790, 70), "next target token", 12)
    to.text((610, 188), "source tokens", 12)
    to.text((790, 188), "target tokens", 12)
    to.text((16, 268), "mask", 12, soft=True, anchor="start")
    grid(82.5, 230, full, BLUE)
    grid(332.5, 230, causal, RED)
    grid(560, 230, full, BLUE)
    grid(660, 230, full, VIOLET)
    grid(760, 230, causal, RED)
    for x, words in ((120, "self"), (370, "self"), (597.5, "source, self"), (697.5, "cross"), (797.5, "target, self")):
        to.text((x, 322), words, 11, soft=True)


Drawing = Callable[[Canvas], None]
DRAWINGS: dict[str, tuple[float, float, str, Drawing]] = {  # name: width, height, the alternative text, the drawing
    "one-head": (760, 280, "One attention head, from its input to its output", one_head),
    "multi-head": (810, 300, "Multi-head attention: h heads side by side, joined by one matrix", multi_head),
    "recurrent": (930, 410, "A recurrent encoder and decoder with attention, at the second step", recurrent),
    "encoder-decoder": (720, 610, "The encoder–decoder Transformer with its sublayers", encoder_decoder),
    "three-shapes": (900, 376, "Encoder only, decoder only, encoder–decoder, and the mask of each", three_shapes),
}


def drawn(name: str, theme: str) -> str:
    """The SVG of an architecture in a theme."""
    width, height, title, draw = DRAWINGS[name]
    canvas = Canvas(width, height, theme)
    draw(canvas)
    return canvas.svg(title)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in DRAWINGS:
        for theme in THEMES:
            (FOLDER / f"{name}-{theme}.svg").write_text(drawn(name, theme), "utf-8")
