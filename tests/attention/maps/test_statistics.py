"""One pass over a map's rows: the same numbers as plain Python finds in the whole table, however it is cut."""

from itertools import pairwise
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regard
from device import in_float64, leaf
from regard.attention.maps import statistics as survey_module
from regard.attention.maps.sources import RowBlock
from regard.attention.maps.statistics import Pool, statistics_of

B, T, S = 2, 5, 7
SHAPE = torch.Size((B, T, S))
REDUCE = {"max": max, "sum": sum, "mean": lambda cell: sum(cell) / len(cell)}


def weights(dtype: torch.dtype = torch.float64) -> Tensor:
    """Quarters, so that there are ties; a dead row; rows that do not sum to one."""
    table = torch.randint(0, 5, SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype) / 4
    table[1, 2] = 0
    return table


def blocks(table: Tensor, cuts: tuple[int, ...] = ()) -> list[RowBlock]:
    """The rows of a table in blocks that begin at 0 and at each cut."""
    ends = [0, *sorted(cuts), table.shape[-2]]
    return [RowBlock(a, table[..., a:b, :]) for a, b in pairwise(ends)]


def rows_of(table: Tensor) -> list[list[float]]:
    return table.reshape(-1, table.shape[-1]).tolist()


def top_by_hand(row: list[float], k: int) -> list[tuple[float, int]]:
    ranked = sorted((-w, j) for j, w in enumerate(row) if w > 0)[:k]
    return [(-w, j) for w, j in ranked] + [(0.0, -1)] * (k - len(ranked))


def pooled_by_hand(table: Tensor, rows: int, columns: int, reduce: str) -> list[list[float]]:
    t, s = table.shape
    height, width = -(-t // rows), -(-s // columns)
    return [
        [REDUCE[reduce](table[a : a + height, b : b + width].flatten().tolist()) for b in range(0, s, width)]
        for a in range(0, t, height)
    ]


def test_everything_in_plain_python() -> None:
    table = weights()
    found = statistics_of(blocks(table, (2, 3)), SHAPE, Pool(2, 3, "sum"), 3)
    for row, entropy, total, argmax, w, j in zip(
        rows_of(table), found.entropy.flatten(), found.total.flatten(), found.argmax.flatten(),
        *(part.reshape(-1, 3).tolist() for part in found.top), strict=True,
    ):  # fmt: skip
        shares = [x / sum(row) for x in row if x]
        assert float(entropy) == pytest.approx(-sum(p * log(p) for p in shares), abs=1e-12)
        assert float(total) == sum(row)
        assert int(argmax) == (row.index(max(row)) if any(row) else -1)
        assert list(zip(w, j, strict=True)) == top_by_hand(row, 3)
    for b in range(B):
        assert found.received[b].tolist() == [sum(column) for column in zip(*table[b].tolist(), strict=True)]
        assert found.pooled[b].tolist() == pooled_by_hand(table[b], 2, 3, "sum")


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.sets(st.integers(1, T - 1)), st.integers(1, 11), st.integers(1, 11), st.sampled_from(sorted(REDUCE)),
    st.integers(1, 11),
)  # fmt: skip
def test_how_the_rows_are_cut_changes_nothing(cuts, rows: int, columns: int, reduce: str, k: int) -> None:
    table = weights()
    whole, cut = (statistics_of(blocks(table, c), SHAPE, Pool(rows, columns, reduce), k) for c in ((), tuple(cuts)))
    for name in ("entropy", "received", "argmax", "total", "pooled"):
        torch.testing.assert_close(getattr(cut, name), getattr(whole, name))
    for one, other in zip(cut.top, whole.top, strict=True):
        assert torch.equal(one, other)
    for b in range(B):
        want = torch.tensor(pooled_by_hand(table[b], rows, columns, reduce), dtype=torch.float64)
        torch.testing.assert_close(cut.pooled[b], want)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=S, max_size=S), min_size=1, max_size=3), st.integers(1, 11))
def test_equal_weights_go_to_the_lower_key(table: list[list[int]], k: int) -> None:
    tensor = torch.tensor(table, dtype=torch.float32)
    best, keys = statistics_of(blocks(tensor), tensor.shape, top=k).top
    for row, w, j in zip(table, best.tolist(), keys.tolist(), strict=True):
        assert list(zip(w, j, strict=True)) == top_by_hand(row, k)


def test_nothing_is_pooled_or_ranked_unasked() -> None:
    found = statistics_of(blocks(weights()), SHAPE)
    assert (found.pooled, found.top) == (None, None)


def test_blocks_are_looked_at_once_and_in_their_order() -> None:
    asked: list[list[int]] = []

    def tell():
        for block in blocks(weights(), (1, 4)):
            asked.append(list(range(block.start, block.start + block.weights.shape[-2])))
            yield block

    statistics_of(tell(), SHAPE, Pool(1, 1), 2)
    assert asked == [[0], [1, 2, 3], [4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, S), (T, 0), (0, 0)])
