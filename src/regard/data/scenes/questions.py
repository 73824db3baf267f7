"""Questions about scenes of emoji: the answer is known, and so is where one must look for it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.scenes import Scene, SceneConfig, Thing, scenes

PER_SCENE = 4
MIDDLE = 0.1  # what is nearer to the middle, as a share of the picture, is in no corner
NUMBERS = ("no", "one", "two", "three")


@dataclass(frozen=True)
class Asked:
    """One question about one picture.

    Attributes:
        file: the picture's name.
        question, answer: as they are asked and expected.
        box: where one must look, where that is known: left, upper, right, lower edge, as shares of the picture.
    """

    file: str
    question: str
    answer: str
    box: tuple[float, float, float, float] | None = None


class SceneQuestions:
    """Questions about scenes; development scenes put things together that training never does.

    Args:
        config: of the scenes.
    """

    def __init__(self, config: SceneConfig) -> None:
        self.config, self.sprites = config, Glyphs(config)

    def asked(self, dev: bool) -> list[Asked]:
        """The questions about all training or development scenes, each scene's of different kinds."""
        found = []
        for number in range(self.config.dev_scenes if dev else self.config.scenes):
            name = f"{'dev' if dev else 'train'} {number}"
            dice = random.Random(name)
            kinds = [kind for kind in self._about(name, self._scene(name), dice) if kind]
            found += [dice.choice(kind) for kind in dice.sample(kinds, min(PER_SCENE, len(kinds)))]
        return found

    def open(self, name: str) -> Image.Image:
        """A scene's picture."""
        return Image.fromarray(self._scene(name).picture)

    def _scene(self, name: str) -> Scene:
        part, number = name.split()
        return next(scenes(self.sprites, self.config, [int(number)], "asked", part == "dev"))

    def _about(self, file: str, scene: Scene, dice: random.Random) -> Iterator[list[Asked]]:
        """Questions of one kind after the other."""
        names = {thing.name for thing in scene.things}
        other = dice.choice([name for name in self.sprites.names if name not in names])
        yield [
            Asked(file, f"what color is the {thing.name}?", thing.colour, thing.box)
            for thing in scene.things if thing.colour
        ]  # fmt: skip
        corners = [(thing, _corner(thing)) for thing in scene.things]
        yield [Asked(file, f"where is the {thing.name}?", corner, thing.box) for thing, corner in corners if corner]
        yield [Asked(file, f"do you see a {thing.name}?", "yes", thing.box) for thing in scene.things]
        yield [Asked(file, f"do you see a {other}?", "no")]
        yield [Asked(file, "how many things are there?", NUMBERS[len(scene.things)])]
        if len(scene.things) == 2:
            first, second = scene.things  # the left or the upper one is named first
            beside = f" {self.config.beside} " in scene.caption
            before, behind = (self.config.beside, "right of") if beside else (self.config.above, "below")
            yield [
                Asked(file, f"what is {before} the {second.name}?", first.name, first.box),
                Asked(file, f"what is {behind} the {first.name}?", second.name, second.box),
            ]


def _corner(thing: Thing) -> str | None:
    across, down = (thing.box[0] + thing.box[2]) / 2 - 0.5, (thing.box[1] + thing.box[3]) / 2 - 0.5
    if min(abs(across), abs(down)) < MIDDLE:
        return None
    return f"{'upper' if down < 0 else 'lower'} {'left' if across < 0 else 'right'}"
