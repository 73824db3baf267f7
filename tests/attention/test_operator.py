"""attend and plan: one meaning on every kernel (DESIGN section 3), against loops in plain Python."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp, inf, nan, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import regard
from device import DEVICE, in_float64, leaf
from regard.attention.masks import Mask, as_mask
from regard.attention.scores import Score

pytestmark = pytest.mark.sampled(4)  # `make test-slow` has every case

B, H, T, S, D_Q, D_K, D_V = 2, 3, 5, 7, 11, 13, 17


@dataclass(frozen=True)
class Case:
    """A score, the widths it takes, and whether the fused kernel takes it."""

    name: str
    make: Callable[[], object]
    query_width: int = D_K
    key_width: int = D_K
    dot: bool = True

    def tensors(self, *batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        width = self.key_width if self.dot else D_V
        shapes = (T, self.query_width), (S, self.key_width), (S, width)
        draw = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(*batch, *shape, dtype=dtype, generator=draw) for shape in shapes)

    def score(self) -> object:
        torch.manual_seed(1)
        score = self.make()
        return score.double() if isinstance(score, Score) else score


CASES = [
    Case("dot", lambda: "dot"),
    Case("scaled_dot", lambda: "scaled_dot"),
    Case("scaled_dot_0.3", lambda: regard.ScaledDot(0.3)),
    Case("cosine", lambda: "cosine"),
    Case("cosine_lecture", lambda: regard.Cosine(0.5, 2.0)),
    Case("general", lambda: regard.General(D_Q, D_K), D_Q),
    Case("distance", lambda: regard.Distance(1.7), dot=False),
    Case("additive", lambda: regard.Additive(D_Q, D_K, 3), D_Q, dot=False),
    Case("concat", lambda: regard.Concat(D_Q, D_K, 3), D_Q, dot=False),
    Case("query_adaptive", lambda: regard.QueryAdaptive(D_Q, D_K, 3), D_Q),
    Case("callable", lambda: lambda q, k: (q @ k.transpose(-2, -1)).sin(), dot=False),
]
KERNELS = ("auto", "reference", "fused", "blockwise")  # those that take a dot product without a mask
TILED = ("additive", "concat")


def takes(case: Case, kernel: str) -> bool:
    """Whether the kernel takes the score; which cells it refuses altogether stands in test_grid.py."""
    return {"fused": case.dot, "windowed": case.dot, "additive": case.name in TILED}.get(kernel, True)


# "auto" only chooses: test_plan_tells_the_truth shows that it runs what it names
GENERAL = [(c, k) for c in CASES for k in ("reference", "blockwise", "additive") if takes(c, k)]  # every normalizer
GRID = [*GENERAL, *((c, "fused") for c in CASES if c.dot)]
MASKED = [*GRID, *((c, "windowed") for c in CASES if c.dot)]


def over(grid: list) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("case", "kernel"), grid, ids=[f"{c.name}-{kernel}" for c, kernel in grid])


on_every_score_and_kernel = over(GRID)
under_a_mask = over(MASKED)
on_every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def holes() -> Tensor:
    allowed = torch.rand(B, H, T, S, generator=torch.Generator().manual_seed(5)) < 0.6
    allowed[1, 2, 3] = False  # a dead row
    return allowed


MASKS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "causal": regard.causal,
    "causal_0": lambda: regard.causal(0),
    "causal_-2": lambda: regard.causal(-2),  # queries 0 and 1 look nowhere
    "padding": lambda: regard.padding(torch.tensor([5, 0])),  # sentence 1 looks nowhere
    "padding_both": lambda: regard.padding(torch.tensor([5, 6]), torch.tensor([3, 4])),
    "prefix_0": lambda: regard.prefix(0),
    "prefix_or_causal": lambda: regard.prefix(3) | regard.causal(0),
    "window": lambda: regard.window(1, 2),
    "window_-4": lambda: regard.window(1, offset=-4),  # queries 0 to 2 look nowhere
    "documents": lambda: regard.documents(
        torch.tensor([[0, 0, 1, -1, 2], [3] * T]), torch.tensor([[0, 1, 1, -1, 2, 2, 0], [4, 3] * 3 + [3]])
    ),
    "blocks": lambda: regard.blocks(torch.tensor([[True, False, True], [False, False, False]]), 3),
    "tensor": holes,
    "causal_and_padding": lambda: regard.causal() & regard.padding(torch.tensor([2, 7])),
}
on_every_mask = pytest.mark.parametrize("mask", MASKS)


def table(mask: object, batch: tuple[int, ...] = (B, H)) -> Tensor:
    """The mask as a whole bool table; the masks themselves are tested in test_masks.py."""
    if mask is None:
        return torch.ones(*batch, T, S, dtype=torch.bool)
    shape = (*batch, T, S)
    return as_mask(mask).full(shape, torch.device("cpu")).expand(shape)


def softmax_row(scores: list[float], allowed: list[bool]) -> list[float]:
    """Softmax of what is allowed, in plain Python."""
    seen = [e for e, a in zip(scores, allowed, strict=True) if a and e > -inf]
    if not seen:
        return [0.0] * len(scores)
    top = max(seen)
    total = sum(exp(e - top) for e in seen)
    return [exp(e - top) / total if a else 0.0 for e, a in zip(scores, allowed, strict=True)]


def by_hand(scores: Tensor, allowed: Tensor, value: Tensor) -> Tensor:
    """The equation, row by row in plain Python; scores are tested in test_scores.py."""
    output = torch.zeros(*scores.shape[:-1], value.shape[-1], dtype=value.dtype)
    positions = torch.cartesian_prod(*(torch.arange(n) for n in scores.shape[:-1])).tolist()
    for place in (tuple(p) if isinstance(p, list) else (p,) for p in positions):
        weights = softmax_row(scores[place].tolist(), allowed[place].tolist())
        for j, weight in enumerate(weights):
            if weight:
                output[place] += weight * value[(*place[:-1], j)]
    return output


def score_table(score: object, query: Tensor, key: Tensor) -> Tensor:
    product = query @ key.transpose(-2, -1) if query.shape[-1] == key.shape[-1] else None
    if score == "dot":
        return product
    if score == "scaled_dot":
        return product / sqrt(query.shape[-1])
    if score == "cosine":
        return product / (query.norm(dim=-1)[..., None] * key.norm(dim=-1)[..., None, :])
    return score(query, key).detach()


def gradients(output: Tensor, *inputs: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(output, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


# --- the equation -------------------------------------------------------------------------------------------------


@on_every_score_and_kernel
@on_every_mask
def test_equals_the_equation_in_plain_python(case: Case, kernel: str, mask: str) -> None:
    query, key, value = case.tensors(B, H)
    score, allowed = case.score(), MASKS[mask]()
    got = regard.attend(query, key, value, score=score, mask=allowed, kernel=kernel).detach()
    torch.testing.assert_close(got, by_hand(score_table(score, query, key), table(allowed), value))


@over(GENERAL)
@on_every_mask
def test_uniform_is_the_mean_of_what_may_be_seen(case: Case, kernel: str, mask: str) -> None:
    query, key, value = case.tensors(B, H)
    allowed = MASKS[mask]()
    got = regard.attend(query, key, value, score=case.score(), normalizer="uniform", mask=allowed, kernel=kernel)
    torch.testing.assert_close(got.detach(), by_hand(torch.zeros(B, H, T, S), table(allowed), value))


@on_every_kernel
@pytest.mark.parametrize("mask", ["none", "causal", "tensor"])
@pytest.mark.parametrize("shape", [(S,), (T, S), (H, 1, S), (H, T, 1), (B, H, T, S), ()])
def test_a_bias_is_added_before_masking(kernel: str, mask: str, shape: tuple[int, ...]) -> None:
    query, key, value = CASES[0].tensors(B, H)
    bias = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    allowed = MASKS[mask]()
    got = regard.attend(query, key, value, score="dot", mask=allowed, bias=bias, kernel=kernel)
    torch.testing.assert_close(got, by_hand(query @ key.transpose(-2, -1) + bias, table(allowed), value))


@on_every_kernel
@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (2, 3, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_two_to_five_axes(kernel: str, batch: tuple[int, ...], masked: bool) -> None:
    query, key, value = CASES[1].tensors(*batch)
    mask = torch.rand(*batch, T, S, generator=torch.Generator().manual_seed(3)) < 0.5
    mask = mask if masked else None
    got = regard.attend(query, key, value, mask=mask, kernel=kernel)
    scores = query @ key.transpose(-2, -1) / sqrt(D_K)
    torch.testing.assert_close(got, by_hand(scores, table(mask, batch), value))


@on_every_kernel
@pytest.mark.parametrize(
    ("query_batch", "key_batch", "value_batch"),
    [
        ((2, 3), (1, 3), (2, 3)),
        ((2, 3), (2, 1), (1, 1)),
        ((2, 3), (1, 1), (2, 3)),
        ((1, 3), (2, 3), (2, 3)),
        ((2, 1), (2, 3), (1, 3)),
        ((1, 1), (1, 1), (2, 3)),
        ((1,), (1,), (2,)),
        ((1,), (2,), (1,)),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_batch_axes_of_one_are_repeated(kernel, query_batch, key_batch, value_batch, masked) -> None:
    query, key, value = (
        torch.randn(*batch, n, D_K, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        for batch, n in ((query_batch, T), (key_batch, S), (value_batch, S))
    )
    mask = regard.causal(0) if masked else None
    got = regard.attend(query, key, value, mask=mask, kernel=kernel)
    batch = torch.broadcast_shapes(query_batch, key_batch, value_batch)
    whole = [tensor.expand(*batch, *tensor.shape[-2:]) for tensor in (query, key, value)]
    scores = whole[0] @ whole[1].transpose(-2, -1) / sqrt(D_K)
    torch.testing.assert_close(got, by_hand(scores, table(mask, batch), whole[2]))


@on_every_score_and_kernel
@pytest.mark.parametrize(("heads", "key_heads"), [(6, 3), (6, 2), (6, 1), (3, 3)])
def test_grouped_heads_are_repeated_heads(case: Case, kernel: str, heads: int, key_heads: int) -> None:
    query = case.tensors(B, heads)[0]
    _, key, value = case.tensors(B, key_heads, seed=1)
    score = case.score()
    mask = torch.rand(B, heads, T, S, generator=torch.Generator().manual_seed(4)) < 0.7
    got = regard.attend(query, key, value, score=score, mask=mask, kernel=kernel)
    # query head h looks at key head h // group
    repeated = [torch.stack([t[:, h // (heads // key_heads)] for h in range(heads)], 1) for t in (key, value)]
    torch.testing.assert_close(got, regard.attend(query, *repeated, score=score, mask=mask, kernel="reference"))


@on_every_kernel
def test_grouped_heads_in_five_axes(kernel: str) -> None:
    query = CASES[1].tensors(2, 3, 6)[0]
    _, key, value = CASES[1].tensors(2, 1, 2, seed=1)
    got = regard.attend(query, key, value, kernel=kernel)
    wide = [t.repeat_interleave(3, 2).expand(2, 3, 6, -1, -1) for t in (key, value)]
    torch.testing.assert_close(got, scaled_dot_product_attention(query, *wide))


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("d_v", [1, 3, 19])
def test_values_may_have_another_width(kernel: str, d_v: int) -> None:
    query, key, _ = CASES[1].tensors(B, H)
    value = torch.randn(B, H, S, d_v, dtype=torch.float64)
    got = regard.attend(query, key, value, mask=regard.causal(), kernel=kernel)
    scores = query @ key.transpose(-2, -1) / sqrt(D_K)
    torch.testing.assert_close(got, by_hand(scores, table(regard.causal()), value))


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(0, S), (T, 0), (0, 0)])
def test_nothing_to_ask_or_to_look_at(kernel: str, masked: bool, sizes: tuple[int, int]) -> None:
    t, s = sizes
    query, key, value = torch.randn(B, t, 3), torch.randn(B, s, 3), torch.randn(B, s, 2)
    got = regard.attend(query, key, value, mask=regard.causal() if masked else None, kernel=kernel)
    torch.testing.assert_close(got, torch.zeros(B, t, 2))


def test_no_query_and_a_poisoned_key() -> None:
    key = torch.randn(S, 3)
    key[4] = nan
    got = regard.attend(torch.randn(0, 3), key, torch.randn(S, 3), mask=regard.prefix(2))
    assert got.shape == (0, 3)


@on_every_kernel
def test_strided_inputs_are_left_as_they_are(kernel: str) -> None:
    query, key, value = (torch.randn(B, n, H, D_K, dtype=torch.float64).transpose(1, 2) for n in (T, S, S))
    before = [t.clone() for t in (query, key, value)]
    got = regard.attend(query, key, value, mask=regard.causal(), kernel=kernel)
    torch.testing.assert_close([query, key, value], before, rtol=0, atol=0)
    want = by_hand(query @ key.transpose(-2, -1) / sqrt(D_K), table(regard.causal()), value)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_the_output_has_the_values_dtype(kernel: str) -> None:
    query, key, value = CASES[1].tensors(B)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert regard.attend(query.float(), key.float(), value.to(dtype), kernel=kernel).dtype == dtype


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_a_double_query_is_scored_in_double(kernel: str) -> None:
    query, key, value = CASES[0].tensors(B)
    query, key = query * 300, key * 300  # in float32 the scores would be off by about 1e-2
    got = regard.attend(query, key, value.float(), score="dot", kernel=kernel)
    torch.testing.assert_close(got, by_hand(query @ key.transpose(-2, -1), table(None, (B,)), value).float())


# --- a query that may look nowhere --------------------------------------------------------------------------------

DEAD = ["causal_-2", "padding", "padding_both", "prefix_0", "tensor"]


@under_a_mask
@pytest.mark.parametrize("mask", DEAD)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dead_row_gives_nothing_and_takes_nothing(case: Case, kernel: str, mask: str, dtype: torch.dtype) -> None:
    inputs = leaves(*case.tensors(B, H, dtype=dtype))
    score, allowed = case.score(), MASKS[mask]()
    dead = ~table(allowed).any(-1)
    assert dead.any()
    output = regard.attend(*inputs, score=score, mask=allowed, kernel=kernel)
    assert not output[dead].any()
    parameters = list(score.parameters()) if isinstance(score, Score) else []
    for gradient in gradients(output[dead].sum(), *inputs, *parameters):
        assert not gradient.any()
        assert gradient.isfinite().all()
    output = regard.attend(*inputs, score=score, mask=allowed, kernel=kernel)
    for gradient in gradients(output.square().sum(), *inputs, *parameters):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("normalizer", ["softmax", "uniform", "sparsemax", "entmax15"])
@pytest.mark.parametrize("mask", DEAD)
def test_a_dead_row_of_the_map_is_zero(case: Case, normalizer: str, mask: str) -> None:
    query, key, _ = case.tensors(B, H)
    allowed = MASKS[mask]()
    full = regard.attention_map(query, key, score=case.score(), normalizer=normalizer, mask=allowed).full()
    torch.testing.assert_close(full.sum(-1).detach(), table(allowed).any(-1).double())


# --- NaN and infinity where nobody may look -----------------------------------------------------------------------


@under_a_mask
@pytest.mark.parametrize("bad", [nan, -inf])
@pytest.mark.parametrize("part", ["key", "value"])
@pytest.mark.parametrize("mask", ["padding_both", "causal_0", "tensor"])
def test_poison_never_reaches_a_query_that_may_not_look(case, kernel, bad, part, mask) -> None:
    clean = case.tensors(B, H)
    score, allowed = case.score(), MASKS[mask]()
    poisoned = [t.clone() for t in clean]
    where = 1 + (part == "value")
    poisoned[where][0, 0, 5] = bad
    poisoned[where][1, 2, 2, 1] = bad
    hit = torch.zeros(B, H, S, dtype=torch.bool)
    hit[0, 0, 5] = hit[1, 2, 2] = True
    safe = ~(table(allowed) & hit[:, :, None]).any(-1)  # [B, H, T]: looks at nothing bad
    answers = []
    for tensors in (clean, poisoned):
        inputs = leaves(*tensors)
        output = regard.attend(*inputs, score=score, mask=allowed, kernel=kernel)
        answers.append((output[safe], gradients(output[safe].square().sum(), *inputs), output))
    torch.testing.assert_close(answers[1][0], answers[0][0])
    torch.testing.assert_close(answers[1][1][0][safe], answers[0][1][0][safe])
    whole = safe.all(-1)  # heads in which nobody may look at anything bad: all gradients are those of the clean run
    for got, want in zip(answers[1][1], answers[0][1], strict=True):
        torch.testing.assert_close(got[whole], want[whole])


@pytest.mark.parametrize("kernel", ["auto", "reference", "fused", "blockwise", "windowed"])
@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("trains", [False, True])
def test_poison_in_the_square_triangle(kernel: str, bad: float, part: int, trains: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    clean = [torch.randn(B, H, T, D_K, dtype=torch.float64, generator=draw) for _ in range(3)]
    poisoned = [tensor.clone() for tensor in clean]
    poisoned[part][1, 2, 3, 4] = bad
    safe = torch.ones(B, H, T, dtype=torch.bool)
    safe[1, 2, 3 if part == 0 else slice(3, None)] = False
    answers = []
    for tensors in (clean, poisoned):
        inputs = [tensor.requires_grad_(trains) for tensor in tensors]
        output = regard.attend(*inputs, mask=regard.causal(), kernel=kernel)
        answers.append([output[safe]])
        if trains:
            answers[-1] += [torch.autograd.grad(output[safe].square().sum(), inputs[0])[0][safe]]
    torch.testing.assert_close(answers[1], answers[0])


@on_every_kernel
@pytest.mark.parametrize("bad", [nan, inf])
@pytest.mark.parametrize("mask", ["none", "causal_0"])
def test_poison_reaches_those_who_may_look(kernel: str, bad: float, mask: str) -> None:
    query, key, value = CASES[1].tensors(B, H)
    value[1, 2, 3] = bad
    output = regard.attend(query, key, value, mask=MASKS[mask](), kernel=kernel)
    looks = table(MASKS[mask]())[..., 3].clone()
    looks[0], looks[1, :2] = False, False
    assert torch.equal(~output.isfinite().all(-1), looks)


@under_a_mask
@pytest.mark.parametrize("bad", [nan, inf])
@pytest.mark.parametrize("mask", ["padding_both", "causal_-2"])
def test_a_poisoned_query_that_may_look_nowhere_is_harmless(case: Case, kernel: str, bad: float, mask: str) -> None:
    clean = case.tensors(B, H)
    score, allowed = case.score(), MASKS[mask]()
    query = clean[0].clone()
    dead = ~table(allowed).any(-1)
    query[dead] = bad
    answers = []
    for tensors in (clean, (query, *clean[1:])):
        inputs = leaves(*tensors)
        output = regard.attend(*inputs, score=score, mask=allowed, kernel=kernel)
        answers.append([output, *gradients(output.square().sum(), *inputs)])
    torch.testing.assert_close(answers[1], answers[0])


@on_every_kernel
def test_a_poisoned_query_spoils_its_own_row_only(kernel: str) -> None:
    query, key, value = CASES[1].tensors(B, H)
    want = regard.attend(query, key, value, mask=regard.causal(), kernel=kernel)
    query[1, 2, 3] = want[1, 2, 3] = nan
    got = regard.attend(query, key, value, mask=regard.causal(), kernel=kernel)
    torch.testing.assert_close(got, want, equal_nan=True)


@on_every_kernel
@pytest.mark.parametrize("mask", ["padding_both", "tensor"])
def test_a_forbidden_key_whose_score_overflows_is_harmless(kernel: str, mask: str) -> None:
    query, key, value = (t.float() for t in CASES[0].tensors(B, H))
    query = query.abs() + 1
    allowed = MASKS[mask]() if mask != "tensor" else holes().index_fill(-1, torch.tensor(6), False)
    want = regard.attend(query, key, value, score="dot", mask=allowed, kernel=kernel)
    key[..., 6, :] = 3e38  # finite, but its scores are not
    torch.testing.assert_close(regard.attend(query, key, value, score="dot", mask=allowed, kernel=kernel), want)


@on_every_kernel
def test_poison_with_a_bias_and_a_mask(kernel: str) -> None:
    query, key, value = CASES[0].tensors(B, H)
    bias = torch.randn(H, T, S, dtype=torch.float64)
    mask = regard.prefix(4)
    want = regard.attend(query, key, value, mask=mask, bias=bias, kernel="reference")
    key[..., 5, :], value[..., 6, :], bias[..., 4] = nan, inf, nan
    torch.testing.assert_close(regard.attend(query, key, value, mask=mask, bias=bias, kernel=kernel), want)


# --- infinite scores ----------------------------------------------------------------------------------------------


@on_every_kernel
@pytest.mark.parametrize("masked", [False, True])
def test_a_score_of_minus_infinity_is_weight_zero(kernel: str, masked: bool) -> None:
    query, key, value = CASES[1].tensors(B, H)
    bias = torch.zeros(T, S, dtype=torch.float64)
    bias[1, 3] = bias[1, 4] = -inf
    bias[2] = -inf  # a dead row
    mask = regard.prefix(6) if masked else None
    got = regard.attend(query, key, value, bias=bias, mask=mask, kernel=kernel)
    scores = query @ key.transpose(-2, -1) / sqrt(D_K)
    torch.testing.assert_close(got, by_hand(scores, table(mask) & (bias == 0), value))
    assert not got[..., 2, :].any()


@on_every_kernel
@pytest.mark.parametrize("masked", [False, True])
def test_scores_of_minus_infinity_give_finite_gradients(kernel: str, masked: bool) -> None:
    inputs = leaves(*CASES[1].tensors(B, H))
    bias = torch.zeros(T, S, dtype=torch.float64)
    bias[1, 3] = bias[2] = -inf
    mask = regard.prefix(6) if masked else None
    output = regard.attend(*inputs, bias=bias, mask=mask, kernel=kernel)
    got = gradients(output.square().sum(), *inputs)
    again = regard.attend(*inputs, mask=table(mask) & (bias == 0), kernel="reference")
    torch.testing.assert_close(got, gradients(again.square().sum(), *inputs))


@on_every_kernel
@pytest.mark.parametrize("bad", [inf, nan])
@pytest.mark.parametrize("masked", [False, True])
def test_an_infinite_or_nan_score_makes_the_row_nan(kernel: str, bad: float, masked: bool) -> None:
    query, key, value = CASES[1].tensors(B, H)
    mask = regard.prefix(6) if masked else None
    want = regard.attend(query, key, value, mask=mask, kernel="reference")
    bias = torch.zeros(T, S, dtype=torch.float64)
    bias[1, 3] = bad
    want[..., 1, :] = nan
    got = regard.attend(query, key, value, bias=bias, mask=mask, kernel=kernel)
    torch.testing.assert_close(got, want, equal_nan=True)


def test_a_callable_score_of_minus_infinity_is_weight_zero() -> None:
    query, key, value = CASES[1].tensors(B, H)
    holed = torch.zeros(T, S, dtype=torch.float64)
    holed[:, 2] = holed[4] = -inf
    got = regard.attend(query, key, value, score=lambda q, k: q @ k.transpose(-2, -1) + holed)
    torch.testing.assert_close(got, by_hand(query @ key.transpose(-2, -1) + holed, table(None), value))


@on_every_kernel
def test_large_scores_do_not_overflow(kernel: str) -> None:
    query, key, value = (t.float() for t in CASES[0].tensors(B, H))
    got = regard.attend(query * 1e4, key, value, score="dot", kernel=kernel)
    best = (query @ key.transpose(-2, -1)).argmax(-1)
    torch.testing.assert_close(got, torch.take_along_dim(value, best[..., None], -2))


# --- what is refused ----------------------------------------------------------------------------------------------

REFUSED = {
    "key has 7 positions on axis -2 and value has 5: every key needs": ((2, 3, 11), (2, 7, 11), (2, 5, 11)),
    "query has width 11 on axis -1 and key has 13: this score needs equal widths": ((2, 3, 11), (2, 7, 13), (2, 7, 13)),
    "query has 5 heads on axis -3 and key has 3: grouped heads need": ((2, 5, 3, 11), (2, 3, 7, 11), (2, 3, 7, 11)),
    "query has 6 heads on axis -3 and value has 5: grouped heads": ((2, 6, 3, 11), (2, 6, 7, 11), (2, 5, 7, 11)),
    "query has 2 heads on axis -3 and key has 0: grouped heads": ((1, 2, 3, 11), (1, 0, 7, 11), (1, 0, 7, 11)),
    "key has size 2 on batch axis -3 and value has 3: they must be": ((1, 6, 3, 11), (1, 2, 7, 11), (1, 3, 7, 11)),
    "query has size 3 on batch axis -4 and key has 2: batch axes": ((3, 5, 3, 11), (2, 5, 7, 11), (2, 5, 7, 11)),
    "query has size 4 on batch axis -3 and key has 2: batch axes": ((4, 3, 11), (2, 7, 11), (2, 7, 11)),
    "key has 2 axes \\[7, 11\\] and query has 3 \\[2, 3, 11\\]: add": ((2, 3, 11), (7, 11), (7, 11)),
    "value has 2 axes \\[7, 11\\] and query has 3": ((2, 3, 11), (2, 7, 11), (7, 11)),
    "query needs at least 2 axes \\[positions, width\\]; got shape \\[11\\]": ((11,), (7, 11), (7, 11)),
    "value needs at least 2 axes \\[positions, width\\]; got shape \\[7\\]": ((3, 11), (7, 11), (7,)),
}


@on_every_kernel
@pytest.mark.parametrize("message", REFUSED)
def test_sizes_that_do_not_fit_are_refused_by_name(kernel: str, message: str) -> None:
    inputs = [torch.randn(shape) for shape in REFUSED[message]]
    with pytest.raises(regard.ShapeError, match=message):
        regard.attend(*inputs, kernel=kernel)


@pytest.mark.parametrize("score", ["dot", "scaled_dot", "cosine", regard.Distance()])
def test_widths_must_be_equal_where_the_score_needs_it(score) -> None:
    query, key, value = torch.randn(2, 3, 5), torch.randn(2, 7, 11), torch.randn(2, 7, 11)
    with pytest.raises(regard.ShapeError, match="query has width 5 on axis -1 and key has 11"):
        regard.attend(query, key, value, score=score)


@on_every_kernel
@pytest.mark.parametrize(("name", "kind"), [("mask", torch.bool), ("bias", torch.float32)])
def test_a_mask_or_bias_must_broadcast(kernel: str, name: str, kind: torch.dtype) -> None:
    query, key, value = (t.float() for t in CASES[1].tensors(B, H))
    message = (
        rf"{name} has shape \[2, 5, 7\] and the scores have \[2, 3, 5, 7\]: a {name} must broadcast from the right"
    )
    with pytest.raises(regard.ShapeError, match=message):
        regard.attend(query, key, value, **{name: torch.ones(B, T, S).to(kind)}, kernel=kernel)
    with pytest.raises(regard.ShapeError, match="must broadcast from the right"):  # larger than the scores
        regard.attend(query, key, value, **{name: torch.ones(7, 1, 1, T, S).to(kind)}, kernel=kernel)


@pytest.mark.parametrize(
    ("argument", "given", "message"),
    [
        ("kernel", "fusd", "unknown kernel 'fusd': expected one of 'fused', "),
        ("kernel", "referense", "unknown kernel 'referense': expected one of 'reference', "),
        ("score", "scaled-dot", "unknown score 'scaled-dot': expected one of 'scaled_dot', "),
        ("score", "cosin", "unknown score 'cosin': expected one of 'cosine', "),
        ("normalizer", "softmx", "unknown normalizer 'softmx': expected one of 'softmax', "),
    ],
)
@pytest.mark.parametrize("door", [regard.attend, regard.plan])
def test_an_unknown_name_comes_with_the_nearest_spelling_first(door, argument, given, message) -> None:
    query, key, value = CASES[1].tensors(B)
    with pytest.raises(regard.ChoiceError, match=message):
        door(query, key, value, **{argument: given})


@on_every_kernel
def test_a_float_mask_is_refused(kernel: str) -> None:
    query, key, value = CASES[1].tensors(B)
    with pytest.raises(
        regard.ChoiceError, match=r"mask must be bool \(True = may attend\); got torch.float32: .* bias="
    ):
        regard.attend(query, key, value, mask=torch.zeros(T, S), kernel=kernel)


def test_a_bool_bias_is_refused() -> None:
    query, key, value = CASES[1].tensors(B)
    with pytest.raises(regard.ChoiceError, match=r"bias must be a float tensor; got torch.bool: .* goes to mask="):
        regard.attend(query, key, value, bias=torch.ones(T, S, dtype=torch.bool))


@pytest.mark.parametrize("dropout", [1.0, -0.1, nan])
def test_a_dropout_that_is_no_probability_is_refused(dropout: float) -> None:
    with pytest.raises(regard.ShapeError, match=r"dropout must be a probability in \[0, 1\); got"):
        regard.attend(*CASES[1].tensors(B), dropout=dropout)


@pytest.mark.parametrize("name", ["score", "normalizer", "mask", "bias"])
def test_what_has_no_data_is_refused_beside_tensors_that_have(name: str) -> None:
    query = torch.randn(2, 5, 8)
    empty = {
        "score": regard.Additive(8, 8, 8),
        "normalizer": regard.Sink(torch.zeros(2)),
        "mask": torch.ones(5, 5, dtype=torch.bool),
        "bias": torch.zeros(5, 5),
    }[name].to("meta")
    with pytest.raises(regard.ShapeError, match=rf"{name}.* on meta.* query on cpu"):
        regard.attend(query, query, query, **{name: empty})
    with pytest.raises(regard.ShapeError, match=rf"{name}.* on meta.* query on cpu"):
        regard.attention_map(query, query, **{name: empty})
    if name in ("mask", "bias"):
        wide = query.to("meta")
        assert regard.attend(wide, wide, wide, **{name: empty}).is_meta


@pytest.mark.parametrize("name", ["query", "key", "value", "mask", "bias"])
def test_tensors_that_are_not_dense_are_refused(name: str) -> None:
    dense = dict.fromkeys(("query", "key", "value"), torch.randn(2, 5, 8))
    thin = torch.eye(5) > 0 if name == "mask" else torch.eye(5) if name == "bias" else torch.randn(2, 5, 8)
    with pytest.raises(regard.ShapeError, match=f"{name}: expected a dense tensor; got a tensor of layout sparse_coo"):
        regard.attend(**{**dense, name: thin.to_sparse()})


def test_token_ids_are_refused() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    attend = inspect.unwrap(regard.attend)  # without the type checks of the tests
    with pytest.raises(regard.ShapeError, match=r"query must be a floating-point tensor; got torch.int64: embed"):
        attend(ids, ids, ids)


def test_every_refusal_is_a_value_error() -> None:
    for kind in (regard.ShapeError, regard.KernelError, regard.ChoiceError):
        assert issubclass(kind, ValueError)


# --- dropout ------------------------------------------------------------------------------------------------------


def weights_kept(query: Tensor, key: Tensor, seed: int, dropout: float, **more) -> Tensor:
    """The dropped weights themselves: attention to one-hot values."""
    torch.manual_seed(seed)
    value = torch.eye(key.shape[-2], dtype=query.dtype).expand(*key.shape[:-1], -1)
    return regard.attend(query, key, value, dropout=dropout, **more)


def test_dropout_keeps_the_same_weights_for_the_same_seed() -> None:
    query, key, _ = CASES[1].tensors(B, H)
    first = weights_kept(query, key, 3, 0.4)
    torch.testing.assert_close(weights_kept(query, key, 3, 0.4), first, rtol=0, atol=0)
    assert not torch.equal(weights_kept(query, key, 4, 0.4) == 0, first == 0)


@pytest.mark.parametrize("score", ["dot", regard.Distance()])
def test_what_is_kept_depends_on_the_seed_alone(score) -> None:
    query, key, _ = CASES[1].tensors(B, H)
    first = weights_kept(query, key, 3, 0.4) != 0
    assert torch.equal(weights_kept(query * 2, key - 1, 3, 0.4, score=score, kernel="reference") != 0, first)


def test_dropout_divides_what_it_keeps() -> None:
    query, key, _ = CASES[1].tensors(B, H)
    whole = torch.softmax(query @ key.transpose(-2, -1) / sqrt(D_K), -1)
    got = weights_kept(query, key, 3, 0.4)
    torch.testing.assert_close(got, torch.where(got == 0, 0, whole / 0.6))


def test_dropout_keeps_the_mean() -> None:
    query, key = torch.zeros(23, 29, 31, 3), torch.zeros(23, 29, 37, 3)
    got = weights_kept(query, key, 5, 0.3)
    share = (got != 0).double().mean().item()
    assert abs(share - 0.7) < 5 * sqrt(0.3 * 0.7 / got.numel())
    for axis in range(4):  # nor does it prefer a batch entry, a head, a query or a key
        others = [a for a in range(4) if a != axis]
        parts = (got != 0).double().mean(others)
        assert (parts - 0.7).abs().max() < 5 * sqrt(0.3 * 0.7 / (got.numel() / got.shape[axis]))


def test_without_dropout_no_random_number_is_drawn() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    regard.attend(*CASES[1].tensors(B))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_drops_gradients_with_the_weights() -> None:
    query, key, value = CASES[1].tensors(B, H)
    value = value[..., :1].clone().requires_grad_()
    kept = weights_kept(query, key, 3, 0.4)
    torch.manual_seed(3)
    regard.attend(query, key, value, dropout=0.4, kernel="reference").sum().backward()
    torch.testing.assert_close(value.grad.squeeze(-1), kept.sum(-2))


def test_poison_does_not_change_which_weights_are_dropped() -> None:
    query, key, _ = CASES[1].tensors(B, H)
    mask = regard.causal(1)
    want = weights_kept(query, key, 3, 0.4, mask=mask)
    key[..., 6, :] = nan  # no query of five sees key 6 under offset 1
    torch.testing.assert_close(weights_kept(query, key, 3, 0.4, mask=mask), want)


def test_fused_refuses_dropout() -> None:
    with pytest.raises(regard.KernelError, match="kernel 'fused' cannot do this: dropout on the weights"):
        regard.attend(*CASES[1].tensors(B), dropout=0.1, kernel="fused")


# --- precision ----------------------------------------------------------------------------------------------------


@on_every_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_is_no_worse_than_torch(kernel: str, dtype: torch.dtype, trains: bool, masked: bool) -> None:
    draw = torch.Generator().manual_seed(7)
    half = [(3 * torch.randn(2, 3, n, 32, generator=draw)).to(dtype) for n in (41, 67, 67)]
    mask = torch.rand(41, 67, generator=draw) < 0.7 if masked else None
    exact = scaled_dot_product_attention(*(t.double() for t in half), attn_mask=mask)
    theirs = scaled_dot_product_attention(*half, attn_mask=mask).double()
    ours = regard.attend(*(t.requires_grad_(trains) for t in half), mask=mask, kernel=kernel).detach()
    assert ours.dtype == dtype
    for worst in (torch.amax, torch.mean):
        assert worst((ours.double() - exact).abs()) <= worst((theirs - exact).abs())


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_half_precision_of_every_score(kernel: str, dtype: torch.dtype, case: Case) -> None:
    """Scores are computed in float32 inside, so the answer is the exact one, rounded once."""
    half = [t.to(dtype) for t in case.tensors(B, H)]
    score = case.score()
    exact = regard.attend(*(t.double() for t in half), score=score, kernel="reference")
    got = regard.attend(*half, score=score, kernel=kernel)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=2 * step, atol=2 * step)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_a_cosine_of_long_half_vectors_does_not_overflow(kernel: str) -> None:
    half = [(100 * t).half() for t in CASES[3].tensors(B, H)]  # |q|² is beyond 65504, float16's end
    exact = regard.attend(*(t.double() for t in half), score="cosine", kernel="reference")
    torch.testing.assert_close(regard.attend(*half, score="cosine", kernel=kernel).double(), exact, rtol=1e-2, atol=0.5)


@on_every_score_and_kernel
def test_autocast_is_left_at_the_door(case: Case, kernel: str) -> None:
    inputs = case.tensors(B, H, dtype=torch.float32)
    score = case.score()
    score = score.float() if isinstance(score, Score) else score
    want = regard.attend(*inputs, score=score, kernel=kernel)
    with torch.autocast("cpu", torch.bfloat16):
        got = regard.attend(*inputs, score=score, kernel=kernel)
        assert (inputs[0] @ inputs[0].mT).dtype == torch.bfloat16  # autocast is on
    assert torch.equal(got, want)


# --- derivatives --------------------------------------------------------------------------------------------------

SMALL = (2, 1)


def small(case: Case, seed: int = 0) -> list[Tensor]:
    query, key, value = case.tensors(*SMALL, seed=seed)
    return [leaf(part.clone()) for part in (query[..., :3, :], key[..., :4, :], value[..., :4, :])]


def moved(score: object) -> object:
    return score.to(DEVICE) if isinstance(score, Score) else score


HOLES = torch.tensor([[True, False, True, True], [False] * 4, [True, True, False, True]], device=DEVICE)
SMALL_MASKS = {"none": None, "causal": regard.causal(), "holes": HOLES}
NORMALIZERS = {"softmax": "softmax", "uniform": "uniform", "callable": lambda scores, allowed: scores.tanh() + 2}


def gradcheck(case: Case, kernel: str, normalizer: str, mask: str) -> bool:
    inputs, score = small(case), moved(case.score())
    parameters = list(score.parameters()) if isinstance(score, Score) else []
    spec = {"score": score, "normalizer": NORMALIZERS[normalizer], "mask": SMALL_MASKS[mask], "kernel": kernel}
    inputs = (*inputs, *parameters)
    return torch.autograd.gradcheck(lambda *x: regard.attend(*x[:3], **spec), inputs, fast_mode=True)


@in_float64
@on_every_score_and_kernel
@pytest.mark.parametrize("mask", SMALL_MASKS)
def test_gradcheck_of_softmax(case: Case, kernel: str, mask: str) -> None:
    assert gradcheck(case, kernel, "softmax", mask)


@in_float64
@over(GENERAL)
@pytest.mark.parametrize("normalizer", ["uniform", "callable"])
def test_gradcheck_of_other_normalizers(case: Case, kernel: str, normalizer: str) -> None:
    assert gradcheck(case, kernel, normalizer, "holes")


@in_float64
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_gradcheck_of_a_learned_bias(kernel: str) -> None:
    bias = leaf(torch.randn(3, 4, dtype=torch.float64))
    spec = {"mask": regard.causal(), "kernel": kernel}
    inputs = (*small(CASES[1]), bias)
    assert torch.autograd.gradcheck(lambda *x: regard.attend(*x[:3], bias=x[3], **spec), inputs, fast_mode=True)


@in_float64
@under_a_mask
def test_gradgradcheck(case: Case, kernel: str) -> None:
    if kernel == "windowed" and DEVICE.type != "cpu":
        pytest.skip(f"{kernel} refuses every call on {DEVICE}")
    spec = {"score": moved(case.score()), "mask": HOLES, "kernel": kernel}
    assert torch.autograd.gradgradcheck(lambda *x: regard.attend(*x, **spec), small(case), fast_mode=True)


def test_under_vmap() -> None:
    query, key, value = CASES[1].tensors(B)
    one = lambda q, k, v: regard.attend(q, k, v, mask=regard.prefix(3))  # noqa: E731
    torch.testing.assert_close(torch.func.vmap(one)(query, key, value), one(query, key, value))


def test_under_func_grad_and_jacrev() -> None:
    query = CASES[1].tensors(B)[0]
    one = lambda q: regard.attend(q, q, q, mask=regard.causal(), kernel="auto").sin().sum()  # noqa: E731
    leaf = query.clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(one)(query), torch.autograd.grad(one(leaf), leaf)[0])
    assert torch.func.jacrev(lambda q: regard.attend(q, q, q))(query[0]).shape == (T, D_K, T, D_K)


COMPILED = """
import sys, torch, regard
H, D = 3, 8
draw = torch.Generator().manual_seed(0)
inputs = [torch.randn(2, H, n, D, generator=draw).requires_grad_() for n in (5, 7, 7)]
for more in [
    {"mask": regard.causal()}, {"score": lambda q, k: (q @ k.transpose(-2, -1)).sin(), "kernel": "blockwise"},
    {}, {"mask": regard.window(2), "bias": regard.alibi(H), "kernel": "windowed"},
    {"score": regard.Additive(D, D, 3), "kernel": "additive"}, {"score": "cosine", "normalizer": "entmax15"},
][: int(sys.argv[1])]:
    torch._dynamo.reset()
    plain = lambda q, k, v: regard.attend(q, k, v, **more)
    outputs = plain(*inputs), torch.compile(plain, backend="aot_eager")(*inputs)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(output.square().sum(), inputs) for output in outputs))
