"""Tokens and places as vectors."""

from math import cos, sin, sqrt

import pytest
import torch

import regard
from regard.nn.embedding import Embedding, Positions, count_places, sinusoidal, sinusoids


@pytest.mark.parametrize(("length", "dim"), [(11, 6), (7, 5), (1, 1), (0, 3)])
def test_sinusoidal_is_the_papers_formula(length: int, dim: int) -> None:
    want = torch.zeros(length, dim)
    for p in range(length):
        for c in range(dim):
            angle = p / 10000 ** (2 * (c // 2) / dim)
            want[p, c] = cos(angle) if c % 2 else sin(angle)
    torch.testing.assert_close(sinusoidal(length, dim), want)
    assert regard.sinusoidal is sinusoidal


def test_sinusoids_of_given_places() -> None:
    places = torch.tensor([[3, 0], [5, 3], [2, 2]])
    torch.testing.assert_close(sinusoids(places, 8), sinusoidal(7, 8)[places])


@pytest.mark.parametrize("scaled", [False, True])
def test_embedding_looks_up_and_scales(scaled: bool) -> None:
    embedding = Embedding(11, 7, scaled=scaled)
    tokens = torch.tensor([[3, 0, 10], [5, 3, 1]])
    want = embedding.weight[tokens] * (sqrt(7) if scaled else 1)
    torch.testing.assert_close(embedding(tokens), want)


@pytest.mark.parametrize("scaled", [False, True])
def test_fresh_vectors_have_the_intended_size(scaled: bool) -> None:
    torch.manual_seed(0)
    spread = Embedding(1009, 61, scaled=scaled)(torch.arange(1009)).std().item()
    assert spread == pytest.approx(1.0 if scaled else 0.1, rel=0.03)


def test_embedding_drops_in_training_only() -> None:
    embedding, tokens = Embedding(11, 67, dropout=0.5), torch.arange(11)
    assert (embedding(tokens) == 0).any()
    assert not (embedding.eval()(tokens) == 0).any()


def test_positions_none_adds_nothing() -> None:
    vectors = torch.randn(2, 3, 5)
    assert torch.equal(Positions("none", 5, 7)(vectors, torch.ones(2, 3, dtype=torch.long)), vectors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_positions_sinusoidal(dtype: torch.dtype) -> None:
    vectors, places = torch.randn(2, 3, 5).to(dtype), torch.tensor([[0, 1, 2], [4, 4, 9]])
    positions = Positions("sinusoidal", 5, 7)
    assert list(positions.parameters()) == []
    got = positions(vectors, places)
    assert got.dtype == dtype
    torch.testing.assert_close(got, vectors + sinusoidal(10, 5)[places].to(dtype))


def test_positions_learned_stay_at_the_last_one() -> None:
    positions, vectors = Positions("learned", 5, 7), torch.randn(2, 3, 5)
    got = positions(vectors, torch.tensor([[0, 6, 7], [2, 100, 3]]))
    rows = positions.weight[torch.tensor([[0, 6, 6], [2, 6, 3]])]
    torch.testing.assert_close(got, vectors + rows)


def test_places_are_counted_among_the_real_tokens() -> None:
    allowed = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0], [0] * 5]).bool()
    want = [[0, 0, 0, 1, 2], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0] * 5]
    assert count_places(allowed).tolist() == want
