"""Alignment from text alone: Model 1 against dictionaries, numbers by hand, phrases by brute force."""

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.data import align
from regard.data.align import Aligner, ModelOne, model_one, phrase_links, phrases, scores

NOUNS = {"chat": "cat", "chien": "dog", "vache": "cow", "homme": "man", "livre": "book"}
PLACES = {"ici": "here", "là": "there", "dehors": "outside"}
TOY = [(f"le {n} dort {p}", f"the {m} sleeps {q}") for n, m in NOUNS.items() for p, q in PLACES.items()]


def test_model_one_learns_a_toy_dictionary():
    test = [("le chat dort ici", "here the cat sleeps"), ("là le livre", "the book there")]
    found = model_one(TOY, test, iterations=20)
    assert found[0] >= {(0, 3), (2, 1)}  # here – ici, cat – chat
    assert found[1] >= {(1, 2), (2, 0)}
    assert not found[0] & {(0, 1), (2, 3), (2, 0), (0, 0)}


def plain_model_one(pairs, iterations):
    """Brown et al. 1993, section 4.2, with dictionaries: t(f | e) with a null word at place -1."""
    t = {}
    sentences = [([None, *s.split()], u.split()) for s, u in pairs]
    for s, u in sentences:
        for a in s:
            for b in u:
                t[a, b] = 1.0
    for _ in range(iterations):
        counts, totals = {}, {}
        for s, u in sentences:
            for b in u:
                whole = sum(t[a, b] for a in s)
                for a in s:
                    counts[a, b] = counts.get((a, b), 0) + t[a, b] / whole
                    totals[a] = totals.get(a, 0) + t[a, b] / whole
        t = {(a, b): c / totals[a] for (a, b), c in counts.items()}
    return t, sentences


@pytest.mark.parametrize("iterations", [1, 5])
def test_model_one_against_dictionaries(iterations):
    pairs = TOY[:11]
    test = [("le homme dort dehors", "outside the man sleeps man"), ("chat", "cat new"), ("chat là", "")]
    t, sentences = plain_model_one(pairs + test, iterations)
    for found, (s, u) in zip(model_one(pairs, test, iterations), sentences[len(pairs) :], strict=True):
        for i, b in enumerate(u):
            best = max(t[a, b] for a in s)
            chosen = [j for k, j in found if k == i]
            assert len(chosen) <= 1
            assert t[s[chosen[0] + 1] if chosen else None, b] == pytest.approx(best)
        assert len(found) <= len(u)


def test_words_are_compared_without_case_and_punctuation():
    marked = [(s.capitalize() + ".", t.upper() + "!") for s, t in TOY]
    test = [("Ici, le chat", "The cat here?")]
    plain = [("ici le chat", "the cat here")]
    assert model_one(marked, test) == model_one(TOY, plain)


def test_model_one_of_nothing():
    assert model_one([], []) == []
    assert model_one([], [("a", "b")]) in ([{(0, 0)}], [set()])


def test_scores_by_hand():
    found, wanted = [{(0, 0), (1, 1), (2, 2)}, {(0, 1)}], [{(0, 0), (1, 2)}, {(0, 1), (1, 0), (2, 2)}]
    assert scores(found, wanted) == pytest.approx({"precision": 2 / 4, "recall": 2 / 5, "aer": 1 - 4 / 9})
    assert scores(wanted, wanted) == {"precision": 1, "recall": 1, "aer": 0}
    assert scores([set()], wanted[:1]) == {"precision": 0, "recall": 0, "aer": 1}
    assert scores([], [])["aer"] == 0


def test_possible_links_are_no_fault_and_sure_ones_are_possible():
    found, sure, possible = [{(0, 0), (1, 1), (2, 0)}], [{(0, 0), (3, 3)}], [{(1, 1)}]
    assert scores(found, sure, possible) == pytest.approx({"precision": 2 / 3, "recall": 1 / 2, "aer": 1 - 3 / 5})


def test_without_a_test_the_pairs_themselves_are_aligned():
    assert model_one(TOY) == model_one(TOY, [])
    assert len(model_one(TOY)) == len(TOY)
    assert all((1, 1) in links and (3, 3) in links for links in model_one(TOY, iterations=20))


