"""The fused kernel: what it takes equals the reference, what it does not take it refuses with the reason."""

import inspect

import pytest
import torch
from torch import Tensor

import regard
from device import DEVICE, in_float64, leaf
from regard.attention.biases import Bias
from regard.attention.kernels.fused import fused, refusal
from regard.attention.kernels.reference import reference
from regard.attention.masks import Mask, allow, causal, padding
from regard.attention.scores import Dot, Product, as_score
from regard.attention.spec import Spec, make_spec

T, S, D = 3, 7, 5


def tensors(*batch: int, t: int = T, s: int = S, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(*batch, n, D, dtype=dtype, generator=draw) for n in (t, s, s)]


def spec(score="scaled_dot", normalizer="softmax", mask=None, bias=None, dropout=0.0) -> Spec:
    return make_spec(score, normalizer, mask, bias, dropout)


class Distances(Bias):
    """A bias made from places, as alibi is."""

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
        return -(rows[:, None] - columns).abs() / 3


def masks(device: torch.device) -> dict[str, Mask | None]:
    return {
        "none": None,
        "causal": causal(),
        "triangle": causal(0),
        "no_triangle": causal(torch.tensor(0, device=device)),
        "tensor": allow((torch.arange(T, device=device) % 2 == 0)[:, None]),
        "padding": padding(torch.tensor([4, 0], device=device)),
    }


MASKS = masks(torch.device("cpu"))


