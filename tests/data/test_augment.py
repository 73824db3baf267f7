"""Variants of training pairs."""

import random
import re
from collections import Counter

import pytest

from regard.data.augment import (
    AugmentConfig,
    augment,
    in_haste,
    made_up,
    other_names,
    other_numbers,
    read_names,
)
from regard.data.pairs import Pairs

config = AugmentConfig

# fragments, spacing, phrases

TEXT = [
    ("Le chat dort.", "The cat sleeps."),
    ("Tom voit le chat.", "I see the cat and Tom."),
    ("Paris est la ville de Tom.", "Paris is the city of Tom."),
    ("Et puis...", "And I wait..."),
    ("Là où est le chat\u202f?", "Where is the cat?"),
    ("Vraiment\u00a0! Oui\u202f; non\u202f: «\u00a0si\u202f».", "Really! Yes; no: yes."),
]


def fragments(pairs=TEXT, **changes):
    both = list(augment(Pairs.of(pairs), config(fragments=1.0, **changes), seed=0))
    assert both[::2] == list(pairs)
    return both[1::2]


def test_fragments():
    assert fragments() == [
        ("le chat dort", "the cat sleeps"),
        ("Tom voit le chat", "I see the cat and Tom"),
        ("Paris est la ville de Tom", "Paris is the city of Tom"),
        ("Et puis...", "and I wait..."),  # "and" is seen small, "et" never
        ("Là où est le chat\u202f?", "Where is the cat?"),
        ("Vraiment\u00a0! Oui\u202f; non\u202f: «\u00a0si\u202f»", "Really! Yes; no: yes"),
    ]


def test_a_capital_goes_only_where_small_is_more_usual():
    pairs = [("Rose est là.", "x"), ("La rose et Rose.", "x")]
    assert fragments(pairs)[0][0] == "Rose est là"  # once small, once not
    assert fragments([*pairs, ("Une rose.", "x")])[0][0] == "rose est là"


def test_a_fragment_is_never_empty():
    for source, target in fragments([("...", "."), (".", "No."), ("a", "b.")]):
        assert source.strip()
        assert target.strip()


def test_loose_spacing_is_of_the_source_only():
    pairs = [("Là\u202f? Non\u00a0! «\u00a0si\u202f» 3\u202f000", "Là\u202f?")] * 40
    shown = Counter(augment(Pairs.of(pairs), config(loose_spacing=1.0), seed=0))
    assert set(shown) == {
        ("Là? Non! «\u00a0si» 3\u202f000", "Là\u202f?"),
        ("Là ? Non ! «\u00a0si » 3\u202f000", "Là\u202f?"),
    }


def test_phrases_are_shown_on_their_own():
    pairs = [(f"un {a} {b} dort", f"a {d} {c} sleeps") for a, c in (("chat", "cat"), ("chien", "dog"), ("lit", "bed"))
             for b, d in (("noir", "black"), ("gris", "grey"), ("vert", "green"))]  # fmt: skip
    both = list(augment(Pairs.of(pairs), config(phrases=1.0), seed=0))
    assert Counter(both) > Counter(pairs)
    for source, target in Counter(both) - Counter(pairs):
        whole = next(p for p in pairs if source in p[0] and target in p[1])
        assert (source, target) != whole or len(source.split()) == 4
        assert len(source.split()) == len(target.split()) >= 2


def test_every_phrase_that_changes_its_order_is_shown_once_in_small_letters():
    pairs = [(f"Un {a} {b} dort", f"A {d} {c} sleeps") for a, c in (("chat", "cat"), ("chien", "dog"), ("lit", "bed"))
             for b, d in (("noir", "black"), ("gris", "grey"), ("vert", "green"))]  # fmt: skip
    shown = Counter(augment(Pairs.of(pairs * 3), config(crossed=2), seed=0)) - Counter(pairs * 3)
    assert set(shown.values()) == {2}
    assert ("chat noir", "black cat") in shown
    assert ("lit vert", "green bed") in shown
    assert ("un chat", "a cat") not in shown


def test_no_augmentation_changes_nothing():
    assert list(augment(Pairs.of(TEXT), config(), seed=0)) == TEXT


def test_augmentation_is_the_seeds():
    pairs, chosen = Pairs.of(TEXT * 20), config(fragments=0.5, loose_spacing=0.5)
    assert list(augment(pairs, chosen, 1)) == list(augment(pairs, chosen, 1))
    assert list(augment(pairs, chosen, 1)) != list(augment(pairs, chosen, 2))


def test_the_share_of_fragments():
    pairs = Pairs.of([("Un chat.", "A cat.")] * 3000)
    more = len(augment(pairs, config(fragments=0.3), seed=1)) - 3000
    assert abs(more / 3000 - 0.3) < 5 * (0.3 * 0.7 / 3000) ** 0.5


# words, names, numbers, haste, capitals, long lines

