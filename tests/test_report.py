"""A run's page: everything that its folder holds, in one file that asks for nothing else."""

import json
import re
import shutil
from pathlib import Path

import pytest

from conftest import tiny
from regard import experiment
from regard.errors import BundleError
from regard.report import report
from regard.training.journal import Journal


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run, tmp_path / "my <run>")
    return tmp_path / "my <run>"


def test_a_page_tells_of_a_run(run: Path) -> None:
    page = report(run)
    assert "<h1>my &lt;run&gt;</h1>" in page
    assert "6 updates in 0:00:" in page
    last = Journal(run / "journal.jsonl").entries()[-1]
    assert f"{last['dev_bleu']:.2f}" in page
    for title in ("Result", "Curves", "Samples", "Attention as it formed", "Machine", "Settings"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("<svg") == 3  # curves, two watched sentences
    assert not re.search(r"https?://(?!www\.w3\.org|purl\.org|creativecommons\.org)", page)  # namespaces alone
    assert not re.search(r"<(script|link|img|iframe)\b|url\(", page.replace("url(#", ""))
    for name in ("processor", "torch", "threads of a process"):
        assert f"<th>{name}</th>" in page


def test_the_attention_of_watched_sentences_is_kept_and_measured(run: Path) -> None:
    kept = sorted((run / "attention").glob("*.json"))
    assert [path.stem for path in kept] == ["0000003", "0000006"]
    for path in kept:
        for sentence in json.loads(path.read_text("utf-8"))["sentences"]:
            assert len(sentence["weights"]) == len(sentence["target"])
            for row in sentence["weights"]:
                assert len(row) == len(sentence["source"])
                assert sum(row) == pytest.approx(1, abs=0.02)
    for entry in Journal(run / "journal.jsonl").entries():
        if entry["event"] == "evaluation":
            assert 0 < entry["dev_attention_entropy"] < 6
            assert 0 <= entry["dev_attention_coverage"] <= 100


def test_a_run_in_progress_and_one_without_watched_sentences(run: Path) -> None:
    for name in ("attention", "samples.json", "machine.json"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    journal = run / "journal.jsonl"
    journal.write_text("".join(line + "\n" for line in journal.read_text().splitlines() if "average" not in line))
    page = report(run)
    assert page.count("<svg") == 1
    assert "Samples" not in page


@pytest.mark.parametrize("missing", ["journal.jsonl", "config.toml"])
def test_what_is_no_run_is_refused(run: Path, missing: str) -> None:
    (run / missing).unlink()
    with pytest.raises(BundleError, match="no run with an evaluation in it"):
        report(run)


def test_the_command_writes_the_page_beside_the_run(run: Path, talk) -> None:
    code, out, _ = talk("report", run)
    assert (code, out.strip()) == (0, str(run / "report.html"))
    assert (run / "report.html").read_text("utf-8").startswith("<!doctype html>")


def test_no_sentence_is_watched_where_none_is_wanted(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_DATA", str(data_folder))
    done = experiment.train(tiny("transformer"), {"watched_sentences": 0}, run=tmp_path / "run")
    assert not (tmp_path / "run" / "attention").exists()
    assert "dev_attention_entropy" not in done.journal[0]


def test_a_page_of_long_maps_of_many_sentences_and_evaluations_is_bounded(run: Path) -> None:
    journal, (kept, *_) = run / "journal.jsonl", sorted((run / "attention").glob("*.json"), reverse=True)
    of = json.loads(kept.read_text("utf-8"))
    long = {"source": ["s"] * 300, "target": ["t"] * 300, "weights": [[1 / 300] * 300] * 300}
    kept.write_text(json.dumps(of | {"sentences": [long] + of["sentences"][:1] * 40}), "utf-8")
    for other in (run / "attention").glob("*.json"):
        if other != kept:
            other.unlink()
    (evaluation, *_) = [line for line in journal.read_text().splitlines() if '"evaluation"' in line]
    entries = [json.loads(evaluation) | {"step": n} for n in range(3000)]
    skipped = [{"event": "skipped", "step": n, "loss": 1.0, "gradient_norm": 2.0} for n in range(500)]
    journal.write_text("".join(json.dumps(one) + "\n" for one in entries + skipped))
    page = report(run)
    assert page.count("<svg") == 21
    assert "21 more sentences are in the run's folder attention." in page
    assert "300 more events are in journal.jsonl" in page
    assert len(page) < 2_000_000


@pytest.mark.parametrize("step", [1e308, -1, 2**60])
def test_an_update_that_no_run_has_is_refused(run: Path, step: float) -> None:
    journal = run / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps(one | {"step": step}) + "\n" for one in lines))
    with pytest.raises(BundleError, match=r"journal\.jsonl: damaged: .*the number of an update is beyond all"):
        report(run)


@pytest.mark.parametrize(("metric", "kept"), [("bleu", 100), ("chrf", 200), ("loss", 200)])
def test_the_model_that_is_kept_is_chosen_by_the_runs_metric(run: Path, metric: str, kept: int) -> None:
    config = run / "config.toml"
    config.write_text(re.sub(r'^metric = "\w+"', f'metric = "{metric}"', config.read_text(), flags=re.MULTILINE))
    assert f'metric = "{metric}"' in config.read_text()
    entry = next(one for one in Journal(run / "journal.jsonl").entries() if one["event"] == "evaluation")
    found = [
        entry | {"step": step, "dev_bleu": bleu, "dev_chrf": chrf, "dev_loss": loss}
        for step, bleu, chrf, loss in ((100, 30.0, 40.0, 2.0), (200, 29.0, 50.0, 1.0))
    ]
    (run / "journal.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    assert f"kept: update {kept}" in report(run)
