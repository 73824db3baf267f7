"""Still scenes: one to three things, whose caption says how they stand to each other."""

import random

import numpy as np

from regard.data.scenes.glyphs import Glyphs, dyed
from regard.data.scenes.scene import Box, Scene, SceneConfig, Thing, background, of_part, paste, shares
from regard.errors import DataError

SEPARATE = 1.3  # smallest ratio of two things' distances along the two axes, so that "beside" or "above" is clear


def make_still(glyphs: Glyphs, config: SceneConfig, dice: random.Random, dev: bool, count: int | None = None) -> Scene:
    """A random scene of `count` things (1 to `config.most` if None); its combination of things belongs to either
    training or development."""
    if count is None:
        if len(glyphs) < config.most:
            raise DataError(f"scenes.most = {config.most}, and there are only {len(glyphs)} things")
        count = dice.randint(1, config.most)
    if not 1 <= count <= len(glyphs):
        raise DataError(f"count: expected 1 to {len(glyphs)}, as many as there are things; got {count}")

    def draw() -> tuple[list[int], str]:
        some = dice.sample(range(len(glyphs)), count)
        return some, " + ".join(sorted(glyphs.names[i] for i in some)) if count > 1 else ""

    chosen = of_part(draw, dev, config, f"{count} of the {len(glyphs)} things")
    boxes = _arrange(config.size, count, dice)
    colours = [dice.choice(sorted(config.dyes)) if config.dyes else None for _ in chosen]
    called = [f"{colour or ''} {glyphs.names[i]}".strip() for i, colour in zip(chosen, colours, strict=True)]
    order, caption, words = _describe(called, boxes, config)
    canvas = background(config.size, dice)
    other = not dev and config.varied > 0 and dice.random() < config.varied
    for i, box, colour in zip(chosen, boxes, colours, strict=True):
        drawn = glyphs.draw(i, dice)
        paste(canvas, dyed(drawn, config.dyes[colour]) if colour else drawn, box, dice, other)
    things = [
        Thing(glyphs.names[chosen[n]], shares(boxes[n], config.size), span, colours[n])
        for n, span in zip(order, words, strict=True)
    ]
    return Scene(np.asarray(canvas), caption, things)


def _arrange(size: int, count: int, dice: random.Random) -> list[Box]:
    """Boxes that hardly overlap and whose relation (left of, above) is unambiguous."""
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
    """The order of the things in the caption, the caption, and each thing's words."""
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
