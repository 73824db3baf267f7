"""Attention where no value may be read: on an accelerator, on the meta device, under torch.func.

On an accelerator it has the values of the CPU, on the query's device, and never makes the host wait. The accelerator
is the pretend one of `pretend_device`. Compiled and exported attention: `tests/exams`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard
from pretend_device import NAME, no_sync, present
from regard.attention.entmax import _linearized, entmax

B, H, T, S, D = 2, 4, 7, 11, 8
draw = torch.Generator().manual_seed(0)
INPUTS = tuple(torch.randn(B, H, n, D, generator=draw) for n in (T, S, S))
HOLES = torch.rand(B, 1, T, S, generator=draw) > 0.4
IDS = torch.tensor([[0, 0, 1, 1, 2, 2, -1]] * B), torch.tensor([[0] * 4 + [1] * 3 + [2] * 3 + [-1]] * B)
# tensors of a mask, a bias or a sink stay where they were made: they follow the query by themselves
MASKS: dict[str, Callable[[], Any]] = {
    "none": lambda: None, "causal": regard.causal, "by sentence": lambda: regard.causal(torch.tensor([1, 2])),
    "window": lambda: regard.window(2), "padding": lambda: regard.padding(torch.tensor([S, 5]), torch.tensor([T, 3])),
    "documents": lambda: regard.documents(*IDS), "prefix": lambda: regard.prefix(3), "bool": lambda: HOLES,
    "blocks": lambda: regard.blocks(torch.tensor([[1, 0, 1], [0, 1, 0]]).bool(), 4),
    "algebra": lambda: (regard.causal() | regard.prefix(2)) & ~regard.window(0) & regard.padding(torch.tensor([S, 5])),
}  # fmt: skip
BIASES: dict[str, Callable[[], Any]] = {
    "none": lambda: None, "alibi": lambda: regard.alibi(H), "tensor": lambda: torch.linspace(-1, 1, T * S).view(T, S),
}  # fmt: skip
NORMALIZERS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: name for name in ("softmax", "sparsemax", "entmax15", "sigmoid", "softmax1", "uniform")},
    "entmax": lambda: regard.Entmax(1.3), "sink": lambda: regard.Sink(torch.tensor([0.1, 0.2, 0.3, 0.4])),
    "hard": regard.Hard,
}  # fmt: skip
SCORES: dict[str, Callable[[], Any]] = {
    "dot": lambda: "dot", "cosine": lambda: "cosine", "distance": lambda: regard.Distance(2.0),
    "general": lambda: regard.General(D, D), "additive": lambda: regard.Additive(D, D, 5),
    "concat": lambda: regard.Concat(D, D, 5), "aspects": lambda: regard.QueryAdaptive(D, D, 3),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _present() -> Iterator[None]:
    with present():
        yield


def both(how: dict[str, Any], inputs: tuple[Tensor, ...] = INPUTS) -> None:
    """Output and gradients on the device are the reference's on the CPU, and no value was read on the way."""
    here = [t.clone().requires_grad_() for t in inputs]
    there = [t.to(NAME).requires_grad_() for t in inputs]
    want = regard.attend(*here, **(how | {"kernel": "reference"}))
    with no_sync():
        found = regard.attend(*there, **how)
        gradients = torch.autograd.grad(found.sin().sum(), there, allow_unused=True)
    assert found.device.type == NAME
    torch.testing.assert_close(found.cpu(), want)
    for one, other in zip(gradients, torch.autograd.grad(want.sin().sum(), here, allow_unused=True), strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["auto", "reference", "blockwise"])
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask(mask: str, kernel: str) -> None:
    both({"mask": MASKS[mask](), "kernel": kernel})


@pytest.mark.parametrize("kernel", ["auto", "reference", "blockwise"])
@pytest.mark.parametrize("bias", BIASES)
def test_every_bias(bias: str, kernel: str) -> None:
    both({"mask": regard.causal(), "bias": BIASES[bias](), "kernel": kernel})


@pytest.mark.parametrize("kernel", ["auto", "reference", "blockwise"])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_every_normalizer(normalizer: str, kernel: str) -> None:
    both({"mask": regard.padding(torch.tensor([S, 5])), "normalizer": NORMALIZERS[normalizer](), "kernel": kernel})


@pytest.mark.parametrize("score", SCORES)
def test_every_score(score: str) -> None:
    both({"score": SCORES[score](), "mask": regard.causal()})


def test_additive_tiles() -> None:
    both({"score": regard.Additive(D, D, 5), "kernel": "additive", "mask": regard.causal()})


def test_pieces_of_a_long_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    from regard.attention.kernels import blockwise, fused

    for module in (fused, blockwise):
        monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(blockwise, "PART", 64)
    for how in ({"mask": HOLES}, {"mask": regard.causal(), "normalizer": "entmax15"}, {"mask": regard.window(2)}):
        both(how)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("how", [{}, {"normalizer": "entmax15"}, {"kernel": "reference"}])
def test_poison_stays_where_it_may_be_seen(part: int, how: dict[str, Any]) -> None:
    poisoned = [t.clone() for t in INPUTS]
    poisoned[part][1, 2, 5, 3] = torch.nan
    with no_sync():
        found = regard.attend(*(t.to(NAME) for t in poisoned), mask=regard.causal(0), **how)
    reached = torch.zeros(B, H, T, dtype=torch.bool)
    reached[1, 2] = torch.arange(T) >= 5 if part else torch.arange(T) == 5
    assert found.cpu()[reached].isnan().all()
    want = regard.attend(*INPUTS, mask=regard.causal(0), **how)
    torch.testing.assert_close(found.cpu()[~reached], want[~reached])


