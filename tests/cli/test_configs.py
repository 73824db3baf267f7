"""The verbs that list what ships: configs and samples."""

import tomllib
from pathlib import Path

import pytest

from regard import cli
from regard.config import CONFIG_FOLDER, config_names


def test_configs_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == config_names()
    assert all(len(line.split()) > 3 and len(line) <= 80 for line in lines)
    languages = {"fr": "French", "en": "English", "de": "German"}
    begins = {
        "caption": "Captions for",
        "transcribe": "Speech to text",
        "answer": "Questions about",
        "complete": "Character language model",
        "fill": "Masked language model",
    }
    for name, line in zip(config_names(), lines, strict=True):  # each says first what it trains
        config = tomllib.loads((CONFIG_FOLDER / f"{name}.toml").read_text("utf-8"))
        task = config.get("task", "translate")
        pair = " to ".join(languages.get(code, code) for code in config["languages"]) if task == "translate" else ""
        assert line.removeprefix(name).strip().startswith(pair or begins[task]), line
    assert cli.run(["configs", "first"]) == 0
    assert capsys.readouterr().out == (CONFIG_FOLDER / "first.toml").read_text("utf-8")
    assert cli.run(["configs", "frist"]) == 2
    assert "'first'" in capsys.readouterr().err


def test_samples_are_written_and_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["samples"]) == 0
    written = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert written == {path.name for path in (tmp_path / "samples").iterdir()}
    assert {"picture.png", "recording.flac", "pairs.fr-en.tsv", "sentences.txt"} <= written
    assert cli.run(["samples"]) == 0  # the same ones
    capsys.readouterr()
    (tmp_path / "samples" / "terms.tsv").write_text("mine")
    assert cli.run(["samples"]) == 1
    assert "samples/terms.tsv: is there, with another content: left as it is" in capsys.readouterr().err
    assert (tmp_path / "samples" / "terms.tsv").read_text() == "mine"
    assert cli.run(["samples", "samples/terms.tsv"]) == 2
    assert "samples/terms.tsv: a file; name a folder for the samples" in capsys.readouterr().err


def test_the_first_config_reads_the_samples() -> None:
    config = tomllib.loads((CONFIG_FOLDER / "first.toml").read_text("utf-8"))
    assert config["data"]["train"] == "samples/pairs.fr-en.tsv"
