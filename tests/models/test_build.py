"""From numbers to a model."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

import regard
from regard.models.build import ModelConfig, build
from regard.models.recurrent import Recurrent, RecurrentConfig
from regard.models.transformer import Transformer, TransformerConfig

SMALL = [
    (RecurrentConfig(kind="recurrent", width=6, embedding=7, score_width=5), Recurrent),
    (
        TransformerConfig(kind="transformer", width=6, encoder_layers=1, decoder_layers=1, heads=3, ffn_width=7),
        Transformer,
    ),
]


@pytest.mark.parametrize(("config", "kind"), SMALL)
def test_the_kind_decides(config, kind: type) -> None:
    model = build(11, config)
    assert type(model) is kind
    assert model.config is config
    assert model.readout()[0].shape[0] == 11


@pytest.mark.parametrize(("config", "kind"), SMALL)
def test_the_same_seed_builds_the_same_model(config, kind: type) -> None:
    models = []
    for seed in (3, 3, 5):
        torch.manual_seed(seed)
        models.append(torch.cat([p.detach().flatten() for p in build(11, config).parameters()]))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


@pytest.mark.parametrize(("config", "kind"), SMALL)
def test_a_config_survives_being_written(config, kind: type) -> None:
    assert TypeAdapter(ModelConfig).validate_json(config.model_dump_json()) == config


def test_an_unknown_kind() -> None:
    with pytest.raises(ValidationError, match="'recurrent', 'transformer'"):
        TypeAdapter(ModelConfig).validate_python({"kind": "convolutional"})


GRID = {"kind": "grid", "size": 12, "first": 8, "channels": [8], "width": 8}
RECURRENT = {"kind": "recurrent", "width": 8, "embedding": 6, "score_width": 4}
DECODER = {"kind": "decoder", "width": 8, "heads": 2, "ffn_width": 8, "layers": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RECURRENT | {"width": 1}, r'model\.width = 1 must be at least 2: model\.direction = "both" gives each'),
        (RECURRENT | {"width": 1, "cell": "lstm"}, r"model\.width = 1 must be"),
        *((RECURRENT | {"width": 7, "score": score}, rf"model\.score = '{score}' needs .* model\.width = 7; .* width 6")
          for score in ("dot", "scaled_dot", "cosine", "distance")),
        (RECURRENT | {"score": "dot", "source_encoder": GRID | {"width": 16}}, "model.score = 'dot' needs .* width 16"),
        (RECURRENT | {"source_encoder": GRID | {"width": 12}}, 'norm = "group" needs .* multiples of 8; got 12'),
        (RECURRENT | {"source_encoder": GRID | {"channels": [9]}}, "multiples of 8; got 9"),
        (RECURRENT | {"source_encoder": GRID | {"channels": [0]}}, r"channels\.0"),
        (RECURRENT | {"source_encoder": GRID | {"channels": [-8]}}, r"channels\.0"),
        (RECURRENT | {"source_encoder": {"kind": "pyramid", "bands": 7, "layers": 2, "width": 7}}, "multiple of 2"),
        (RECURRENT | {"source_encoder": {"kind": "pyramid", "bands": 7, "layers": 1, "width": 1}}, "multiple of 2"),
        (DECODER | {"positions": "rotary", "rotary_width": 6}, "rotary positions turn 6 .* a head is 4 wide"),
        (DECODER | {"window": 3, "window_layers": [-1]}, r"window_layers\.0"),
        (DECODER | {"window_layers": [0]}, r"window_layers = \[0\] needs model\.window"),
    ],
)  # fmt: skip
def test_sizes_that_no_model_can_have_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((regard.RegardError, ValidationError), match=message):
        build(21, TypeAdapter(ModelConfig).validate_python(settings))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_smallest_sizes_that_make_sense_work(direction: str) -> None:
    config = RECURRENT | {"width": 1, "embedding": 1, "score_width": 1, "direction": direction}
    model = build(5, TypeAdapter(ModelConfig).validate_python(config))
    assert model(torch.tensor([[4, 4]]), torch.tensor([[1]])).shape == (1, 1, 5)