@pytest.mark.parametrize("reduce", REDUCE)
def test_a_map_without_rows_or_keys(shape: tuple[int, int], dtype: torch.dtype, reduce: str) -> None:
    table = torch.zeros(B, *shape, dtype=dtype)
    found = statistics_of(blocks(table), table.shape, Pool(2, 3, reduce), 2)
    t, s = shape
    assert found.pooled.shape == (B, min(2, t), min(3, s))
    assert found.top[1].tolist() == [[[-1, -1]] * t] * B
    assert found.argmax.tolist() == [[-1] * t] * B
    assert found.entropy.tolist() == found.total.tolist() == [[0.0] * t] * B
    assert found.received.tolist() == [[0.0] * s] * B
    assert {x.dtype for x in (found.entropy, found.received, found.total, found.pooled, found.top[0])} == {dtype}


@in_float64
@pytest.mark.parametrize(
    "number",
    [
        lambda found: found.entropy, lambda found: found.received, lambda found: found.total,
        lambda found: found.pooled, lambda found: found.top[0],
    ],
    ids=["entropy", "received", "total", "pooled", "top"],
)  # fmt: skip
@pytest.mark.parametrize("reduce", REDUCE)
def test_gradcheck(number, reduce: str) -> None:
    table = leaf(torch.rand(T, S, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.1)
    assert torch.autograd.gradcheck(
        lambda x: number(statistics_of(blocks(x, (1, 3)), x.shape, Pool(2, 3, reduce), 3)), table
    )


def test_a_weight_of_zero_leaves_the_entropys_gradient_finite() -> None:
    scores = torch.randn(T, T, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    table = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    (got,) = torch.autograd.grad(statistics_of(blocks(table), table.shape).entropy.sum(), scores)
    # dH_i/de_ij = -p_ij (ln p_ij + H_i)
    want = torch.zeros(T, T, dtype=torch.float64)
    for i, row in enumerate(table.tolist()):
        entropy = -sum(p * log(p) for p in row if p)
        for j, p in enumerate(row):
            want[i, j] = -p * (log(p) + entropy) if p else 0
    torch.testing.assert_close(got, want)


def test_pool_refuses() -> None:
    with pytest.raises(regard.ChoiceError, match="unknown reduce 'median': expected one of 'max', 'mean', 'sum'"):
        Pool(1, 1, "median")
    for rows, columns in ((0, 3), (2, -1)):
        with pytest.raises(regard.ShapeError, match=f"pool needs at least 1 × 1 cells; got {rows} × {columns}"):
            Pool(rows, columns)


@pytest.mark.parametrize("k", [0, -3])
def test_top_needs_at_least_one(k: int) -> None:
    with pytest.raises(regard.ShapeError, match=f"top needs k of at least 1; got {k}"):
        statistics_of(blocks(weights()), SHAPE, top=k)


@pytest.mark.parametrize("s", [257, 600, 1024, 1300])
@pytest.mark.parametrize("levels", [3, 50, 10**6])
@pytest.mark.parametrize("lowest", [0, -5])
def test_the_largest_are_found_cell_by_cell(s: int, levels: int, lowest: int) -> None:
    """Few levels: many ties, also with cells that were left out. Low-rank attention has negative weights."""
    table = torch.randint(0, levels, (40, s), generator=torch.Generator().manual_seed(s)).float() / levels
    table[3] = 0
    table[5, 7:] = 0
    table += lowest
    found = statistics_of(blocks(table, (11,)), table.shape, top=9)
    best, keys = table.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(found.top[0], best[:, :9])
    assert torch.equal(found.top[1], keys[:, :9].masked_fill(best[:, :9] == 0, -1))
    assert torch.equal(found.argmax, found.top[1][:, 0])


@pytest.mark.parametrize("size", [1, 100])
def test_an_entropy_from_scores_is_that_of_the_weights(size: float) -> None:
    scores = torch.randn(30, 700, generator=torch.Generator().manual_seed(0)) * size
    scores[:, :5] = torch.finfo(torch.float32).min
    weights = scores.softmax(-1)
    assert (size > survey_module.LARGE) == (float(scores[:, 5:].max()) > survey_module.LARGE)
    want = statistics_of([RowBlock(0, weights)], weights.shape)
    found = statistics_of([RowBlock(0, weights, scores=scores.clone())], weights.shape)
    torch.testing.assert_close(found.entropy, want.entropy, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(found.numbers, scores.double().logsumexp(-1), rtol=1e-6, atol=1e-6)
    holes = scores.clone().masked_fill_(scores < 0, -torch.inf)
    weights = holes.softmax(-1)
    found = statistics_of([RowBlock(0, weights, scores=holes)], weights.shape)
    torch.testing.assert_close(found.entropy, statistics_of([RowBlock(0, weights)], weights.shape).entropy)
