"""Moving scenes: one thing, whose caption says where it moves."""

import random
from typing import Any

import numpy as np

from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.scene import Box, Scene, SceneConfig, Thing, background, of_part, paste, shares
from regard.errors import DataError


def make_moving(glyphs: Glyphs, config: SceneConfig, dice: random.Random, dev: bool) -> Scene:
    """A scene of one moving thing; combinations of thing and direction reserved for development are in no training
    scene."""
    if not config.moves:
        raise DataError("scenes.moves: expected one direction or more")

    def draw() -> tuple[tuple[int, Any], str]:
        thing, where = dice.randrange(len(glyphs)), dice.choice(sorted(config.moves))
        return (thing, where), f"{glyphs.names[thing]} + {where}"

    chosen, way = of_part(draw, dev, config, f"one of the {len(glyphs)} things and a direction")
    boxes = _path(config.size, config.frames, way, dice)
    ground, picture = background(config.size, dice), glyphs.draw(chosen, dice)
    frames = []
    for box in boxes:
        canvas = ground.copy()
        paste(canvas, picture, box, random.Random(0))
        frames.append(np.asarray(canvas))
    name = glyphs.names[chosen]
    paths = tuple(shares(box, config.size) for box in boxes)
    thing = Thing(name, paths[0], range(len(name.split())))
    return Scene(frames[0], f"{name} {config.moves[way]}", [thing], tuple(frames), paths)


def _path(size: int, frames: int, way: str, dice: random.Random) -> list[Box]:
    """The box of a moving thing in every frame."""
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


def _box(left: float, upper: float, side: float) -> Box:
    return round(left), round(upper), round(left) + round(side), round(upper) + round(side)
