"""What was written under the old names still loads: bundles, configs, `--set`, checkpoints of a run."""

import json
from pathlib import Path

import pytest
import torch

from conftest import tiny
from regard import experiment
from regard.bundle import INFO, current_weight, load_bundle, save_bundle
from regard.config import RENAMED, current_name, with_current_names
from regard.pipelines.load import SHIPPED

OLD = {"training.forget": 0.1, "training.guide": 0.2, "model.inner": 48, "model.inner_biases": False}


def test_most_shipped_bundles_are_of_format_1_and_hold_old_names() -> None:
    """So the other tests of shipped models are tests of the reader, of both formats."""
    infos = [json.loads(path.read_text("utf-8")) for path in SHIPPED.glob(f"*/{INFO}")]
    assert {info["format"] for info in infos} == {1, 2}
    infos = [info for info in infos if info["format"] == 1]
    assert len(infos) >= 4
    assert any("reads" in info["model"] for info in infos)
    assert any("aligned" in info["model"] for info in infos)
    assert any("inner" in info["model"] for info in infos)


@pytest.mark.parametrize("name", ["emoji", "spelling", "en-fr", "fr-en"])
def test_a_bundle_written_now_has_the_new_names_and_the_same_weights(name: str, tmp_path: Path) -> None:
    before = load_bundle(SHIPPED / name)
    save_bundle(tmp_path, before)
    info = json.loads((tmp_path / INFO).read_text("utf-8"))
    assert info["format"] == 2
    assert not {"reads", "aligned", "inner", "inner_biases"} & set(info["model"])
    after = load_bundle(tmp_path)
    assert after.model_config == before.model_config
    for key, weight in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[key], weight)


def test_a_config_of_old_names_says_what_they_are_called_now() -> None:
    with pytest.warns(UserWarning, match="is called") as warned:
        settings = experiment.read_config(tiny("transformer"), OLD)
    assert (settings.training.word_dropout, settings.training.guided_alignment) == (0.1, 0.2)
    assert (settings.model.ffn_width, settings.model.ffn_biases) == (48, False)
    said = [str(one.message) for one in warned]
    assert said == [f"{old} is called {RENAMED[old]} now" for old in OLD]


def test_names() -> None:
    assert current_name("model.reads.kind") == "model.source_encoder.kind"
    assert current_name("model.readsome") == "model.readsome"
    assert with_current_names({"model": {"width": 3}, "task": "fill"}) == ({"model": {"width": 3}, "task": "fill"}, {})
    assert current_weight("reads.stem.weight") == "source_encoder.stem.weight"
    assert current_weight("aligned.bias") == "ctc_head.bias"
    assert current_weight("encoder.layers.0.feed_forward.inner.weight") == "encoder.layers.0.feed_forward.inner.weight"
