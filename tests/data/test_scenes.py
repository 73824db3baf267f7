"""Scenes of emoji: captions and places that agree with the picture."""

import random
from pathlib import Path

import numpy as np
import pytest

from made import made_glyphs
from regard.data.scenes import FONTS, SceneConfig, Sprites, make_scene, scenes
from regard.errors import DataError


@pytest.fixture
def config(tmp_path: Path) -> SceneConfig:
    return SceneConfig(pictures=str(made_glyphs(tmp_path / "glyphs")), size=64, dev_share=0.3)


def test_names_are_those_of_the_package(config: SceneConfig) -> None:
    assert sorted(Sprites(config).names) == ["banana", "bell", "cat", "dog", "fish", "key", "red apple"]
    french = Sprites(config.model_copy(update={"language": "fr"}))
    assert {"chat", "chien", "pomme rouge"} <= set(french.names)


def test_the_same_seed_gives_the_same_scenes(config: SceneConfig) -> None:
    sprites = Sprites(config)
    first, again = (list(scenes(sprites, config, range(5), 3, False)) for _ in range(2))
    assert all(
        np.array_equal(a.picture, b.picture) and a.caption == b.caption for a, b in zip(first, again, strict=True)
    )
    assert [s.caption for s in scenes(sprites, config, range(5), 4, False)] != [s.caption for s in first]


def test_things_stand_where_the_caption_says(config: SceneConfig) -> None:
    sprites = Sprites(config)
    for scene in scenes(sprites, config, range(60), 1, False):
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
    sprites = Sprites(config)
    many = scenes(sprites, config, range(80), 2, False)
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
    sprites = Sprites(config)
    sets = [
        {frozenset(t.name for t in s.things) for s in scenes(sprites, config, range(300), 5, dev) if len(s.things) > 1}
        for dev in (False, True)
    ]
    assert sets[0]
    assert sets[1]
    assert not sets[0] & sets[1]


def test_how_many_things(config: SceneConfig) -> None:
    sprites = Sprites(config)
    for count in (1, 2, 3):
        assert len(make_scene(sprites, config, random.Random(0), False, count).things) == count
    few = config.model_copy(update={"first": 3, "most": 1})
    assert len(Sprites(few)) == 3


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no colour font at .*nowhere.ttf: .*scenes.pictures"):
        Sprites(SceneConfig(pictures=str(tmp_path / "nowhere.ttf")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="only 0 of the wanted pictures"):
        Sprites(SceneConfig(pictures=str(tmp_path / "empty")))


@pytest.mark.skipif(not any(Path(p).exists() for p in FONTS), reason="no Noto Color Emoji installed")
def test_the_font_has_hundreds_of_things() -> None:
    sprites = Sprites(SceneConfig())
    assert len(sprites) > 800
    assert {"cat", "black cat", "red apple", "key"} <= set(sprites.names)
    assert not any("face" in name.split() for name in sprites.names)
