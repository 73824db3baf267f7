"""Saved maps of strangers: whatever is wrong in the file is one sentence when it is loaded, never later."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import regard
from regard.storage import write_tensors

T, S, D = 5, 7, 11


def changed(path: Path, tensors: dict[str, Tensor], **settings: object) -> Path:
    """A saved map with other tensors and settings and, as a stranger would write it, without a digest."""
    regard.attention_map(torch.randn(2, 3, T, D), torch.randn(2, 3, S, D), score=regard.Distance(2.0)).save(path)
    with safe_open(str(path), framework="pt") as file:
        note = json.loads(file.metadata()["map"]) | settings
        own = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118 (not a dict)
    del note["digest"]
    write_tensors(path, own, {"map": json.dumps(note)})
    return path


@pytest.mark.parametrize(
    ("settings", "tensors", "sentence"),
    [
        ({"dtype": "zeros"}, {}, "dtype should be one of float64, float32, bfloat16, float16; got 'zeros'"),
        ({"width": {"a": 1}}, {}, "width should be a positive number"),
        ({"width": float("nan")}, {}, "width should be a positive number"),
        ({"softcap": "bool", "score": "dot"}, {}, "softcap should be a positive number"),
        ({"key_tokens": 0}, {}, "key_tokens should be a list of strings or null; got 0"),
        ({"query_tokens": [None] * T}, {}, "query_tokens should be a list of strings"),
        ({"query_tokens": ["a"] * S}, {}, f"query_tokens: expected {T}, one for each place of axis -2; got {S}"),
        ({"key_tokens": ["a"] * T}, {}, f"key_tokens: expected {S}, one for each place of axis -1; got {T}"),
        ({"key_tokens": []}, {}, f"key_tokens: expected {S}"),
        ({"score": "other"}, {}, "knows no score 'other'"),
        ({"normalizer": "other"}, {}, "knows no normalizer 'other'"),
        ({}, {"mask": torch.ones(T, S)}, "mask should be torch.bool; got torch.float32"),
        ({}, {"bias": torch.zeros(T, S).to(torch.float8_e4m3fn)}, "bias should be"),
        ({}, {"weights": torch.ones(3)}, "weights should have at least 2 axes"),
        ({}, {"query": torch.ones(T, 2, 3, D)}, "axis"),
        ({}, {"bias.diagonals": torch.ones(3)}, "is not a saved attention map"),
        ({}, {"query": torch.ones(1, 3, 2**40, 0), "key": torch.ones(1, 3, S, 0)}, "in a file of"),
    ],
)
def test_a_stranger_s_map_is_refused_in_one_sentence(settings, tensors, sentence, tmp_path: Path) -> None:
    path = changed(tmp_path / "map.safetensors", tensors, **settings)
    with pytest.raises(regard.BundleError, match="is not a saved attention map: ") as caught:
        regard.AttentionMap.load(path)
    assert sentence in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_unchanged_map_is_read(tmp_path: Path) -> None:
    assert regard.AttentionMap.load(changed(tmp_path / "map.safetensors", {})).full().shape == (2, 3, T, S)


def test_nothing_is_drawn_from_weights_that_are_no_numbers(tmp_path: Path) -> None:
    found = regard.AttentionMap.load(
        changed(tmp_path / "map.safetensors", {"query": torch.full((2, 3, T, D), torch.nan)})
    )
    with pytest.raises(regard.ShapeError, match="weights that are infinite or NaN: nothing can be drawn from them"):
        found.sample()


@pytest.mark.parametrize("show", ["plot", "save", "look"])
def test_a_map_with_too_few_names_is_not_shown(show: str, tmp_path: Path) -> None:
    found = regard.AttentionMap.from_weights(torch.full((2, T, S), 1 / S))
    found.query_tokens = ["a"]
    suffix = {"plot": ".png", "save": ".safetensors", "look": ".html"}[show]
    with pytest.raises(regard.ShapeError, match=f"query_tokens: expected {T}, one for each place of axis -2; got 1"):
        getattr(found, show)(tmp_path / f"map{suffix}")
    assert not list(tmp_path.iterdir())
