"""Biases: added to scores before masking."""

import inspect

import pytest
import torch

import regard
from regard.attention.biases import Added, Bias, as_bias

SHAPE = (2, 3, 5, 7)


@pytest.mark.parametrize("shape", [SHAPE, (3, 5, 7), (5, 7), (3, 1, 7), (3, 5, 1), (7,), ()])
def test_a_tile_is_that_part_of_the_whole(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    rows, columns = torch.tensor([4, 0, 2]), torch.tensor([6, 1])
    tile = as_bias(tensor).tile(rows, columns, SHAPE)
    want = tensor.expand(SHAPE)[..., rows, :][..., columns]
    torch.testing.assert_close(tile.expand(want.shape), want, rtol=0, atol=0)


def test_gradients_reach_the_tensor() -> None:
    tensor = torch.zeros(3, 1, 7, requires_grad=True)
    as_bias(tensor).tile(torch.arange(5), torch.arange(7), SHAPE).sum().backward()
    torch.testing.assert_close(tensor.grad, torch.full((3, 1, 7), 5.0))


def test_as_bias_keeps_a_bias() -> None:
    bias = Added(torch.zeros(7))
    assert isinstance(bias, Bias)
    assert as_bias(bias) is bias


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_only_float_tensors_are_biases(dtype: torch.dtype) -> None:
    with pytest.raises(regard.ChoiceError, match=f"bias must be a float tensor; got {dtype}: .* goes to mask="):
        as_bias(torch.ones(5, 7, dtype=dtype))


def test_other_things_are_no_biases() -> None:
    with pytest.raises(regard.ChoiceError, match="bias must be a regard bias or a float tensor; got str"):
        inspect.unwrap(as_bias)("alibi")


def test_a_bias_must_broadcast() -> None:
    with pytest.raises(regard.ShapeError, match=r"bias has shape \[2, 5, 7\] and the scores have \[2, 3, 5, 7\]"):
        as_bias(torch.zeros(2, 5, 7)).tile(torch.arange(5), torch.arange(7), SHAPE)
