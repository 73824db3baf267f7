"""A prefix, forced and forbidden phrases, glossaries and draws of least risk, as a translator takes them."""

import re
from functools import partial
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from adversary.attempts import judged
from random_outputs import SIZES, bundle
from regard.decoding.risk import utilities
from regard.decoding.sample import SampleConfig
from regard.decoding.search import SearchConfig
from regard.errors import ChoiceError, ConfigError, RegardError
from regard.models.transformer import TransformerConfig
from regard.pipelines.base import InputError
from regard.pipelines.completer import SETTINGS as COMPLETIONS
from regard.pipelines.load import load
from regard.pipelines.translator import SETTINGS, Translator

TEXTS = ["le chat noir dort", "Le chien rouge mange.", "la maison"]


@pytest.fixture(scope="module")
def translator(tiny_run) -> Translator:
    found = load(tiny_run)
    assert isinstance(found, Translator)
    return found


def has(text: str, phrase: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE))


@pytest.mark.parametrize("wrong", [None, 5, b"x", float("nan"), {}, [None, "la maison"]])
def test_what_is_no_text_is_refused(translator: Translator, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    for ask in (translator, translator.stream, load("shakespeare"), load("shakespeare").stream, load("english")):
        with pytest.raises(InputError, match=r"^expected a text \(str\); got (NoneType|int|bytes|float|dict|list): "):
            ask(wrong)


ODD = ["3", "", b"x", object(), [1], {"a": 1}, 1j, float("nan"), float("inf"), 10**30, -(10**30)]


@pytest.mark.parametrize("name", sorted({*SETTINGS, *COMPLETIONS, "first_index", *SampleConfig.__dataclass_fields__}))
@pytest.mark.parametrize("stream", [False, True])
def test_odd_settings_are_one_sentence(name: str, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read or refused: no error of another library's or of Python's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    models = {"fr-en": SETTINGS, "shakespeare": COMPLETIONS}
    for model, known in models.items():
        made, small = load(model), {"length": 2} if model == "shakespeare" else {}
        if name in ("beam", "n_best") and model == "shakespeare" and stream:
            continue
        draws = {"sample": True} if model == "fr-en" and name in SampleConfig.__dataclass_fields__ else {}
        for value in ODD if name in (*known, *SampleConfig.__dataclass_fields__) else ():
            settings = small | draws | {name: value}
            ask = partial(made.stream if stream else made, "le", **settings)
            verdict, text = judged((lambda ask=ask: ask().result) if stream else ask)
            assert verdict != "fault", (name, value, text)
            assert name in text or verdict == "read" or name in ("groups", "diversity", "n_best"), (value, text)


class Untold:
    def __bool__(self) -> bool:
        raise RuntimeError("neither")


@pytest.mark.parametrize("value", [torch.tensor([True, False]), torch.tensor([]), np.array([1, 2]), Untold()])
def test_a_setting_that_is_neither_set_nor_not_is_one_sentence(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for model in ("fr-en", "shakespeare"):
        made = load(model)
        names = {"fr-en": {*SETTINGS, "split", "protect"}, "shakespeare": COMPLETIONS}[model]
        for name in sorted({*names, "record", "indices", "first_index"}):
            for ask in (made, made.each, made.many, made.stream):
                if ask == made.stream and name in ("indices", "first_index", "beam", "n_best"):
                    continue
                source = ["le"] if ask in (made.each, made.many) else "le"
                with pytest.raises(ConfigError, match=name):
                    ask(source, **{name: value})


@pytest.mark.parametrize("wrong", [None, 3.5, b"x", []])
def test_odd_targets_and_names_are_one_sentence(
    translator: Translator, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for sources, targets in ((["le"], [wrong]), ([wrong], ["a"]), (wrong, ["a"]), (["le"], wrong)):
        with pytest.raises(RegardError, match=r"expected a (text|list)|every source needs"):
            translator.score(sources, targets)
    with pytest.raises(ChoiceError, match=r"load takes names of models; got a \w+ among them"):
        load([wrong])
    with pytest.raises(ChoiceError, match=r"no model can be looked for at '.{50}.*: File name too long"):
        load("é" * 5000)
    with pytest.raises(InputError, match=r"too long: this model takes"):
        translator.score(["le"], ["a é " * 700])


@pytest.mark.parametrize(
    "settings", [{"beam": "x"}, {"beam": 2.5}, {"beam": 10**9}, {"groups": "2"}, {"length_penalty": "a"}]
)
def test_settings_that_are_no_numbers_are_refused(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    name, value = next(iter(settings.items()))
    with pytest.raises(ConfigError, match=rf"^{name} must be a (whole )?number.*; got {value!r}$"):
        SearchConfig(**settings)
    assert SearchConfig(beam=np.int64(3), length_penalty=np.float32(1)).beam == 3


@pytest.mark.parametrize("beam", [1, 4])
def test_forbidden_words_are_in_no_output(translator: Translator, beam: int) -> None:
    plain = translator(TEXTS, beam=beam, n_best=min(beam, 3))
    words = sorted({word.strip(".").lower() for one in plain for word in one.text.split()} - {""})[:3]
    assert words
    found = translator(TEXTS, beam=beam, n_best=min(beam, 3), forbid=[word.upper() for word in words])
    for one in (made for best in found for made in (best, *best.alternatives)):
        assert not any(has(one.text, word) for word in words), one.text
    drawn = translator(TEXTS * 5, sample=True, seed=3, forbid=words)
    assert not any(has(one.text, word) for one in drawn for word in words)


def test_a_word_that_no_output_has_changes_nothing(translator: Translator) -> None:
    for one, other in zip(translator(TEXTS), translator(TEXTS, forbid=["zebra"]), strict=True):
        assert one.ids == other.ids
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-5)
        site = next(iter(one.attention))
        assert torch.allclose(one.attention[site].full(), other.attention[site].full(), atol=1e-5)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "settings", [{"force": ["horse"]}, {"force": ["White horse", "red"]}, {"beam": 1, "force": ["dog"]}]
)
def test_forced_phrases_are_in_every_output(translator: Translator, settings: dict) -> None:
    found = translator(TEXTS, **settings)
    for one in found:
        assert all(has(one.text, phrase) for phrase in settings["force"]), one.text
        assert translator.score([one.source], [one])[0].log_prob == pytest.approx(one.log_prob, abs=1e-4)
        assert one.alignment.matrix.shape == (len(one.text.split()), len(one.source.split()))
    alone = [translator(text, **settings) for text in TEXTS]
    assert [one.ids for one in alone] == [one.ids for one in found]


def test_what_a_search_finds_without_its_demands_stays(translator: Translator) -> None:
    plain = translator(TEXTS[0])
    word = plain.text.split()[0].strip(".")
    found = translator(TEXTS[0], force=[word.upper()], n_best=3)
    assert found.ids == plain.ids == translator(TEXTS[0], force=[word]).ids
    assert all(has(one.text, word) for one in found.alternatives)
    light = translator(TEXTS[:2], force=["horse"], record=False, batch_tokens=20)
    several = translator(TEXTS[:2], force=["horse"], n_best=3)
    for one, other in zip(light, several, strict=True):
        assert one.ids == other.ids
        assert not one.attention
        assert all(has(more.text, "horse") for more in other.alternatives)


def test_a_trained_model_within_its_demands() -> None:
    model = load("fr-en")
    text = "Un chien noir court dans la rue."
    plain = model(text)
    assert plain.text == "A black dog runs in the street."
    assert model(text, force=["Dog"]).ids == plain.ids  # what is there is not written again
    other = model(text, forbid=["dog"])
    assert has(other.text, "black")
    assert not re.search(r"\bdog", other.text)  # nor a made word that begins so
    assert has(model(text, glossary={"chien": "puppy"}).text, "puppy")
    placed = model("Le chat voit le chien et la maison.", glossary={"chien": "puppy"})
    assert placed.text == "The cat sees the puppy and the house."


def test_a_glossary_concerns_the_texts_that_have_its_terms(translator: Translator) -> None:
    plain = translator(TEXTS)
    found = translator(TEXTS, glossary={"Chat noir": "red horse", "zèbre": "dog", "chat": "zebra"})
    assert has(found[0].text, "red horse")
    assert [one.ids for one in found[1:]] == [one.ids for one in plain[1:]]


def test_a_prefix_and_demands_together(translator: Translator) -> None:
    one = translator(TEXTS[0], prefix="the", force=["dog"], forbid=["red"])
    assert one.text.lower().startswith("the")
    assert has(one.text, "dog")
    assert not has(one.text, "red")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"force": "cat"}, r"force must be a list of words or phrases, none of them empty; got 'cat'"),
        ({"forbid": [" "]}, r"forbid must be a list"),
        ({"glossary": {"chat": ""}}, r"not empty; got 'chat': ''"),
        ({"force": ["the cat"], "forbid": ["Cat"]}, r"force: 'the cat' contains 'Cat', which forbid names"),
        ({"prefix": "the cat", "forbid": ["cat"]}, r"prefix: 'the cat' contains 'cat'"),
        ({"force": ["猫"]}, r"force: this model's vocabulary spells '猫' as "),
        ({"force": ["cat"], "sample": True}, r"force and glossary need a search: leave out sample"),
        ({"force": ["cat"], "sample": True, "mbr": 4}, r"force and glossary need a search: leave out sample"),
        ({"mbr": 4}, r"mbr = 4 chooses among sampled outputs"),
        ({"sample": True, "mbr": 0}, r"got mbr = 0"),
        ({"sample": True, "typical_p": 0.0}, r"typical_p must be above 0 and at most 1"),
    ],
)  # fmt: skip
def test_one_sentence_says_what_is_wrong(translator: Translator, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        translator(TEXTS[0], **settings)


def test_the_draw_of_least_risk(translator: Translator) -> None:
    found = translator(TEXTS, sample=True, seed=4, mbr=5, n_best=3)
    again = translator(TEXTS[1:], sample=True, seed=4, mbr=5, n_best=3, first_index=1)
    assert [one.ids for one in found[1:]] == [one.ids for one in again]
    for one in found:
        scores = [one.score, *(other.score for other in one.alternatives)]
        assert scores == sorted(scores, reverse=True)
        assert len({one.text, *(other.text for other in one.alternatives)}) == len(scores)


def test_utilities_are_means_of_chrf() -> None:
    from sacrebleu.metrics.chrf import CHRF

    texts = ["the cat sleeps", "a cat sleeps", "the cat sleeps", "dogs"]
    score = lambda one, other: CHRF().sentence_score(one, [other]).score  # noqa: E731
    for n, found in enumerate(utilities(texts)):
        others = [one for m, one in enumerate(texts) if m != n]
        assert found == pytest.approx(sum(score(texts[n], one) for one in others) / 3)
    assert utilities(["x"]) == [100.0]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "settings",
    [
        {"beam": 4, "n_best": 4, "forbid": ["black"]},
        {"sample": True, "seed": 1, "forbid": ["black"]},
        {"beam": 3, "forbid": ["cat"], "force": ["dog"]},
        {"beam": 1, "forbid": ["black"]},
    ],
)
def test_of_a_prefix_beside_forbidden_phrases_every_token_counts(translator: Translator, settings: dict) -> None:
    for one in translator(TEXTS, prefix="red the", **settings):
        made = [one, *one.alternatives]
        scored = translator.score([one.source] * len(made), made)
        assert [each.log_prob for each in made] == pytest.approx([each.log_prob for each in scored], abs=1e-4)


