"""AttentionMap: exact answers on demand, against the whole matrix and plain Python."""

import copy
import inspect
import re
from functools import partial
from math import log, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import regard
from device import in_float64, leaf
from regard.attention.maps import map as map_module
from regard.attention.maps.map import AttentionMap, LazyMaps, know_origin
from regard.attention.maps.sources import GivenWeights
from regard.attention.normalizers import NAMED

B, H, T, S, D = 2, 3, 5, 7, 11


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(B, H, n, D, dtype=dtype, generator=draw) for n in (T, S))


def weights() -> Tensor:
    """Rows with a tie, a dead row, and rows that do not sum to one."""
    table = torch.rand(B, H, T, S, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    table[0, 1, 2] = 0
    table[1, 0, 3, 2:5] = 0.99
    return table


@pytest.fixture(params=["spec", "weights"])
def pair(request: pytest.FixtureRequest) -> tuple[AttentionMap, Tensor]:
    """A map of each backing, and its whole matrix by an independent way."""
    if request.param == "weights":
        return AttentionMap.from_weights(weights()), weights()
    query, key = inputs()
    mask = torch.rand(B, H, T, S, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[0, 1, 2] = False
    scores = (query @ key.mT / D**0.5).masked_fill(~mask, -torch.inf)
    return regard.attention_map(query, key, mask=mask), scores.softmax(-1).nan_to_num()


@pytest.fixture(params=[16 * 2**20, 1])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows at once, and one row at a time."""
    monkeypatch.setattr(map_module, "BLOCK", request.param)


def test_full_and_shape(pair) -> None:
    seen, want = pair
    assert seen.shape == want.shape == (B, H, T, S)
    torch.testing.assert_close(seen.full(), want)


@pytest.mark.parametrize("rows", [slice(1, 4), slice(None), torch.tensor([3, 0, 3]), [4], slice(4, None), [-1, 1]])
@pytest.mark.parametrize("columns", [slice(None, 6, 2), torch.tensor([6, 2]), [0], [-7, 5]])
def test_tile_is_that_part_of_the_whole(pair, rows, columns) -> None:
    seen, want = pair
    torch.testing.assert_close(seen.tile(rows, columns), want[..., rows, :][..., columns])


def test_an_empty_tile_is_empty(pair) -> None:
    assert pair[0].tile([], [1, 2]).shape == (B, H, 0, 2)
    assert pair[0].tile(slice(0, 3), []).shape == (B, H, 3, 0)


@pytest.mark.parametrize(("rows", "columns"), [([5], [0]), ([0], [7]), ([-6], [0]), ([0], [-8])])
def test_tile_refuses_what_lies_outside(pair, rows: list[int], columns: list[int]) -> None:
    with pytest.raises(regard.ShapeError, match=r"tile: index \[.*\] goes outside an axis of [57]"):
        pair[0].tile(rows, columns)


@pytest.mark.parametrize("j", [0, 3, 6, -1])
def test_column(pair, block: None, j: int) -> None:
    seen, want = pair
    torch.testing.assert_close(seen.column(j), want[..., j])


def test_column_refuses_what_lies_outside(pair) -> None:
    with pytest.raises(regard.ShapeError, match=r"tile: index \[7\] goes outside an axis of 7"):
        pair[0].column(7)


REDUCE = {"max": max, "sum": sum, "mean": lambda cell: sum(cell) / len(cell)}


@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (5, 7), (3, 2), (11, 13)])
def test_pool_cells(pair, reduce: str, rows: int, columns: int) -> None:
    seen, want = pair
    height, width = -(-T // rows), -(-S // columns)
    got = seen.pool(rows, columns, reduce)
    assert got.shape == (B, H, -(-T // height), -(-S // width))
    for a, top in enumerate(range(0, T, height)):
        for b, left in enumerate(range(0, S, width)):
            cell = want[1, 2, top : top + height, left : left + width].flatten().tolist()
            assert float(got[1, 2, a, b]) == pytest.approx(REDUCE[reduce](cell))


def test_pool_takes_the_maximum_unless_told() -> None:
    seen = AttentionMap.from_weights(weights())
    assert torch.equal(seen.pool(2, 3), seen.pool(2, 3, "max"))


def test_pool_refuses() -> None:
    seen = AttentionMap.from_weights(weights())
    with pytest.raises(regard.ChoiceError, match="unknown reduce 'median': expected one of 'm"):
        seen.pool(1, 1, "median")
    for rows, columns in ((0, 1), (1, -2)):
        with pytest.raises(regard.ShapeError, match=f"pool needs at least 1 × 1 cells; got {rows} × {columns}"):
            seen.pool(rows, columns)


def top_by_hand(row: list[float], k: int) -> list[tuple[float, int]]:
    ranked = sorted((-w, j) for j, w in enumerate(row) if w > 0)[:k]
    return [(-w, j) for w, j in ranked] + [(0.0, -1)] * (k - len(ranked))


@pytest.mark.parametrize("k", [1, 3, 7, 11])
def test_top(pair, block: None, k: int) -> None:
    seen, want = pair
    best, where = seen.top(k)
    assert best.shape == where.shape == (B, H, T, k)
    for row, w, j in zip(want.reshape(-1, S), best.reshape(-1, k), where.reshape(-1, k), strict=True):
        expected = top_by_hand(row.tolist(), k)
        assert j.tolist() == [key for _, key in expected]
        assert w.tolist() == pytest.approx([weight for weight, _ in expected])


def test_ties_go_to_the_lower_index() -> None:
    seen = AttentionMap.from_weights(torch.tensor([[0.1, 0.3, 0.3, 0.3, 0.0], [0.0] * 5]))
    assert seen.top(4)[1].tolist() == [[1, 2, 3, 0], [-1] * 4]
    assert seen.argmax().tolist() == [1, -1]


def test_top_needs_one() -> None:
    with pytest.raises(regard.ShapeError, match="top needs k of at least 1; got 0"):
        AttentionMap.from_weights(weights()).top(0)


def test_entropy_received_and_argmax(pair, block: None) -> None:
    seen, want = pair
    entropy, received, argmax = seen.entropy(), seen.received(), seen.argmax()
    assert (entropy.shape, received.shape, argmax.shape) == ((B, H, T), (B, H, S), (B, H, T))
    torch.testing.assert_close(received, sum(want[..., i, :] for i in range(T)))
    for row, h, best in zip(want.reshape(-1, S).tolist(), entropy.flatten(), argmax.flatten(), strict=True):
        total = sum(row)
        assert float(h) == pytest.approx(-sum(w / total * log(w / total) for w in row if w > 0), abs=1e-12)
        assert int(best) == (row.index(max(row)) if total else -1)


def distance_by_hand(table: Tensor) -> list[float]:
    """Entry n: the sum of the weights of key j for query i where j - (i + S - T) = n - (S - 1)."""
    t, s = table.shape
    profile = [0.0] * (t + s - 1)
    for i in range(t):
        for j in range(s):
            profile[j - (i + s - t) + s - 1] += float(table[i, j])
    return profile


def test_distance(pair, block: None) -> None:
    seen, want = pair
    profile = seen.distance()
    assert profile.shape == (B, H, T + S - 1)
    for got, table in zip(profile.flatten(0, 1), want.flatten(0, 1), strict=True):
        assert got.tolist() == pytest.approx(distance_by_hand(table), abs=1e-12)


@pytest.mark.parametrize(("t", "s"), [(7, 3), (3, 7), (5, 5), (1, 1), (1, 7), (7, 1), (0, 7), (7, 0)])
def test_distance_of_any_shape(t: int, s: int, block: None) -> None:
    table = torch.rand(t, s, generator=torch.Generator().manual_seed(0))
    seen = AttentionMap.from_weights(table)
    assert seen.distance().tolist() == pytest.approx(distance_by_hand(table))
    if t and s:
        diagonal = AttentionMap.from_weights(torch.eye(t, s))
        assert float(diagonal.distance()[t - 1]) == min(t, s)


def _chosen(t: int, s: int) -> Tensor:
    """Three sets of cells: scattered ones, one a row, none."""
    scattered = torch.rand(t, s, generator=torch.Generator().manual_seed(4)) < 0.4
    return torch.stack([scattered, torch.arange(s) == torch.arange(t)[:, None] % max(s, 1), torch.zeros(t, s).bool()])


def test_mass(pair, block: None) -> None:
    seen, want = pair
    chosen = _chosen(T, S)
    mass = seen.mass(lambda rows, columns: chosen[:, rows][..., columns])
    torch.testing.assert_close(mass, torch.einsum("bhij,nij->bhni", want, chosen.double()))


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax", "softmax1"])
@pytest.mark.parametrize(("t", "s"), [(600, 600), (7, 3), (0, 7), (7, 0)])
def test_mass_of_many_blocks_and_of_none(normalizer: str, t: int, s: int) -> None:
    """Of causal maps the keys ahead are not asked for, and a query before the first key is a dead row."""
    query, key = (torch.randn(2, n, D, generator=torch.Generator().manual_seed(n)) for n in (t, s))
    seen = regard.attention_map(query, key, mask=regard.causal(), normalizer=normalizer)
    chosen, asked = _chosen(t, s), []

    def cells(rows: Tensor, columns: Tensor) -> Tensor:
        asked.append(len(columns))
        return chosen[:, rows][..., columns]

    mass = seen.mass(cells)
    torch.testing.assert_close(mass, torch.einsum("hij,nij->hni", seen.full(), chosen.float()))
    if normalizer == "softmax" and t == 600:
        assert min(asked) < s


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mass_beside_a_masked_nan_and_in_half_precision(dtype: torch.dtype, block: None) -> None:
    query, key = (tensor.to(dtype) for tensor in inputs())
    key[..., 2, :] = torch.nan
    mask = torch.ones(T, S, dtype=torch.bool)
    mask[:, 2] = mask[3] = False
    seen, chosen = regard.attention_map(query, key, mask=mask), _chosen(T, S)
    mass = seen.mass(lambda rows, columns: chosen[:, rows][..., columns])
    allowed = [j for j in range(S) if j != 2]
    want = (query.float() @ key[..., allowed, :].float().mT / D**0.5).softmax(-1)
    want[..., 3, :] = 0
    torch.testing.assert_close(mass, torch.einsum("bhij,nij->bhni", want, chosen[..., allowed].float()))


@in_float64
@pytest.mark.parametrize(
    "statistic",
    [
        lambda seen: seen.entropy(), lambda seen: seen.received(), lambda seen: seen.distance(),
        lambda seen: seen.pool(2, 3, "mean"), lambda seen: seen.top(2)[0], lambda seen: seen.column(1),
        lambda seen: seen.mean_heads().full(), lambda seen: seen.summary().total,
        lambda seen: seen.mass(lambda rows, columns: (rows[:, None] != columns)[None]),
    ],
    ids=["entropy", "received", "distance", "pool", "top", "column", "mean_heads", "summary", "mass"],
)  # fmt: skip
@pytest.mark.parametrize("mask", [None, regard.causal(-1)], ids=["all", "causal"])
def test_statistics_are_differentiable(statistic, mask) -> None:
    query, key = (leaf(tensor[:1, :2, :4, :3].clone()) for tensor in inputs())
    assert torch.autograd.gradcheck(lambda q, k: statistic(regard.attention_map(q, k, mask=mask)), (query, key))


class Counted(GivenWeights):
    """Given weights that count how many are asked for, in all of their parts together."""

    def __init__(self, weights: Tensor, asked: list[int]) -> None:
        super().__init__(weights)
        self.asked = asked

    def weigh(self, rows: Tensor) -> Tensor:
        self.asked.append(len(rows) * self.row)
        return super().weigh(rows)

    def select(self, index) -> GivenWeights:
        return Counted(self.weights[index], self.asked)


def counted(table: Tensor) -> AttentionMap:
    return AttentionMap(table.shape, Counted(table, []))


def passes(seen: AttentionMap) -> float:
    """How many times all weights have been asked for."""
    return sum(seen.source.asked) / seen.shape.numel()


STATISTICS = ("entropy", "received", "argmax")


@pytest.mark.parametrize("first", [*STATISTICS, "summary", "pool", "top"])
def test_one_pass_answers_every_statistic(first: str, block: None) -> None:
    seen = counted(weights())
    getattr(seen, first)(*{"pool": (2, 3), "top": (2,)}.get(first, ()))
    for name in STATISTICS * 2:
        torch.testing.assert_close(getattr(seen, name)(), getattr(AttentionMap.from_weights(weights()), name)())
    assert passes(seen) == 1


def test_what_is_asked_for_besides_takes_its_own_pass() -> None:
    seen = counted(weights())
    for n in (1, 2, 3):
        seen.summary((2, 3), 2)
        assert passes(seen) == n


def test_where_a_gradient_is_wanted_nothing_is_kept() -> None:
    table = weights().requires_grad_()
    seen = counted(table)
    for n in (1, 2):
        (gradient,) = torch.autograd.grad(seen.received().sum(), table)
        assert torch.equal(gradient, torch.ones_like(table))
        assert passes(seen) == n


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_what_was_found_without_gradients_does_not_stand_in_their_way(without) -> None:
    table = weights().requires_grad_()
    seen = counted(table)
    with without():
        want = [seen.entropy(), seen.received()]
        assert passes(seen) == 1
    for got, kept in zip((seen.entropy(), seen.received()), want, strict=True):
        assert got.requires_grad
        torch.testing.assert_close(got.detach(), kept.clone())


def test_summary_is_everything_at_once(pair, block: None) -> None:
    seen, want = pair
    found = seen.summary((2, 3), 4, "sum")
    for name in STATISTICS:
        assert torch.equal(getattr(found, name), getattr(seen, name)())
    torch.testing.assert_close(found.total, sum(want[..., j] for j in range(S)))
    assert torch.equal(found.pooled, seen.pool(2, 3, "sum"))
    for one, other in zip(found.top, seen.top(4), strict=True):
        assert torch.equal(one, other)
    bare = seen.summary()
    assert (bare.pooled, bare.top) == (None, None)
    assert torch.equal(seen.summary((2, 3)).pooled, seen.pool(2, 3, "max"))


def test_a_sample_is_drawn_by_the_weights(block: None) -> None:
    table = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
    n = 3_000
    seen = AttentionMap.from_weights(table.expand(n, 4, 3))
    torch.manual_seed(0)
    drawn, logs = seen.sample()
    assert drawn.shape == logs.shape == (n, 4)
    assert drawn[:, 1:].unique(dim=0).tolist() == [[-1, 1, 0]]
    assert not logs[:, 1:].any()
    share = float((drawn[:, 0] == 2).double().mean())
    assert share == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / n) ** 0.5)
    assert set(drawn[:, 0].tolist()) == {1, 2}
    want = torch.where(drawn[:, 0] == 2, log(0.75), log(0.25)).double()
    torch.testing.assert_close(logs[:, 0], want)


def test_a_sample_of_a_map_with_heads(pair, block: None) -> None:
    seen, want = pair
    drawn, logs = seen.sample()
    for row, j, logarithm in zip(want.reshape(-1, S).tolist(), drawn.flatten(), logs.flatten(), strict=True):
        dead = not any(row)
        assert (int(j) == -1) == dead
        assert float(logarithm) == pytest.approx(0 if dead else log(row[int(j)] / sum(row)), abs=1e-12)


@pytest.mark.parametrize("shape", [(0, 7), (5, 0), (0, 0)])
def test_a_sample_of_nothing(shape: tuple[int, int]) -> None:
    drawn, logs = AttentionMap.from_weights(torch.zeros(2, *shape)).sample()
    assert drawn.tolist() == [[-1] * shape[0]] * 2
    assert logs.tolist() == [[0.0] * shape[0]] * 2


def test_the_gradient_of_a_sample_is_that_of_the_logarithm() -> None:
    table = weights().requires_grad_()
    drawn, logs = AttentionMap.from_weights(table).sample()
    (got,) = torch.autograd.grad(logs.sum(), table)
    want = torch.zeros_like(got)
    for place in torch.cartesian_prod(*map(torch.arange, (B, H, T))).tolist():
        row, j = table[tuple(place)].detach(), int(drawn[tuple(place)])
        if j >= 0:  # d ln(w_j / Σ w) = 1/w_j - 1/Σ w
            want[tuple(place)] -= 1 / row.sum()
            want[(*place, j)] += 1 / row[j]
    torch.testing.assert_close(got, want)


def test_the_dead_row_has_no_entropy(pair) -> None:
    assert float(pair[0].entropy()[0, 1, 2]) == 0


def test_full_refuses_what_is_too_large() -> None:
    key = torch.zeros(1, 1).expand(20_011, 1)
    seen = regard.attention_map(torch.zeros(20_011, 1), key)
    with pytest.raises(regard.ShapeError, match=r"the whole map \[20011, 20011\] takes 1,528 MiB: ask for tile\(\)"):
        seen.full()
    torch.testing.assert_close(seen.tile([20_010], [0, 17]), torch.full((1, 2), 1 / 20_011))


def test_full_may_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_module, "LARGEST", 4 * B * H * T * S - 1)
    seen = AttentionMap.from_weights(weights())
    with pytest.raises(regard.ShapeError, match="force=True"):
        seen.full()
    torch.testing.assert_close(seen.full(force=True), weights())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_maps_are_float32_or_float64(given: torch.dtype, kept: torch.dtype) -> None:
    assert AttentionMap.from_weights(weights().to(given)).full().dtype == kept
    assert regard.attention_map(*inputs(given)).full().dtype == kept


def test_from_weights_needs_rows_and_columns() -> None:
    with pytest.raises(regard.ShapeError, match=r"weights need at least 2 axes \[T, S\]; got shape \[3\]"):
        AttentionMap.from_weights(torch.ones(3))


def test_tokens_are_kept() -> None:
    seen = AttentionMap.from_weights(weights(), query_tokens=list("abcde"), key_tokens=list("ABCDEFG"))
    part = seen.select(1)
    assert (part.query_tokens, part.key_tokens) == (list("abcde"), list("ABCDEFG"))
    assert regard.attention_map(*inputs()).query_tokens is None


@pytest.mark.parametrize("index", [(1,), (0, 2), (slice(1, 2), 1), (slice(None), slice(0, 2)), ()])
def test_select(pair, index) -> None:
    seen, want = pair
    part = seen.select(*index)
    assert part.shape == want[index].shape
    torch.testing.assert_close(part.full(), want[index])
    torch.testing.assert_close(part.tile([2, 0], slice(3)), want[index][..., [2, 0], :3])
    torch.testing.assert_close(part.argmax(), pair[0].argmax()[index])


def test_mean_heads(pair, block: None) -> None:
    seen, want = pair
    mean = seen.mean_heads()
    assert mean.shape == (B, T, S)
    torch.testing.assert_close(mean.full(), sum(want[:, h] for h in range(H)) / H)
    torch.testing.assert_close(mean.column(2), mean.full()[..., 2])
    with pytest.raises(regard.ShapeError, match=r"mean_heads needs heads on axis -3; the map has shape \[5, 7\]"):
        seen.select(0, 0).mean_heads()


D_V, D_O = 4, 6


def norm_by_hand(weight: float, value: Tensor, output_weight: Tensor) -> float:
    """The length of one weighted value after its head's part of W_O."""
    taken = [weight * sum(float(v * w) for v, w in zip(value, column, strict=True)) for column in output_weight.mT]
    return sum(x * x for x in taken) ** 0.5


@pytest.mark.parametrize("shape", [(B, H), (B, 1), (1, H), (1, 1), (H,), (1,), ()])
@pytest.mark.parametrize("linear", [False, True])
def test_norms(pair, shape: tuple[int, ...], linear: bool) -> None:
    seen, want = pair
    draw = torch.Generator().manual_seed(5)
    value = torch.randn(*shape, S, D_V, dtype=torch.float64, generator=draw)
    output_weight = torch.randn(H, D_V, D_O, dtype=torch.float64, generator=draw)
    # a linear layer's weight: out[o] = Σ_c W[o, c] x[c], with the heads' values one after another in x
    written = output_weight.reshape(H * D_V, D_O).T if linear else output_weight
    got = seen.norms(value, written)
    assert got.shape == (B, H, T, S)
    values = value.expand(B, H, S, D_V)
    for b, h, i, j in [(0, 0, 0, 0), (1, 2, 4, 6), (0, 1, 2, 3), (1, 0, 3, 5), (0, 2, 1, 4)]:
        expected = norm_by_hand(float(want[b, h, i, j]), values[b, h, j], output_weight[h])
        assert float(got.tile([i], [j])[b, h]) == pytest.approx(expected)


def test_norms_of_grouped_heads() -> None:
    table = torch.rand(B, 6, T, S, dtype=torch.float64)
    value, output_weight = torch.randn(B, 2, S, D_V).double(), torch.randn(6, D_V, D_O).double()
    seen = AttentionMap.from_weights(table)
    for h in range(6):
        want = (table[:, h, ..., None] * (value[:, h // 3] @ output_weight[h])[:, None]).norm(dim=-1)
        torch.testing.assert_close(seen.norms(value, output_weight).full()[:, h], want)


@pytest.mark.parametrize("linear", [False, True])
def test_norms_without_heads(linear: bool) -> None:
    table, value, output_weight = torch.rand(T, S), torch.randn(S, D_V), torch.randn(1, D_V, D_O)
    got = AttentionMap.from_weights(table).norms(value, output_weight[0].T if linear else output_weight)
    torch.testing.assert_close(got.full(), (table[..., None] * (value @ output_weight[0])).norm(dim=-1))


@pytest.mark.parametrize(
    ("value", "output_weight", "message"),
    [
        ((S, D_V), (2, D_V, D_O), r"needs shape \[heads, d_v, d\] = \[3, 4, d\] or .*; got \[2, 4, 6\]"),
        ((S, D_V), (H, 5, D_O), r"got \[3, 5, 6\]"),
        ((S, D_V), (D_O, 13), r"got \[6, 13\]"),
        ((S, D_V), (D_O,), r"got \[6\]"),
        ((T, D_V), (H, D_V, D_O), "value has 5 positions on axis -2 and the map has 7 keys"),
        ((2, S, D_V), (H, D_V, D_O), r"value has shape \[2, 7, 4\] and the map has \[2, 3, 5, 7\]: batch axes"),
        ((0, S, D_V), (H, D_V, D_O), r"value has shape \[0, 7, 4\]"),
        ((5, H, S, D_V), (H, D_V, D_O), r"value has shape \[5, 3, 7, 4\]"),
        ((1, B, H, S, D_V), (H, D_V, D_O), r"value has shape \[1, 2, 3, 7, 4\]"),
    ],
)
def test_norms_refuses_what_does_not_fit(value, output_weight, message: str) -> None:
    with pytest.raises(regard.ShapeError, match=message):
        AttentionMap.from_weights(weights()).norms(torch.zeros(value), torch.zeros(output_weight))


def test_norms_without_heads_refuses_values_with_heads() -> None:
    seen = AttentionMap.from_weights(torch.rand(T, S))
    with pytest.raises(regard.ShapeError, match=r"value has shape \[1, 7, 4\] and the map has \[5, 7\]"):
        seen.norms(torch.zeros(1, S, D_V), torch.zeros(1, D_V, D_O))


def rollout_by_hand(tables: list[list[list[list[float]]]], residual: float) -> list[list[float]]:
    """Tables by layer and head, multiplied in plain Python."""
    n = len(tables[0][0])
    joint = [[float(i == j) for j in range(n)] for i in range(n)]
    for heads in tables:
        mixed = [
            [(1 - residual) * sum(h[i][j] for h in heads) / len(heads) + residual * (i == j) for j in range(n)]
            for i in range(n)
        ]
        mixed = [[w / (sum(row) or 1) for w in row] for row in mixed]
        joint = [[sum(mixed[i][m] * joint[m][j] for m in range(n)) for j in range(n)] for i in range(n)]
    return joint


@pytest.mark.parametrize("residual", [0.5, 0.0, 0.3, 1.0, None])
@pytest.mark.parametrize("layers", [1, 3])
def test_rollout(residual: float | None, layers: int) -> None:
    draw = torch.Generator().manual_seed(6)
    tables = [torch.rand(B, H, 5, 5, dtype=torch.float64, generator=draw) for _ in range(layers)]
    tables[-1][0, :, 2] = 0  # a query that looks nowhere
    names = [{"query_tokens": list("abcde"), "key_tokens": list("ABCDE")}, *[{}] * 2]
    maps = [AttentionMap.from_weights(table, **names[i]) for i, table in enumerate(tables)]
    got = AttentionMap.rollout(maps, **({} if residual is None else {"residual": residual}))
    assert got.shape == (B, 5, 5)
    for b in range(B):
        want = rollout_by_hand([table[b].tolist() for table in tables], 0.5 if residual is None else residual)
        torch.testing.assert_close(got.full()[b], torch.tensor(want, dtype=torch.float64))
    assert got.key_tokens == list("ABCDE")
    assert got.query_tokens == (list("abcde") if layers == 1 else None)


@pytest.mark.parametrize(
    ("shapes", "number"),
    [
        ([(3, 5, 7)], 0), ([(5, 5)], 0), ([(3, 5, 5), (3, 7, 7)], 1), ([(3, 5, 5), (2, 3, 5, 5)], 1),
        ([(2, 3, 5, 5), (2, 1, 5, 5), (3, 3, 5, 5)], 2),
    ],
)  # fmt: skip
def test_rollout_refuses(shapes: list[tuple[int, ...]], number: int) -> None:
    message = rf"maps \[\*batch, heads, N, N\] of one size; map {number} has shape {re.escape(str([*shapes[number]]))}"
    with pytest.raises(regard.ShapeError, match=message):
        AttentionMap.rollout([AttentionMap.from_weights(torch.zeros(shape)) for shape in shapes])


def test_rollout_needs_a_map() -> None:
    with pytest.raises(regard.ShapeError, match="rollout needs at least one map"):
        AttentionMap.rollout([])


def test_rollout_takes_layers_of_any_number_of_heads() -> None:
    tables = [torch.rand(heads, 5, 5) for heads in (3, 2)]
    got = AttentionMap.rollout([AttentionMap.from_weights(table) for table in tables])
    want = rollout_by_hand([table.tolist() for table in tables], 0.5)
    torch.testing.assert_close(got.full(), torch.tensor(want))


def test_it_shows_its_shape_and_in_a_notebook_a_picture() -> None:
    seen = AttentionMap.from_weights(weights())
    assert repr(seen) == "AttentionMap(2 × 3 × 5 × 7)"
    assert seen._repr_png_().startswith(b"\x89PNG")


def test_numpy(pair) -> None:
    array = pair[0].numpy()
    assert isinstance(array, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(array), pair[1])


def test_numpy_of_a_map_with_gradients() -> None:
    query, key = (tensor.requires_grad_() for tensor in inputs())
    assert regard.attention_map(query, key).numpy().shape == (B, H, T, S)


def test_save_and_load(pair, tmp_path: Path) -> None:
    seen, want = pair
    seen.save(tmp_path / "map.safetensors")
    for path in (tmp_path / "map.safetensors", str(tmp_path / "map.safetensors")):
        torch.testing.assert_close(AttentionMap.load(path).full(), want)


def test_loading_what_is_no_map(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"noise")
    for name in ("noise", "missing"):
        with pytest.raises(regard.BundleError, match=f"{name} is not a saved attention map: "):
            AttentionMap.load(tmp_path / name)


def test_plot_writes_a_picture(tmp_path: Path) -> None:
    figure = AttentionMap.from_weights(weights()).plot(tmp_path / "map.png")
    assert figure is not None
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


SCORES = ["dot", "cosine", regard.Distance(), regard.Additive(D, D, 3).double()]


@pytest.mark.parametrize("score", SCORES, ids=["dot", "cosine", "distance", "additive"])
@pytest.mark.parametrize("normalizer", sorted(NAMED))
@pytest.mark.parametrize("mask", [None, regard.causal(-1), regard.padding(torch.tensor([4, 0]))])
@pytest.mark.parametrize("bias", [None, torch.linspace(-2, 1, S, dtype=torch.float64)])
def test_the_map_holds_the_weights_that_attend_uses(score, normalizer, mask, bias) -> None:
    query, key = inputs()
    value = torch.eye(S, dtype=torch.float64).expand(B, H, S, S)
    spec = {"score": score, "normalizer": normalizer, "mask": mask, "bias": bias}
    got = regard.attention_map(query, key, **spec)
    want = regard.attend(query, key, value, kernel="reference", **spec)
    torch.testing.assert_close(got.full(), want)
    torch.testing.assert_close(got.tile([3, 1], [6, 0]), want[..., [3, 1], :][..., [6, 0]])


def test_grouped_and_shared_heads() -> None:
    query, key = torch.randn(B, 6, T, D), torch.randn(1, 2, S, D)
    seen = regard.attention_map(query, key)
    assert seen.shape == (B, 6, T, S)
    want = torch.softmax(query @ key.repeat_interleave(3, 1).mT / D**0.5, -1)
    torch.testing.assert_close(seen.full(), want)


@in_float64
def test_it_is_differentiable() -> None:
    query, key = (leaf(tensor[:1, :1, :4, :3].clone()) for tensor in inputs())
    assert torch.autograd.gradcheck(
        lambda q, k: regard.attention_map(q, k, mask=regard.causal(-1)).full(), (query, key)
    )


@pytest.mark.parametrize("part", ["key", "query"])
def test_poison_never_reaches_a_row_that_may_not_look(part: str) -> None:
    query, key = inputs()
    mask = regard.prefix(4) & regard.padding(torch.tensor([7, 7]), torch.tensor([3, 3]))
    answers = []
    for bad in (0.5, nan):
        q, k = query.clone(), key.clone()
        if part == "key":
            k[..., 5, :] = bad
        else:
            q[..., 4, :] = bad
        q.requires_grad_()
        k.requires_grad_()
        full = regard.attention_map(q, k, mask=mask).full()
        answers.append([full, *torch.autograd.grad(full.square().sum(), (q, k))])
    torch.testing.assert_close(answers[1], answers[0])


@pytest.mark.parametrize("refused", [{"score": "dott"}, {"normalizer": "softmx"}, {"mask": torch.zeros(T, S)}])
def test_it_refuses_what_attend_refuses(refused: dict) -> None:
    with pytest.raises(regard.ChoiceError, match=r"unknown|mask must be bool"):
        regard.attention_map(*inputs(), **refused)
    with pytest.raises(regard.ShapeError, match="query has size 2 on batch axis -4 and key has 3"):
        regard.attention_map(inputs()[0], torch.zeros(3, H, S, D))
    with pytest.raises(regard.ShapeError, match="key must be a floating-point tensor"):
        inspect.unwrap(regard.attention_map)(inputs()[0], torch.zeros(B, H, S, D, dtype=torch.long))


@pytest.mark.parametrize(("t", "s"), [(0, S), (T, 0)])
def test_empty_maps(t: int, s: int) -> None:
    seen = regard.attention_map(torch.zeros(B, t, D), torch.zeros(B, s, D))
    assert seen.full().shape == (B, t, s)
    assert (seen.entropy().shape, seen.argmax().shape, seen.received().shape) == ((B, t), (B, t), (B, s))
    assert (seen.argmax() == -1).all()


SELECTED = [(1,), (0, 2), (slice(1, 2), 1), (slice(None), slice(0, 2)), (slice(0, 1), slice(1, 3))]


@pytest.mark.parametrize("index", SELECTED, ids=str)
@pytest.mark.parametrize("normalizer", ["softmax", regard.Sink(torch.tensor([-1.0, 0.5, 2.0])), regard.Sink(0.3)])
@pytest.mark.parametrize("key_heads", [1, 3])
def test_select_computes_only_what_is_selected(index, normalizer, key_heads: int) -> None:
    query, key = inputs()
    bias = torch.randn(H, T, S, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    mask = regard.padding(torch.tensor([S, S - 2])) & regard.causal(3)
    seen = regard.attention_map(query, key[:, :key_heads], normalizer=normalizer, mask=mask, bias=bias)
    part = seen.select(*index)
    torch.testing.assert_close(part.full(), seen.full()[index])
    torch.testing.assert_close(part.entropy(), seen.entropy()[index])
    assert part.source.row * T == part.shape.numel()


def test_derived_maps_are_computed_in_blocks_of_what_they_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_module, "BLOCK", 4 * H * S * B * 2)  # two rows of the source
    asked = []
    seen = AttentionMap.from_weights(weights())
    weigh = seen.source.weigh
    monkeypatch.setattr(seen.source, "weigh", lambda rows: asked.append(len(rows)) or weigh(rows))
    torch.testing.assert_close(seen.mean_heads().full(), weights().mean(-3))
    assert asked == [2, 2, 1]


def test_tile_takes_bools_and_refuses_what_is_no_index(pair) -> None:
    seen, want = pair
    rows = torch.tensor([True, False, True, False, False])
    torch.testing.assert_close(seen.tile(rows, [1]), want[..., rows, :][..., [1]])
    for wrong in (torch.tensor([True]), torch.tensor([0.5])):
        with pytest.raises(regard.ShapeError, match="tile: an axis of 5 takes indices, a slice or 5 bools; got"):
            seen.tile(wrong, [1])


@pytest.mark.parametrize("score", ["scaled_dot", "cosine", regard.Additive(8, 8, 6)])
def test_autocast_ends_at_the_door(score: Any) -> None:
    """Inside a training step in bfloat16 a map is what it is outside."""
    query, key = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 7, 8)
    made = regard.attention_map(query, key, score=score)
    with torch.autocast("cpu", torch.bfloat16):
        inside = regard.attention_map(query, key, score=score)
        found = inside.full(), inside.tile(slice(0, 2), [3]), inside.entropy(), inside.distance(), inside.top(2)[0]
    assert all(one.dtype == torch.float32 for one in found)
    for one, other in zip(
        found, (made.full(), made.tile(slice(0, 2), [3]), made.entropy(), made.distance(), made.top(2)[0]), strict=True
    ):
        assert torch.equal(one, other)


# --- crop and frozen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backing", ["computed", "given"])
def test_a_cropped_map_is_that_part_of_the_whole(backing: str) -> None:
    torch.manual_seed(4)
    query, key = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 11, 5)
    mask = regard.padding(torch.tensor([6, 0]))  # the second entry's rows are dead
    whole = regard.attention_map(query, key, mask=mask)
    whole = AttentionMap.from_weights(whole.full()) if backing == "given" else whole
    names = [[f"q{n}" for n in range(5)], [f"k{n}" for n in range(7)]]
    part = whole.crop(5, 2, 9, *names)
    want = whole.full()[..., :5, 2:9]
    assert part.shape == want.shape
    assert [part.query_tokens, part.key_tokens] == names
    torch.testing.assert_close(part.full(), want)
    torch.testing.assert_close(part.tile([4, 1], slice(3, 6)), want[..., [4, 1], 3:6])
    torch.testing.assert_close(part.select(0, 2).full(), want[0, 2])
    torch.testing.assert_close(part.received(), want.sum(-2))
    assert torch.equal(part.argmax()[1], torch.full((3, 5), -1))
    torch.testing.assert_close(part.top(2)[0], want.topk(2, -1).values)
    torch.testing.assert_close(part.frozen().full(), want)


@pytest.mark.parametrize("cut", [(8, 0, 11), (7, 0, 12), (7, 6, 5), (7, -1, 5)])
def test_a_crop_beyond_the_map_is_refused(cut: tuple[int, int, int]) -> None:
    seen = regard.attention_map(torch.randn(7, 5), torch.randn(11, 5))
    with pytest.raises(regard.ShapeError, match=r"crop needs at most 7 queries and keys within 0 … 11; got"):
        seen.crop(*cut)


@pytest.mark.parametrize("score", [regard.Additive(5, 5, 4), regard.General(5, 5), "scaled_dot"])
def test_a_frozen_map_has_no_gradient_and_does_not_change(score) -> None:
    query, key = torch.randn(7, 5, requires_grad=True), torch.randn(11, 5)
    bias = torch.nn.Parameter(torch.randn(7, 11))
    frozen = regard.attention_map(query, key, score=score, bias=bias).frozen()
    before = frozen.full()
    assert not before.requires_grad
    assert regard.attention_map(query, key, score=score).full().requires_grad
    if isinstance(score, torch.nn.Module):
        with torch.no_grad():
            for parameter in score.parameters():
                parameter.add_(1.0)
    torch.testing.assert_close(frozen.full(), before)


def test_lazy_maps_are_made_once_and_copied_as_a_dict() -> None:
    made: list[str] = []

    def make(site: str) -> AttentionMap:
        made.append(site)
        return AttentionMap.from_weights(torch.eye(3)[None])

    maps = LazyMaps(["a", "b"], make)
    assert (list(maps), len(maps), "b" in maps, "c" in maps, made) == (["a", "b"], 2, True, False, [])
    told = know_origin(maps, lambda: None, "title")  # the tests' type checks look at one value
    assert told["b"] is told["b"]
    assert (told["b"].site, told["b"].title) == ("b", "title")
    with pytest.raises(KeyError):
        told["c"]
    copied = copy.deepcopy(maps)
    assert type(copied) is dict
    assert torch.equal(copied["a"].full(), torch.eye(3)[None])
    assert repr(maps) == repr(dict(maps))
    assert maps.changed(lambda _, one: one.crop(2, 0, 3))["a"].shape == (1, 2, 3)
    assert sorted(made) == ["a", "b"]


def test_a_map_with_a_gradient_is_copied_deeply_once_it_is_frozen() -> None:
    query = torch.randn(1, 2, 5, 8, requires_grad=True)
    map = regard.attention_map(2 * query, query)
    with pytest.raises(regard.RegardError, match="torch copies no tensor of a graph deeply"):
        copy.deepcopy(map)
    copied = copy.deepcopy(map.frozen())
    assert torch.equal(copied.full(), map.full())
    assert not copied.full().requires_grad
    assert copy.copy(map).full().requires_grad
    frozen = map.frozen()
    first, second = copy.deepcopy([frozen, frozen])
    assert first is second


def test_distances_of_many_queries_take_little_memory() -> None:
    weights = torch.rand(100_000, 1)
    profile = AttentionMap.from_weights(weights).distance()  # 40 GB, were a block as long as it is narrow
    torch.testing.assert_close(profile, weights[:, 0].flip(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_drawn_from_weights_that_are_not_finite(value: float) -> None:
    with pytest.raises(regard.ShapeError, match="weights that are infinite or NaN: nothing can be drawn"):
        AttentionMap.from_weights(torch.tensor([[0.5, value]])).sample()


def test_sets_of_cells_that_are_none_are_refused() -> None:
    seen = regard.AttentionMap.from_weights(torch.rand(2, 3, 4))
    for wrong in (3, torch.ones(7, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool)):
        with pytest.raises(regard.ShapeError, match=r"cells gave .*: it must give bool \[n, 3, 4\]"):
            seen.mass(lambda rows, columns, wrong=wrong: wrong)


@pytest.mark.parametrize("tokens", [3, [1, 2, 3], {"a", "b", "c"}])
def test_tokens_that_are_set_later_are_checked_where_they_are_read(tokens: Any, tmp_path: Path) -> None:
    seen = regard.AttentionMap.from_weights(torch.rand(2, 3, 4))
    seen.query_tokens = tokens
    for read in (seen.plot, seen.look, partial(seen.save, tmp_path / "map")):
        with pytest.raises(regard.ConfigError, match="query_tokens must be a list of texts; got"):
            read()
    assert not any(tmp_path.iterdir())
    seen.query_tokens = np.array(["a", "b", "c"])
    seen.save(tmp_path / "map")
    assert list(AttentionMap.load(tmp_path / "map").query_tokens or ()) == ["a", "b", "c"]
