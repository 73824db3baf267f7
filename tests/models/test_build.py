"""From numbers to a model."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

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