"""


@pytest.mark.parametrize("settings", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_under_torch_compile(settings: int) -> None:
    """Traced and differentiated ahead of time, by itself: tracing does not go with types that are checked."""
    command = [sys.executable, "-W", "ignore", "-c", COMPILED, str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- plan ---------------------------------------------------------------------------------------------------------


def test_plan_names_kernel_reason_and_cost() -> None:
    plan = regard.plan(*CASES[1].tensors(B, H))
    assert (plan.kernel, plan.extra_bytes) == ("fused", 0)
    assert plan.refused == {"windowed": "there is no mask, so there is nothing to leave out"}
    assert plan.flops == 2 * B * H * T * S * (D_K + D_K)
    assert "torch's fused kernel" in plan.why


def test_plan_counts_the_masks_bytes() -> None:
    plan = regard.plan(*CASES[1].tensors(B, H, dtype=torch.float32), mask=regard.prefix(2))
    assert plan.extra_bytes == T * S * (1 + 4)  # as bools, and as what is added to the scores


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 4)])
def test_plan_says_why_fused_was_passed_over(dtype: torch.dtype, size: int) -> None:
    plan = regard.plan(*CASES[6].tensors(B, H, dtype=dtype), score=regard.Distance())
    assert plan.kernel == "reference"
    assert plan.refused["fused"] == "the score Distance is not a dot product"
    assert plan.refused["additive"] == "the score Distance is not a tanh of sums"
    assert plan.refused["blockwise"] == f"all {B * H * T * S} scores fit one block"
    assert plan.extra_bytes == 3 * B * H * T * S * size
    assert plan.flops == 2 * B * H * T * S * (D_K + D_V)


def test_plan_of_a_kernel_that_was_asked_for() -> None:
    plan = regard.plan(*CASES[1].tensors(B, H), kernel="reference")
    assert (plan.kernel, plan.why) == ("reference", "it was asked for")


def test_plan_refuses_what_attend_refuses() -> None:
    inputs = CASES[6].tensors(B)
    for door in (regard.plan, regard.attend):
        with pytest.raises(
            regard.KernelError,
            match=r"kernel 'fused' cannot do this: .*; kernel='auto' or 'blockwise' or 'reference' can",
        ):
            door(*inputs, score=regard.Distance(), kernel="fused")
        with pytest.raises(regard.ShapeError, match="key has 7 positions"):
            door(*inputs[:2], inputs[2][..., :6, :])


@pytest.mark.parametrize("mask", [None, regard.causal(), regard.prefix(3)])
def test_plan_tells_the_truth(mask: Mask | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel it names is the one that runs."""
    operator = inspect.getmodule(inspect.unwrap(regard.attend))
    used = []
    for name, one in operator.KERNELS.items():

        def spied(*inputs, run=one.run, name=name):
            used.append(name)
            return run(*inputs)

        monkeypatch.setitem(operator.KERNELS, name, replace(one, run=spied))
    for case in CASES:
        inputs = case.tensors(B)
        regard.attend(*inputs, score=case.score(), mask=mask)
        assert used.pop() == regard.plan(*inputs, score=case.score(), mask=mask).kernel


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1, 2)])
def test_numbers_of_one_byte_are_refused(which: tuple[int, ...]) -> None:
    inputs = [torch.randn(2, 5, 8) for _ in range(3)]
    for n in which:
        inputs[n] = inputs[n].to(torch.float8_e4m3fn)
    name = ("query", "key", "value")[which[0]]
    with pytest.raises(regard.ShapeError, match=f"{name} must be of float64, float32, bfloat16 or float16; got"):
        regard.attend(*inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["query", "keys", "scale", "infinite", "masked", "causal", "padded"])
