"""Tokens and places as vectors."""

from math import cos, sin, sqrt

import pytest
import torch

import regard
from regard.nn.embedding import Embedding, Positions, count_positions, sinusoidal, sinusoids


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
    positions = torch.tensor([[3, 0], [5, 3], [2, 2]])
    torch.testing.assert_close(sinusoids(positions, 8), sinusoidal(7, 8)[positions])


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
    vectors, positions = torch.randn(2, 3, 5).to(dtype), torch.tensor([[0, 1, 2], [4, 4, 9]])
    layer = Positions("sinusoidal", 5, 7)
    assert list(layer.parameters()) == []
    got = layer(vectors, positions)
    assert got.dtype == dtype
    torch.testing.assert_close(got, vectors + sinusoidal(10, 5)[positions].to(dtype))


def test_positions_learned_stay_at_the_last_one() -> None:
    layer, vectors = Positions("learned", 5, 7), torch.randn(2, 3, 5)
    got = layer(vectors, torch.tensor([[0, 6, 7], [2, 100, 3]]))
    rows = layer.weight[torch.tensor([[0, 6, 6], [2, 6, 3]])]
    torch.testing.assert_close(got, vectors + rows)


def test_places_are_counted_among_the_real_tokens() -> None:
    allowed = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0], [0] * 5]).bool()
    want = [[0, 0, 0, 1, 2], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0] * 5]
    assert count_positions(allowed).tolist() == want


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_is_a_complex_rotation(interleaved: bool) -> None:
    vectors, positions = torch.randn(2, 3, 5, 10, dtype=torch.float64), torch.tensor([0, 3, 1, 7, 1000])
    got = regard.Rotary(8, 500.0, interleaved)(vectors, positions)
    for i in range(4):
        one, two = (2 * i, 2 * i + 1) if interleaved else (i, i + 4)
        pair = torch.complex(vectors[..., one], vectors[..., two])
        want = pair * torch.exp(1j * positions.double() * 500.0 ** (-2 * i / 8))
        torch.testing.assert_close(torch.complex(got[..., one], got[..., two]), want)
    assert torch.equal(got[..., 8:], vectors[..., 8:])


def test_rotary_is_llamas() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=32, num_attention_heads=2)
    query, key = torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
    positions = torch.arange(9)[None]
    want = apply_rotary_pos_emb(query, key, *LlamaRotaryEmbedding(config)(query, positions))
    for got, one in zip(map(regard.Rotary(16), (query, key)), want, strict=True):
        torch.testing.assert_close(got, one)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotated_products_depend_on_the_distance_alone(interleaved: bool) -> None:
    rotary = regard.Rotary(8, interleaved=interleaved)
    query, key = torch.randn(1, 8, dtype=torch.float64), torch.randn(1, 8, dtype=torch.float64)
    products = [float(rotary(query, torch.tensor([p + 5])) @ rotary(key, torch.tensor([p])).T) for p in (0, 1, 17, 400)]
    assert products == pytest.approx([products[0]] * 4)


def test_rotary_keeps_the_type_and_takes_places_of_each_sentence() -> None:
    vectors = torch.randn(2, 3, 5, 8, dtype=torch.bfloat16)
    assert regard.Rotary(8)(vectors).dtype == torch.bfloat16
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])[:, None]
    both = regard.Rotary(8)(vectors.float(), positions)
    torch.testing.assert_close(both[1], regard.Rotary(8)(vectors[1].float(), positions[1]))
    torch.testing.assert_close(both[0], regard.Rotary(8)(vectors[0].float()))


def test_rotary_refuses() -> None:
    with pytest.raises(regard.ShapeError, match="Rotary needs an even dim of at least 2; got 5"):
        regard.Rotary(5)
    with pytest.raises(regard.ShapeError, match="Rotary turns 8 coordinates and the vectors have 6"):
        regard.Rotary(8)(torch.zeros(2, 6))
