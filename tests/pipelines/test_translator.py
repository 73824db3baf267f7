"""What load returns, and the Generation it makes."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.text import Text

import regard
from regard.errors import ConfigError, RegardError
from regard.pipelines.base import InputError
from regard.pipelines.load import load
from regard.pipelines.translator import Translator
from regard.text.tokenizer import BOS, EOS

SOURCES = ["le chat noir", "", "Le chien blanc mange.", "   ", "le lapin"]


@pytest.fixture
def model(tiny_run: Path) -> Translator:
    return load(tiny_run)


def test_a_text_in_a_generation_out(model: Translator) -> None:
    generation = model("le chat noir", beam=3, n_best=3)
    assert generation.source == "le chat noir"
    assert generation.source_tokens[-1] == "</s>"
    assert "<s>" not in generation.tokens
    assert len(generation.alternatives) == 2
    scores = [generation.score, *(a.score for a in generation.alternatives)]
    assert scores == sorted(scores, reverse=True)
    assert generation.text == model.tokenizer.decode(generation.ids).strip()


def test_a_list_in_a_list_out_in_order_and_alone_or_together_the_same(model: Translator) -> None:
    together = model(SOURCES)
    assert [g.source for g in together] == SOURCES
    alone = [model(source) for source in SOURCES]
    assert [g.text for g in together] == [g.text for g in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)


def test_an_empty_text_comes_back_empty(model: Translator) -> None:
    generation = model("")
    assert (generation.text, generation.tokens, generation.alignment.pairs, generation.trace.steps) == ("", [], [], [])


def test_log_prob_is_what_the_teacher_forced_model_gives(model: Translator) -> None:
    generation = model("le chat noir", beam=4)
    source = torch.tensor([[*model.tokenizer.encode("le chat noir"), EOS]])
    target = torch.tensor([[BOS, *generation.ids[:-1]]])
    with torch.inference_mode():
        log_p = model.model(source, target).log_softmax(-1)[0]
    total = sum(float(log_p[t, token]) for t, token in enumerate(generation.ids))
    assert generation.log_prob == pytest.approx(total, abs=1e-4)


def test_attention_has_a_row_for_every_output_token(model: Translator) -> None:
    generation = model("Le chien blanc mange.", beam=4)
    assert generation.attention
    for site, attention in generation.attention.items():
        keys = len(generation.tokens) if site.endswith(".self") else len(generation.source_tokens)
        assert attention.shape[1:] == (len(generation.tokens), keys), site
        torch.testing.assert_close(attention.full().sum(-1), torch.ones(attention.shape[:2]))


def test_alignment_joins_words(model: Translator) -> None:
    alignment = model("Le chien blanc mange.").alignment
    assert alignment.source == ["Le", "chien", "blanc", "mange."]
    assert alignment.matrix.shape == (len(alignment.target), 4)
    assert all(0 <= i < len(alignment.target) and 0 <= j < 4 for i, j in alignment.pairs)
    sums = alignment.matrix.sum(1)
    assert bool(((sums - 1).abs() < 1e-5).logical_or(sums == 0).all())
    assert alignment.site in model("le chat").attention


def test_asking_to_see_changes_nothing(model: Translator) -> None:
    seen, unseen = (model("Le chat vert court.", record=record) for record in (True, False))
    assert (seen.ids, seen.score, seen.log_prob) == (unseen.ids, unseen.score, unseen.log_prob)
    assert not unseen.attention


def test_what_is_far_too_long_is_refused_in_one_sentence(model: Translator) -> None:
    with pytest.raises(InputError, match=r"100,000 characters is too long: this model takes 300 tokens; cut it into"):
        model("a" * 100_000)
    with pytest.raises(InputError, match=r"a text of 400 tokens is too long"):
        model("le " * 399 + "le")


def test_an_output_is_one_line(model: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model.tokenizer), "decode", lambda *_: "the\r\nblack\ncat\n")
    assert model("le chat noir").text == "the  black cat"


def test_senseless_search_settings_are_refused(model: Translator) -> None:
    with pytest.raises(regard.ConfigError, match=r"got beam = 0, n_best = 1"):
        model("le chat", beam=0)
    with pytest.raises(regard.ConfigError, match=r"got beam = 2, n_best = 3"):
        model("le chat", beam=2, n_best=3)


def test_as_json_holds_all_of_it(model: Translator) -> None:
    record = json.loads(json.dumps(model("le chat noir", beam=2, n_best=2).as_json()))
    assert set(record) == {
        "source",
        "text",
        "tokens",
        "source_tokens",
        "score",
        "log_prob",
        "alternatives",
        "alignment",
    }
    assert len(record["alternatives"]) == 1
    assert set(record["alignment"]) == {"source", "target", "pairs", "matrix", "site", "heads"}


def test_unknown_models_are_named_with_the_nearest_first() -> None:
    with pytest.raises(
        regard.ChoiceError, match=r"unknown model 'fr-em': expected one of 'fr-en', .*or the folder of a run"
    ):
        load("fr-em")
    with pytest.raises(regard.BundleError, match=r"\./nowhere: no such folder"):
        load("./nowhere")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(regard.BundleError, match=r"bundle\.json: no such file: .* is not a trained model"):
        load(tmp_path)


def test_the_map_of_an_alignment_is_tested_in_one_sentence() -> None:
    from regard.pipelines.page import dependence_of

    model = regard.load("fr-en")
    found = model("le chat noir dort")
    given = found.forward_pass()
    expected = dependence_of(given, "decoder.layers.1.cross", found.source_tokens)
    assert found.tested == expected["sentence"]
    assert "Shuffling the weights at decoder.layers.1.cross changes the output by" in found.tested
    assert " nats of log-probability (equal weights by " in found.tested
    drawn = " ".join(text.get_text() for text in found.alignment.plot(note=found.tested).findobj(Text))
    assert f"{found.alignment.why}. {found.tested}" in " ".join(drawn.split())
    assert model("le chat noir. Il dort sur la table.").tested == ""  # two sentences
    assert model("").tested == ""
    assert model("chat " * 170).tested == ""  # too long


def test_a_result_of_another_source_or_model_is_scored_as_its_text() -> None:
    model = regard.load("fr-en")
    made, other = model("Je suis malade."), regard.load("en-fr")("I am ill.")
    (own,) = model.score(["Je suis malade."], [made])
    assert own.log_prob == pytest.approx(made.log_prob, abs=1e-4)
    source = ["Le chat dort sur le lit."]
    assert model.score(source, [made])[0] == model.score(source, [made.text])[0]
    assert model.score(["I am ill."], [other])[0] == model.score(["I am ill."], [other.text])[0]
    with pytest.raises(InputError, match="the target is empty"):
        model.score(["le chat"], ["\u200b"])


def test_indices_and_numbers_of_outputs_that_do_not_fit_are_refused() -> None:
    model = regard.load("fr-en-fast")
    for how in ({}, {"protect": True}):
        with pytest.raises(ConfigError, match="indices: expected one for each of the 2 texts; got 1"):
            model(["le", "un"], indices=[1], **how)
    with pytest.raises(ConfigError, match="indices: expected one for each of the 1 texts; got 2"):
        regard.load("shakespeare")(["To"], indices=[1, 2], length=1)
    with pytest.raises(ConfigError, match="n_best must be at least 1"):
        model("Le chat dort.", sample=True, mbr=3, n_best=0)


def test_nothing_is_added_where_nothing_may_be() -> None:
    assert regard.load("shakespeare")("To be", length=0, beam=2).ids == []


def test_texts_may_come_from_a_generator_and_one_text_is_no_list(tiny_run: Path, tmp_path: Path) -> None:
    model = load(tiny_run)
    expected = [one.text for one in model.many(["le chat", "la maison"])]
    (tmp_path / "two.txt").write_text("le chat\nla maison\n")
    for protect in (False, True):
        assert [one.text for one in model.many(iter(["le chat", "la maison"]), protect=protect)] == expected
        with (tmp_path / "two.txt").open() as file:
            assert len(model.each(file, protect=protect)) == 2
    with pytest.raises(InputError, match="expected several inputs, in a list"):
        model.many("oui")


def test_a_model_with_nan_says_so(tiny_run: Path) -> None:
    model = load(tiny_run)
    with torch.no_grad():
        next(iter(model.model.decoder.parameters())).fill_(torch.nan)
    for settings in ({"beam": 1}, {"beam": 3}, {"sample": True}):
        with pytest.raises(RegardError, match="hold NaN or infinity: no token can be drawn"):
            model("le chat", **settings)
