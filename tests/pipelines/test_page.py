"""The page of a result: the maps of its forward pass, its words, and what was measured of them."""

from pathlib import Path

import pytest
import torch

import regard
from regard.errors import ConfigError
from regard.pipelines import page as pages
from regard.pipelines.base import InputError
from regard.pipelines.page import look_at

SAMPLES = Path(regard.__file__).parent / "samples"


def test_a_translation(tiny_run: Path) -> None:
    model = regard.load(tiny_run)
    made = model("le chat noir", beam=3, n_best=3)
    page = made.look()
    first, *others = page.document["runs"]
    assert (first["text"], first["log_prob"]) == (made.text, made.log_prob)
    assert first["sequences"]["output"] == made.tokens
    assert first["words"]["output"]["log_prob"] == [word.log_prob for word in made.words]
    assert first["chosen"]["site"] == made.alignment.site
    for info in first["maps"]:
        if info["site"] not in made.attention or "query" not in page.tensors:
            continue
        assert info["how"]["queries"] == made.attention[info["site"]].shape[-2]
    assert [run["text"] for run in others] == [one.text for one in made.alternatives]
    assert len(first["trace"]) == len(made.ids)
    assert set(first["believe"]["measures"]) == {"attention", "gradient", "zeroed", "left_out"}


@pytest.mark.parametrize("name", ["fr-en", "fr-en-rnn", "shakespeare"])
def test_each_token_of_a_text_is_left_out_of_it(name: str) -> None:
    model = regard.load(name)
    made = model("To be", length=9, seed=0) if name == "shakespeare" else model("le chat noir")
    given = made.forward_pass()
    field = "tokens" if name == "shakespeare" else "source"
    believe = made.look().document["runs"][0]["believe"]

    def log_p(ids: list[int]) -> torch.Tensor:
        logits = model.model(**{**given.arguments, field: torch.tensor([ids])})[0, -len(given.predicted) :]
        return logits.detach().double().log_softmax(-1).gather(-1, torch.tensor(given.predicted)[:, None]).sum()

    ids = given.arguments[field][0].tolist()
    count = len(ids) - (len(given.predicted) if name == "shakespeare" else 0)
    wanted = [float(log_p(ids) - log_p([*ids[:n], *ids[n + 1 :]])) for n in range(count)]
    assert len(wanted) > 2
    assert believe["measures"]["left_out"] == pytest.approx(wanted, abs=1e-3)


def test_no_token_is_left_out_of_a_long_text_before_its_page_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    made = regard.load("fr-en")("le chat noir")
    monkeypatch.setattr(pages, "CHEAP", 3)
    assert "left_out" not in made.look().document["runs"][0]["believe"]["measures"]


def test_maps_of_the_page_are_those_of_the_search() -> None:
    made = regard.load("fr-en")("le chat noir")
    page = made.look()
    run = page.document["runs"][0]
    for info in run["maps"]:
        if info["site"] in made.attention:
            query, key = (page.tensors[f"{info['tensors']}.{name}"] for name in ("query", "key"))
            scores = query @ key.mT
            end = page.tensors.get(f"{info['tensors']}.mask.end")
            if end is not None:
                scores = scores.masked_fill(torch.arange(scores.shape[-1]) >= end[..., None], -torch.inf)
            wanted = made.attention[info["site"]].full()
            torch.testing.assert_close(scores.softmax(-1), wanted, atol=1e-4, rtol=0)
    assert {info["site"] for info in run["maps"]} > set(made.attention)


@pytest.mark.parametrize(("name", "given"), [("shakespeare", "ROMEO:"), ("english", "the river [MASK]")])
def test_models_without_a_source(name: str, given: str) -> None:
    (run,) = look_at([regard.load(name)], [given]).document["runs"]
    assert {(info["rows"], info["columns"]) for info in run["maps"]} == {("text", "text")}
    assert all(info["how"]["queries"] == len(run["sequences"]["text"]) for info in run["maps"])


@pytest.mark.parametrize(
    ("name", "file", "kind"), [("emoji", "picture.png", "picture"), ("spelling", "recording.flac", "sound")]
)
def test_pictures_and_sounds_are_in_the_page(name: str, file: str, kind: str) -> None:
    (run,) = look_at([regard.load(name)], [str(SAMPLES / file)]).document["runs"]
    assert run["media"]["kind"] == kind
    assert run["media"]["address"].startswith("data:")
    cross = next(info for info in run["maps"] if info["site"] == run["chosen"]["site"])
    assert len(run["media"]["positions"]) == cross["how"]["keys"]


