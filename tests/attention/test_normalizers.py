"""Normalisers: rows of scores to rows of weights, against plain Python."""

import inspect
from math import exp, inf, log, nan

import pytest
import torch

import regard
from regard.attention.normalizers import Normalizer, Softmax, Uniform, WholeRows, as_normalizer

SCORES = torch.tensor([[0.3, -1.2, 2.0, 0.7, -inf], [1.0, 1.0, -2.0, 0.1, 0.2], [-inf] * 5], dtype=torch.float64)
ALLOWED = torch.tensor([[True, False, True, True, True], [False] * 5, [True] * 5])


def test_softmax_in_plain_python() -> None:
    weights, numbers = Softmax()(SCORES, ALLOWED)
    total = exp(0.3) + exp(2.0) + exp(0.7)
    first = [exp(0.3) / total, 0, exp(2.0) / total, exp(0.7) / total, 0]
    torch.testing.assert_close(weights, torch.tensor([first, [0] * 5, [0] * 5], dtype=torch.float64))
    torch.testing.assert_close(numbers, torch.tensor([log(total), -inf, -inf], dtype=torch.float64))


def test_softmax_is_torchs_where_everything_is_allowed() -> None:
    scores = torch.randn(2, 3, 5, 7)
    weights, numbers = Softmax()(scores, torch.ones_like(scores, dtype=torch.bool))
    torch.testing.assert_close(weights, scores.softmax(-1))
    torch.testing.assert_close(numbers, scores.logsumexp(-1))


@pytest.mark.parametrize("bad", [nan, inf])
def test_softmax_of_an_infinite_or_nan_score_is_nan_in_that_row_only(bad: float) -> None:
    scores = torch.zeros(3, 5)
    scores[1, 2] = scores[2, 2] = bad
    allowed = torch.ones(3, 5, dtype=torch.bool)
    allowed[2, 2] = False
    weights = Softmax()(scores, allowed)[0]
    assert weights[1].isnan().all()
    torch.testing.assert_close(weights[0], torch.full((5,), 0.2))
    torch.testing.assert_close(weights[2], torch.tensor([0.25, 0.25, 0, 0.25, 0.25]))


@pytest.mark.parametrize("name", ["softmax", "uniform"])
def test_forbidden_scores_get_no_gradient(name: str) -> None:
    scores = SCORES.clone().requires_grad_()
    weights, numbers = as_normalizer(name)(scores, ALLOWED)
    if weights.requires_grad:
        (weights.square().sum() + numbers[0]).backward()
        assert scores.grad.isfinite().all()
        assert not scores.grad[~ALLOWED].any()
        assert not scores.grad[1:].any()


def test_uniform_counts() -> None:
    weights, numbers = Uniform()(SCORES, ALLOWED)
    torch.testing.assert_close(
        weights, torch.tensor([[0.25, 0, 0.25, 0.25, 0.25], [0] * 5, [0.2] * 5], dtype=torch.float64)
    )
    torch.testing.assert_close(numbers, torch.tensor([4, 0, 5], dtype=torch.float64))


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_uniform_does_not_read_scores(bad: float) -> None:
    scores = torch.full((2, 3), bad)
    torch.testing.assert_close(Uniform()(scores, torch.ones(2, 3, dtype=torch.bool))[0], torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize("name", ["softmax", "uniform"])
@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (2, 0, 0)])
def test_empty_rows(name: str, shape: tuple[int, ...]) -> None:
    weights, numbers = as_normalizer(name)(torch.zeros(shape), torch.ones(shape, dtype=torch.bool))
    assert weights.shape == shape
    assert numbers.shape == shape[:-1]


def test_a_callable_is_zeroed_where_nothing_is_allowed() -> None:
    normalizer = as_normalizer(lambda scores, allowed: scores + 3)
    assert isinstance(normalizer, WholeRows)
    scores = torch.arange(10.0).reshape(2, 5)
    allowed = torch.tensor([[True, False, True, True, False], [False] * 5])
    weights, numbers = normalizer(scores, allowed)
    torch.testing.assert_close(weights, torch.tensor([[3.0, 0, 5, 6, 0], [0] * 5]))
    torch.testing.assert_close(numbers, torch.tensor([14.0, 0]))


def test_a_row_of_minus_infinity_is_dead_for_a_callable_too() -> None:
    """DESIGN section 3: all −inf is a dead row, whoever normalises."""
    scores = torch.stack([torch.full((5,), -inf), torch.zeros(5)])
    weights = as_normalizer(lambda s, allowed: s.softmax(-1))(scores, torch.ones(2, 5, dtype=torch.bool))[0]
    torch.testing.assert_close(weights, torch.tensor([[0.0] * 5, [0.2] * 5]))


def test_as_normalizer() -> None:
    assert isinstance(as_normalizer("softmax"), Softmax)
    assert isinstance(as_normalizer("uniform"), Uniform)
    given = Uniform()
    assert as_normalizer(given) is given
    assert isinstance(given, Normalizer)


@pytest.mark.parametrize(("given", "first"), [("sofmax", "softmax"), ("unifrom", "uniform"), ("zzz", "softmax")])
def test_an_unknown_normalizer(given: str, first: str) -> None:
    with pytest.raises(regard.ChoiceError, match=f"unknown normalizer '{given}': expected one of '{first}'"):
        as_normalizer(given)


def test_a_number_is_no_normalizer() -> None:
    with pytest.raises(regard.ChoiceError, match="unknown normalizer 5: expected one of"):
        inspect.unwrap(as_normalizer)(5)
