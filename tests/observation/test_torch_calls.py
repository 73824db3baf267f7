"""What torch's attention function is asked, against the plain formula."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import regard

B, H, T, S, D = 2, 4, 5, 7, 3


class Asks(nn.Module):
    def forward(self, *args, **kwargs) -> Tensor:
        return F.scaled_dot_product_attention(*args, **kwargs)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def look(*args, **kwargs) -> tuple[Tensor, Tensor]:
    """The map that was seen, and the output, which is the same as unobserved."""
    model = Asks()
    before = model(*args, **kwargs)
    with regard.observe(model) as seen:
        after = model(*args, **kwargs)
    assert torch.equal(before.nan_to_num(), after.nan_to_num())
    return seen["."][0].full(), before


CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "bool": {"attn_mask": torch.rand(T, S, generator=torch.Generator().manual_seed(0)) < 0.6},
    "bool per sentence": {"attn_mask": torch.arange(S) < torch.tensor([S, S - 3]).view(B, 1, 1, 1)},
    "float": {"attn_mask": draw(H, T, S)},
    "lowest": {
        "attn_mask": torch.zeros(T, S).masked_fill(torch.ones(T, S).triu(2).bool(), torch.finfo(torch.float32).min)
    },
    "upper left": {"attn_mask": causal_upper_left(T, S)},
    "lower right": {"attn_mask": causal_lower_right(T, S)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_map_times_the_values_is_the_output(case: str, dtype: torch.dtype) -> None:
    q, k, v = (draw(B, H, n, D).to(dtype) for n in (T, S, S))
    given = dict(CASES[case])
    if case in ("float", "lowest"):
        given["attn_mask"] = given["attn_mask"].to(dtype).clamp(min=torch.finfo(dtype).min)
    weights, output = look(q, k, v, **given)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(weights @ v.to(weights.dtype), output.to(weights.dtype), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("axes", [3, 4])
def test_grouped_heads(axes: int) -> None:
    q, k, v = (draw(B, n, m, D) for n, m in ((H, T), (2, S), (2, S)))
    if axes == 3:
        q, k, v = q[0], k[0], v[0]
    weights, output = look(q, k, v, enable_gqa=True)
    torch.testing.assert_close(weights @ v.repeat_interleave(2, -3), output, atol=1e-6, rtol=1e-5)


def test_without_axes_and_with_many() -> None:
    weights, output = look(draw(T, D), draw(S, D), v := draw(S, D))
    torch.testing.assert_close(weights @ v, output, atol=1e-6, rtol=1e-5)
    weights, output = look(draw(2, 1, 3, T, D), draw(2, 2, 3, S, D), v := draw(2, 2, 3, S, D))
    torch.testing.assert_close(weights @ v, output, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("inference", [False, True])
def test_a_mask_that_changes_between_calls_is_looked_at_anew(inference: bool) -> None:
    model, q, mask = Asks(), draw(1, 1, T, D), torch.zeros(T, T)
    with torch.inference_mode(inference), regard.observe(model) as seen:
        mask = torch.zeros(T, T)
        model(q, q, q, attn_mask=mask)
        mask[:, 2] = -torch.inf
        model(q, q, q, attn_mask=mask)
        mask.numpy()[:, 3] = -torch.inf
        model(q, q, q, attn_mask=mask)
    assert [float(one.full()[..., column].max()) > 0 for one, column in zip(seen["."], (2, 2, 3), strict=True)] == [
        True, False, False,
    ]  # fmt: skip


def test_the_functional_form() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(8, 2)

    class Functional(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
            return F.multi_head_attention_forward(
                x, x, x, 8, 2, theirs.in_proj_weight, theirs.in_proj_bias, None, None, False, 0.0,
                theirs.out_proj.weight, theirs.out_proj.bias, average_attn_weights=False,
            )  # fmt: skip

    model, x = Functional(), draw(T, B, 8)
    before = model(x)
    with regard.observe(model) as seen:
        after = model(x)
    assert torch.equal(before[0], after[0])
    torch.testing.assert_close(seen["."][0].full(), before[1])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_cannot_be_read_is_refused_by_name() -> None:
    model, q = Asks(), draw(3, B, H, T, D)
    with pytest.raises(regard.RegardError, match=r"inside torch\.func\.vmap cannot be seen"), regard.observe(model):
        torch.func.vmap(lambda x: model(x, x, x))(q)
    nested = torch.nested.nested_tensor([draw(H, T, D), draw(H, T, D)], layout=torch.strided)
    with pytest.raises(regard.RegardError, match="over nested tensors cannot be seen"), regard.observe(model):
        model(nested, nested, nested)
