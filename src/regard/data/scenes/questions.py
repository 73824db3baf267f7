"""Questions about scenes of emoji, with the answer and the box of the thing that it depends on."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from regard.data.scenes.glyphs import Glyphs
from regard.data.scenes.scene import Scene, SceneConfig, Thing
from regard.data.scenes.scenes import scenes

PER_SCENE = 4
MIDDLE = 0.1  # distance from the middle, as a share of the picture, below which a thing is in no corner
NUMBERS = ("no", "one", "two", "three")


@dataclass(frozen=True)
class PictureQuestion:
    """One question about one picture.

    Attributes:
        file: the picture's name.
        question, answer: the texts.
        box: the region that the answer depends on, if known: left, upper, right, lower edge, as shares of the picture.
    """

    file: str
    question: str
    answer: str
    box: tuple[float, float, float, float] | None = None


class SceneQuestions:
    """Questions about scenes; no development scene combines things that a training scene combines.

    Args:
        config: of the scenes.
    """

    def __init__(self, config: SceneConfig) -> None:
        self.config, self.glyphs = config, Glyphs(config)

    def questions(self, dev: bool) -> list[PictureQuestion]:
        """The questions about all training or development scenes; those about one scene are of different kinds."""
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
        return next(scenes(self.glyphs, self.config, [int(number)], "asked", part == "dev"))

    def _about(self, file: str, scene: Scene, dice: random.Random) -> Iterator[list[PictureQuestion]]:
        """Lists of questions of one kind each."""
        names = {thing.name for thing in scene.things}
        others = [name for name in self.glyphs.names if name not in names]
        other = dice.choice(others) if others else ""
        yield [
            PictureQuestion(file, f"what color is the {thing.name}?", thing.colour, thing.box)
            for thing in scene.things if thing.colour
        ]  # fmt: skip
        corners = [(thing, _corner(thing)) for thing in scene.things]
        yield [
            PictureQuestion(file, f"where is the {thing.name}?", corner, thing.box)
            for thing, corner in corners
            if corner
        ]
        yield [PictureQuestion(file, f"do you see a {thing.name}?", "yes", thing.box) for thing in scene.things]
        yield [PictureQuestion(file, f"do you see a {other}?", "no")] if other else []
        yield [PictureQuestion(file, "how many things are there?", NUMBERS[len(scene.things)])]
        if len(scene.things) == 2:
            first, second = scene.things  # the left or the upper one is named first
            beside = f" {self.config.beside} " in scene.caption
            before, behind = (self.config.beside, "right of") if beside else (self.config.above, "below")
            yield [
                PictureQuestion(file, f"what is {before} the {second.name}?", first.name, first.box),
                PictureQuestion(file, f"what is {behind} the {first.name}?", second.name, second.box),
            ]


def _corner(thing: Thing) -> str | None:
    across, down = (thing.box[0] + thing.box[2]) / 2 - 0.5, (thing.box[1] + thing.box[3]) / 2 - 0.5
    if min(abs(across), abs(down)) < MIDDLE:
        return None
    return f"{'upper' if down < 0 else 'lower'} {'left' if across < 0 else 'right'}"
