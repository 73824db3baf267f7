"""Training from Python, and what is done with a run."""

import errno
import gzip
import hashlib
import json
import math
import os
import pickle
import shutil
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regard
from conftest import made_pairs, tiny
from regard import cli, experiment
from regard.bundle import load_bundle, save_bundle
from regard.cli.lines import check_output
from regard.config import config_names, to_toml
from regard.data.pairs import Pairs
from regard.errors import BundleError, ConfigError
from regard.experiment import average_run, data_files, prepare, read_config, train
from regard.export.folder import export_bundle
from regard.pipelines.load import load
from regard.pipelines.translator import Translator
from regard.report import report
from regard.storage import exclusive
from regard.tasks import translation
from regard.tasks.table import evaluate
from regard.tasks.translation import word_calibration
from regard.text.tokenizer import BOS, EOS
from regard.training.checkpoint import load_checkpoint, save_checkpoint
from regard.training.journal import Journal
from regard.training.loop import Diverged, Interrupted


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
        regard.ConfigError,
        match=r"runs/run holds a run already: continue it with --resume, or choose another folder with --folder",
    ):
        train(tiny("recurrent"), {"model.width": 48})
    with pytest.raises(regard.ConfigError, match=r"its run had other settings"):
        train(tiny("recurrent"), resume=True)
    with pytest.raises(
        regard.ConfigError, match=r"elsewhere: there is nothing to resume: .* without --resume, .* with --folder"
    ):
        train(tiny("recurrent"), run="elsewhere", resume=True)


def test_a_folder_whose_name_is_not_utf_8(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    folder = tmp_path / os.fsdecode(b"caf\xe9") / "run"
    train(tiny("transformer"), run=folder)
    run = train(tiny("transformer"), {"training.max_steps": 9}, run=folder, resume=True)
    assert run.journal[-1]["step"] == 9
    folder = folder.rename(tmp_path / os.fsdecode(b"caf\xe9-2"))
    model = load(folder)
    assert model.name == "caf\ufffd-2"
    seen = model("le chat").attention["decoder.layers.0.cross"]
    place = tmp_path / os.fsdecode(b"map\xe9.safetensors")
    seen.save(place)
    torch.testing.assert_close(regard.AttentionMap.load(place).full(), seen.full())


def test_a_model_in_the_working_directory_has_its_name(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_run)
    assert [load(name).name for name in (".", f"../{tiny_run.name}/.", "attention/..")] == [tiny_run.name] * 3


def test_paths_may_be_texts(tiny_run: Path, tmp_path: Path) -> None:
    bundle = load_bundle(str(tiny_run))
    save_bundle(str(tmp_path / "copy"), bundle)
    assert load(tmp_path / "copy")("le chat").text == load(tiny_run)("le chat").text
    assert average_run(str(tiny_run), str(tmp_path / "averaged")) == tmp_path / "averaged"
    bundle.tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="load_bundle: folder must be a path; got 5"):
        load_bundle(5)