@pytest.mark.parametrize("settings", [{"beam": 2}, {"sample": True, "seed": 1, "no_repeat": 1}, {"force": ["dog"]}])
def test_a_prefix_longer_than_outputs_is_whole_and_others_follow_it(translator: Translator, settings: dict) -> None:
    prefix = " ".join(["the cat"] * translator.limit(3))
    for one in translator(["le chat", "la maison"], prefix=prefix, **settings):
        assert one.text.startswith(prefix)
        assert one.log_prob > -float("inf")
        assert all(has(one.text, phrase) for phrase in settings.get("force", []))
    if "force" not in settings:
        assert "".join(translator.stream("le chat", prefix=prefix, **settings)).startswith(prefix)
    longest = translator.limit(translator.decoding.longest_source)
    for repeats in (longest + 1, 40 * longest):
        with pytest.raises(ConfigError, match=r"^prefix.*expected at most"):
            translator("le chat", prefix="the " * repeats)


def test_terms_stand_where_they_are_read_also_where_no_attention_is_kept() -> None:
    config = TransformerConfig(kind="transformer", encoder_layers=1, decoder_layers=1, **SIZES)
    model = Translator(bundle(config, "translate", seed=3), "random")
    assert not model.bundle.alignment  # no heads were chosen for it
    terms = {"noir": "sleeps", "vache": "black cat", "chat": "cat", "le": "the"}
    texts = ["chatte le la dors noire", "vache dort chat dors", "dors noir", "vache dors", "la noir chat"]
    kept, others = (model(texts, glossary=terms, record=record) for record in (True, False))
    assert [one.text for one in kept] == [one.text for one in others]
    assert [one.log_prob for one in kept] == pytest.approx([one.log_prob for one in others])


