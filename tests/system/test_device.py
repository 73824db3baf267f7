"""Every task on an accelerator: the same losses, answers and attention as on the CPU, resumed bit for bit.

The accelerator is the pretend one of `pretend_device`, which computes on the CPU and refuses what CUDA refuses.
"""

import copy
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import regard
from conftest import made_pairs
from made import made_glyphs, made_sounds
from pretend_device import NAME, no_sync, present, syncs
from regard import experiment
from regard.device import device_of
from regard.pipelines.load import load
from regard.tasks.table import evaluate
from regard.training.journal import Journal
from regard.training.loop import Interrupted

STEPS = 10
TRAINING = {
    "max_steps": STEPS, "evaluate_every": STEPS, "warmup": 2, "schedule": "cosine", "learning_rate": 0.01,
    "metric": "loss", "batch_tokens": 200, "precision": "float32",
}  # fmt: skip
TRANSFORMER = {
    "kind": "transformer", "width": 16, "heads": 2, "ffn_width": 24, "encoder_layers": 1, "decoder_layers": 2,
    "dropout": 0.0,
}  # fmt: skip
RECURRENT = {"kind": "recurrent", "width": 16, "embedding": 12, "score_width": 8, "dropout": 0.0}
ALONE = {"width": 16, "heads": 2, "ffn_width": 24, "layers": 2, "dropout": 0.0}
SHORT = {"decoding": {"length_ratio": 1.0, "length_extra": 2}, "describing": {"longest": 8}}  # outputs
GRID = {"kind": "grid", "size": 40, "first": 8, "channels": [16], "width": 16}


@pytest.fixture(scope="module", autouse=True)
def _present() -> Iterator[None]:
    with present():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, texts, pictures, sounds and questions."""
    folder = tmp_path_factory.mktemp("files")
    pairs = made_pairs()[::3]
    (folder / "pairs.tsv").write_text("".join(f"{french}\t{english}\n" for french, english in pairs))
    (folder / "text.txt").write_text("".join(f"{english}\n" for _, english in pairs))
    made_glyphs(folder / "glyphs")
    made_sounds(folder / "an4")
    (folder / "walls").mkdir()
    rows = [("image", "question", "answer")]
    for number in range(8):
        colour = ("red", "blue")[number % 2]
        Image.new("RGB", (40, 40), colour).save(folder / "walls" / f"{number}.png")
        rows.append((str(number), "what colour is it?", colour))
    with (folder / "asked.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def config(name: str, files: Path, **training: Any) -> dict[str, Any]:
    """The settings of one tiny run of a task."""
    pairs = {"data": {"train": str(files / "pairs.tsv"), "dev_share": 0.1}, "tokenizer": {"vocabulary": 80}}
    texts = {
        "task": name,
        "texts": {"train": str(files / "text.txt"), "length": 16} | ({"documents": "lines"} if name == "fill" else {}),
    }
    asked = {
        "task": "answer", "tokenizer": {"kind": "words", "vocabulary": 40},
        "questions": {
            "table": str(files / "asked.csv"), "files": str(files / "walls"), "file": "image", "ending": ".png",
            "dev_share": 0.2,
        },
    }  # fmt: skip
    one: dict[str, dict[str, Any]] = {
        "translate": {**pairs, "model": TRANSFORMER, "training": {"guided_alignment": 0.1}},
        "translate, recurrent": {**pairs, "model": RECURRENT, "training": {"word_dropout": 0.1}},
        "complete": {
            **texts, "tokenizer": {"kind": "characters"}, "model": {"kind": "decoder", **ALONE, "positions": "rotary"},
            "training": {"optimizer": "muon"},
        },
        "fill": {**texts, "tokenizer": {"kind": "words"}, "model": {"kind": "encoder", **ALONE}},
        "caption": {
            "task": "caption", "tokenizer": {"kind": "words", "vocabulary": 60},
            "scenes": {"pictures": str(files / "glyphs"), "size": 40, "scenes": 24, "dev_scenes": 6, "dev_share": 0.3},
            "model": {**RECURRENT, "source_encoder": GRID}, "training": {"coverage_loss": 0.5, "batch_tokens": 1600},
        },
        "transcribe": {
            "task": "transcribe", "tokenizer": {"kind": "characters", "vocabulary": 40},
            "files": {
                "layout": "an4", "files": str(files / "an4"), "group": "speaker", "dev_share": 0.3, "lower": True,
            },
            "model": {
                **TRANSFORMER, "ctc_head": True,
                "source_encoder": {"kind": "sound", "bands": 20, "channels": 4, "width": 16},
            },
            "training": {"ctc": 0.5, "ctc_halfway": 0.2, "batch_tokens": 400},
            "describing": {"ctc": 0.5, "longest": 8, "known_words": True},
        },
        "answer": {
            **asked,
            "model": {"kind": "stacked", "embedding": 12, "score_width": 8, "dropout": 0.0, "source_encoder": GRID},
        },
        "answer, transformer": {**asked, "model": {"kind": "questions", **ALONE, "source_encoder": GRID}},
    }  # fmt: skip
    found = one[name]
    return {"dev_sentences": 2, **SHORT, **found, "training": TRAINING | found.get("training", {}) | training}


NAMES = (
    "translate", "translate, recurrent", "complete", "fill", "caption", "transcribe", "answer", "answer, transformer",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A run and the losses of its updates."""

    path: Path
    losses: list[float]
    settings: dict[str, Any]