def test_nothing_to_train_on_is_refused(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    with pytest.raises(regard.ConfigError, match=r"there are no training pairs"):
        train(tiny("recurrent"), {"data.dev_share": 0.9999}, run=tmp_path / "run")


def test_without_development_pairs_training_pairs_choose_the_best(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    (tmp_path / "empty.tsv").write_text("\n")
    for name, changes in (("data.dev_share", {"data.dev_share": 0.0}), ("data.dev", {"data.dev": "$HERE/empty.tsv"})):
        monkeypatch.setenv("HERE", str(tmp_path))
        events: list[dict[str, Any]] = []
        run = train(tiny("recurrent"), changes, run=tmp_path / name, report=events.append)
        assert events[0]["development"] == f"{name} leaves none for development: 8 of them choose the best checkpoint"
        assert 0 < run.journal[0]["dev_loss"] < 10
        assert run.model("le chat").tokens


def language_model(tmp_path: Path, task: str, **texts: Any) -> dict[str, Any]:
    blocks = {"width": 16, "layers": 1, "heads": 2, "ffn_width": 16}
    return {
        "task": task, "dev_sentences": 5,
        "texts": {"length": 12, "documents": "files" if task == "complete" else "lines"} | texts,
        "tokenizer": {"kind": "characters"},
        "model": {"kind": "decoder" if task == "complete" else "encoder", **blocks},
        "training": {"max_steps": 2, "evaluate_every": 1, "warmup": 1, "batch_tokens": 64, "metric": "loss"},
    }  # fmt: skip


@pytest.mark.parametrize("task", ["complete", "fill"])
def test_language_models_without_development_text(task: str, tmp_path: Path) -> None:
    for name, text in (("a", "the cat\nran far\n" * 9), ("b", "a dog\nsat\n" * 9), ("empty", "\n"), ("one", "x")):
        (tmp_path / name).write_text(text)
    a, b, empty, one = (str(tmp_path / name) for name in ("a", "b", "empty", "one"))
    cases: dict[str, dict[str, Any]] = {
        "two files": {"train": (a, b), "dev_share": 0.01},
        "no share": {"train": a, "dev_share": 0.0},
        "empty": {"train": a, "dev": empty},
        "one token": {"train": a, "dev": one},
    }
    for name, texts in cases.items():
        events: list[dict[str, Any]] = []
        run = train(language_model(tmp_path, task, **texts), run=tmp_path / "runs" / name, report=events.append)
        assert all(0 < entry["dev_loss"] < 10 for entry in run.journal)
        if name in ("no share", "empty"):
            setting = "texts.dev" if name == "empty" else "texts.dev_share"
            assert events[0]["development"].startswith(f"{setting} leaves none for development: ")


@pytest.mark.parametrize("task", ["complete", "fill"])
def test_language_models_without_training_text(task: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("" if task == "complete" else "x" * 99)
    with pytest.raises(regard.ConfigError, match="there is nothing to train on"):
        train(language_model(tmp_path, task, train=str(tmp_path / "one"), dev_share=0.0), run=tmp_path / "run")
    settings = language_model(tmp_path, task, train=str(tmp_path / "one"))
    with pytest.raises(regard.ConfigError, match=r"texts.length = 12 must be at most model.length = 7"):
        train(settings, {"model.positions": "learned", "model.length": 7}, run=tmp_path / "other")


@pytest.mark.parametrize("side", [0, 1])
def test_a_development_pair_that_is_too_long_is_left_out(
    side: int, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    long = ["the cat", "le chat"]
    long[side] = " ".join([long[side]] * 500)
    (tmp_path / "dev.tsv").write_text("the dog\tle chien\n" + "\t".join(long) + "\nthe cat\tle chat\n")
    events: list[dict[str, Any]] = []
    run = train(
        tiny("transformer"), {"data.dev": str(tmp_path / "dev.tsv")}, run=tmp_path / "run", report=events.append
    )
    assert events[0]["development"].startswith("2 for development (1 left out: longer than the model takes, 300 tokens")
    assert events[0]["development"].endswith(f"the first {tmp_path / 'dev.tsv'}:2)")
    assert run.journal[-1]["dev_loss"] > 0


def test_training_pairs_that_are_too_long_are_counted(tmp_path: Path) -> None:
    pairs = ["le chat\tthe cat", "\t".join(["le chat " * 60, "the cat " * 60]), "le chien\tthe dog"] * 2
    (tmp_path / "t.tsv").write_text("\n".join(pairs))
    events: list[dict[str, Any]] = []
    data = {"train": str(tmp_path / "t.tsv"), "dev_share": 0.0}
    train(tiny("transformer") | {"data": data}, run=tmp_path / "run", report=events.append)
    note = f"(2 left out: longer than data.longest = 100 tokens, the first {tmp_path / 't.tsv'}:2)"
    assert events[0]["training"] == f"4 training pairs {note}"
    with pytest.raises(regard.ConfigError, match=r"all 6 training pairs are longer than data.longest = 1 tokens"):
        train(tiny("transformer") | {"data": data}, {"data.longest": 1}, run=tmp_path / "none")


def test_resuming_compares_values(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own config.toml, what --print-config prints, and a config whose comments were rewritten, all resume."""
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    run = tmp_path / "run"
    train(tiny("recurrent"), run=run)
    written = (run / "config.toml").read_text()
    (run / "config.toml").write_text(written.replace("# Updates at most.", "# Reworded since."))
    (tmp_path / "printed.toml").write_text(to_toml(read_config(tiny("recurrent"))))
    train(tmp_path / "printed.toml", run=run, resume=True)
    (run / "config.toml").write_text(written.replace("batch_tokens = 256", "batch_tokens = 2_56"))
    train(run / "config.toml", resume=True)  # of its own, in its own folder
    (run / "config.toml").write_text(written.replace("ffn_width", "inner").replace("word_dropout", "forget"))
    train(tiny("recurrent"), run=run, resume=True)
    with pytest.raises(
        regard.ConfigError, match=r"other settings \(config.toml\), not training.seed = 3 \(it was 0\): resume"
    ):
        train(tiny("recurrent"), {"training.max_steps": 9, "training.seed": 3}, run=run, resume=True)


def test_a_run_does_not_resume_with_other_data(tmp_path: Path) -> None:
    lines = [f"{source}\t{target}\n" for source, target in made_pairs()]
    data = {"train": str(tmp_path / "t.tsv"), "dev_share": 0.1}
    (tmp_path / "t.tsv").write_text("".join(lines))
    train(tiny("recurrent") | {"data": data}, run=tmp_path / "run")
    train(tiny("recurrent") | {"data": data}, run=tmp_path / "run", resume=True)
    (tmp_path / "t.tsv").write_text("".join(lines).replace("le chat\t", "le chaton\t"))
    with pytest.raises(regard.ConfigError, match=r"run: its training data have changed since the run was started"):
        train(tiny("recurrent") | {"data": data}, run=tmp_path / "run", resume=True)


def test_a_prepared_corpus_knows_its_tokenizer(data_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    prepare(tiny("recurrent"), run=ours)
    prepare(tiny("recurrent"), {"tokenizer.vocabulary": 90}, run=theirs)
    own = (ours / "tokenizer.json").read_bytes()
    (ours / "tokenizer.json").write_bytes((theirs / "tokenizer.json").read_bytes())
    with pytest.raises(regard.DataError, match=r"tokenizer\.json: not the tokenizer that .*prepared was prepared with"):
        train(tiny("recurrent"), run=ours)
    (ours / "tokenizer.json").write_bytes(own)
    train(tiny("recurrent"), run=ours)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("source.values", 5000, r"prepared: it has token ids that .*tokenizer\.json does not have"),
        ("target.values", -1, r"prepared: it has token ids that .*tokenizer\.json does not have"),
        ("links.values", 5000, "it links tokens that its sentences do not have"),
    ],
)
def test_a_strangers_prepared_corpus(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: int, message: str
) -> None:
    """Its digests are those of its files, and its numbers are of nothing."""
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    settings = tiny("recurrent", guided_alignment=0.1)
    prepare(settings, run=tmp_path)
    note, path = tmp_path / "prepared" / "prepared.json", tmp_path / "prepared" / name
    numbers = np.frombuffer(path.read_bytes(), "<i4").copy()
    numbers[:] = value if name == "links.values" else np.where(np.arange(len(numbers)) == 7, value, numbers)
    path.write_bytes(numbers.tobytes())
    known = json.loads(note.read_text("utf-8"))
    known["texts"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    note.write_text(json.dumps(known), "utf-8")
    with pytest.raises(regard.DataError, match=message):
        train(settings, run=tmp_path)


@pytest.mark.sampled(2)
def test_a_run_does_not_resume_with_another_tokenizer(
    data_folder: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    path = run / "tokenizer.json"
    said = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(said | {"truncation": None, "padding": None}, indent=1), "utf-8")
    train(run / "config.toml", run=run, resume=True)  # the same in other words
    vocabulary = said["model"]["vocab"]
    if isinstance(vocabulary, dict):
        first, second = sorted(vocabulary, key=vocabulary.__getitem__)[-2:]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    else:
        vocabulary[-2:] = reversed(vocabulary[-2:])
    path.write_text(json.dumps(said), "utf-8")
    with pytest.raises(regard.ConfigError, match=r"changed since last.safetensors was written: tokenizer"):
        train(run / "config.toml", run=run, resume=True)


def test_two_runs_in_one_folder(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    refused = []

    def second(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 1:
            with (
                pytest.raises(regard.ConfigError, match=f"process {os.getpid()} is writing to this folder") as error,
                exclusive(tmp_path / "run"),
            ):
                pass
            refused.append(error)
            with pytest.raises(regard.ConfigError, match="another training runs in this process"):
                train(tiny("recurrent"), run=tmp_path / "run")

    train(tiny("recurrent"), run=tmp_path / "run", report=second)
    assert len(refused) == 1
    assert not (tmp_path / "run" / ".lock").exists()


def test_divergence_is_one_sentence(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    wild = {"training.learning_rate": 1e30, "training.clip": 1e30, "training.warmup": 0}
    with pytest.raises(Diverged, match=r"training diverged: .*: lower training.learning_rate"):
        train(tiny("transformer", max_steps=40, evaluate_every=20), wild, run=tmp_path / "run")
    assert not (tmp_path / "run" / "bundle.json").exists()
    skipped = [e for e in Journal(tmp_path / "run" / "journal.jsonl").entries() if e["event"] == "skipped"]
    assert len(skipped) == 10
    with pytest.raises(Diverged, match="no evaluation had a finite loss"):  # ends before ten updates were skipped
        train(tiny("transformer"), wild, run=tmp_path / "short")


def test_averages_go_into_an_empty_folder(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, reason in (("full", "is not empty"), ("file", "is a file")):
        with pytest.raises(regard.ConfigError, match=reason):
            average_run(tiny_run, tmp_path / name)
    with pytest.raises(regard.BundleError, match="is not a trained model"):
        average_run(tmp_path / "full", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]
    assert average_run(tiny_run, tmp_path / "new") == tmp_path / "new"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.width": 1}, r"model.width = 1 must be at least 2: model.direction = \"both\""),
        ({"training.betas": [0.9, 1.0]}, r"training.betas.1: input should be less than 1"),
        ({"training.betas": [-0.1, 0.9]}, r"training.betas.0: "),
        ({"training.seed": 10**30}, r"training.seed: input should be less than"),
        ({"training.seed": -1}, r"training.seed: "),
        ({"training.learning_rate": float("inf")}, r"training.learning_rate: input should be a finite number"),
        ({"training.coverage_loss": float("inf")}, r"training.coverage_loss: input should be a finite number"),
        ({"model": {"kind": "transformer", "width": 10, "heads": 3}}, r"model: no transformer .* width 10, heads 3"),
        ({"width": 3}, r"unknown setting width: did you mean model.width\?"),
        ({"max_step": 3}, r"unknown setting max_step: did you mean training.max_steps\?"),
        ({"model.fragments": 3}, r"unknown setting model.fragments: did you mean data.fragments\?"),
        ({"tokeniser.kind": "bpe"}, r"unknown setting tokeniser: did you mean tokenizer\?"),
    ],
)
def test_senseless_settings_are_refused_by_name(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(regard.ConfigError, match=message):
        read_config(tiny("recurrent"), overrides)


def test_large_seeds_train(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    train(tiny("recurrent", max_steps=1), {"training.seed": 2**63 - 1}, run=tmp_path / "run")


def test_renamed_settings_and_sections_still_read() -> None:
    config = {
        "task": "answer", "asked": {"layout": "scenes", "scenes": {"alone": 2}}, "training": {"metric": "exact"},
        "model": {"kind": "stacked", "reads": {"kind": "grid", "size": 96}},
    }  # fmt: skip
    with pytest.warns(UserWarning, match="is called"):
        settings = read_config(config, {"asked.scenes.most": 2, "training.forget": 0.1})
    assert settings.questions is not None
    assert settings.questions.scenes is not None
    assert (settings.questions.scenes.single_epochs, settings.questions.scenes.most) == (2, 2)
    assert settings.training.word_dropout == 0.1


def test_a_byte_order_mark_in_a_config(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf" + to_toml(read_config(tiny("recurrent"))).encode())
    assert read_config(tmp_path / "x.toml") == read_config(tiny("recurrent"))


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
        replace(generation.alignment, target=["the", "cat"]).plot(tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
    assert not generation.trace.steps[0].scores


@pytest.mark.sampled(2)
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
    fewer = {"transformer": "decoder_layers", "recurrent": "encoder_layers"}[kind]
    more = getattr(load(tiny_run).bundle.model_config, fewer) + 1
    with pytest.raises(regard.ConfigError, match=rf"has model.{fewer} = {more - 1} and the config has {more}"):
        train(tiny(kind), {**still, f"model.{fewer}": more}, run=tmp_path / "deeper")
    if kind == "transformer":  # the first of its two decoder layers
        shallow = train(tiny(kind), {**still, "model.decoder_layers": 1}, run=tmp_path / "shallow").model
        weights = shallow.model.state_dict()
        for name, weight in before.model.state_dict().items():
            if ".layers.1." not in name:
                torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-6)
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


def test_words_are_calibrated(model: Translator, tiny_run: Path, tmp_path: Path, capsys) -> None:
    pairs, source, reference = made_pairs()[:5], tmp_path / "source", tmp_path / "reference"
    source.write_text("".join(f"{s}\n" for s, _ in pairs))
    reference.write_text("".join(f"{t}\n" for _, t in pairs))
    made = model([s for s, _ in pairs])
    found = word_calibration(model, source, reference)
    assert sum(found.count) == sum(len(one.text.split()) for one in made)
    right = sum(
        sum((Counter(g.text.split()) & Counter(t.split())).values()) for g, (_, t) in zip(made, pairs, strict=True)
    )
    assert sum(n * share for n, share in zip(found.count, found.right, strict=True)) == pytest.approx(right)
    mean = sum(math.exp(word.log_prob) for one in made for word in one.words)
    assert sum(n * one for n, one in zip(found.count, found.confidence, strict=True)) == pytest.approx(mean)
    picture = tmp_path / "calibration.png"
    files = ["--source", str(source), "--reference", str(reference), "--calibration"]
    assert cli.run(["evaluate", str(tiny_run), *files, str(picture), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibration_error"] == pytest.approx(found.error, abs=1e-6)
    assert picture.stat().st_size > 1000
    assert cli.run(["evaluate", "shakespeare", "--source", str(source), "--calibration", str(picture)]) == 2
    assert capsys.readouterr().err == "regard: --calibration draws the words of a translator; shakespeare is none\n"


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


@pytest.mark.parametrize("path", config_names())
def test_every_shipped_config_loads(path: str) -> None:
    assert read_config(path).languages


def test_a_resumed_run_changes_its_schedule_where_that_is_said(data_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    folder, config = tmp_path / "run", tiny("transformer")
    regard.train(config, run=folder)
    longer = {**config, "training": config["training"] | {"max_steps": 9}}
    sentence = r"not training\.max_steps = 9 \(it was 6\).*--set training\.max_steps=…"
    with pytest.raises(regard.ConfigError, match=sentence):
        experiment.train(longer, run=folder, resume=True)
    run = experiment.train(config, {"training.max_steps": 9}, run=folder, resume=True)
    steps = [entry["step"] for entry in run.journal if entry["event"] == "evaluation"]
    assert steps == [3, 6, 9]
    (changed,) = [entry for entry in run.journal if entry["event"] == "changed"]
    assert changed == {"event": "changed", "step": 6, "settings": {"training.max_steps": 9}}
    with pytest.raises(
        regard.ConfigError, match=r"not model\.width = 48 \(it was 32\).*choose another folder with --folder$"
    ):
        experiment.train(config, {"model.width": 48, "training.max_steps": 9}, run=folder, resume=True)


def test_a_prepared_corpus_is_trained_on_without_reading_it_again(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regard.tasks import translation

    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    config = tiny("transformer")
    folder = experiment.prepare(config, run=tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == [".regard", "prepared", "tokenizer.json"]
    whole = experiment.train(config, run=tmp_path / "whole")

    def never(*_: object) -> None:
        raise AssertionError("the corpus was read again")

    monkeypatch.setattr(translation, "stream_parts", never)
    run = experiment.train(config, run=folder)
    without = [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.journal]
    assert without == [{k: v for k, v in entry.items() if k != "seconds"} for entry in whole.journal]
    with pytest.raises(AssertionError, match="read again"):  # other data settings, another corpus
        experiment.train(config, {"data.longest": 50}, run=tmp_path / "other")


def test_a_task_without_pairs_has_nothing_to_prepare(tmp_path: Path) -> None:
    config = {"task": "complete", "texts": {"train": "x"}, "model": {"kind": "decoder"}, "training": {"metric": "loss"}}
    with pytest.raises(regard.ConfigError, match=r'task = "complete" has no \[data\] to prepare'):
        experiment.prepare(config, run=tmp_path / "run")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("pieces", [1, 3])
def test_memory_that_runs_out_halves_the_pieces_and_says_so(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    from regard.training.objective import Objective

    forward = Objective.forward

    def small(self: Objective, batch: Any) -> Any:
        if self.training and len(batch.target) > 4:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes. Error code 12"
            )
        return forward(self, batch)

    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    whole = experiment.train(tiny("transformer"), {"model.dropout": 0}, run=tmp_path / "whole")
    told: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", small)
        run = experiment.train(
            tiny("transformer"),
            {"training.accumulate": pieces, "model.dropout": 0},
            run=tmp_path / "r",
            report=told.append,
        )
    assert [event["pieces"] for event in told if event["event"] == "memory"][:1] == [2 * pieces]
    for ours, theirs in zip(run.journal, whole.journal, strict=True):
        assert ours["dev_loss"] == pytest.approx(theirs["dev_loss"], rel=1e-4)


def test_a_row_that_does_not_fit_is_refused(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from regard.training.objective import Objective

    def never(self: Objective, batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    monkeypatch.setattr(Objective, "forward", never)
    with pytest.raises(regard.ConfigError, match=r"out of memory: 1 of the \d+ rows .* set training\.accumulate above"):
        experiment.train(tiny("transformer"), run=tmp_path / "run")


def test_a_run_ends_after_its_minutes(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    run = experiment.train(
        tiny("transformer"), {"training.max_steps": 10**6, "training.max_minutes": 1e-6}, run=tmp_path / "r"
    )
    assert [entry["step"] for entry in run.journal if entry["event"] == "evaluation"] == [1]
    assert regard.load(tmp_path / "r")("le chat").text is not None


def test_a_moving_average_is_what_is_evaluated_and_kept(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    frozen = experiment.train(tiny("transformer"), {"training.ema": 0.999999}, run=tmp_path / "frozen")
    assert frozen.journal[0]["dev_loss"] == pytest.approx(frozen.journal[1]["dev_loss"], abs=1e-3)
    assert frozen.journal[0]["train_loss"] > frozen.journal[1]["train_loss"]
    moving = experiment.train(tiny("transformer"), {"training.ema": 1e-9}, run=tmp_path / "moving")
    plain = experiment.train(tiny("transformer"), run=tmp_path / "plain")
    for ours, theirs in zip(moving.journal, plain.journal, strict=True):
        assert ours["dev_loss"] == pytest.approx(theirs["dev_loss"], abs=1e-5)


def test_pairs_that_were_kept_apart_are_measured(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talk: Any
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    run = experiment.train(tiny("transformer"), {"data.test_share": 0.2}, run=tmp_path / "run")
    settings = read_config(tmp_path / "run" / "config.toml")
    parts = dict(zip(("train", "dev", "test"), translation.read_data(settings), strict=True))
    for part in ("dev", "test"):
        assert experiment.held_out(tmp_path / "run", part) == parts[part]
        code, out, err = talk("evaluate", tmp_path / "run", "--part", part, "--json")
        assert code == 0, err
        assert json.loads(out)["sentences"] == len(parts[part]) > 0
        if part == "dev":
            assert json.loads(out)["loss"] == pytest.approx(run.journal[-1]["dev_loss"], rel=1e-4)
    for arguments in (
        [],
        ["--part", "dev", "--source", "x"],
        ["--part", "dev", "--reference", "x"],
        ["--part", "other"],
    ):
        assert talk("evaluate", tmp_path / "run", *arguments)[0] == 2
    (tmp_path / "empty").mkdir()
    apart = "no test pairs apart .*: measure it on files, with --source and --reference"
    for folder, sentence in ((tmp_path / "empty", "no run's folder"), (tmp_path / "none", apart)):
        if folder.name == "none":
            experiment.train(tiny("transformer"), run=folder)
        with pytest.raises(regard.ConfigError, match=sentence):
            experiment.held_out(folder, "test")


def test_what_a_shipped_translators_config_keeps_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talk: Any
) -> None:
    monkeypatch.chdir(tmp_path)  # without the corpora of which fr-en's config holds nothing out
    monkeypatch.delenv("REGARD_DATA", raising=False)
    code, _, err = talk("evaluate", "fr-en", "--part", "dev")
    assert code == 1
    assert "REGARD_DATA is not set" in err
    (tmp_path / "tatoeba-fra-eng").mkdir()
    lines = "".join(f"I have {n} cats.\tJ'ai {n} chats.\n" for n in range(300))
    (tmp_path / "tatoeba-fra-eng" / "pairs.en-fr.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    monkeypatch.setenv("REGARD_DATA", str(tmp_path))
    pairs = {name: experiment.held_out(name, "dev") for name in ("fr-en", "fr-en-rnn", "en-fr")}
    assert len(pairs["fr-en"]) > 0
    assert pairs["fr-en"] == pairs["fr-en-rnn"] == Pairs(pairs["en-fr"].target, pairs["en-fr"].source)
    code, out, err = talk("evaluate", "fr-en-fast", "--part", "dev", "--json")
    assert code == 0, err
    assert json.loads(out)["sentences"] == len(pairs["fr-en"])
    for name, sentence in (("english", "--part is for translators"), ("spelling", "no run's folder")):
        with pytest.raises(regard.ConfigError, match=sentence):
            experiment.held_out(name, "dev")


def test_a_sharded_run_of_one_process_is_resumed_bit_for_bit(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    sharded = {"training.parallel": "fsdp", "training.ema": 0.5, "training.schedule": "constant"}
    whole = experiment.train(tiny("transformer"), sharded, run=tmp_path / "whole")
    experiment.train(tiny("transformer"), sharded | {"training.max_steps": 3}, run=tmp_path / "run")
    assert (tmp_path / "run" / "last" / "progress.json").exists()
    assert not (tmp_path / "run" / "last.safetensors").exists()
    run = experiment.train(tiny("transformer"), sharded | {"training.max_steps": 6}, run=tmp_path / "run", resume=True)
    for name, weight in whole.model.model.state_dict().items():
        assert torch.equal(weight, run.model.model.state_dict()[name]), name
    plain = experiment.train(tiny("transformer"), sharded | {"training.parallel": "ddp"}, run=tmp_path / "plain")
    for name, weight in whole.model.model.state_dict().items():
        assert torch.equal(weight, plain.model.model.state_dict()[name]), name
    (tmp_path / "run" / "last" / "progress.json").write_text("{", "utf-8")
    with pytest.raises(regard.BundleError, match=r"run/last: damaged or cut short"):
        experiment.train(tiny("transformer"), sharded, run=tmp_path / "run", resume=True)


def test_muon_is_not_sharded(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    both = {"training.parallel": "fsdp", "training.optimizer": "muon"}
    with pytest.raises(regard.ConfigError, match=r'training\.optimizer = "muon" needs whole matrices'):
        experiment.train(tiny("transformer"), both, run=tmp_path / "run")


def test_further_development_sets_are_measured_and_choose_nothing(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    few = made_pairs()[40:52]
    (tmp_path / "few.csv").write_text("en,fr\n" + "".join(f'"{t}","{s}"\n' for s, t in few))
    sets = {"few": str(tmp_path / "few.csv"), "long_ones": str(tmp_path / "few.csv")}
    config = tiny("recurrent")
    plain = train(config, run=tmp_path / "plain")
    config["data"] = config["data"] | {"dev_sets": sets}
    run = train(config, run=tmp_path / "run")
    shown = [entry for entry in run.journal if entry["event"] == "evaluation"]
    for before, entry in zip(plain.journal, shown, strict=False):
        assert entry["dev_loss"] == before["dev_loss"]
        assert entry["dev_few_loss"] == entry["dev_long_ones_loss"] != entry["dev_loss"]
        assert {"dev_few_bleu", "dev_few_chrf", "dev_few_perplexity"} <= set(entry)
    pairs = tmp_path / "fr", tmp_path / "en"
    for path, side in zip(pairs, zip(*few, strict=True), strict=True):
        path.write_text("".join(f"{line}\n" for line in side))
    best = max(shown, key=lambda one: one["dev_bleu"])
    if best is shown[-1]:  # the model is the one of the last evaluation, or an average that is better
        assert evaluate(run.model, *pairs)[0]["loss"] == pytest.approx(best["dev_few_loss"], rel=0.2)
    page = report(run.path)
    assert "BLEU, few" in page
    (tmp_path / "few.csv").write_text("\n")
    with pytest.raises(regard.ConfigError, match=r"data\.dev_sets\.few: the model takes none"):
        train(config, run=tmp_path / "other")


def test_a_tokenizer_can_be_given(
    data_folder: Path, tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    (tmp_path / "other.tsv").write_text("".join(f"a {n}\tb {n}\n" for n in range(30)))
    data = {"train": str(tmp_path / "other.tsv"), "dev_share": 0.1}
    config = tiny("recurrent") | {"data": data, "tokenizer_from": str(tiny_run)}
    run = train(config, run=tmp_path / "run")
    assert (run.path / "tokenizer.json").read_bytes() == (tiny_run / "tokenizer.json").read_bytes()
    with pytest.raises(regard.ConfigError, match=r"has tokenizer\.vocabulary = 80 and the config has 90: write the"):
        train(config | {"tokenizer": {"vocabulary": 90}}, run=tmp_path / "other")
    with pytest.raises(regard.ConfigError, match=r"tokenizer_from: a run that starts from a model takes its tokenizer"):
        train(config | {"start": str(tiny_run)}, run=tmp_path / "other")


def test_bpe_dropout_changes_training_and_resumes(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    runs = [train(tiny("recurrent", bpe_dropout=share), run=tmp_path / f"{share}") for share in (0.0, 0.2)]
    again = train(tiny("recurrent", bpe_dropout=0.2), run=tmp_path / "again")
    losses = [[entry["train_loss"] for entry in run.journal if "train_loss" in entry] for run in (*runs, again)]
    assert losses[0] != losses[1] == losses[2]
    with pytest.raises(regard.ConfigError, match=r"training\.bpe_dropout needs task = \"translate\" and tokenizer"):
        train(tiny("recurrent", bpe_dropout=0.2) | {"tokenizer": {"kind": "words"}}, run=tmp_path / "words")


@pytest.mark.parametrize(
    "names", [("config.toml", "journal.jsonl", "data.sha256", "best-model.safetensors"), ("last",)]
)
def test_a_folder_of_others_is_refused(names: tuple[str, ...], data_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    for name in names:
        (tmp_path / name).write_text("mine") if "." in name else (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="not made by regard"):
        experiment.train(tiny("transformer"), run=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_what_is_no_checkpoint_of_the_run_is_one_sentence(
    tiny_run: Path, tmp_path: Path, data_folder, monkeypatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    run = shutil.copytree(tiny_run, tmp_path / "run")
    config = read_config(run / "config.toml")
    last, best = run / "last.safetensors", next(run.glob("best-*.safetensors"))
    tensors, state = load_checkpoint(last)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # the file is mapped, and replaced below
    resumed = partial(experiment.train, run / "config.toml", {"training.max_steps": 30}, run=run, resume=True)
    shutil.copy(best, last)
    with pytest.raises(BundleError, match="weights alone, and not all that a resumed run needs"):
        resumed()
    save_checkpoint(last, tensors, state | {"of_tomorrow": 1})
    with pytest.raises(BundleError, match=r"not written by this version of regard: .*of_tomorrow"):
        resumed()
    weights = {name: tensor[:1].clone() for name, tensor in load_checkpoint(best)[0].items()}
    save_checkpoint(best, weights, {"step": 1})
    with pytest.raises(BundleError, match=r"its best-\*\.safetensors are of another model"):
        average_run(run, tmp_path / "mean")
    assert config.training.max_steps == state["step"]


def test_a_run_without_time_for_an_evaluation_has_not_diverged(data_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    config, settings = tiny("transformer"), {"training.evaluate_every": 100, "training.max_steps": 200}

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        experiment.train(config, settings, run=tmp_path / "run", report=stop)
    with pytest.raises(ConfigError, match=r"ended at step \d before its first evaluation: give it more time"):
        experiment.train(config, settings | {"training.max_minutes": 1e-6}, run=tmp_path / "run", resume=True)


class Runs:
    """Pickled, it runs a command where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_sharded_checkpoint_runs_no_code_and_is_refused_where_it_is_damaged(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    sharded, run = {"training.parallel": "fsdp", "training.max_steps": 2}, tmp_path / "run"
    experiment.train(tiny("transformer"), sharded, run=run)
    last = run / "last"
    kept = {path: path.read_bytes() for path in last.iterdir()}

    def resumed() -> None:
        experiment.train(tiny("transformer"), sharded | {"training.max_steps": 3}, run=run, resume=True)

    (last / ".metadata").write_bytes(pickle.dumps(Runs(tmp_path / "pwned")))
    with pytest.raises(BundleError, match=r"\.metadata: not a description of a checkpoint \(it names posix\.mkdir\)"):
        resumed()
    short = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (
        "torch.distributed.checkpoint.metadata", "os.mkdir", str(tmp_path / "pwned"),
    )]  # fmt: skip
    (last / ".metadata").write_bytes(b"\x80\x04" + short[0] + short[1] + b"\x93" + short[2] + b"\x85R.")
    with pytest.raises(BundleError, match=r"it names torch\.distributed\.checkpoint\.metadata\.os\.mkdir"):
        resumed()
    assert not (tmp_path / "pwned").exists()
    (last / ".metadata").write_bytes(kept[last / ".metadata"])
    (last / "__0_0.distcp").unlink()
    os.mkfifo(last / "__0_0.distcp")
    with pytest.raises(BundleError, match=r"__0_0\.distcp: expected a regular file; got a pipe"):
        resumed()
    (last / "__0_0.distcp").unlink()
    (last / "__0_0.distcp").write_bytes(kept[last / "__0_0.distcp"])
    (tmp_path / "outside.distcp").write_bytes(kept[last / "__0_0.distcp"])
    for name in (tmp_path / "outside.distcp", "../outside.distcp", "missing.distcp"):
        described = pickle.loads(kept[last / ".metadata"])
        for one in described.storage_data.values():
            one.relative_path = str(name)
        (last / ".metadata").write_bytes(pickle.dumps(described))
        with pytest.raises(BundleError, match="which is no file of"):
            resumed()
    for name, content in (
        ("progress.json", b"{}"), ("progress.json", b"[1]"), ("progress.json", b'{"step": "x"}'),
        (".metadata", kept[last / ".metadata"][:300]), ("__0_0.distcp", kept[last / "__0_0.distcp"][:3000]),
    ):  # fmt: skip
        for path, before in kept.items():
            path.write_bytes(content if path.name == name else before)
        with pytest.raises(BundleError, match=r"use an earlier checkpoint|not of this version"):
            resumed()
    for path, before in kept.items():
        path.write_bytes(before)
    resumed()


def test_a_checkpoint_without_what_a_resumed_run_needs_is_one_sentence(
    tiny_run: Path, tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    run = shutil.copytree(tiny_run, tmp_path / "run")
    tensors, state = load_checkpoint(run / "last.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("random")}
    for own, note in ((without, state), (tensors, {})):
        save_checkpoint(run / "last.safetensors", own, note)
        with pytest.raises(BundleError, match=r"not a checkpoint of this run|damaged|not written by"):
            experiment.train(run / "config.toml", {"training.max_steps": 30}, run=run, resume=True)


def test_an_evaluation_does_not_replace_the_data_of_its_run(
    tmp_path: Path, tiny_run: Path, data_folder, monkeypatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    files = data_files(tiny_run)
    assert files
    assert all(path.is_file() for path in files)
    with pytest.raises(ConfigError, match=r"this is one of the inputs|this is no text"):
        check_output(files[0], data_files(tiny_run))


def test_a_sharded_checkpoint_that_does_not_fit_on_the_disk_is_one_sentence(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.checkpoint import FileSystemWriter

    monkeypatch.setenv("REGARD_DATA", str(data_folder))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    with pytest.raises(BundleError, match=r"last: could not be written: .*No space left on device"):
        experiment.train(
            tiny("transformer"), {"training.parallel": "fsdp", "training.max_steps": 2}, run=tmp_path / "run"
        )


def test_files_that_links_in_a_run_lead_to_stay_as_they_were(
    tiny_run: Path, tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    run = shutil.copytree(tiny_run, tmp_path / "run")
    precious = tmp_path / "thesis.txt"
    precious.write_text("kept\n")
    for name in ("machine.json", "data.sha256"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(precious)
    more = {"training.max_steps": experiment.read_config(run / "config.toml").training.max_steps + 1}
    with suppress(ConfigError):  # of data.sha256
        experiment.train(run / "config.toml", more, run=run, resume=True)
    (run / "data.sha256").unlink()
    steps = sorted((run / "attention").iterdir())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"{more['training.max_steps']:07d}.json").write_text("kept\n")
    if steps:
        shutil.rmtree(run / "attention")
        (run / "attention").symlink_to(tmp_path / "elsewhere")
    experiment.train(run / "config.toml", more, run=run, resume=True)
    assert [one.read_text() for one in (tmp_path / "elsewhere").iterdir()] == ["kept\n"]
    assert not (run / "machine.json").is_symlink()
    (run / "journal.jsonl").rename(tmp_path / "journal.jsonl")
    (run / "journal.jsonl").symlink_to(precious)
    with pytest.raises(ConfigError, match=r"journal\.jsonl: a link, and a journal is appended to"):
        Journal(run / "journal.jsonl").write({"event": "x"})
    assert precious.read_text() == "kept\n"


def test_a_resume_that_is_refused_changes_nothing(
    tiny_run: Path, tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in (run / "config.toml", run / "journal.jsonl", run / "data.sha256")}
    steps = experiment.read_config(run / "config.toml").training.max_steps
    monkeypatch.setattr("regard.experiment._digest", lambda _: "other")
    with pytest.raises(ConfigError, match="data"):
        experiment.train(run / "config.toml", {"training.max_steps": steps + 1}, run=run, resume=True)
    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.undo()
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    experiment.train(run / "config.toml", {"training.max_steps": steps + 1}, run=run, resume=True)
    assert experiment.read_config(run / "config.toml").training.max_steps == steps + 1
    events = [one for one in Journal(run / "journal.jsonl").entries() if one["event"] == "changed"]
    assert [one["settings"] for one in events] == [{"training.max_steps": steps + 1}]


def test_the_config_of_a_sharded_run_is_continued_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine" / "last").mkdir(parents=True)
    (tmp_path / "mine" / "last" / "progress.json").write_text("{}")
    assert experiment.default_folder(tmp_path / "mine" / "config.toml") == tmp_path / "mine"


def test_a_training_has_gradients_in_every_block(tmp_path: Path, data_folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    more = {"training.max_steps": 2, "training.evaluate_every": 2}
    want = experiment.train(tiny("transformer"), more, run=tmp_path / "plain").journal[-1]["dev_loss"]
    blocks = torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)
    for number, block in enumerate(blocks):
        with block:
            run = experiment.train(tiny("transformer"), more, run=tmp_path / str(number))
        assert run.journal[-1]["dev_loss"] == want
