"""Which tiles a mask says are empty or full, and the pieces that are made of it, against the mask's whole table."""

from math import prod

import pytest
import torch
from torch import Tensor

import regard
from regard.attention import pieces as room
from regard.attention.masks import Mask, Spans, as_mask
from regard.attention.pieces import empty_share, outer_axes, pieces
from regard.attention.tiles import TileGrid

CPU = torch.device("cpu")
B, H, T, S = 2, 3, 23, 31
SHAPE = (B, H, T, S)


def draw(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(7))


KNOWN = {  # masks that know exactly which tiles are empty and which are full
    "causal": regard.causal(),
    "causal_-5": regard.causal(-5),
    "causal_many": regard.causal(torch.tensor([3, -9])),
    "window": regard.window(4, 2),
    "window_far": regard.window(-3, 6, offset=torch.tensor([0, 11])),
    "padding": regard.padding(torch.tensor([9, 31])),
    "padding_both": regard.padding(torch.tensor([0, 17]), torch.tensor([23, 6])),
    "prefix": regard.prefix(11),
    "blocks": regard.blocks(draw(H, 6, 8) < 0.4, 4),
    "tensor": as_mask(draw(B, 1, T, S) < 0.1),
    "tensor_of_keys": as_mask(draw(S) < 0.3),
    "not_window": ~regard.window(8),
}
CAREFUL = {  # masks that may take an empty tile for one with something in it, or a full one for one with a hole
    "documents": regard.documents(torch.arange(T).expand(B, T) // 5, torch.arange(S).expand(B, S) // 7),
    "documents_unsorted": regard.documents((draw(B, T) * 5).long() - 1, (draw(B, S) * 5).long() - 1),
    "spans": Spans((draw(B, 1, T) * 20).long(), (draw(B, 1, T) * 31).long()),
    "and": regard.causal() & regard.padding(torch.tensor([9, 31])),
    "or": regard.causal(0) | regard.prefix(6),
    "and_not": regard.window(9) & ~regard.window(3),
    "chosen": (regard.padding(torch.tensor([9, 31]), torch.tensor([23, 6])) | regard.window(3)),
}
MASKS = KNOWN | CAREFUL


def table(mask: Mask) -> Tensor:
    return mask.full(SHAPE, CPU).expand(SHAPE)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 4), (7, 31), (23, 3), (50, 60)])
def test_coverage_says_nothing_wrong(name: str, height: int, width: int) -> None:
    mask, whole = MASKS[name], table(MASKS[name])
    grid = TileGrid.of(SHAPE, height, width, CPU)
    coverage = mask.coverage(grid)
    rows, columns = grid.rows.tolist(), grid.columns.tolist()
    some, collect = (p.expand(B, H, len(rows) - 1, len(columns) - 1) for p in (coverage.some, coverage.full))
    for r in range(len(rows) - 1):
        for c in range(len(columns) - 1):
            tile = whole[..., rows[r] : rows[r + 1], columns[c] : columns[c + 1]].flatten(-2)
            if name in KNOWN:
                assert torch.equal(some[..., r, c], tile.any(-1)), (r, c)
                assert torch.equal(collect[..., r, c], tile.all(-1)), (r, c)
            else:
                assert not (tile.any(-1) & ~some[..., r, c]).any(), (r, c)
                assert not (~tile.all(-1) & collect[..., r, c]).any(), (r, c)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("outer", [0, 1, 2])
@pytest.mark.parametrize("pairs", [1, 60, 10**6])
@pytest.mark.parametrize(("height", "width"), [(5, 4), (2, 1), (128, 64)])
def test_pieces_hold_every_pair_once(name, outer, pairs, height, width, monkeypatch) -> None:
    monkeypatch.setattr(room, "HEIGHT", height)
    monkeypatch.setattr(room, "WIDTH", width)
    found = torch.zeros(SHAPE, dtype=torch.long)
    for piece in pieces(MASKS[name], SHAPE, CPU, outer=outer, pairs=pairs):
        rows, columns = piece.positions(CPU)
        inner = (*SHAPE[outer:-2], len(rows), len(columns))
        allowed = torch.ones(inner, dtype=torch.bool) if piece.allowed is None else piece.allowed.expand(inner)
        seen = allowed.flatten(0, -3).any(0) if allowed.ndim > 2 else allowed
        assert seen.any(), "a piece of nothing"
        assert len(rows) == 1 or prod(seen.shape) <= pairs
        if piece.allowed is not None and piece.allowed.shape[-1] > 1 and isinstance(piece.columns, slice):
            assert seen[:, 0].any(), "a first key that nobody sees"
            assert seen[:, -1].any(), "a last key that nobody sees"
        found[piece.index][..., rows[:, None], columns] += allowed
    assert torch.equal(found, table(MASKS[name]).long())


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_some_entries_is_those_entries_of_the_mask(name: str) -> None:
    mask = MASKS[name]
    for index in ((1,), (0, 2), (slice(None), 1), (slice(0, 1),)):
        want = table(mask)[index]
        one = mask.select(index, SHAPE)
        shape = tuple(want.shape)
        assert torch.equal(one.full(shape, CPU).expand(shape), want)
        some = one.coverage(TileGrid.of(shape, 5, 4, CPU)).some
        assert some.expand(*shape[:-2], *some.shape[-2:]).shape[:-2] == shape[:-2]


def test_a_mask_of_ones_own_is_never_skipped() -> None:
    class Odd(Mask):
        def tile(self, rows, columns, shape):
            return (rows[:, None] + columns) % 2 == 1

    (piece,) = pieces(Odd(), (T, S), CPU)
    assert (piece.rows, piece.columns) == (slice(0, T), slice(0, S))
    assert empty_share(Odd(), (T, S), CPU) == 0


def test_nothing_is_left_out_unless_asked_for() -> None:
    found = [(p.rows, p.columns) for p in pieces(regard.prefix(3), (T, S), CPU, pairs=10 * S, skip=False)]
    assert found == [(slice(a, min(a + 10, T)), slice(0, S)) for a in (0, 10, 20)]


def test_keys_with_gaps_are_gathered() -> None:
    layout = torch.tensor([[True, False, False, True]])
    (piece,) = pieces(regard.blocks(layout, 64), (64, 256), CPU)
    assert piece.allowed is None
    keys = torch.arange(256.0)[:, None]
    assert piece.of_keys(keys)[:, 0].tolist() == [*range(64), *range(192, 256)]
    total = torch.zeros(256, 1)
    piece.add_to_keys(total, torch.ones(128, 1))
    assert total.sum() == 128


def test_how_many_axes_are_told_apart() -> None:
    assert outer_axes(regard.causal(), SHAPE, CPU) == 0
    assert outer_axes(regard.padding(torch.tensor([9, 31])), SHAPE, CPU) == 1
    assert outer_axes(MASKS["blocks"], SHAPE, CPU) == 2


def test_the_empty_share() -> None:
    shape = (1024, 1024)
    assert empty_share(regard.prefix(512), shape, CPU) == 0.5
    assert 0.4 < empty_share(regard.causal(), shape, CPU) < 0.5
