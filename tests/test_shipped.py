"""The models that come with regard say what the notes' worked example says, and are small."""

from pathlib import Path

import pytest

import regard
from regard.loading import SHIPPED, shipped

NAMES = ["en-fr", "en-fr-rnn", "fr-en", "fr-en-rnn"]
TEXTS = ["english", "shakespeare"]


def test_all_are_there_with_a_card() -> None:
    assert shipped() == sorted([*NAMES, *TEXTS])
    for name in TEXTS:
        card = (SHIPPED / name / "README.md").read_text("utf-8")
        for word in ("development loss", "updates", "wall clock", f"configs/{name}.toml"):
            assert word in card, f"{name}: {word}"
    for name in NAMES:
        card = (SHIPPED / name / "README.md").read_text("utf-8")
        for word in ("CC BY 2.0", "tatoeba.org", "manythings.org/anki", "nrefs:1", "wall clock", "BLEU", "chrF"):
            assert word in card, f"{name}: {word}"


@pytest.mark.parametrize("name", [*NAMES, *TEXTS])
def test_at_most_eight_megabytes(name: str) -> None:
    assert sum(path.stat().st_size for path in Path(SHIPPED / name).iterdir()) <= 8_000_000


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


def test_the_decoder_writes_a_play() -> None:
    made = regard.load("shakespeare")("ROMEO:\n", length=400, temperature=0.5, seed=1)
    words = [word.strip(".,;:!?'").lower() for word in made.text.split()]
    assert len(words) > 50
    assert sum(word in ("the", "and", "to", "i", "of", "you", "my", "a", "that", "not") for word in words) > 8


def test_the_encoder_knows_what_is_missing() -> None:
    model = regard.load("english")
    assert "me" in [word for word, _ in model("Can you help [MASK]?").gaps[0]]
    verbs = [word for word, _ in model("She [MASK] the door.", top=10).gaps[0]]
    assert {"opened", "closed", "locked"} & set(verbs)
