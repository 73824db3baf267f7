"""Alignment: joining against a plain loop, links between words as they are written, heads that exist."""

import pytest
import torch

from regard.analysis.alignment import choose_heads, join_words, links_of, teacher_forced
from regard.data.align import model_one, scores
from regard.data.pairs import Pairs
from regard.models.build import build
from regard.models.recurrent import RecurrentConfig
from regard.models.transformer import TransformerConfig
from regard.text.tokenizer import BOS, EOS, Tokenizer, TokenizerConfig

NOUNS = {"chat": "cat", "chien": "dog", "vache": "cow", "homme": "man", "livre": "book"}
PLACES = {"ici": "here", "là": "there", "dehors": "outside"}
TOY = Pairs.of([(f"le {n} dort {p}", f"the {m} sleeps {q}") for n, m in NOUNS.items() for p, q in PLACES.items()])
TEXTS = [
    "le chat noir",
    "l'homme dort là-bas\u202f!",
    "我 喜欢 猫。",
    "القط الأسود",
    "👩‍👩‍👧 ok",
    "Là\u202f? «\u00a0si\u00a0»",
]


def tokenizer(kind, vocabulary=300):
    return Tokenizer.learn([*TOY.source, *TOY.target, *TEXTS] * 2, TokenizerConfig(kind=kind, vocabulary=vocabulary))


def plain_join(weights, target_owner, source_owner, rows, columns):
    """Sum over a word's source tokens, mean over a word's target tokens, then each row divided by its sum."""
    joined = torch.zeros(rows, columns, dtype=torch.float64)
    for i in range(rows):
        own = [t for t, word in enumerate(target_owner) if word == i]
        for j in range(columns):
            for t in own:
                for s, word in enumerate(source_owner):
                    if word == j:
                        joined[i, j] += weights[t, s].double() / len(own)
        if joined[i].sum() > 0:
            joined[i] /= joined[i].sum()
    return joined.float()


def test_join_words_by_hand():
    weights = torch.tensor([[0.5, 0.1, 0.2, 0.2], [0.1, 0.2, 0.1, 0.6], [0.0, 0.1, 0.7, 0.2], [0.0, 0.0, 0.0, 1.0]])
    # target "ab c": tokens a, b, " c", EOS; source "xy z": tokens x, y, z, EOS
    joined = join_words(weights, [(0, 1), (1, 2), (2, 4)], "ab c", [(0, 1), (1, 2), (3, 4)], "xy z")
    first = torch.tensor([(0.6 + 0.3) / 2, (0.2 + 0.1) / 2])
    torch.testing.assert_close(joined, torch.stack([first / 0.6, torch.tensor([0.1, 0.7]) / 0.8]))


def owners(spans, text):
    """The word of each token, by walking through the letters."""
    of_letter, word = [], -1
    for n, letter in enumerate(text):
        word += not letter.isspace() and (n == 0 or text[n - 1].isspace())
        of_letter.append(None if letter.isspace() else word)
    found = []
    for a, b in spans:
        inside = [of_letter[i] for i in range(a, b)] if a < b else of_letter[a - 1 : a]
        found.append(next((w for w in inside if w is not None), None))
    return found


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe", "byte_bpe", "unigram"])
@pytest.mark.parametrize("source", TEXTS, ids=ascii)
@pytest.mark.parametrize("target", TEXTS[:3], ids=ascii)
def test_join_words_against_a_plain_loop(kind, source, target):
    t = tokenizer(kind)
    ids, names = t.encode(target), t.encode(source)
    torch.manual_seed(len(names))
    weights = torch.rand(len(ids) + 1, len(names) + 1).softmax(-1)  # the last row and column are EOS
    target_spans, source_spans = t.target_spans(ids), t.source_spans(source)
    joined = join_words(weights, target_spans, target, source_spans, source)
    expected = plain_join(
        weights, owners(target_spans, target), owners(source_spans, source), len(target.split()), len(source.split())
    )
    torch.testing.assert_close(joined, expected)
    torch.testing.assert_close(joined.sum(1), torch.ones(len(target.split())))


@pytest.mark.parametrize("kind", ["bytes", "characters", "words", "bpe", "byte_bpe", "unigram"])
def test_the_row_of_eos_is_dropped_also_when_eos_is_among_the_ids(kind):
    t, text = tokenizer(kind), "le chat dort"
    ids = t.encode(text)
    torch.manual_seed(0)
    weights = torch.rand(len(ids) + 1, len(ids) + 1)
    target = t.decode(ids)
    without = join_words(weights, t.target_spans(ids), target, t.source_spans(text), text)
    with_eos = join_words(weights, t.target_spans([*ids, EOS]), target, t.source_spans(text), text)
    torch.testing.assert_close(with_eos, without)