@pytest.fixture(scope="module")
def trained(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Trained]:
    """From a task and a device to its run, trained once."""
    known: dict[tuple[str, str], Trained] = {}

    def make(name: str, device: str) -> Trained:
        if (name, device) not in known:
            settings, losses = config(name, files, device=device), []
            path = tmp_path_factory.mktemp("runs") / "run"
            report = lambda event: losses.append(event["loss"]) if event["event"] == "step" else None  # noqa: E731
            run = experiment.train(settings, run=path, report=report)
            assert device_of(run.model.model).type == device
            known[name, device] = Trained(path, losses, settings)
        return known[name, device]

    return make


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", NAMES)
def test_ten_updates_have_the_losses_of_the_cpu(name: str, trained: Any) -> None:
    here, there = trained(name, "cpu"), trained(name, NAME)
    assert len(there.losses) == STEPS
    assert there.losses == pytest.approx(here.losses, rel=2e-4)
    found = [Journal(run.path / "journal.jsonl").entries() for run in (here, there)]
    ours, theirs = ([entry["dev_loss"] for entry in entries if "dev_loss" in entry] for entries in found)
    assert theirs == pytest.approx(ours, rel=1e-3)


def plain(value: Any) -> Any:
    """Results as JSON with rounded numbers."""
    if isinstance(value, float):
        return pytest.approx(value, abs=2e-4)
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def check_same(here: Any, there: Any) -> None:
    """Equal JSON, and equal maps at equal sites."""
    assert json.loads(json.dumps(there.as_json())) == plain(json.loads(json.dumps(here.as_json())))
    assert here.attention.keys() == there.attention.keys()
    for site, seen in here.attention.items():
        assert there.attention[site].full().device.type == NAME
        torch.testing.assert_close(torch.from_numpy(there.attention[site].numpy()), seen.full(), atol=1e-4, rtol=0)


def both(name: str, trained: Any) -> tuple[Any, Any]:
    """One trained model on the CPU and on the device."""
    path = trained(name, "cpu").path
    return load(path), load(path, device=NAME)


@pytest.mark.parametrize("name", ["translate", "translate, recurrent"])
def test_translations(name: str, trained: Any, tmp_path: Path) -> None:
    here, there = both(name, trained)
    texts = ["le chat noir", "", "Le chien rouge dort."]
    for beam, n_best in ((1, 1), (3, 2)):
        for ours, theirs in zip(
            here(texts, beam=beam, n_best=n_best), there(texts, beam=beam, n_best=n_best), strict=True
        ):
            check_same(ours, theirs)
    ours, theirs = here(texts[0]), there(texts[0])
    assert json.loads(json.dumps(theirs.trace.as_json())) == plain(json.loads(json.dumps(ours.trace.as_json())))
    theirs.alignment.plot(tmp_path / "alignment.png")
    theirs.trace.plot(tmp_path / "trace.png")
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("le chat noir\nle chien\n")
    target.write_text("the black cat\nthe dog\n")
    numbers = [evaluate(one, source, target, 2) for one in (here, there)]
    assert plain(numbers[0][0]) == numbers[1][0]
    assert numbers[0][1] == numbers[1][1]