@pytest.mark.parametrize("batch", [(2,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("bias", [None, "places", "tensor"])
@pytest.mark.parametrize("s", [T, S])
def test_equals_the_reference(batch: tuple[int, ...], mask: str, bias: str | None, s: int) -> None:
    inputs = tensors(*batch, s=s)
    number = {None: None, "places": Distances(), "tensor": torch.linspace(-2, 3, s, dtype=torch.float64)}[bias]
    asked = spec(mask=MASKS[mask], bias=number)
    assert refusal(*inputs, asked) is None
    torch.testing.assert_close(fused(*inputs, asked)[0], reference(*inputs, asked, 0)[0])


@pytest.mark.parametrize("score", ["dot", "scaled_dot", "cosine", regard.ScaledDot(0.7), regard.Cosine(0.5, 3.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_product_equals_the_reference_with_its_gradients(score, dtype: torch.dtype) -> None:
    inputs = [tensor.requires_grad_() for tensor in tensors(2, 3, dtype=dtype)]
    asked = spec(score, mask=causal())
    outputs = fused(*inputs, asked)[0], reference(*inputs, asked, 0)[0]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(output.square().sum(), inputs) for output in outputs))


def test_projected_products_are_served_too() -> None:
    query, key, value = tensors(2)
    score = regard.General(D, D).double()
    asked = spec(score.projected())
    assert refusal(query, key, value, asked) is None
    want = reference(query, key, value, spec(score), 0)[0]
    torch.testing.assert_close(fused(query, score.project_key(key), value, asked)[0], want)


def test_a_product_of_ones_own_is_served() -> None:
    class Negative(Product):
        def project_query(self, query):
            return -query

    query, key, value = tensors(2)
    want = fused(-query, key, value, spec("dot"))[0]
    torch.testing.assert_close(fused(query, key, value, spec(Negative()))[0], want)


REFUSED = [
    ({"score": regard.Distance()}, "the score Distance is not a dot product"),
    ({"score": regard.Additive(D, D, 2)}, "the score Additive is not a dot product"),
    ({"score": regard.Additive(D, D, 2).projected()}, "the score Projected is not a dot product"),
    ({"normalizer": "uniform"}, "the normalizer Uniform is not softmax"),
    ({"normalizer": lambda scores, allowed: scores * allowed}, "the normalizer WholeRows is not softmax"),
    ({"dropout": 0.1}, "dropout on the weights: torch would drop others than regard does"),
]


@pytest.mark.parametrize(("what", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_refusals_give_the_reason(what: dict, reason: str) -> None:
    assert refusal(*tensors(2), spec(**what)) == reason


@pytest.mark.parametrize("width", [3, 11])
@pytest.mark.parametrize("masked", [False, True])
def test_values_of_another_width(width: int, masked: bool) -> None:
    query, key, _ = (tensor.requires_grad_() for tensor in tensors(2))
    value = torch.randn(2, S, width, dtype=torch.float64, requires_grad=True)
    asked = spec(mask=causal() if masked else None)
    outputs = fused(query, key, value, asked)[0], reference(query, key, value, asked, 0)[0]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(o.square().sum(), (query, key, value)) for o in outputs))


SAMPLED = {("none", "tensor"), ("causal", None), ("no_triangle", "tensor"), ("padding", None)}


@pytest.mark.sampled(3)
@in_float64
@pytest.mark.parametrize(
    ("mask", "bias"),
    [
        pytest.param(mask, bias, marks=[] if (mask, bias) in SAMPLED else pytest.mark.slow)
        for mask in MASKS
        for bias in (None, "tensor")
    ],
)
def test_second_derivatives(mask: str, bias: str | None) -> None:
    inputs = [leaf(tensor) for tensor in tensors(2, 1)]
    added = None if bias is None else torch.linspace(-2, 3, S, dtype=torch.float64).to(DEVICE)
    asked = spec(mask=masks(DEVICE)[mask], bias=added)
    assert torch.autograd.gradgradcheck(lambda *some: fused(*some, asked)[0], inputs)


def test_refuses_torch_func_transforms() -> None:
    reasons: list[str | None] = []

    def ask(query, key):
        reasons.append(refusal(query, key, key, spec()))
        return query

    torch.func.vmap(ask)(*tensors(2)[:2])
    assert reasons == ["inside a torch.func transform, which may ask for derivatives that torch's kernel does not have"]


@pytest.mark.parametrize(("t", "s"), [(0, S), (T, 0)])
def test_refuses_empty_axes(t: int, s: int) -> None:
    assert refusal(*tensors(2, t=t, s=s), spec()) == "there is nothing to look at: an axis of size 0"


@pytest.mark.parametrize("learned", [False, True])
def test_a_bias_is_no_reason(learned: bool) -> None:
    assert refusal(*tensors(2), spec(bias=torch.zeros(S, requires_grad=learned))) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keys", [251, 257])
def test_half_precision_with_gradients_keeps_its_dtype(dtype: torch.dtype, keys: int) -> None:
    inputs = [tensor.requires_grad_() for tensor in tensors(2, s=keys, dtype=dtype)]
    output = fused(*inputs, spec("dot"))[0]
    assert output.dtype == dtype
    gradients = torch.autograd.grad(output.sum(), inputs)
    assert [g.dtype for g in gradients] == [dtype] * 3
    exact = reference(*(t.detach().double() for t in inputs), Spec(Dot(), as_softmax()), 0)[0]
    torch.testing.assert_close(output.double(), exact, rtol=0.02, atol=0.02)


def as_softmax():
    return spec().normalizer


def test_named_scores_are_products() -> None:
    assert all(isinstance(as_score(name), Product) for name in ("dot", "scaled_dot", "cosine"))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("bias", [None, "places"])
def test_where_the_kernel_gives_no_sums(mask: str, bias: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other devices' path, on this one."""
    module = inspect.getmodule(inspect.unwrap(fused))
    monkeypatch.setattr(module, "_gives_sums", lambda tensor: False)
    inputs = [tensor.requires_grad_() for tensor in tensors(2, 3)]
    asked = spec(mask=MASKS[mask], bias=None if bias is None else Distances())
    outputs = fused(*inputs, asked)[0], reference(*inputs, asked, 0)[0]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(output.square().sum(), inputs) for output in outputs))
    learned = spec(bias=torch.zeros(S, requires_grad=True))
    assert (
        refusal(*inputs, learned) == "the bias is learned, and on cpu torch's kernel keeps its log-sum-exps to itself"
    )
