"""Scenes of emoji: captions and places that agree with the picture."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from made import made_glyphs
from regard.data.scenes.glyphs import FONTS, Glyphs, varied
from regard.data.scenes.questions import SceneQuestions
from regard.data.scenes.scene import SceneConfig
from regard.data.scenes.scenes import make_scene, scenes
from regard.errors import DataError


@pytest.fixture
def config(tmp_path: Path) -> SceneConfig:
    return SceneConfig(pictures=str(made_glyphs(tmp_path / "glyphs")), size=64, dev_share=0.3)


def test_names_are_those_of_the_package(config: SceneConfig) -> None:
    assert sorted(Glyphs(config).names) == ["banana", "bell", "cat", "dog", "fish", "key", "red apple"]
    french = Glyphs(config.model_copy(update={"language": "fr"}))
    assert {"chat", "chien", "pomme rouge"} <= set(french.names)


def test_the_same_seed_gives_the_same_scenes(config: SceneConfig) -> None:
    glyphs = Glyphs(config)
    first, again = (list(scenes(glyphs, config, range(5), 3, False)) for _ in range(2))
    assert all(
        np.array_equal(a.picture, b.picture) and a.caption == b.caption for a, b in zip(first, again, strict=True)
    )
    assert [s.caption for s in scenes(glyphs, config, range(5), 4, False)] != [s.caption for s in first]


@pytest.mark.parametrize("count", [0, -1, 1000])
def test_more_things_than_there_are_are_refused(config: SceneConfig, count: int) -> None:
    with pytest.raises(DataError, match=f"count: expected 1 to .* as many as there are things; got {count}"):
        list(scenes(Glyphs(config), config, range(2), 0, False, count=count))


def test_things_stand_where_the_caption_says(config: SceneConfig) -> None:
    glyphs = Glyphs(config)
    for scene in scenes(glyphs, config, range(60), 1, False):
        words = scene.caption.split()
        for thing in scene.things:
            assert " ".join(words[n] for n in thing.words).rstrip(",") == thing.name
            left, upper, right, lower = thing.box
            assert 0 <= left < right <= 1
            assert 0 <= upper < lower <= 1
        if len(scene.things) == 2:
            first, second = (((t.box[0] + t.box[2]) / 2, (t.box[1] + t.box[3]) / 2) for t in scene.things)
            axis = 0 if " left of " in scene.caption else 1
            assert first[axis] < second[axis]
        if len(scene.things) == 3:
            middles = [t.box[0] + t.box[2] for t in scene.things]
            assert middles == sorted(middles)


def test_a_box_holds_its_thing(config: SceneConfig) -> None:
    """On a white ground, everything that is not white lies in the boxes."""
    glyphs = Glyphs(config)
    many = scenes(glyphs, config, range(80), 2, False)
    white = [s for s in many if (s.picture[[0, 0, -1], [0, -1, 0]] == 255).all() and len(s.things) > 1]
    checked = 0
    for scene in white:
        inside = np.zeros(scene.picture.shape[:2], bool)
        for thing in scene.things:
            left, upper, right, lower = (round(edge * config.size) for edge in thing.box)
            inside[max(0, upper - 6) : lower + 6, max(0, left - 6) : right + 6] = True
        coloured = (scene.picture < 250).any(-1)
        if (scene.picture[~inside] == 255).mean() > 0.99:
            checked += 1
            assert coloured[inside].any()
    assert checked > 5


def test_what_stands_together_in_development_never_does_in_training(config: SceneConfig) -> None:
    glyphs = Glyphs(config)
    sets = [
        {frozenset(t.name for t in s.things) for s in scenes(glyphs, config, range(300), 5, dev) if len(s.things) > 1}
        for dev in (False, True)
    ]
    assert sets[0]
    assert sets[1]
    assert not sets[0] & sets[1]


DYES = {"red": "#ff0000", "blue": "#0000ff"}


def test_things_are_dyed_and_called_so(config: SceneConfig) -> None:
    dyed = config.model_copy(update={"dyes": DYES, "most": 2})
    seen = set()
    for scene in scenes(Glyphs(dyed), dyed, range(60), 3, False):
        words = scene.caption.split()
        for thing in scene.things:
            assert thing.colour is not None
            assert words[thing.words.start] == thing.colour
            assert " ".join(words[i] for i in thing.words) == f"{thing.colour} {thing.name}"
            x, y = (round(dyed.size * (a + b) / 2) for a, b in (thing.box[::2], thing.box[1::2]))
            point = scene.picture[y, x].astype(int)
            assert (point[0] > point[2] + 20) if thing.colour == "red" else (point[2] > point[0] + 20)
            seen.add(thing.colour)
    assert seen == set(DYES)


def test_questions_have_true_answers_and_places(config: SceneConfig) -> None:
    """Every answer again, from the scene itself."""
    made = SceneQuestions(config.model_copy(update={"dyes": DYES, "most": 2, "scenes": 60, "dev_scenes": 20}))
    asked = made.questions(False) + made.questions(True)
    assert asked == made.questions(False) + made.questions(True)
    kinds = set()
    for one in asked:
        scene = made._scene(one.file)
        things = {thing.name: thing for thing in scene.things}
        middle = {name: ((t.box[0] + t.box[2]) / 2, (t.box[1] + t.box[3]) / 2) for name, t in things.items()}
        kind, _, about = one.question.removesuffix("?").rpartition(" a " if " a " in one.question else " the ")
        kinds.add(kind.split(" of")[0])
        match kind:
            case "what color is":
                assert one.answer == things[about].colour
            case "where is":
                x, y = middle[about]
                assert one.answer == f"{'upper' if y < 0.5 else 'lower'} {'left' if x < 0.5 else 'right'}"
            case "do you see":
                assert one.answer == ("yes" if about in things else "no")
            case "what is left of" | "what is right of":
                assert (middle[one.answer][0] < middle[about][0]) == (kind == "what is left of")
            case "what is above" | "what is below":
                assert (middle[one.answer][1] < middle[about][1]) == (kind == "what is above")
            case _:
                assert one.question == "how many things are there?"
                assert one.answer == {1: "one", 2: "two"}[len(things)]
        if kind.startswith("what is"):
            assert one.box == things[one.answer].box
        elif one.box is not None:
            assert one.box == things[about].box
    assert kinds >= {"what color is", "where is", "do you see", "what is left", "what is above", "what is below"}
    assert np.array_equal(np.asarray(made.open("dev 3")), made._scene("dev 3").picture)
    pairs = [
        {frozenset(t.name for t in made._scene(one.file).things) for one in made.questions(dev)}
        for dev in (False, True)
    ]
    assert not {pair for pair in pairs[0] if len(pair) == 2} & pairs[1]


def test_each_thing_is_drawn_in_one_of_its_styles(config: SceneConfig, tmp_path: Path) -> None:
    """The other style knows fewer things, and has them all in blue."""
    other = tmp_path / "blue"
    other.mkdir()
    names = sorted(Path(str(config.pictures)).iterdir())
    for path in names[:4]:
        Image.new("RGBA", (30, 30), "#0000ff").save(other / path.name)
    both = config.model_copy(update={"styles": (str(other),), "most": 1})
    glyphs = Glyphs(both)
    assert glyphs.names == Glyphs(config).names
    assert sorted(map(len, glyphs.pictures)) == [1, 1, 1, 2, 2, 2, 2]
    number = next(n for n, drawn in enumerate(glyphs.pictures) if len(drawn) == 2)
    dice = random.Random(0)
    drawn = [glyphs.draw(number, dice).getpixel((15, 15)) == (0, 0, 255, 255) for _ in range(40)]
    assert 5 < sum(drawn) < 35
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"scenes.styles: .*empty has none of the wanted pictures"):
        Glyphs(config.model_copy(update={"styles": (str(empty),)}))


def test_a_thing_s_own_style_is_as_frequent_as_asked(config: SceneConfig, tmp_path: Path) -> None:
    other = tmp_path / "blue"
    other.mkdir()
    for path in Path(str(config.pictures)).iterdir():
        Image.new("RGBA", (30, 30), "#0000ff").save(other / path.name)
    styles = (str(other),) * 3
    for own, least, most in ((0.8, 140, 180), (0.0, 0, 0), (1.0, 200, 200)):
        glyphs, dice = Glyphs(config.model_copy(update={"styles": styles, "own": own})), random.Random(0)
        first = sum(glyphs.draw(0, dice) is glyphs.pictures[0][0] for _ in range(200))
        assert least <= first <= most


def test_a_varied_drawing_stays_where_it_was_and_differs(config: SceneConfig) -> None:
    """Of its size, with about as many points; hardly two are the same."""
    drawn = Glyphs(config).pictures[0][0]
    dice, seen = random.Random(0), set()
    for _ in range(30):
        other = varied(drawn, dice)
        assert other.size == drawn.size
        assert other.mode == "RGBA"
        alpha = np.asarray(other.getchannel("A"))
        assert 0.4 < (alpha > 127).sum() / (np.asarray(drawn.getchannel("A")) > 127).sum() <= 1.05
        seen.add(other.tobytes())
    assert len(seen) > 20


def test_only_training_scenes_are_varied(config: SceneConfig) -> None:
    other = config.model_copy(update={"varied": 1.0})
    glyphs = Glyphs(config)
    for dev in (False, True):
        plain, changed = (next(iter(scenes(glyphs, c, [3], 1, dev))) for c in (config, other))
        assert plain.caption == changed.caption
        assert np.array_equal(plain.picture, changed.picture) == dev


def test_how_many_things(config: SceneConfig) -> None:
    glyphs = Glyphs(config)
    for count in (1, 2, 3):
        assert len(make_scene(glyphs, config, random.Random(0), False, count).things) == count
    few = config.model_copy(update={"first": 3, "most": 1})
    assert len(Glyphs(few)) == 3


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no color font at .*nowhere.ttf: .*scenes.pictures"):
        Glyphs(SceneConfig(pictures=str(tmp_path / "nowhere.ttf")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="none of the wanted pictures"):
        Glyphs(SceneConfig(pictures=str(tmp_path / "empty")))
    few = SceneConfig(pictures=str(made_glyphs(tmp_path / "glyphs")), first=2)
    with pytest.raises(DataError, match=r"scenes.most = 3, and there are only 2 things"):
        make_scene(Glyphs(few), few, random.Random(0), False)
    broken = next((tmp_path / "glyphs").iterdir())
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"{broken.name}: no picture that can be read"):
        Glyphs(few)
    with pytest.raises(DataError, match=rf"{broken.name}: expected a color font or a folder"):
        Glyphs(SceneConfig(pictures=str(broken)))


@pytest.mark.skipif(not any(Path(p).exists() for p in FONTS), reason="no Noto Color Emoji installed")
def test_the_font_has_hundreds_of_things() -> None:
    glyphs = Glyphs(SceneConfig())
    assert len(glyphs) > 800
    assert {"cat", "black cat", "red apple", "key"} <= set(glyphs.names)
    assert not any("face" in name.split() for name in glyphs.names)


def test_a_part_that_gets_no_scene_is_one_sentence(config: SceneConfig) -> None:
    few = config.model_copy(update={"first": 3})
    glyphs = Glyphs(few)
    with pytest.raises(DataError, match="no combination of 3 of the 3 things was found that belongs to"):
        [make_scene(glyphs, few, random.Random(0), dev, 3) for dev in (False, True)]
    nowhere = config.model_copy(update={"moves": {}, "frames": 2})
    with pytest.raises(DataError, match=r"scenes\.moves: expected one direction or more"):
        make_scene(Glyphs(config), nowhere, random.Random(0), False)
    assert SceneQuestions(few.model_copy(update={"most": 3, "scenes": 20, "dev_share": 0.0})).questions(False)


def test_a_color_that_there_is_not_is_one_sentence(config: SceneConfig) -> None:
    with pytest.raises(DataError, match=r"scenes\.dyes: no color 'nocolor'"):
        make_scene(Glyphs(config), config.model_copy(update={"dyes": {"red": "nocolor"}}), random.Random(0), False)