def test_a_row_of_nothing_but_nan_is_nan_with_few_keys_too(kind: str, dtype: torch.dtype) -> None:
    for size in (*range(1, 18), 33):
        draw = torch.Generator().manual_seed(size)
        query, key = (torch.randn(2, 3, size, 8, generator=draw).to(dtype) for _ in range(2))
        given: dict[str, Any] = {}
        if kind in ("query", "masked", "causal", "padded"):
            query[1, 2, size - 1, 3] = nan
        if kind == "keys":
            key[1, 2] = nan
        if kind == "scale":
            given = {"score": regard.ScaledDot(nan)}
        if kind == "infinite":  # times zero
            query[1, 2, size - 1, 3], key[1, 2, :, 3] = inf, 0
        if kind == "masked":
            given = {"mask": torch.rand(size, size, generator=draw) > 0.5}
        if kind == "causal":
            given = {"mask": regard.causal()}
        if kind == "padded":
            given = {"mask": regard.padding(torch.tensor([[max(1, size - 1)]] * 2))}
        want = regard.attend(query, key, key, kernel="reference", **given)
        assert want.isnan().any() or kind == "masked"
        found = regard.attend(query, key, key, **given)
        torch.testing.assert_close(found, want, equal_nan=True, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)


@pytest.mark.parametrize("kernel", ["blockwise", "additive"])
def test_dropout_without_batch_axes(kernel: str) -> None:
    query, key = torch.randn(7, 4), torch.randn(9, 4)
    score = "additive" if kernel == "additive" else "scaled_dot"
    score = regard.Additive(4, 4, 3) if score == "additive" else score
    found = []
    for which in ("reference", kernel):
        torch.manual_seed(1)
        found.append(regard.attend(query, key, key, score=score, dropout=0.4, kernel=which))
    torch.testing.assert_close(*found)
    long = torch.randn(3000, 4)
    assert regard.attend(long, long, long, dropout=0.1).shape == (3000, 4)


@pytest.mark.parametrize(("t", "s"), [(0, 3), (3, 0), (0, 0)])
def test_documents_of_nothing(t: int, s: int) -> None:
    query, key = torch.randn(2, t, 4), torch.randn(2, s, 4)
    ids = torch.zeros(2, 3, dtype=torch.long)
    for mask in (regard.documents(ids[:, :t], ids[:, :s]), regard.documents(ids[0, :t], ids[0, :s])):
        assert regard.attend(query, key, key, mask=mask).shape == (2, t, 4)
        seen = regard.attention_map(query, key, mask=mask)
        assert seen.distance().shape == (2, max(0, t + s - 1))
