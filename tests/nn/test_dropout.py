"""Dropout of states."""

from math import sqrt

import pytest
import torch

from regard.errors import ShapeError
from regard.nn.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drops_the_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(307, 311)
    y = Dropout(p)(x)
    share = (y == 0).double().mean().item()
    assert abs(share - p) < 5 * sqrt(p * (1 - p) / x.numel()) + 2**-16
    threshold = round(p * 2**16) / 2**16
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - threshold)))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (0, 3), (2, 3, 11)])
def test_every_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    y = Dropout(0.5)(x)
    torch.testing.assert_close(y, torch.where(y == 0, 0, 2 * x))


def test_the_same_seed_drops_the_same() -> None:
    x, drop = torch.randn(11, 13), Dropout(0.5)
    torch.manual_seed(3)
    first = drop(x)
    torch.manual_seed(3)
    assert torch.equal(drop(x), first)
    assert not torch.equal(drop(x), first)


def test_the_gradient_is_dropped_with_the_number() -> None:
    x = torch.ones(11, 13, requires_grad=True)
    y = Dropout(0.25)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    assert Dropout(0.5)(torch.ones(7, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (0.0, False)])
def test_nothing_is_dropped_in_evaluation_or_at_zero(p: float, training: bool) -> None:
    x = torch.randn(7)
    assert Dropout(p).train(training)(x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_equals_a_mask_of_bools(dtype: torch.dtype) -> None:
    x = torch.randn(11, 13, dtype=dtype)
    torch.manual_seed(5)
    found = Dropout(0.3)(x)
    torch.manual_seed(5)
    threshold = round(0.3 * 2**16)
    bits = torch.empty(36, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:143].view(11, 13)
    factor = (bits >= threshold - 2**15).double().mul(1 / (1 - threshold / 2**16)).to(dtype)
    assert torch.equal(found, x * factor)


@pytest.mark.parametrize("p", [1.0, -0.5, 2.0])
def test_what_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(ShapeError, match=r"dropout must be a probability in \[0, 1\)"):
        Dropout(p)