def test_an_observed_translation(trained: Any) -> None:
    here, there = both("translate", trained)
    found = []
    for model in (here, there):
        with regard.observe(model) as seen:
            model("le chat noir", beam=2)
        found.append({site: torch.as_tensor(maps[0].numpy()) for site, maps in seen.items()})
    assert found[0].keys() == found[1].keys()
    for site, weights in found[0].items():
        torch.testing.assert_close(found[1][site], weights, atol=1e-4, rtol=0)


DRAWING = [
    {"seed": 7}, {"seed": 7, "top_k": 5, "temperature": 0.7}, {"seed": 3, "top_p": 0.8, "repetition": 1.3},
    {"seed": 3, "min_p": 0.1, "no_repeat": 2}, {"temperature": 0},
]  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("drawing", [*DRAWING, {"beam": 3, "n_best": 2}], ids=str)
def test_completions_are_drawn_as_on_the_cpu(drawing: dict[str, Any], trained: Any) -> None:
    here, there = both("complete", trained)
    texts = ["the cat", "the black dog", "t"]
    ours, theirs = (model(texts, length=9, **drawing) for model in (here, there))
    for one, other in zip(ours, theirs, strict=True):
        check_same(one, other)
    if "seed" in drawing:  # a sample depends on its own index alone
        assert there(texts[:2], length=9, **drawing)[1].ids == theirs[1].ids
        assert "".join(there.stream(texts[0], length=9, **drawing)) == theirs[0].text


def test_gaps_vectors_and_meanings(trained: Any, tmp_path: Path) -> None:
    here, there = both("fill", trained)
    for ours, theirs in zip(
        *(model(["the [MASK] cat", "the red [MASK]"], top=3) for model in (here, there)), strict=True
    ):
        check_same(ours, theirs)
    ours, theirs = here.embed("the black cat"), there.embed("the black cat")
    torch.testing.assert_close(theirs.layers, ours.layers, atol=1e-4, rtol=0)
    assert theirs.sentence.numpy().shape == (16,)
    texts = ["the black cat sleeps", "the red cat eats"]
    ours, theirs = here.meaning("cat", texts), there.meaning("cat", texts)
    assert plain(ours.moved_by[0][0].change) == theirs.moved_by[0][0].change
    assert [name for name, _ in ours.after[0]][:3] == [name for name, _ in theirs.after[0]][:3]
    theirs.plot(tmp_path / "meaning.png")
    completer = both("complete", trained)[1]
    assert completer.embed("the cat").layers.device.type == "cpu"


def test_captions(trained: Any, files: Path, tmp_path: Path) -> None:
    here, there = both("caption", trained)
    picture = Image.open(files / "glyphs" / "1F34E.png").convert("RGB")
    ours, theirs = (model([picture] * 2, beam=3, n_best=2)[1] for model in (here, there))
    check_same(ours, theirs)
    theirs.plot(tmp_path / "caption.png")


def test_transcripts_with_ctc_and_a_word_list(trained: Any, files: Path, tmp_path: Path) -> None:
    here, there = both("transcribe", trained)
    sound = next((files / "an4").rglob("*.flac"))
    ours, theirs = (model(sound, beam=3) for model in (here, there))
    check_same(ours, theirs)
    theirs.plot(tmp_path / "sound.png")
    table = tmp_path / "table.csv"
    table.write_text(f"file,text\n{sound},yes\n")
    numbers = [evaluate(one, table)[0] for one in (here, there)]
    assert plain(numbers[0]) == numbers[1]


