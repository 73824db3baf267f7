"""Diacritics that a text lacks are put back where the training data decide, and nowhere else."""

import pytest

from regard.errors import BundleError
from regard.text.diacritics import Diacritics, without_diacritics

TEXTS = ["Où est la bibliothèque ?"] * 20 + ["Lundi ou mardi, ça va.", "Il a un café.", "Elle va à Paris."] * 5


@pytest.fixture(scope="module")
def french() -> Diacritics:
    return Diacritics.learn(TEXTS)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("ou est la bibliotheque ?", "où est la bibliothèque ?"),
        ("OU EST LA BIBLIOTHEQUE ?", "OÙ EST LA BIBLIOTHÈQUE ?"),
        ("Ca va, lundi ou mardi.", "Ça va, lundi ou mardi."),  # one word decides; "ou" alone does not
        ("il a un cafe a Paris", "il a un café à Paris"),
        ("on a un a", "on a un a"),  # "a" and "à" are as frequent
        ("la bibliotheque-cafe,ca", "la bibliothèque-café,ça"),
        ("où est la bibliotheque ?", "où est la bibliotheque ?"),  # an accent: nothing was left out in haste
        ("ou\u0300 est la bibliotheque", "ou\u0300 est la bibliotheque"),  # also as a mark of its own
        ("bibliotheques", "bibliotheques"),
        ("東京 ou est", "東京 où est"),
        ("", ""),
    ],
)
def test_restored(french: Diacritics, given: str, want: str) -> None:
    assert french.restore(given) == want


def test_the_texts_of_training_are_found_again(french: Diacritics) -> None:
    assert all(french.restore(text) == text for text in TEXTS)
    assert french.restore(without_diacritics(TEXTS[0])) == TEXTS[0]


def test_a_spelling_must_be_twenty_times_as_frequent() -> None:
    assert Diacritics.learn(["élevé"] * 19 + ["eleve"]).phrases == ()
    assert Diacritics.learn(["élevé"] * 20 + ["eleve"]).phrases == ("élevé",)
    assert Diacritics.learn(["élevé"] * 4).phrases == ()
    assert Diacritics.learn(["où est ou"] * 2).phrases == ()  # two words seen twice
    assert Diacritics.learn(["où est ou"] * 3).phrases == ("où est", "est ou")  # the second pair speaks for "ou"


def test_pairs_that_disagree_leave_a_word_as_it_is_alone() -> None:
    french = Diacritics.learn(["J'ai mangé le pain."] * 30 + ["Je mange du pain.", "Nous, je mange."] * 20)
    assert french.restore("mange le pain") == "mangé le pain"
    assert french.restore("je mange le pain") == "je mange le pain"
    assert french.restore("ai mange du pain") == "ai mange du pain"


def test_phrases_that_are_stored_are_learned_again(french: Diacritics) -> None:
    again = Diacritics(french.phrases)
    assert again.phrases == french.phrases
    assert again.restore("ou est") == "où est"


@pytest.mark.parametrize("phrase", ["bibliotheque", "où est la", "", "où  est", "où est ", "l'élève", "é\u2028"])
def test_other_phrases_are_refused(phrase: str) -> None:
    with pytest.raises(BundleError, match="phrase 2: expected a word with a diacritic, or two words; got "):
        Diacritics(["où", phrase])
