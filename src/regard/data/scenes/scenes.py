"""Generated scenes of emoji, with exact captions and boxes."""

import random
from collections.abc import Iterable, Iterator

from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.moving import make_moving
from regard.data.scenes.scene import Scene, SceneConfig
from regard.data.scenes.still import make_still


def make_scene(glyphs: Glyphs, config: SceneConfig, dice: random.Random, dev: bool, count: int | None = None) -> Scene:
    """A random scene; its combination of things (or of thing and direction) belongs to either training or development.

    Args:
        glyphs: the things.
        config: the settings; from 2 frames on the scene is a moving one.
        dice: the source of randomness.
        dev: a development scene.
        count: number of things of a still scene; 1 to `config.most` if None.
    """
    if config.frames > 1:
        return make_moving(glyphs, config, dice, dev)
    return make_still(glyphs, config, dice, dev, count)


def scenes(
    glyphs: Glyphs, config: SceneConfig, numbers: Iterable[int], seed: int | str, dev: bool, count: int | None = None
) -> Iterator[Scene]:
    """Scenes by their numbers; the same seed gives the same ones."""
    for number in numbers:
        yield make_scene(glyphs, config, random.Random(f"{seed} {dev} {number}"), dev, count)