@pytest.mark.parametrize("name", ["answer", "answer, transformer"])
def test_answers(name: str, trained: Any, files: Path, tmp_path: Path) -> None:
    here, there = both(name, trained)
    ours, theirs = (model(files / "walls" / "1.png", "what colour is it?") for model in (here, there))
    check_same(ours, theirs)
    theirs.plot(tmp_path / "answer.png")
    table = tmp_path / "asked.csv"
    table.write_text(f"file,question,answer\n{files / 'walls' / '1.png'},what colour is it?,blue\n")
    numbers = [evaluate(one, table)[0] for one in (here, there)]
    assert plain(numbers[0]) == numbers[1]


def test_a_model_may_be_moved_later(trained: Any) -> None:
    model = load(trained("translate", "cpu").path)
    before = model("le chat noir").as_json()
    model.model.to(NAME)
    assert model.device.type == NAME
    assert model("le chat noir").as_json() == plain(before)


# --- search and sampling: what the host must know comes in one transfer a step ---


@pytest.mark.parametrize("drawing", [{"beam": 3}, {"seed": 1, "top_k": 4, "top_p": 0.9}], ids=str)
def test_one_transfer_a_step(drawing: dict[str, Any], trained: Any) -> None:
    model = load(trained("complete", "cpu").path, device=NAME)
    counted = []
    for length in (4, 12):
        with syncs() as found:
            made = model(["the cat", "the dog"], length=length, record=False, **drawing)
        assert {len(one.ids) for one in made} == {length}
        counted.append(found.total())
    assert counted[1] - counted[0] == 12 - 4


def test_a_training_step_asks_for_no_value_in_its_forward_pass(trained: Any, files: Path) -> None:
    model = load(trained("complete", "cpu").path, device=NAME).model
    with no_sync():
        model(torch.tensor([[3, 4, 5]], device=NAME))