@pytest.mark.parametrize(("name", "file"), [("emoji", "picture.png"), ("spelling", "recording.flac")])
def test_the_map_of_a_picture_or_a_sound_is_tested(name: str, file: str) -> None:
    model = regard.load(name)
    made = model(str(SAMPLES / file))
    (run,) = made.look().document["runs"]
    site, found = run["chosen"]["site"], run["believe"]
    assert found["site"] == site
    assert len(found["columns"]) == len(made.positions)
    wanted = torch.tensor(made.ids)[:, None]

    def log_prob() -> float:
        return float(made.forward_pass().logits().detach()[0].log_softmax(-1).gather(-1, wanted).sum())

    def without(weights: torch.Tensor) -> torch.Tensor:
        weights = weights.clone()
        weights[..., 5] = 0
        return weights

    whole = log_prob()
    with regard.intervene(model.model, site, without):
        assert found["measures"]["zeroed"][5] == pytest.approx(whole - log_prob(), abs=1e-3)


def test_a_run_says_why_its_map_was_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = look_at([regard.load("english")], ["the river"]).document["runs"]
    assert run["untested"] == "an encoder has none"
    monkeypatch.setattr("regard.pipelines.page.LONGEST", 20)
    (run,) = regard.load("emoji")(str(SAMPLES / "picture.png")).look().document["runs"]
    assert run["untested"] == "it has more than 20 tokens or parts, which would take long"
    assert "believe" not in run


def test_what_has_parts_is_looked_at_part_by_part() -> None:
    made = regard.load("fr-en")("Le chat dort. Le chien court.")
    with pytest.raises(ConfigError, match=r"several parts, each with its own attention: look at one of its parts"):
        made.look()
    assert made.parts[0].look().document["runs"][0]["source"] == "Le chat dort."


def test_looking_changes_nothing() -> None:
    model = regard.load("fr-en")
    before, drawn = model("le chat noir"), torch.random.get_rng_state()
    before.look()
    assert torch.equal(torch.random.get_rng_state(), drawn)
    after = model("le chat noir")
    assert (after.text, after.log_prob) == (before.text, before.log_prob)
    assert all(part.grad is None for part in model.model.parameters())


def test_alternatives_of_a_decoder_have_their_maps_and_nothing_measured() -> None:
    made = regard.load("shakespeare")("ROMEO:", length=8, beam=3, n_best=3)
    first, *others = made.look().document["runs"]
    assert {"lens", "believe"} <= set(first)
    assert [run["text"] for run in others] == [one.text for one in made.alternatives]
    for run in others:
        assert not {"lens", "believe"} & set(run)
        assert [info["site"] for info in run["maps"]] == [info["site"] for info in first["maps"]]


def test_alternatives_of_a_transcript_have_the_maps_to_the_recording() -> None:
    made = regard.load("spelling")(str(SAMPLES / "recording.flac"), beam=3, n_best=2)
    first, other = made.look().document["runs"]
    assert {info["columns"] for info in first["maps"]} == {"source", "before"}
    assert {info["columns"] for info in other["maps"]} == {"source"}


def test_an_empty_output_has_no_page_and_no_run() -> None:
    model = regard.load("fr-en")
    with pytest.raises(ConfigError, match="the output is empty"):
        model("").look()
    runs = look_at([model], ["", "le chat noir"]).document["runs"]
    assert runs[0]["text"] == model("le chat noir", beam=4).text
    assert {run["source"] for run in runs} == {"le chat noir"}


def test_an_encoder_without_gaps_has_words() -> None:
    (run,) = look_at([regard.load("english")], ["the riverbanks"]).document["runs"]
    words = run["words"]["text"]
    assert words["texts"] == ["the", "riverbanks"]
    tokens = run["sequences"]["text"]
    joined = ["".join(t for t, n in zip(tokens, words["owner"], strict=True) if n == word) for word in (-1, 0, 1)]
    assert joined == [tokens[0] + tokens[-1], "▁the", "▁riverbanks"]
    assert look_at([regard.load("english")], ["the [MASK]"]).document["runs"][0]["words"] == {}


def test_the_map_of_a_long_source_is_not_tested_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = regard.load("fr-en")("le chat et le chien et la souris et la vache")
    assert len(made.ids) < len(made.source_tokens)
    assert "believe" in made.look().document["runs"][0]
    monkeypatch.setattr("regard.pipelines.page.LONGEST", len(made.source_tokens) - 1)
    run = made.look().document["runs"][0]
    assert "believe" not in run
    assert {"lens", "trace"} <= set(run)


def test_a_page_needs_models_and_inputs_in_lists(tiny_run: Path) -> None:
    model = regard.load(tiny_run)
    for models, inputs in (([model], []), ([], ["le chat"])):
        with pytest.raises(ConfigError, match="a page needs a model and an input"):
            look_at(models, inputs)
    with pytest.raises(InputError, match="expected several inputs, in a list"):
        look_at([model], "le chat")
