"""`regard look`."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from shutil import copy
from urllib.request import urlopen

import pytest
import torch

import regard
from regard import cli
from regard.pipelines.checkpoints import checkpoints_of
from regard.training.checkpoint import load_checkpoint


def document(path: Path) -> dict:
    return json.loads(re.search(r'id="document">(.*?)</script>', path.read_text(encoding="utf-8"))[1])


def test_one_self_contained_file(tiny_run: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "page.html"
    assert cli.run(["look", str(tiny_run), "le chat noir", "--save", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(rf"regard: {re.escape(str(path))}: \d\.\d MB\n", said.err)
    run = document(path)["runs"][0]
    assert run["source"] == "le chat noir"
    assert run["text"] == regard.load(tiny_run)("le chat noir", beam=4).text
    text = re.sub(r"http://www\.w3\.org/", "", path.read_text(encoding="utf-8"))  # names of vocabularies
    assert not re.search(r"https?://|import\s*\(|src=\"", text)


@pytest.mark.parametrize("tiny_run", ["transformer"], indirect=True)
def test_several_inputs_and_models_are_runs(tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    arguments = ["look", str(tiny_run), "le chat", "le chien", "--against", str(tiny_run), "--save", str(path)]
    assert cli.run(arguments) == 0
    labels = [run["label"] for run in document(path)["runs"] if "of the beam" not in run["label"]]
    assert len(labels) == 4
    assert "“le chien”" in labels[-1]


def test_checkpoints_of_a_run_are_runs_of_the_page(tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert cli.run(["look", str(tiny_run), "le chat noir", "--checkpoints", "--save", str(path)]) == 0
    runs = document(path)["runs"]
    kept = {int(one.stem.removeprefix("best-")): one for one in tiny_run.glob("best-*.safetensors")}
    assert len(kept) > 1
    steps = {run["made"]["step"]: run for run in runs if "step" in run["made"]}
    assert list(steps) == sorted(kept)
    for step, run in steps.items():
        model = regard.load(tiny_run)
        model.model.load_state_dict(load_checkpoint(kept[step])[0])
        assert run["text"] == model("le chat noir", beam=4).text
        assert run["label"] == f"step {step}"
        assert not run["made"]["own"]


def test_a_name_that_no_folder_can_have() -> None:
    with pytest.raises(regard.DataError, match=r"^a{300}: "):
        checkpoints_of("a" * 300)


@pytest.mark.parametrize(
    ("name", "said"),
    [("fr-en", "fr-en is no run's folder: only a run has checkpoints, in best-*.safetensors"),
     ("RUN", "there is no best-*.safetensors")],
)  # fmt: skip
@pytest.mark.parametrize("tiny_run", ["transformer"], indirect=True)
def test_a_model_without_checkpoints_says_so(tiny_run: Path, tmp_path: Path, capsys, name: str, said: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for one in tiny_run.iterdir():
        if one.is_file() and not one.name.startswith("best-"):
            copy(one, folder)
    arguments = ["look", str(folder) if name == "RUN" else name, "le chat", "--checkpoints", "--save"]
    assert cli.run([*arguments, str(tmp_path / "page.html")]) in (1, 2)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("tiny_run", ["transformer"], indirect=True)
def test_an_atlas_is_measured_over_the_inputs(tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    inputs = ["le chat noir", "le chien"]
    assert cli.run(["look", str(tiny_run), *inputs, "--atlas", "--save", str(path)]) == 0
    found = document(path)
    atlas = found["atlas"]
    assert (atlas["texts"], atlas["own"]) == (2, True)
    heads = {one["site"]: one["how"]["heads"] for one in found["runs"][0]["maps"]}
    assert {site: len(row) for site, row in atlas["importance"].items()} == heads
    site = next(site for site in heads if site.endswith("cross"))
    model = regard.load(tiny_run)
    given = [model.forward_pass(text) for text in inputs]

    def log_prob() -> float:
        means = []
        for one in given:
            logs = one.logits()[0].log_softmax(-1)
            means.append(logs[torch.arange(len(one.predicted)), one.predicted].mean())
        return float(torch.stack(means).mean())

    def without(weights: torch.Tensor) -> torch.Tensor:
        kept = weights.clone()
        kept[..., 0, :, :] = 0
        return kept

    with torch.no_grad():
        before = log_prob()
        with regard.intervene(model.model, site, without):
            after = log_prob()
    assert atlas["importance"][site][0] == pytest.approx(before - after, abs=1e-5)


def test_an_atlas_needs_two_texts_or_samples(tmp_path: Path, capsys) -> None:
    arguments = ["look", "emoji", "nothing.png", "--atlas", "--save", str(tmp_path / "page.html")]
    assert cli.run(arguments) != 0
    assert not (tmp_path / "page.html").exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("tiny_run", ["transformer"], indirect=True)
@pytest.mark.parametrize("verb", ["look", "translate", "report"])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [("folder.html", "a folder; name a file in it"), ("none/page.html", "the folder {none} does not exist")],
)
def test_every_verb_that_writes_a_page_names_a_place_where_it_cannot(
    tiny_run: Path, tmp_path: Path, capsys, verb: str, name: str, sentence: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    path = tmp_path / name
    arguments = {
        "look": ["look", str(tiny_run), "le chat", "--save", str(path)],
        "translate": ["translate", "le chat", "--model", str(tiny_run), "--look", str(path)],
        "report": ["report", str(tiny_run), "--output", str(path)],
    }
    assert cli.run(arguments[verb]) in (1, 2)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"regard: {path}: {sentence.format(none=tmp_path / 'none')}\n"


@pytest.mark.parametrize("tiny_run", ["transformer"], indirect=True)
def test_a_task_verb_gives_the_page_too(tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    for _ in range(2):  # what regard has drawn, it may draw again
        assert cli.run(["translate", "le chat noir", "--model", str(tiny_run), "--look", str(path)]) == 0
    assert document(path)["runs"][0]["source"] == "le chat noir"


def test_a_file_of_the_user_is_not_replaced(tmp_path: Path, capsys) -> None:
    path = tmp_path / "mine.html"
    path.write_text("my own page", "utf-8")
    assert cli.run(["look", "fr-en", "le chat", "--save", str(path)]) == 2
    assert capsys.readouterr().err.endswith(
        "mine.html: this file exists and was not drawn by regard: give another name\n"
    )
    assert path.read_text("utf-8") == "my own page"


def test_a_saved_map(tmp_path: Path) -> None:
    seen = regard.attention_map(torch.randn(2, 3, 4), torch.randn(2, 5, 4), key_tokens=list("abcde"))
    seen.save(tmp_path / "map.safetensors")
    assert cli.run(["look", str(tmp_path / "map.safetensors"), "--save", str(tmp_path / "page.html")]) == 0
    (run,) = document(tmp_path / "page.html")["runs"]
    assert [*run["sequences"].values()] == [list("abcde")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fr-en"], 'regard look fr-en needs something to look at: regard look fr-en "le chat noir"'),
        (["fr-en", "a", "--save", "page.png"], "page.png: the page is an HTML file: end the name in .html"),
        (["nothing.safetensors"], "nothing.safetensors is not a saved attention map"),
        (["map.safetensors", "a"], "map.safetensors is a saved map: it has no model that could take 'a'"),
    ],
)
def test_refusals(arguments: list[str], sentence: str, capsys) -> None:
    assert cli.run(["look", *arguments]) in (1, 2)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("trap", ["", "trap '' INT; "], ids=["in the foreground", "in the background"])
def test_it_is_served_until_it_is_stopped(tmp_path: Path, trap: str) -> None:
    """A shell ignores SIGINT in what it starts in the background; a server stops nevertheless."""
    regard.attention_map(torch.randn(2, 3), torch.randn(5, 3), key_tokens=list("abcde")).save(
        tmp_path / "m.safetensors"
    )
    command = [sys.executable, "-m", "regard", "look", str(tmp_path / "m.safetensors"), "--no-browser"]
    command = ["sh", "-c", f'{trap}exec "$@"', "sh", *command]
    served = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = served.stderr.readline().split()[1]
        assert "is served" in served.stderr.readline()
        with urlopen(address, timeout=20) as answer:
            assert b'["a","b","c","d","e"]' in answer.read()
        served.send_signal(signal.SIGINT)
        served.communicate(timeout=20)
        assert served.returncode == 0
    finally:
        served.kill()
        served.communicate()
