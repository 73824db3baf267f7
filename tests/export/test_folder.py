"""A model as a folder: only an empty one is written to."""

from pathlib import Path

import pytest
import torch
import transformers

import regard
from regard.export.folder import check_empty, export_bundle


def test_only_an_empty_folder_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_empty(tmp_path / "empty")
    check_empty(tmp_path / "missing")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(regard.ConfigError, match="file is a file: choose a folder"):
        check_empty(tmp_path / "file")
    with pytest.raises(regard.ConfigError, match="is not empty: choose another folder"):
        check_empty(tmp_path)


def test_both_layouts_give_the_same_model(tmp_path: Path) -> None:
    model = regard.load("shakespeare")
    export_bundle(model.bundle, tmp_path / "regard", "float32")
    export_bundle(model, tmp_path / "hf", "float32", "hf")
    tokens = torch.tensor([[5, 9, 11, 7]])
    with torch.inference_mode():
        expected = model.model(tokens)
        for name in ("regard", "hf"):
            torch.testing.assert_close(regard.load(tmp_path / name).model(tokens), expected, rtol=1e-5, atol=1e-5)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
        torch.testing.assert_close(theirs(tokens).logits, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(regard.ChoiceError, match="unknown layout 'hg': expected one of 'hf'"):
        export_bundle(model, tmp_path / "other", "float32", "hg")
