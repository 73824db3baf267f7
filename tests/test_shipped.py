"""The models that come with regard say what the notes' worked example says, and are small."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

import regard
from random_outputs import translator
from regard.data.scenes.glyphs import FONTS, Glyphs
from regard.data.scenes.scene import SceneConfig
from regard.pipelines.load import SHIPPED, shipped

NAMES = ["en-fr", "en-fr-fast", "en-fr-rnn", "fr-en", "fr-en-fast", "fr-en-rnn"]
TEXTS = ["english", "shakespeare"]
SENSES = {"emoji": "emoji", "spelling": "an4-joined"}  # and their configs


def test_all_are_there_with_a_card() -> None:
    assert shipped() == sorted([*NAMES, *TEXTS, *SENSES])
    for name, config in SENSES.items():
        card = (SHIPPED / name / "README.md").read_text("utf-8")
        for word in ("exact", "updates", "wall clock", f"train {config}`"):
            assert word in card, f"{name}: {word}"
    for name in TEXTS:
        card = (SHIPPED / name / "README.md").read_text("utf-8")
        for word in ("development loss", "updates", "wall clock", f"train {name}`"):
            assert word in card, f"{name}: {word}"
    for name in NAMES:
        card = (SHIPPED / name / "README.md").read_text("utf-8")
        for word in ("CC BY 2.0", "tatoeba.org", "manythings.org/anki", "nrefs:1", "wall clock", "BLEU", "chrF"):
            assert word in card, f"{name}: {word}"


@pytest.mark.parametrize("name", [*NAMES, *TEXTS, *SENSES])
def test_at_most_ten_megabytes(name: str) -> None:
    assert sum(path.stat().st_size for path in Path(SHIPPED / name).iterdir()) <= 10_000_000


@pytest.mark.parametrize("name", ["fr-en", "fr-en-rnn"])
def test_the_black_cat(name: str) -> None:
    generation = regard.load(name)("le chat noir")
    assert generation.text == "the black cat"
    assert generation.alignment.pairs == [(0, 0), (1, 2), (2, 1)]  # the–le, black–noir, cat–chat


def test_the_recurrent_model_aligns_an_adjective_that_changes_places() -> None:
    generation = regard.load("fr-en-rnn")("la maison blanche")
    assert generation.text == "the white house"
    assert generation.alignment.pairs == [(0, 0), (1, 2), (2, 1)]


@pytest.mark.parametrize("name", ["en-fr", "en-fr-rnn"])
def test_the_other_direction(name: str) -> None:
    model = regard.load(name)
    generation = model("the black cat")
    assert generation.text == "le chat noir"
    assert generation.alignment.pairs == [(0, 0), (1, 2), (2, 1)]
    assert model("I am tired.").text == "Je suis fatigué."


@pytest.mark.parametrize("name", ["fr-en", "fr-en-rnn"])
def test_a_sentence_with_and_without_its_full_stop(name: str) -> None:
    model = regard.load(name)
    assert model("Je suis fatigué.").text == "I'm tired."
    assert model("je suis fatigué").text.lower().rstrip(".") in ("i'm tired", "i am tired")


@pytest.mark.parametrize(
    ("name", "typed", "plain"),
    [
        ("fr-en", "OÙ EST LA GARE ?", "Où est la gare ?"),
        ("fr-en-fast", "TOM HABITE À PARIS.", "Tom habite à Paris."),
        ("fr-en-rnn", "LE CHAT NOIR DORT. LE CHIEN DORT.", "Le chat noir dort. Le chien dort."),
        ("en-fr", "WHERE IS THE STATION?", "Where is the station?"),
        ("en-fr-fast", "TOM LIVES IN BOSTON.", "Tom lives in Boston."),
        ("en-fr-rnn", "I DON'T KNOW.", "I don't know."),
        ("fr-en", "ou est la bibliotheque ?", "où est la bibliothèque ?"),
        ("fr-en-fast", "OU EST LA GARE ?", "Où est la gare ?"),
        ("fr-en-rnn", "le cafe est tres bon.", "le café est très bon."),
    ],
)
def test_a_source_in_capitals_is_read_as_a_sentence(name: str, typed: str, plain: str) -> None:
    model = regard.load(name)
    found, want = model([typed, plain])
    assert (found.source, found.read) == (typed, plain)
    assert found.text == want.text
    assert found.alignment.pairs == want.alignment.pairs
    protected = model(f"{typed} {{NAME}} https://regard.example/A", protect=True)
    assert protected.text.endswith("{NAME} https://regard.example/A")


def test_other_models_read_capitals_as_they_are() -> None:
    assert translator()("LE CHAT NOIR").read == "LE CHAT NOIR"


def test_the_decoder_writes_a_play() -> None:
    made = regard.load("shakespeare")("ROMEO:\n", length=200, temperature=0.5, seed=1)
    words = [word.strip(".,;:!?'").lower() for word in made.text.split()]
    assert len(words) > 25
    assert sum(word in ("the", "and", "to", "i", "of", "you", "my", "a", "that", "not") for word in words) > 4


def test_the_encoder_knows_what_is_missing() -> None:
    model = regard.load("english")
    assert "me" in [word for word, _ in model("Can you help [MASK]?").gaps[0]]
    verbs = [word for word, _ in model("She [MASK] the door.", top=10).gaps[0]]
    assert {"opened", "closed", "locked"} & set(verbs)


@pytest.mark.skipif(not any(Path(path).exists() for path in FONTS), reason="no Noto Color Emoji installed")
def test_the_captioner_knows_a_black_cat_and_where_it_stands() -> None:
    config = SceneConfig(longest=2)
    glyphs = Glyphs(config)
    picture = Image.new("RGBA", (96, 96), "white")
    for name, corner in (("black cat", (4, 30)), ("red apple", (54, 28))):
        thing = glyphs.pictures[glyphs.names.index(name)][0].resize((38, 38))
        picture.paste(thing, corner, thing)
    said = regard.load("emoji")(picture.convert("RGB"))
    assert said.text == "black cat left of red apple"
    words, weights = said.word_attention
    for word, (left, right) in (("black", (4, 42)), ("red", (54, 92))):
        column = float(said.positions[weights[words.index(word)].argmax()][1]) * 96
        assert left <= column <= right


def test_the_transcriber_says_known_words_only(tmp_path: Path) -> None:
    model = regard.load("spelling")
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    assert set(model(tmp_path / "noise.wav").text.split()) <= set(model.decoding.words)
    assert {"seven", "erase", "a", "z"} <= set(model.decoding.words)