def test_rows_that_look_at_nothing_stay_nothing():
    joined = join_words(torch.tensor([[0.0, 1.0], [0.5, 0.5]]), [(0, 1), (1, 3)], "a b", [(0, 1)], "x")
    assert joined.tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize(("source", "target"), [("", "a"), ("a", ""), ("", ""), (" ", "\u202f")])
def test_no_words_is_an_empty_matrix(source, target):
    joined = join_words(torch.rand(3, 2), [], target, [], source)
    assert joined.shape == (len(target.split()), len(source.split()))


# from models

MODELS = {
    "recurrent": RecurrentConfig(kind="recurrent", width=16, embedding=8, score_width=6),
    "new": RecurrentConfig(kind="recurrent", width=16, embedding=8, score="general", asks="new", feed="none"),
    "transformer": TransformerConfig(
        kind="transformer", width=16, encoder_layers=1, decoder_layers=2, heads=4, key_heads=2, ffn_width=8
    ),
}


def model(name, vocabulary):
    torch.manual_seed(1)
    return build(vocabulary, MODELS[name]).eval()


@pytest.mark.parametrize("name", MODELS)
def test_teacher_forced_weights_do_not_depend_on_batch_mates(name):
    t = tokenizer("bpe")
    m = model(name, len(t))
    pairs = Pairs.of([("le chat", "the cat sleeps here"), ("l'homme dort dehors ici", "man"), ("là", "there")])
    with torch.inference_mode():
        together = dict(teacher_forced(m, t, pairs))
        assert sorted(together) == [0, 1, 2]
        for n, (source, target) in enumerate(pairs):
            ((_, alone),) = teacher_forced(m, t, Pairs([source], [target]))
            state = m.start(m.encode(torch.tensor([[*t.encode(source), EOS]])), record=True)
            for token in [BOS, *t.encode(target)]:
                state = m.step(torch.tensor([[token]]), state).state
            assert set(together[n]) == set(alone) == {site for site in m.maps(state) if not site.endswith(".self")}
            for site, weights in together[n].items():
                torch.testing.assert_close(weights, m.maps(state)[site].full()[0, 0])
                torch.testing.assert_close(weights, alone[site])
                torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.parametrize(
    "target",
    ["the cat", "e\u0301te\u0301 la\u0300 cat", "\u4e01\u4e02 cat", "  the cat", "cat \u4e01\u4e01\u4e01 the"],
    ids=ascii,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["characters", "bpe", "words"])
def test_links_are_between_the_words_as_they_are_written(kind, target):
    """Also where the tokenizer composes letters, drops spaces or does not know a letter."""
    t = tokenizer(kind)
    source = "un deux trois quatre"
    ids, names = t.encode(target), t.encode(source)
    owner, keys = owners(t.source_spans(target), target), owners(t.source_spans(source), source)
    weights = torch.full((len(ids) + 1, len(names) + 1), 1e-3)
    for i, word in enumerate(owner):
        for j, key in enumerate(keys):
            weights[i, j] += word is not None and key == 3 - word
    assert links_of(weights, t, source, target) == {(i, 3 - i) for i in range(len(target.split()))}


@pytest.mark.parametrize("name", MODELS)
def test_chosen_heads_exist(name):
    t = tokenizer("bpe")
    m = model(name, len(t))
    chosen = choose_heads(m, t, TOY, Pairs(TOY.source[:6], TOY.target[:6]))
    with torch.inference_mode():
        _, maps = next(teacher_forced(m, t, Pairs(TOY.source[:1], TOY.target[:1])))
    assert chosen["site"] in maps
    heads = chosen["heads"]
    assert heads == sorted(set(heads))
    assert heads
    assert set(heads) <= set(range(maps[chosen["site"]].shape[0]))
    assert 0 <= chosen["aer"] <= 1


def test_the_best_of_all_single_heads_and_the_mean_is_not_better():
    t = tokenizer("bpe")
    m = model("transformer", len(t))
    some = Pairs(TOY.source[:6], TOY.target[:6])
    chosen, wanted = choose_heads(m, t, TOY, some), model_one(list(TOY), list(some))
    with torch.inference_mode():
        maps = dict(teacher_forced(m, t, some))
    for site in maps[0]:
        for heads in ([0], [1], [2], [3], [0, 1, 2, 3]):
            found = [links_of(maps[i][site][heads].mean(0), t, *pair) for i, pair in enumerate(some)]
            assert scores(found, wanted)["aer"] >= chosen["aer"] - 1e-4


def test_a_model_that_looks_at_nothing_has_no_heads():
    t = tokenizer("bpe")
    blind = build(len(t), RecurrentConfig(kind="recurrent", width=16, embedding=8, score="none")).eval()
    assert choose_heads(blind, t, TOY, Pairs(TOY.source[:3], TOY.target[:3])) == {}


def test_no_development_data_is_no_heads():
    t = tokenizer("bpe")
    assert choose_heads(model("recurrent", len(t)), t, TOY, Pairs([], [])) == {}
