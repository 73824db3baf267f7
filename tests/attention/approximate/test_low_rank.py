"""Linformer against its equation, and what it must refuse."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import regard

B, H, T, S, D, D_V, RANK, LENGTH = 2, 3, 5, 11, 7, 4, 6, 13


def tensors(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(B, H, n, d, dtype=dtype, generator=draw) for n, d in ((T, D), (S, D), (S, D_V))]


def layer() -> regard.LowRank:
    torch.manual_seed(1)
    return regard.LowRank(LENGTH, RANK).double()


def by_hand(low: regard.LowRank, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output and map by the equation."""
    n = key.shape[-2]
    e, f = low.of_keys[:, :n], low.of_values[:, :n]
    weights = torch.softmax(query @ (e @ key).mT / D**0.5, -1)
    return weights @ (f @ value), weights @ f


def test_equals_the_equation_and_so_does_its_map() -> None:
    query, key, value = tensors()
    low = layer()
    output, weights = by_hand(low, query, key, value)
    torch.testing.assert_close(low(query, key, value), output)
    seen = low.attention_map(query, key)
    torch.testing.assert_close(seen.full(), weights)
    assert seen.shape == (B, H, T, S)
    torch.testing.assert_close(seen.full() @ value, output)


def test_the_map_answers_for_everything_but_entropy() -> None:
    query, key, _ = tensors()
    low = layer()
    weights = by_hand(low, query, key, key)[1]
    seen = low.attention_map(query, key)
    torch.testing.assert_close(seen.received(), weights.sum(-2))
    torch.testing.assert_close(seen.pool(2, 3, "sum").sum((-1, -2)), weights.sum((-1, -2)))
    assert torch.equal(seen.argmax(), weights.argmax(-1))
    torch.testing.assert_close(seen.select(1, 2).full(), weights[1, 2])
    torch.testing.assert_close(seen.top(2)[0], weights.topk(2).values)
    assert seen.summary().entropy.isnan().all()
    with pytest.raises(regard.ShapeError, match="this map has negative weights"):
        seen.entropy()


def test_padded_keys_reach_nobody() -> None:
    query, key, value = tensors()
    low = layer()
    mask = regard.padding(torch.tensor([S, 8]))
    want = low(query, key, value, mask)
    torch.testing.assert_close(want[1], by_hand(low, query[1], key[1, :, :8], value[1, :, :8])[0])
    key[1, :, 9], value[1, :, 10] = torch.nan, torch.inf
    torch.testing.assert_close(low(query, key, value, mask), want)
    assert not low.attention_map(query, key, mask).full()[1, ..., 8:].any()


@pytest.mark.parametrize("mask", [regard.causal(), regard.window(2), torch.ones(T, S, dtype=torch.bool).tril()])
def test_what_it_cannot_mask_it_refuses(mask: object) -> None:
    query, key, value = tensors()
    for door in (lambda: layer()(query, key, value, mask), lambda: layer().attention_map(query, key, mask)):
        with pytest.raises(regard.ChoiceError, match="it cannot keep a mask that differs among queries"):
            door()


def test_a_longer_sentence_is_refused() -> None:
    query, key, value = (torch.randn(14, 3, dtype=torch.float64) for _ in range(3))
    with pytest.raises(regard.ShapeError, match="key has 14 positions on axis -2 and this LowRank was made for 13"):
        layer()(query, key, value)
    with pytest.raises(regard.ShapeError, match="length and a rank of at least 1"):
        regard.LowRank(3, 0)


def test_both_mixtures_learn() -> None:
    low = layer()
    low(*tensors()).square().sum().backward()
    for mixture in (low.of_keys, low.of_values):
        assert mixture.grad[:, :S].abs().sum() > 0
        assert not mixture.grad[:, S:].any()


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low = layer()

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.low(query, key, value, regard.padding(torch.tensor([S, 8])))


def test_observe_sees_the_map_that_is_applied_and_changes_nothing() -> None:
    inputs, model = tensors(), Model()
    want = model(*inputs)
    with regard.observe(model) as seen:
        assert torch.equal(model(*inputs), want)
    (site,) = seen
    assert site == "low"
    (found,) = seen[site]
    assert found.shape == (B, H, T, S)
    torch.testing.assert_close(found.full() @ inputs[2], want)


def test_intervening_changes_the_weights_over_the_sentence() -> None:
    inputs, model = tensors(), Model()
    with regard.intervene(model, "low", lambda weights: weights * 2):
        got = model(*inputs)
    torch.testing.assert_close(got, 2 * model(*inputs))


def test_sizes_that_do_not_fit_are_refused() -> None:
    query, key, value = tensors()
    with pytest.raises(regard.ShapeError, match="key has 11 positions on axis -2 and value has 10"):
        layer()(query, key, value[..., :10, :])


def test_nothing_is_drawn_from_negative_weights() -> None:
    query, key, _ = tensors()
    with pytest.raises(regard.ShapeError, match="negative weights, as low-rank attention's has: nothing can be drawn"):
        layer().attention_map(query, key).sample()


@pytest.mark.parametrize(("half", "near"), [(False, 1e-12), (True, 5e-3)])
def test_a_saved_map_is_the_same(half: bool, near: float, tmp_path: Path) -> None:
    query, key, _ = tensors()
    seen = layer().attention_map(query, key, regard.padding(torch.tensor([S, 8])))
    seen.key_tokens = [str(j) for j in range(S)]
    seen.save(tmp_path / "map.safetensors", half)
    got = regard.AttentionMap.load(tmp_path / "map.safetensors")
    torch.testing.assert_close(got.full(), seen.full().detach(), atol=near, rtol=0)
    assert got.key_tokens == seen.key_tokens
    with safe_open(str(tmp_path / "map.safetensors"), framework="pt") as file:
        assert set(file.keys()) == {"query", "key", "through"}


def test_no_query_under_a_mask_of_keys() -> None:
    query, key, value = tensors()
    mask = torch.ones(1, S, dtype=torch.bool)
    assert layer()(query[..., :0, :], key, value, mask).shape == (B, H, 0, D_V)
