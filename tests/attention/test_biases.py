"""Biases: added to scores before masking."""

import inspect

import pytest
import torch

import regard
from regard.attention.biases import Added, Bias, Both, Diagonals, as_bias

SHAPE = (2, 3, 5, 7)


@pytest.mark.parametrize("shape", [SHAPE, (3, 5, 7), (5, 7), (3, 1, 7), (3, 5, 1), (7,), ()])
def test_a_tile_is_that_part_of_the_whole(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    rows, columns = torch.tensor([4, 0, 2]), torch.tensor([6, 1])
    tile = as_bias(tensor).tile(rows, columns, SHAPE)
    want = tensor.expand(SHAPE)[..., rows, :][..., columns]
    torch.testing.assert_close(tile.expand(want.shape), want, rtol=0, atol=0)


def diagonals_by_hand(values: torch.Tensor) -> torch.Tensor:
    """b_ij = d[j - i + T - 1], cell by cell."""
    t, s = SHAPE[-2:]
    table = torch.zeros(SHAPE)
    for i in range(t):
        for j in range(s):
            table[..., i, j] = values[..., j - i + t - 1]
    return table


@pytest.mark.parametrize("batch", [(), (3,), (2, 1), (2, 3)])
@pytest.mark.parametrize(("rows", "columns"), [([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]), ([4, 0], [6, 1, 3])])
def test_diagonals_depend_on_the_distance_alone(batch: tuple[int, ...], rows: list[int], columns: list[int]) -> None:
    values = torch.randn(*batch, 11)
    tile = Diagonals(values).tile(torch.tensor(rows), torch.tensor(columns), SHAPE)
    want = diagonals_by_hand(values)[..., rows, :][..., columns]
    assert torch.equal(tile.expand(want.shape), want)


def test_both_are_added() -> None:
    values, row = torch.randn(3, 11), torch.randn(7)
    rows, columns = torch.tensor([4, 0, 2]), torch.tensor([6, 1])
    both = Diagonals(values) + (Added(row) + Added(torch.tensor(0.5)))
    assert isinstance(both, Both)
    want = (diagonals_by_hand(values) + (row + 0.5))[..., rows, :][..., columns]
    torch.testing.assert_close(both.tile(rows, columns, SHAPE).expand(want.shape), want, rtol=0, atol=0)


def test_nothing_added_is_the_bias_itself() -> None:
    bias = Added(torch.zeros(7))
    assert bias + None is bias


@pytest.mark.parametrize("normalizer", ["softmax", "uniform"])
def test_attend_adds_every_kind_of_bias(normalizer: str) -> None:
    query, key, values, row = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(3, 11), torch.randn(7)
    got = regard.attend(query, key, key, bias=Diagonals(values) + Added(row), normalizer=normalizer)
    weights = (query @ key.mT / 2 + diagonals_by_hand(values) + row).softmax(-1)
    if normalizer == "uniform":
        weights = torch.full_like(weights, 1 / 7)
    torch.testing.assert_close(got, weights @ key)


LEARNED = {
    "added": lambda learned: Added(learned[:7]),
    "diagonals": Diagonals,
    "left": lambda learned: Added(learned[:7]) + Diagonals(torch.zeros(11)),
    "right": lambda learned: Added(torch.zeros(7)) + (Added(torch.zeros(7)) + Diagonals(learned)),
}


@pytest.mark.parametrize("name", LEARNED)
def test_attend_gives_a_learned_bias_its_gradient(name: str) -> None:
    query, key = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    learned = torch.randn(11, dtype=torch.float64, requires_grad=True)
    assert LEARNED[name](learned).is_learned()
    assert not LEARNED[name](learned.detach()).is_learned()
    assert torch.autograd.gradcheck(
        lambda q, k, b: regard.attend(q, k, k, bias=LEARNED[name](b)), (query, key, learned), fast_mode=True
    )
    assert regard.plan(query, key, key, bias=LEARNED[name](learned)).refused == {"fused": "the bias is learned"}
    assert regard.plan(query, key, key, bias=LEARNED[name](learned.detach())).kernel == "fused"


def test_a_bias_of_ones_own_is_not_learned_unless_it_says_so() -> None:
    assert not Bias().is_learned()


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


def test_a_part_of_a_learned_bias_is_learned() -> None:
    for learned in (False, True):
        bias = torch.zeros(2, 3, 5, 7, requires_grad=learned)
        seen = regard.attention_map(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), bias=bias).select(0)
        assert seen.source.spec.bias.is_learned() is learned
        assert seen.full().requires_grad is learned
