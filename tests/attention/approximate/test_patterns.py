"""Sparse layouts: what they allow, and that attention under them is exact."""

import pytest
import torch

import regard


def test_big_bird() -> None:
    layout = regard.big_bird(13, local=1, first=2, random=3, seed=4)
    near = (torch.arange(13)[:, None] - torch.arange(13)).abs() <= 1
    assert layout[near].all()
    assert layout[:2].all()
    assert layout[:, :2].all()
    others = layout & ~near
    assert (others[2:, 2:].sum(-1) == 3).all()
    assert torch.equal(layout, regard.big_bird(13, local=1, first=2, random=3, seed=4))
    assert regard.big_bird(3, random=9).all()


def test_strided() -> None:
    layout = regard.strided(9, local=1, stride=3)
    for i in range(9):
        assert layout[i].nonzero()[:, 0].tolist() == sorted({j for j in range(9) if abs(i - j) <= 1 or j % 3 == 2})


def test_no_blocks_are_refused() -> None:
    for make in (regard.big_bird, regard.strided):
        with pytest.raises(regard.ShapeError, match="blocks must be at least 1; got 0"):
            make(0)


def test_a_sparse_pattern_is_exact() -> None:
    query, key, value = torch.randn(3, 2, 1000, 8, dtype=torch.float64)
    mask = regard.blocks(regard.big_bird(16), 64)
    got = regard.attend(query, key, value, mask=mask, kernel="windowed")
    torch.testing.assert_close(got, regard.attend(query, key, value, mask=mask, kernel="reference"))


def test_a_stride_of_nothing_is_refused() -> None:
    with pytest.raises(regard.ShapeError, match="stride must be at least 1; got 0"):
        regard.strided(4, stride=0)
