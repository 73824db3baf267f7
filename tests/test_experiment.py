"""Training from Python, and what is done with a run."""

from pathlib import Path

import pytest
import torch

import regard
from conftest import made_pairs, tiny
from regard.experiment import read_config, train
from regard.export.folder import export_bundle
from regard.pipelines.load import load
from regard.pipelines.translator import Translator
from regard.tasks.table import evaluate
from regard.text.tokenizer import BOS, EOS


@pytest.fixture
def model(tiny_run: Path) -> Translator:
    return load(tiny_run)


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
    assert events[0]["development"] == "2 for development"


def test_a_config_that_looks_at_nothing_trains_and_has_no_alignment(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    model = train(tiny("recurrent"), {"model.score": "none"}, run=tmp_path / "run").model
    generation = model("le chat noir")
    assert generation.attention == {}
    assert generation.alignment.pairs == []
    with pytest.raises(regard.ConfigError, match="does not attend to its source: there is no alignment to show"):
        generation.alignment.plot(tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
    assert not generation.trace.steps[0].scores


def test_a_run_goes_on_from_another(tiny_run: Path, data_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    kind = load(tiny_run).bundle.model_config.kind
    still = {"start": str(tiny_run), "training.learning_rate": 1e-12, "training.warmup": 0}
    losses = []
    run = train(
        tiny(kind), still, run=tmp_path / "run", report=lambda event: losses.append(event.get("dev_loss", torch.nan))
    )
    before, after = load(tiny_run), run.model
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (tiny_run / "tokenizer.json").read_bytes()
    for name, weight in before.model.state_dict().items():
        torch.testing.assert_close(after.model.state_dict()[name], weight, rtol=0, atol=1e-6)
    assert after("le chat noir").text == before("le chat noir").text
    train(tiny(kind), still, run=tmp_path / "run", resume=True)  # what it went on from is not needed any more
    with pytest.raises(regard.ConfigError, match=r"start: .* has model.width = \d+ and the config has 48"):
        train(tiny(kind), {**still, "model.width": 48}, run=tmp_path / "other")
    with pytest.raises(regard.ConfigError, match=r"has tokenizer.vocabulary = \d+ and the config has 77"):
        train(tiny(kind), {**still, "tokenizer.vocabulary": 77}, run=tmp_path / "third")
    with pytest.raises(regard.ChoiceError, match="unknown model 'fr-ne': expected one of 'fr-en'"):
        train(tiny(kind), {**still, "start": "fr-ne"}, run=tmp_path / "fourth")


def test_evaluate(model: Translator, tmp_path: Path) -> None:
    pairs = made_pairs()[:7]
    source, reference = tmp_path / "source", tmp_path / "reference"
    source.write_text("".join(f"{s}\n" for s, _ in pairs))
    reference.write_text("".join(f"{t}\n" for _, t in pairs))
    numbers, outputs = evaluate(model, source, reference)
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
        evaluate(model, tmp_path / "two", tmp_path / "one")
    with pytest.raises(regard.DataError, match=r"none: there is nothing to translate"):
        evaluate(model, tmp_path / "none", tmp_path / "none")
    with pytest.raises(regard.DataError, match=r"long:2: a text of 400 tokens is too long"):
        evaluate(model, tmp_path / "long", tmp_path / "two")


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
