"""Products in other precisions, against whole numbers in Python and against float64."""

import pytest
import torch

from regard.nn import products
from regard.nn.products import Int8Product, joined, make_product


def layer(bias: bool = True, d: int = 24, e: int = 10) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(d, e, bias).requires_grad_(False)


def rounded(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers and scales of rows, in float64."""
    wide = matrix.double()
    scale = wide.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return (wide / scale).round(), scale


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 33])
def test_int8_is_the_product_of_whole_numbers(rows: int, bias: bool) -> None:
    linear, x = layer(bias), torch.randn(rows, 24)
    x[0] = 0  # a row of zeros has no scale
    (q, s), (w, t) = rounded(x), rounded(linear.weight)
    assert q.abs().max() <= 127
    expected = (q @ w.T) * s * t.T + (linear.bias.double() if bias else 0)
    found = Int8Product(linear.weight, linear.bias)(x)
    # a number half way between two whole ones may be rounded to either
    assert (found - expected).abs().median() < 1e-6
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(found, linear(x), atol=0.05, rtol=0)


def test_a_row_does_not_depend_on_the_others() -> None:
    linear, x = layer(), torch.randn(5, 24)
    product = Int8Product(linear.weight, linear.bias)
    louder = x.clone()
    louder[1:] *= 1000
    assert torch.equal(product(x)[:1], product(louder)[:1])
    assert torch.equal(product(x)[:1], product(x[:1]))


@pytest.mark.parametrize("rows", [1, 7, 130])
def test_a_processor_without_the_instructions_gives_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = layer(), torch.randn(rows, 24)
    fast = Int8Product(linear.weight, linear.bias)(x)
    monkeypatch.setattr(products, "has_fast_int8", lambda: False)
    torch.testing.assert_close(Int8Product(linear.weight, linear.bias)(x), fast, atol=0, rtol=0)


@pytest.mark.skipif(not products.has_fast_int8(), reason="needs VNNI")
@pytest.mark.parametrize(("d", "e"), [(24, 10), (2048, 512), (300, 7001)])
def test_both_ways_to_whole_numbers_give_the_same_bits(d: int, e: int, monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = layer(d=d, e=e), torch.randn(40, d) * torch.linspace(0.01, 9, 40)[:, None]
    chosen = Int8Product(linear.weight, linear.bias)
    monkeypatch.setattr(products, "has_fast_int8", lambda: False)
    small = Int8Product(linear.weight, linear.bias)
    for rows in (1, 2, 32, 33):
        assert torch.equal(chosen(x[:rows]), small(x[:rows]))


@pytest.mark.parametrize("vnni", [True, False])
@pytest.mark.parametrize(("d", "e"), [(1, 3), (1, 1), (2, 1), (8, 8)])
def test_any_layout_of_a_row_gives_its_product(d: int, e: int, vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_fast_int8", lambda: vnni and torch.backends.mkldnn.is_available())
    linear = layer(d=d, e=e)
    product = Int8Product(linear.weight, linear.bias)
    for rows in (1, 2, 33):
        columns = torch.randn(d, rows)
        assert torch.equal(product(columns.t()), product(columns.t().clone(memory_format=torch.contiguous_format)))
        torch.testing.assert_close(product(columns.t()), linear(columns.t()), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_float_products(precision: str) -> None:
    linear, x = layer(), torch.randn(4, 24)
    found = make_product(linear.weight, linear.bias, precision)(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, linear(x), atol=1e-6 if precision == "float32" else 0.03, rtol=0)


def test_joined_layers_give_their_outputs_side_by_side() -> None:
    one, other, x = layer(), layer(bias=False), torch.randn(3, 24)
    weight, bias = joined([one, other])
    torch.testing.assert_close(torch.nn.functional.linear(x, weight, bias), torch.cat([one(x), other(x)], -1))
    assert joined([other, other])[1] is None
