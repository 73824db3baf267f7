"""AttentionMap: exact answers on demand, against the whole matrix and plain Python."""

import inspect
from math import log, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import regard
from regard.attention import map as map_module
from regard.attention.map import AttentionMap

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
@pytest.mark.parametrize("normalizer", ["softmax", "uniform"])
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


def test_it_is_differentiable() -> None:
    query, key = (tensor[:1, :1, :4, :3].clone().requires_grad_() for tensor in inputs())
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
