"""What torch's attention function is asked, against the plain formula."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import regard
from regard.observation.intervene import uniform

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


class Heads(nn.Module):
    """`multi_head_attention_forward` of a batch `[T, B, 8]`, with arguments of choice."""

    def __init__(self, **settings) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own = nn.MultiheadAttention(8, 2)
        self.settings = settings

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        own = self.own
        given = {"in_proj_weight": own.in_proj_weight} | self.settings
        return F.multi_head_attention_forward(
            x, x, x, 8, 2, given.pop("in_proj_weight"), own.in_proj_bias, None, None, False, 0.0,
            own.out_proj.weight, own.out_proj.bias, **given,
        )  # fmt: skip


def from_map(weights: Tensor, own: nn.MultiheadAttention, x: Tensor, value_weight: Tensor | None = None) -> Tensor:
    """The output `[T, B, 8]` that weights `[B, 2, T, T]` give."""
    value_weight = own.in_proj_weight.chunk(3)[2] if value_weight is None else value_weight
    value = F.linear(x, value_weight, own.in_proj_bias.chunk(3)[2]).unflatten(-1, (2, 4)).permute(1, 2, 0, 3)
    return own.out_proj((weights @ value).permute(2, 0, 1, 3).flatten(-2))


@pytest.mark.parametrize("packed", ["empty", "unused", "none"])
def test_separate_projections_are_used_where_torch_is_told_to(packed: str) -> None:
    parts = [draw(8, n) for n in (8, 9, 10)]
    parts = [part[:, :8].contiguous() for part in parts]
    unused = {"empty": torch.empty(0), "unused": draw(24, 8), "none": None}[packed]
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    model = Heads(in_proj_weight=unused, use_separate_proj_weight=True, **dict(zip(names, parts, strict=True)))
    x = draw(T, B, 8)
    before, weights = model(x)
    with regard.observe(model) as seen:
        after, _ = model(x)
    assert torch.equal(before, after)
    torch.testing.assert_close(seen["."][0].full().mean(1), weights)
    with regard.intervene(model, ".", lambda same: same):
        torch.testing.assert_close(model(x), (before, weights))


def test_the_packed_projection_is_used_beside_separate_ones_that_torch_ignores() -> None:
    model, x = Heads(q_proj_weight=draw(8, 8), k_proj_weight=draw(8, 8), v_proj_weight=draw(8, 8)), draw(T, B, 8)
    with regard.observe(model) as seen:
        _, weights = model(x)
    torch.testing.assert_close(seen["."][0].full().mean(1), weights)


HINTS = [(weights, padded) for weights in (False, True) for padded in (False, True)]


@pytest.mark.parametrize(("need_weights", "padded"), HINTS)
def test_is_causal_replaces_the_mask_only_where_torch_lets_it(need_weights: bool, padded: bool) -> None:
    mask = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(3).bool(), -torch.inf)  # not the causal one
    more = {"key_padding_mask": torch.tensor([[0.0] * T, [0.0] * (T - 1) + [-torch.inf]])} if padded else {}
    model, x = Heads(attn_mask=mask, is_causal=True, need_weights=need_weights, **more), draw(T, B, 8)
    before = model(x)[0]
    with regard.observe(model) as seen:
        assert torch.equal(model(x)[0], before)
    torch.testing.assert_close(from_map(seen["."][0].full(), model.own, x), before)
    with regard.intervene(model, ".", lambda same: same):
        torch.testing.assert_close(model(x)[0], before)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_is_causal_of_a_module_on_its_fast_path_and_beside_it(need_weights: bool, boolean: bool, grad: bool) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    hidden = torch.ones(T, T).triu(3).bool()
    mask = hidden if boolean else torch.zeros(T, T).masked_fill(hidden, -torch.inf)
    x = draw(B, T, 8)
    with torch.set_grad_enabled(grad):
        before = model(x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)[0]
        with regard.observe(model) as seen:
            after = model(x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)[0]
    assert torch.equal(after, before)
    got = from_map(seen["."][0].full(), model, x.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(got, before)
    if grad:
        ours = regard.nn.MultiheadAttention(8, 2, batch_first=True)
        ours.load_state_dict(model.state_dict())
        again = ours(x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)[0]
        torch.testing.assert_close(again, before)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("batch", [False, True])
def test_an_intervention_returns_the_changed_weights_where_they_are_asked_for(average: bool, batch: bool) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = draw(B, T, 8) if batch else draw(T, 8)
    before = model(x, x, x, average_attn_weights=average)
    with regard.intervene(model, ".", lambda weights: weights):
        torch.testing.assert_close(model(x, x, x, average_attn_weights=average), before)
        assert model(x, x, x, need_weights=False)[1] is None
    with regard.intervene(model, ".", lambda weights: weights * 0.5):
        torch.testing.assert_close(model(x, x, x, average_attn_weights=average)[1], before[1] * 0.5)


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


class Ours(nn.Module):
    def forward(self, q: Tensor) -> Tensor:
        return regard.attend(q, q, q)


class Theirs(nn.Module):
    def forward(self, q: Tensor) -> Tensor:
        mask = q.new_ones(q.shape[-2], q.shape[-2]).tril().log()
        return F.scaled_dot_product_attention(q, q, q, attn_mask=mask + q[..., :1])


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(D * 2, 2, batch_first=True)

    def forward(self, q: Tensor) -> Tensor:
        q = q.repeat_interleave(2, -1)
        return self.inner(q, q, q)[0]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("make", [Ours, Theirs, Module])
def test_vmap_is_refused_by_one_sentence_at_every_door(make: type[nn.Module]) -> None:
    model, q = make(), draw(3, B, T, D)
    sentence = r"^attention inside torch\.func\.vmap cannot be seen: give the tensors a batch axis instead$"
    with pytest.raises(regard.RegardError, match=sentence), regard.observe(model):
        torch.func.vmap(model)(q)
    with pytest.raises(regard.RegardError, match=sentence), regard.intervene(model, "*", uniform):
        torch.func.vmap(model)(q)
    with pytest.raises(regard.RegardError, match=sentence), regard.observe(model):
        torch.func.vmap(torch.func.grad(lambda x: model(x).sum()))(q)
    with regard.observe(Asks()):  # another model
        torch.func.vmap(model)(q)


def test_inside_torch_func_grad_attention_is_seen() -> None:
    model, q = Ours(), draw(B, T, D)
    with regard.observe(model) as seen:
        torch.func.grad(lambda x: model(x).sum())(q)
    torch.testing.assert_close(seen["."][0].full(), regard.attention_map(q, q).full())