def test_agreement_is_what_both_directions_say():
    pairs = [*TOY, ("ici le chat", "the cat is here")]
    there, back = model_one(pairs), model_one([(t, s) for s, t in pairs])
    for found, a, b in zip(phrase_links(pairs), there, back, strict=True):
        assert found == {(i, j) for i, j in a if (j, i) in b}
        assert len({i for i, _ in found}) == len({j for _, j in found}) == len(found)  # one word with one word


def test_phrases_by_hand():
    source, target = ["un", "chat", "noir", "dort"], ["a", "black", "cat", "sleeps"]
    links = {(0, 0), (1, 2), (2, 1), (3, 3)}
    assert set(phrases(source, target, links)) == {
        ("chat noir", "black cat"), ("un chat noir", "a black cat"), ("chat noir dort", "black cat sleeps"),
        ("un chat noir dort", "a black cat sleeps"),
    }  # fmt: skip
    assert phrases(source, target, links, longest=2) == [("chat noir", "black cat")]
    straight = ["un", "grand", "chat", "noir"], ["a", "big", "black", "cat"], {(0, 0), (1, 1), (2, 3), (3, 2)}
    assert set(phrases(*straight, longest=3, turned=True)) == {
        ("chat noir", "black cat"), ("grand chat noir", "big black cat"),
    }  # fmt: skip
    assert phrases(["un", "chat"], ["a", "cat"], {(0, 0), (1, 1)}, turned=True) == [("un chat", "a cat")]
    assert phrases(["un", "chat"], ["a", "cat"], {(0, 0), (1, 1)}, crossed=True) == []
    assert phrases(*straight, longest=2, crossed=True) == [("chat noir", "black cat")]
    assert phrases(source, target, set()) == []
    assert phrases([], [], set()) == []


def test_phrases_lose_the_punctuation_at_their_ends():
    links = {(0, 1), (1, 0), (2, 2)}
    assert phrases(["chat", "noir", "?"], ["black", "cat,", "!"], links) == [("chat noir", "black cat")] * 2
    assert phrases(["?", "!"], ["?", "!"], {(0, 0), (1, 1)}) == []


@settings(deadline=None, max_examples=60)
@given(order=st.permutations(range(5)), kept=st.sets(st.integers(0, 4)))
def test_phrases_by_brute_force(order, kept):
    links = {(i, order[i]) for i in kept}
    source, target = [f"s{j}" for j in range(5)], [f"t{i}" for i in range(5)]
    expected = set()
    for a, b, size in product(range(5), range(5), (2, 3, 4)):
        rows, columns = set(range(a, a + size)), set(range(b, b + size))
        inside = {(i, j) for i, j in links if i in rows or j in columns}
        fits = a + size <= 5 and b + size <= 5 and len(inside) == size
        if fits and all(i in rows and j in columns for i, j in inside):
            expected.add((" ".join(source[b : b + size]), " ".join(target[a : a + size])))
    assert set(phrases(source, target, links)) == expected


def test_sentences_that_were_not_learned_from_are_aligned_by_what_was_learned():
    learned = ModelOne(TOY * 2, iterations=20)
    assert learned.links(TOY) == model_one(TOY * 2, TOY, 20)
    assert learned.links([]) == []


def test_a_new_name_is_linked_with_itself_and_other_new_words_with_nothing():
    pairs = [("un chat dort", "a cat sleeps"), ("un chien dort", "a dog sleeps"), ("un chat", "a cat")] * 3
    found = Aligner(pairs).links([("Zorblax dort", "Zorblax sleeps"), ("un gnou dort", "a wildebeest sleeps")])
    assert (0, 0) in found[0]
    assert (1, 1) in found[0]
    assert not any(t == 1 for t, _ in found[1])


def test_pieces_and_samples_change_no_link(monkeypatch):
    pairs = [(" ".join(random.Random(n).sample(ALPHABET, 5)),) * 2 for n in range(60)]
    whole = model_one(pairs)
    monkeypatch.setattr(align, "PIECE_CELLS", 70)
    assert model_one(pairs) == whole
    monkeypatch.setattr(align, "MOST_CELLS", 700)
    few = align._sampled(pairs)
    assert 10 < len(few) < 30
    assert few[0] == pairs[0]
    assert len(model_one(pairs)) == 60


ALPHABET = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]
