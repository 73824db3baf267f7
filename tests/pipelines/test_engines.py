"""A translator over CTranslate2 is the same object, and says what it cannot show."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import regard
from regard.decoding.generate import Unwanted, while_wanted
from regard.errors import ChoiceError, ConfigError
from regard.models.transformer import Transformer
from regard.pipelines.base import InputError
from regard.pipelines.engines import CTranslate2
from regard.pipelines.load import load
from regard.pipelines.translator import Translator
from regard.pretrained.rules import GenerationRules

TEXTS = ["le chat noir dort sur le lit", "", "Je ne sais pas où il est allé.", "Merci !"]


@pytest.fixture(scope="module")
def engine() -> CTranslate2:
    found = load("fr-en", engine="ctranslate2")
    assert isinstance(found, CTranslate2)
    return found


def test_it_translates_as_regard_does(engine: CTranslate2) -> None:
    plain = load("fr-en")
    for beam in (1, 4):
        for ours, theirs in zip(engine(TEXTS, beam=beam), plain(TEXTS, beam=beam), strict=True):
            assert type(ours).__mro__[1] is type(theirs)
            if beam == 1:  # another length penalty may rank a beam differently
                assert ours.tokens == theirs.tokens
                assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-3)
                assert ours.alignment.pairs == theirs.alignment.pairs
                torch.testing.assert_close(ours.alignment.matrix, theirs.alignment.matrix, atol=1e-3, rtol=0)
                assert (ours.alignment.site, ours.alignment.heads) == (theirs.alignment.site, theirs.alignment.heads)
            (scored,) = engine.score([ours.source], [ours]) if ours.ids else [None]
            assert scored is None or scored.log_prob == pytest.approx(ours.log_prob, abs=2e-3)
    assert engine("le chat", beam=2, n_best=2).alternatives
    assert engine("le chat").as_json().keys() == plain("le chat").as_json().keys()
    assert [word.text for word in engine("le chat").words] == ["the", "cat"]


def test_rules_of_the_folder_are_followed_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load("fr-en").bundle
    cat, end = (bundle.tokenizer.encode("chat")[0], bundle.tokenizer.eos)
    plain = Translator(bundle, "fr-en")("le chat noir dort", beam=1)
    second = plain.ids[1]
    for rules in (
        {"suppressed": (second,)}, {"bad_words": (tuple(plain.ids[:2]), (cat,))}, {"forced_last": end}, {"ends": (end,)}
    ):  # fmt: skip
        ruled = replace(bundle, rules=GenerationRules(**rules))
        made = CTranslate2(ruled, "ruled", "float32")("le chat noir dort", beam=1)
        assert made.ids == Translator(ruled, "ruled")("le chat noir dort", beam=1).ids
        assert (made.ids == plain.ids) == ("bad_words" not in rules and "suppressed" not in rules)
    ruled = replace(bundle, rules=GenerationRules(forced_last=end))
    for limit in (3, 1):
        for kind in (Translator, CTranslate2):
            monkeypatch.setattr(kind, "limit", lambda *_, most=limit: most)
        made = CTranslate2(ruled, "ruled", "float32")("le chat noir dort", beam=1)
        assert made.ids == [*plain.ids[: limit - 1], end]
        with while_wanted(lambda: True):
            steep = CTranslate2(ruled, "ruled", "float32")("le chat noir dort", beam=3, n_best=3, length_penalty=-1.0)
        assert len(steep.alternatives) == (2 if limit > 1 else 0)
        theirs = Translator(ruled, "ruled")("le chat noir dort", beam=1)
        assert made.ids == theirs.ids
        assert made.log_prob == pytest.approx(theirs.log_prob, abs=2e-3)
    for rules in ({"forced_first": 5}, {"suppressed_first": (5,)}, {"ends": (end, 5)}):
        with pytest.raises(ConfigError, match="the folder of ruled forces or suppresses the first token"):
            CTranslate2(replace(bundle, rules=GenerationRules(**rules)), "ruled", "float32")


def test_what_runs_away_ends_at_its_own_limit(engine: CTranslate2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CTranslate2, "limit", lambda _self, tokens: 3 if tokens < 6 else 12)
    for made, text in zip(engine(TEXTS, beam=1), TEXTS, strict=True):
        most = 3 if len(engine.tokenizer.encode(text)) + 1 < 6 else 12
        assert len(made.ids) <= most
        if made.ids:
            (scored,) = engine.score([made.source], [made])
            assert scored.log_prob == pytest.approx(made.log_prob, abs=2e-3)


def test_a_batch_that_is_not_wanted_any_more_ends_after_the_texts_at_hand(
    engine: CTranslate2, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    translate = engine.engine.translate_batch

    class Counting:
        def translate_batch(self, texts: list[list[str]], **settings: Any) -> Any:
            calls.append(len(texts) * settings["max_decoding_length"] * settings["beam_size"])
            return translate(texts, **settings)

    monkeypatch.setattr(engine, "engine", Counting())
    monkeypatch.setattr("regard.pipelines.engines.UNWANTED_TOKENS", 200)
    texts = [f"le chat {n}" for n in range(20)]
    alone = [one.tokens for one in engine(texts)]
    assert len(calls) == 1  # where nothing may become unwanted, the engine takes all at once
    with while_wanted(lambda: True):
        assert [one.tokens for one in engine(texts)] == alone
    assert len(calls) > 6
    assert max(calls[1:]) <= 200
    calls.clear()
    with pytest.raises(Unwanted), while_wanted(lambda: len(calls) < 3):
        engine(texts)
    assert len(calls) == 3


def test_what_it_cannot_show_is_named(engine: CTranslate2) -> None:
    made = engine("le chat")
    with pytest.raises(ConfigError, match=r'engine = "ctranslate2" shows no steps'):
        _ = made.trace
    assert not made.attention
    with pytest.raises(ConfigError, match=r"was not kept: translate with record=True"):
        _ = engine("le chat", record=False).alignment
    with pytest.raises(ConfigError, match=r"does not sample: load the model without engine"):
        engine("le chat", sample=True)
    with regard.observe(engine), pytest.raises(ConfigError, match=r"cannot be observed or changed"):
        engine("le chat")
    with pytest.raises(InputError, match=r"is too long"):
        engine("chat " * 400)


def test_models_that_it_cannot_run_are_refused(tiny_run) -> None:
    plain = load(tiny_run)
    if isinstance(plain.model, Transformer):
        assert load(tiny_run, engine="ctranslate2", precision="int8")("le chat").ids is not None
    else:
        with pytest.raises(ConfigError, match=r'CTranslate2 cannot express model\.kind = "recurrent"'):
            load(tiny_run, engine="ctranslate2")
    with pytest.raises(ChoiceError, match=r"unknown engine 'marian'"):
        load(tiny_run, engine="marian")
    with pytest.raises(ConfigError, match=r"precision must be one of float32, int8, auto; got 'bfloat16'"):
        load(tiny_run, engine="ctranslate2", precision="bfloat16")
    with pytest.raises(ConfigError, match=r"is for translators; shakespeare is for `regard complete`"):
        load("shakespeare", engine="ctranslate2")