def test_groups_of_a_beam_differ_and_keep_what_every_search_promises(translator: Translator) -> None:
    settings = {"beam": 4, "groups": 4, "diversity": 2.0}
    found = translator(TEXTS, n_best=4, **settings)
    plain = translator(TEXTS, beam=4, n_best=4)
    begins = [[len({made.tokens[0] for made in (one, *one.alternatives)}) for one in some] for some in (found, plain)]
    assert sum(begins[0]) > sum(begins[1])
    firsts = translator(TEXTS, record=False, **settings)  # one output only, without attention
    for text, one, first in zip(TEXTS, found, firsts, strict=True):
        made = [one, *one.alternatives]
        assert len({other.text for other in made}) == len(made) > 1
        assert [other.score for other in made] == sorted((other.score for other in made), reverse=True)
        scored = translator.score([text] * len(made), made)
        assert [other.log_prob for other in made] == pytest.approx(
            [other.log_prob for other in scored], rel=1e-6, abs=1e-5
        )
        assert (one.ids, one.log_prob) == (first.ids, pytest.approx(first.log_prob, abs=1e-5))
        alone = translator(text, n_best=4, **settings)
        assert [other.ids for other in (alone, *alone.alternatives)] == [other.ids for other in made]
        assert all(whole.shape[-2] == len(other.ids) for other in made for whole in other.attention.values())
    with pytest.raises(ConfigError, match="groups must divide the beam"):
        translator(TEXTS, beam=4, groups=3)


@pytest.mark.parametrize(
    "settings",
    [
        {"groups": 2, "force": ["dog"]},
        {"groups": 2, "protect": True},
        {"groups": 2, "sample": True},
        {"groups": 2, "sample": True, "mbr": 2},
        {"diversity": 0.5},
    ],
)
def test_groups_where_there_are_none(translator: Translator, settings: dict) -> None:
    with pytest.raises(ConfigError, match=r"cannot enforce phrases|groups and diversity are for a search|give groups"):
        translator(TEXTS, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"glossary": {"chat": "cat " * 701}},
        {"glossary": {"chat": "x" * 100_003}},
        {"force": ["cat dog"] * 307},
    ],
)
def test_phrases_that_are_longer_than_an_output_are_refused(translator: Translator, settings: dict) -> None:
    with pytest.raises(ConfigError, match=r"expected at most 610"):  # 2 · 300 + 10 tokens
        translator("le chat", **settings)