PAIRS = [
    (f"un {a} {b} dort", f"a {d} {c} sleeps")
    for a, c in (("chat", "cat"), ("chien", "dog"), ("lit", "bed"))
    for b, d in (("noir", "black"), ("gris", "grey"), ("vert", "green"))
]


def added(pairs=PAIRS, seed=0, **changes):
    both = list(augment(Pairs.of(pairs), config(**changes), seed))
    assert both[: len(pairs)] == list(pairs)
    return both[len(pairs) :]


def test_words_are_shown_on_their_own():
    shown = Counter(added([(f"{s.capitalize()}.", t) for s, t in PAIRS], words=2))
    assert set(shown.values()) == {2}
    assert set(shown) >= {("chat", "cat"), ("gris", "grey")}


def test_a_rare_word_is_not_shown_on_its_own():
    assert not {s for s, _ in added([*PAIRS, ("un cheval", "a horse")], words=1)} & {"cheval"}


@pytest.mark.parametrize("languages", [("fr", "en"), ("en", "fr")])
def test_names_are_replaced_on_both_sides_by_names_of_their_kind(languages):
    pair = ("Tom vit à Londres.", "Tom lives in London.")
    dice, kinds = random.Random(0), read_names(("fr", "en"))
    seen = set()
    for _ in range(200):
        found = other_names(pair if languages[0] == "fr" else pair[::-1], languages, dice)
        fr, en = found if languages[0] == "fr" else found[::-1]
        assert fr.endswith(".")
        name, city = fr[: fr.index(" vit à ")], fr[fr.index(" vit à ") + 7 : -1]
        other, town = en[: en.index(" lives in ")], en[en.index(" lives in ") + 10 : -1]
        known = (city, town) in kinds["city"].rows
        assert name == other
        assert known or city == town
        seen |= {name in [row[0] for row in kinds["man"].rows], known}
    assert seen == {True, False}  # some are made up


def test_words_that_are_no_names_stay():
    pair = ("Les roses. Rose est là", "The roses. He is here")
    assert other_names(pair, ("fr", "en"), random.Random(0)) == pair  # no Rose on the other side
    assert other_names(("Je suis là.", "I am here."), ("fr", "en"), random.Random(0)) == ("Je suis là.", "I am here.")


def test_a_language_without_names_takes_those_that_are_spelled_alike():
    names = read_names(("de", "en"))
    assert ("Tom", "Tom") in names["man"].rows


def test_made_up_names_are_names():
    dice = random.Random(0)
    for _ in range(300):
        name = made_up(read_names(("fr", "en"))["family"], dice)
        assert name[0].isupper()
        assert len(name) > 2
        assert " " not in name


def test_numbers_are_replaced_where_both_sides_have_the_same_digits():
    dice = random.Random(0)
    for _ in range(200):
        here, there = other_numbers(("128 ou 42 ; 7 en 1987, vingt", "128 or 42; seven in 1987, 20"), dice)
        a, b, c, d = re.findall(r"\d+", here)
        assert (len(a), len(b), c) == (3, 2, "7")
        assert a[0] != "0"
        assert d.startswith("19")
        assert there == f"{a} or {b}; seven in {d}, 20"


def test_haste_loses_capitals_accents_apostrophes_or_the_end():
    dice = random.Random(0)
    seen = {in_haste("L'élève a réussi\u202f!", dice) for _ in range(300)}
    assert {"leleve a reussi", "L'élève a réussi\u202f!", "l'élève a réussi\u202f!", "L eleve a reussi"} <= seen
    assert in_haste("?", random.Random(3)) == "?"


def test_sloppy_and_upper_change_sources_only():
    pairs = [("L'élève dort.", "The student sleeps.")] * 400
    shown = added(pairs, sloppy=0.5, upper=0.25)
    assert {t for _, t in shown} == {"The student sleeps."}
    capitals = [s for s, _ in shown if s == "L'ÉLÈVE DORT."]
    assert abs(len(capitals) - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5
    assert abs(len(shown) - len(capitals) - 200) < 5 * 10


def test_joined_lines_have_the_same_sentences_on_both_sides():
    pairs = [(f"a{n}.", f"A{n}.") for n in range(50)]
    shown = added(pairs, joined=0.5)
    assert len(shown) == 25
    for source, target in shown:
        assert source.upper() == target
        assert 2 <= len(source.split()) <= 5


def test_joined_lines_are_not_too_long():
    shown = added([("mot " * 25, "word " * 25)] * 20, joined=1.0)
    assert {len(source.split()) for source, _ in shown} == {50}


def test_a_new_variant_changes_nothing_of_what_the_others_draw():
    few = list(augment(Pairs.of(PAIRS * 9), config(fragments=0.5, phrases=0.5), 0))
    more = list(augment(Pairs.of(PAIRS * 9), config(fragments=0.5, phrases=0.5, sloppy=0.2, joined=0.1), 0))
    assert more[: len(few)] == few
