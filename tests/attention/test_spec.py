"""A spec: what one attention does, as data."""

import dataclasses

import pytest
import torch

import regard
from regard.attention.biases import Added
from regard.attention.masks import Allow
from regard.attention.normalizers import Uniform
from regard.attention.spec import Spec, make_spec

SHAPE = (2, 5, 7)


def test_make_spec_turns_what_a_person_writes_into_parts() -> None:
    mask, bias = torch.ones(7, dtype=torch.bool), torch.zeros(7)
    spec = make_spec("cosine", "uniform", mask, bias, 0.25)
    assert isinstance(spec.score, regard.Cosine)
    assert isinstance(spec.normalizer, Uniform)
    assert isinstance(spec.mask, Allow)
    assert isinstance(spec.bias, Added)
    assert (spec.mask.tensor is mask, spec.bias.tensor is bias, spec.dropout) == (True, True, 0.25)


def test_a_spec_cannot_be_changed() -> None:
    spec = make_spec("dot", "softmax", None, None)
    assert (spec.mask, spec.bias, spec.dropout) == (None, None, 0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.dropout = 0.5


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [3, 1]])
@pytest.mark.parametrize("biased", [False, True])
def test_scores_of_some_rows(rows: list[int], biased: bool) -> None:
    query, key, bias = torch.randn(2, 5, 3), torch.randn(2, 7, 3), torch.randn(5, 7, dtype=torch.float64)
    spec = make_spec("dot", "softmax", None, bias if biased else None)
    got = spec.scores(query[:, rows], key, torch.tensor(rows), SHAPE)
    want = (query @ key.mT + (bias if biased else 0)).float()
    torch.testing.assert_close(got, want[:, rows])


def test_allowed_rows() -> None:
    rows = torch.tensor([3, 1])
    spec = make_spec("dot", "softmax", regard.causal(0), None)
    cpu = torch.device("cpu")
    assert spec.allowed(rows, SHAPE, cpu).tolist() == [
        [True] * 4 + [False] * 3,
        [True] * 2 + [False] * 5,
    ]
    assert Spec(spec.score, spec.normalizer).allowed(rows, SHAPE, cpu).tolist() == [[True] * 7]


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 7.0])
def test_dropout_is_a_probability(dropout: float) -> None:
    with pytest.raises(regard.ShapeError, match=rf"dropout must be a probability in \[0, 1\); got {dropout}"):
        make_spec("dot", "softmax", None, None, dropout)