# --- runs: resumed, moved, averaged, saved ---


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["translate", "complete"])
def test_a_run_resumes_bit_for_bit(name: str, files: Path, tmp_path: Path) -> None:
    settings = config(name, files, device=NAME, max_steps=6, evaluate_every=3)
    settings["model"] = settings["model"] | {"dropout": 0.3}  # draws from the device's own random state
    whole = experiment.train(settings, run=tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 5:
            raise Stopped

    with pytest.raises(Stopped):
        experiment.train(settings, run=tmp_path / "again", report=stop)
    torch.manual_seed(99)
    again = experiment.train(settings, run=tmp_path / "again", resume=True)
    ours, theirs = whole.model.model.state_dict(), again.model.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [e["dev_loss"] for e in whole.journal] == [e["dev_loss"] for e in again.journal]


def test_a_run_moves_between_devices(files: Path, tmp_path: Path) -> None:
    """Begun on the device, interrupted, finished on the CPU; and the other way round."""
    few = {"max_steps": 6, "evaluate_every": 3}
    for first, second in ((NAME, "cpu"), ("cpu", NAME)):
        path = tmp_path / f"from {first}"

        def stop(event: dict[str, Any]) -> None:
            if event["event"] == "step" and event["step"] == 4:
                raise Interrupted

        with pytest.raises(Interrupted):
            experiment.train(config("translate", files, device=first, **few), run=path, report=stop)
        with safe_open(path / "last.safetensors", "pt") as file:
            assert (f"random.{NAME}" in file.keys()) == (first == NAME)  # noqa: SIM118 (not a dict)
        done = experiment.train(config("translate", files, device=second, **few), run=path, resume=True)
        assert device_of(done.model.model).type == second
        whole = [e["dev_loss"] for e in done.journal if e["event"] == "evaluation"]
        assert len(whole) == 2


def test_bundles_are_the_same_from_any_device(trained: Any, tmp_path: Path) -> None:
    there = load(trained("translate", "cpu").path, device=NAME)
    for precision in ("float32", "int8"):
        regard.experiment.export_bundle(there, tmp_path / precision, precision)
        again = load(tmp_path / precision)
        assert device_of(again.model).type == "cpu"
    here = load(trained("translate", "cpu").path)
    again = load(tmp_path / "float32")
    for name, tensor in here.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    assert again("le chat noir").text == here("le chat noir").text


def test_bfloat16_is_the_devices_own_precision(files: Path, tmp_path: Path) -> None:
    started: list[dict[str, Any]] = []
    settings = config("translate", files, device=NAME, precision="auto", max_steps=2, evaluate_every=2)
    experiment.train(settings, run=tmp_path / "run", report=started.append)
    assert (started[0]["device"], started[0]["precision"]) == (NAME, "bfloat16")
    settings = config("translate", files, precision="auto", max_steps=1, evaluate_every=1)
    experiment.train(settings, run=tmp_path / "other", report=started.append)
    assert [e["precision"] for e in started if e["event"] == "start"][1] == "float32"


# --- the command line ---


def test_the_command_line(trained: Any, talk: Any, files: Path, tmp_path: Path) -> None:
    path = trained("translate", "cpu").path
    here = talk("translate", "le chat noir", "--model", path, "--json")
    there = talk("translate", "le chat noir", "--model", path, "--json", "--device", NAME)
    assert there[0] == here[0] == 0
    assert json.loads(there[1]) == plain(json.loads(here[1]))
    assert talk("trace", path, "le chat", "--device", NAME)[0] == 0
    code, out, err = talk("translate", "le chat", "--model", path, "--device", "gpu")
    assert (code, out) == (2, "")
    assert err.startswith("regard: unknown device 'gpu': expected one of ")
    (tmp_path / "config.toml").write_text(experiment.to_toml(experiment.read_config(config("translate", files))))
    more = ["--set", "training.max_steps=1", "--set", "training.evaluate_every=1"]
    code, out, err = talk("train", tmp_path / "config.toml", "--folder", tmp_path / "run", "--device", NAME, *more)
    assert code == 0, err
    code, _, err = talk("train", tmp_path / "config.toml", "--folder", tmp_path / "other", "--device", "gpu")
    assert code == 2
    assert "training.device" in err
    assert "unknown device 'gpu'" in err
    code, _, err = talk("train", tmp_path / "config.toml", "--folder", tmp_path / "other", "--device", f"{NAME}:1")
    assert (code, err) == (
        2,
        f"regard: device '{NAME}:1': the last one here is '{NAME}:0': use that, or 'auto'\n",
    )
    assert not (tmp_path / "other").exists()


def test_hard_attention_trains_by_reinforce(files: Path, tmp_path: Path) -> None:
    settings = config("caption", files, device=NAME, hard="reinforce", coverage_loss=0.0, max_steps=2, evaluate_every=2)
    settings["model"] = settings["model"] | {"normalizer": "hard"}
    assert experiment.train(settings, run=tmp_path / "run").journal[-1]["step"] == 2


def test_every_verb_that_computes_has_a_device(talk: Any) -> None:
    for verb in (
        "translate", "complete", "fill", "meaning", "caption", "transcribe", "answer", "train", "evaluate", "trace",
        "why",
    ):  # fmt: skip
        assert "--device" in talk(verb, "--help")[1], verb


def test_dependence_is_that_of_the_cpu(trained: Any) -> None:
    from regard.analysis.dependence import dependence

    here = load(trained("fill", "cpu").path)
    found = []
    for module in (here.model, copy.deepcopy(here.model).to(NAME)):
        ids = torch.tensor([here.encode("the black cat")[0]], device=device_of(module))
        site = "encoder.layers.0.self"
        site = next(iter(_sites(module, ids)), site)
        one = dependence(module, site, lambda module=module, ids=ids: module(ids)[0, 1].log_softmax(-1)[5], draws=1)
        found.append(one)
    torch.testing.assert_close(found[1].zeroed.cpu(), found[0].zeroed, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found[1].gradient.cpu(), found[0].gradient, atol=1e-4, rtol=1e-3)
    assert found[1].agreement == pytest.approx(found[0].agreement, abs=0.2)


def _sites(module: Any, ids: torch.Tensor) -> list[str]:
    with regard.observe(module) as seen:
        module(ids)
    return list(seen)