def test_dropout_draws_from_the_device() -> None:
    query, key, _ = (t.to(NAME) for t in INPUTS)
    one = torch.eye(S).expand(B, H, S, S).to(NAME)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with no_sync():
            drawn.append(regard.attend(query, key, one, dropout=0.5, mask=regard.causal()))
    drawn = [one.cpu() for one in drawn]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_maps_answer_on_the_device() -> None:
    for how in ({}, {"mask": regard.causal(), "bias": regard.alibi(H)}, {"normalizer": "entmax15", "mask": HOLES}):
        here = regard.attention_map(*INPUTS[:2], **how)
        there = regard.attention_map(*(t.to(NAME) for t in INPUTS[:2]), **how)
        with no_sync():
            whole = there.full()
        torch.testing.assert_close(whole.cpu(), here.full())
        for answer in (
            lambda one: one.tile(slice(1, 4), [0, 2, 9]), lambda one: one.pool(3, 4), lambda one: one.entropy(),
            lambda one: one.received(), lambda one: one.argmax(), lambda one: one.top(2)[1],
            lambda one: one.mean_heads().full(), lambda one: torch.from_numpy(one.numpy()),
        ):  # fmt: skip
            torch.testing.assert_close(answer(there).cpu(), answer(here))
    square = regard.attention_map(INPUTS[0], INPUTS[0])
    moved = regard.attention_map(INPUTS[0].to(NAME), INPUTS[0].to(NAME))
    joint = regard.AttentionMap.rollout([moved, moved])
    torch.testing.assert_close(joint.full().cpu(), regard.AttentionMap.rollout([square, square]).full())


def test_observed_and_changed_there() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(B, T, 16)
    with regard.observe(layer) as here:
        want = layer(x, x, x, need_weights=False)[0]
    moved = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    moved.load_state_dict(layer.state_dict())
    moved, there = moved.to(NAME), x.to(NAME)
    with regard.observe(moved) as seen:
        found = moved(there, there, there, need_weights=False)[0]
    torch.testing.assert_close(found.cpu(), want)
    torch.testing.assert_close(seen["."][0].full().cpu(), here["."][0].full())
    with regard.intervene(moved, ".", lambda weights: torch.zeros_like(weights)):
        changed = moved(there, there, there, need_weights=False)[0]
    torch.testing.assert_close(changed.cpu(), layer.out_proj.bias.detach().expand_as(x))


def test_the_layer_with_weights() -> None:
    layer = regard.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(B, T, 16)
    with torch.no_grad():
        want = layer(x, x, x)
    layer, there = layer.to(NAME), x.to(NAME)
    with no_sync(), torch.no_grad():
        found = layer(there, there, there)
    torch.testing.assert_close([one.cpu() for one in found], list(want))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("normalizer", ["entmax15", "softmax"])
def test_meta_tensors_give_shapes(mask: str, normalizer: str) -> None:
    inputs = [t.to("meta") for t in (*INPUTS[:2], INPUTS[2][..., :3])]
    how = {"mask": MASKS[mask](), "bias": regard.RelativeBias(H), "normalizer": NORMALIZERS[normalizer]()}
    output = regard.attend(*inputs, **how)
    assert (output.shape, output.device.type, output.dtype) == ((B, H, T, 3), "meta", torch.float32)
    weights = regard.attention_map(*inputs[:2], **how).full()
    assert (weights.shape, weights.device.type) == ((B, H, T, S), "meta")
    with pytest.raises(regard.RegardError, match="depend on the values"):
        regard.attention_map(*inputs[:2], **how).entropy()


@pytest.mark.parametrize("mask", [None, regard.causal(), regard.causal() | regard.prefix(3)])
@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax", "entmax"])
def test_transformed_by_torch_func(mask: Any, normalizer: str) -> None:
    how = {"mask": mask, "bias": regard.alibi(H), "normalizer": NORMALIZERS[normalizer]()}
    want = regard.attend(*INPUTS, **how, kernel="reference")
    torch.testing.assert_close(torch.func.vmap(lambda q, k, v: regard.attend(q, k, v, **how))(*INPUTS), want)

    def loss(*inputs: Tensor) -> Tensor:
        return regard.attend(*inputs, **how).sin().sum()

    leaves = [t.clone().requires_grad_() for t in INPUTS]
    gradients = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(torch.func.grad(loss, (0, 1, 2))(*INPUTS), gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0, 3.0])
def test_entmax_in_a_graph_has_the_derivative_of_entmax(alpha: float) -> None:
    """The form that `torch.compile` takes, beside the one that runs."""
    scores = torch.randn(3, 5, 7, dtype=torch.float64, generator=draw)
    allowed = torch.rand(3, 5, 7, generator=draw) > 0.3
    allowed[0, 0] = False
    found = []
    for form in (entmax, _linearized):
        leaf = scores.clone().requires_grad_()
        weights, numbers = form(leaf, allowed, alpha)
        living = numbers.masked_fill(~allowed.any(-1), 0)
        found.append((weights, living, torch.autograd.grad(weights.sin().sum() + living.cos().sum(), leaf)[0]))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)
