"""BPE-dropout: the same text in other tokens, by the paper's algorithm."""

import random

import pytest

from regard.errors import ConfigError
from regard.text.bpe_dropout import BpeDropout
from regard.text.tokenizer import UNK, Tokenizer, TokenizerConfig

TEXTS = [
    "The lowest of the low lows, lower than low.", "newer newest new; 1999 widest wide", "Où est l'été ? C'est là.",
    "unlowly lowlands (new)", "widen the newest, widest road to the lowlands !",
] * 4  # fmt: skip


@pytest.fixture(params=["bpe", "byte_bpe"])
def tokenizer(request):
    return Tokenizer.learn(TEXTS, TokenizerConfig(kind=request.param, vocabulary=340))


@pytest.mark.parametrize("digits", [False, True])
def test_without_dropout_it_is_the_tokenizers_own(tokenizer, digits):
    own = Tokenizer.learn(TEXTS, TokenizerConfig(kind=tokenizer.kind, vocabulary=340, digits=digits))
    segment = BpeDropout(own, 0.0)
    for text in TEXTS:
        ids = own.encode(text)
        found = segment(ids, random.Random(0))
        assert found.ids == ids
        assert found.origins == list(range(len(ids)))


def test_the_text_stays_and_the_tokens_change(tokenizer):
    segment, seen = BpeDropout(tokenizer, 0.3), set()
    for seed in range(40):
        found = segment(tokenizer.encode(TEXTS[0]), random.Random(seed))
        assert tokenizer.decode(found.ids) == tokenizer.decode(tokenizer.encode(TEXTS[0]))
        assert found.origins == sorted(found.origins)
        seen.add(tuple(found.ids))
    assert len(seen) > 30
    assert segment(tokenizer.encode(TEXTS[0]), random.Random(3)) == segment(
        tokenizer.encode(TEXTS[0]), random.Random(3)
    )


def test_a_merge_is_left_out_as_often_as_it_says():
    """One merge alone: ▁a. It can be made at one step, and is left out with probability p."""
    tokenizer = Tokenizer.learn(["a a a a"], TokenizerConfig(vocabulary=7))
    assert tokenizer.merges() == [("▁", "a")]
    segment, dice = BpeDropout(tokenizer, 0.3), random.Random(1)
    lengths = [len(segment(tokenizer.encode("a"), dice).ids) for _ in range(4000)]
    assert lengths.count(2) / 4000 == pytest.approx(0.3, abs=0.025)


def test_origins_are_the_tokens_in_which_new_ones_begin(tokenizer):
    ids = tokenizer.encode(TEXTS[3])
    found = BpeDropout(tokenizer, 0.9)(ids, random.Random(0))
    starts, place = {}, 0  # by hand, from the characters
    for n, token in enumerate(tokenizer.tokens(ids)):
        for _ in token:
            starts[place] = n
            place += 1
    place = 0
    for token, origin in zip(tokenizer.tokens(found.ids), found.origins, strict=True):
        assert origin == starts[place]
        place += len(token)


def test_unknown_characters_stay_as_they_are():
    tokenizer = Tokenizer.learn(["low lower lowest"], TokenizerConfig(vocabulary=40))
    ids = tokenizer.encode("low 猫 lower")
    assert UNK in ids
    found = BpeDropout(tokenizer, 0.5)(ids, random.Random(2))
    assert found.ids.count(UNK) == ids.count(UNK)


def test_a_text_that_becomes_too_long_keeps_its_own(tokenizer):
    ids = tokenizer.encode(TEXTS[0])
    assert BpeDropout(tokenizer, 0.9, longest=len(ids))(ids, random.Random(0)).ids == ids


def test_other_kinds_have_no_merges():
    words = Tokenizer.learn(["a b"], TokenizerConfig(kind="words"))
    with pytest.raises(ConfigError, match=r'training\.bpe_dropout needs .*"words", which has no merges'):
        BpeDropout(words, 0.1)
