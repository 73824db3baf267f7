"""What load returns, Generation, training from Python."""

import json
from pathlib import Path

import pytest
import torch

import regard
from conftest import made_pairs, tiny
from regard.experiment import Refused, Translator, evaluate_files, export_bundle, load, read_config, train
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
    with pytest.raises(Refused, match=r"100,000 characters is too long: this model takes 300 tokens; cut it into"):
        model("a" * 100_000)
    with pytest.raises(Refused, match=r"a text of 400 tokens is too long"):
        model("le " * 399 + "le")


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


def test_train_gives_a_run(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    monkeypatch.chdir(tmp_path)
    events: list[str] = []
    run = regard.train(tiny("recurrent"), {"model.width": 48}, report=lambda event: events.append(event["event"]))
    assert run.path == Path("runs/run")
    assert run.model.bundle.model_config.width == 48
    assert [entry["step"] for entry in run.journal if entry["event"] == "evaluation"] == [3, 6]
    assert {"dev_loss", "dev_bleu", "dev_chrf", "dev_perplexity", "train_loss", "seconds"} <= set(run.journal[0])
    assert events[0] == "start"
    assert events.count("step") == 6
    with pytest.raises(
        regard.ConfigError, match=r"runs/run holds a run already: go on with --resume, or choose another"
    ):
        train(tiny("recurrent"), {"model.width": 48})
    with pytest.raises(regard.ConfigError, match=r"its run had other settings"):
        train(tiny("recurrent"), resume=True)
    with pytest.raises(regard.ConfigError, match=r"elsewhere: there is nothing to resume"):
        train(tiny("recurrent"), run="elsewhere", resume=True)


def test_nothing_to_train_on_is_refused(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    with pytest.raises(regard.ConfigError, match=r"there are no training pairs"):
        train(tiny("recurrent"), {"data.dev_share": 0.9999}, run=tmp_path / "run")


def test_without_development_data_the_last_model_is_kept(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    run = train(tiny("recurrent"), {"data.dev_share": 0.0, "training.metric": "loss"}, run=tmp_path / "run")
    assert run.model("le chat").tokens


def test_development_pairs_of_their_own(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    (tmp_path / "dev.tsv").write_text("the cat\tle chat\nthe dog\tle chien\n")
    events = []
    train(tiny("transformer"), {"data.dev": str(tmp_path / "dev.tsv")}, run=tmp_path / "run", report=events.append)
    assert events[0]["dev_pairs"] == 2


def test_a_config_that_looks_at_nothing_trains_and_has_no_alignment(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    model = train(tiny("recurrent"), {"model.score": "none"}, run=tmp_path / "run").model
    generation = model("le chat noir")
    assert generation.attention == {}
    assert generation.alignment.pairs == []
    assert not generation.trace.steps[0].scores


def test_evaluate_files(model: Translator, tmp_path: Path) -> None:
    pairs = made_pairs()[:7]
    source, reference = tmp_path / "source", tmp_path / "reference"
    source.write_text("".join(f"{s}\n" for s, _ in pairs))
    reference.write_text("".join(f"{t}\n" for _, t in pairs))
    numbers, outputs = evaluate_files(model, source, reference)
    assert outputs == [g.text for g in model([s for s, _ in pairs])]
    assert "nrefs:1|case:mixed|eff:no|tok:13a" in numbers["bleu_signature"]
    assert numbers["perplexity"] == pytest.approx(2.718281828 ** numbers["loss"], rel=1e-6)
    total = tokens = 0.0
    for s, t in pairs:  # an independent loss: one sentence at a time through the module itself
        ids, goal = model.tokenizer.encode(s), [*model.tokenizer.encode(t), EOS]
        with torch.inference_mode():
            log_p = model.model(torch.tensor([[*ids, EOS]]), torch.tensor([[BOS, *goal[:-1]]])).log_softmax(-1)[0]
        total -= sum(float(log_p[i, token]) for i, token in enumerate(goal))
        tokens += len(goal)
    assert numbers["tokens"] == tokens
    assert numbers["loss"] == pytest.approx(total / tokens, abs=1e-4)


def test_evaluate_refuses_crooked_files(model: Translator, tmp_path: Path) -> None:
    for name, text in {"two": "a\nb\n", "one": "a\n", "none": "", "long": "le chat\n" + "le " * 399 + "le\n"}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(
        regard.DataError, match=r"two has 2 lines and .*one has 1: every source line needs one reference"
    ):
        evaluate_files(model, tmp_path / "two", tmp_path / "one")
    with pytest.raises(regard.DataError, match=r"none: there is nothing to translate"):
        evaluate_files(model, tmp_path / "none", tmp_path / "none")
    with pytest.raises(regard.DataError, match=r"long:2: a text of 400 tokens is too long"):
        evaluate_files(model, tmp_path / "long", tmp_path / "two")


def test_export(model: Translator, tmp_path: Path) -> None:
    export_bundle(model, tmp_path / "small", "int8")
    small = load(tmp_path / "small")
    assert small("le chat noir").attention.keys() == model("le chat noir").attention.keys()
    with pytest.raises(regard.ConfigError, match="is not empty"):
        export_bundle(model, tmp_path / "small", "int8")
    with pytest.raises(regard.ChoiceError, match=r"unknown precision 'int9': expected one of 'int8'"):
        export_bundle(model, tmp_path / "other", "int9")


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/*.toml")), ids=lambda p: p.stem)
def test_every_shipped_config_loads(path: Path) -> None:
    assert read_config(path).languages
