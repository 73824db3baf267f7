"""The smallest exact form of masks, biases and scores: every cell is as it was, in as little as will hold it."""

import threading
from math import inf
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import regard
from regard.attention.biases import Added, Bias, Both, Diagonals
from regard.attention.frozen import frozen_module
from regard.attention.maps.compact import compact_bias, compact_mask, freeze, spans, split_float_mask
from regard.attention.maps.map import AttentionMap
from regard.attention.masks import Allow, Mask, Spans
from regard.attention.normalizers import Sink
from regard.attention.scores import Compared, Product
from regard.attention.spec import Spec, make_spec

B, H, T, S, D = 2, 3, 5, 7, 11
SHAPE = (B, H, T, S)
CPU = torch.device("cpu")


def whole(part: Mask | Bias, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """A mask or a bias as a table, cell by cell."""
    return part.tile(torch.arange(shape[-2]), torch.arange(shape[-1]), shape).expand(shape)


# --- masks --------------------------------------------------------------------------------------------------------

HOLES = torch.arange(S) % 3 != 1
SMALL = {"causal": regard.causal(), "causal_3": regard.causal(3), "prefix": regard.prefix(3)}
GAPLESS = {
    "causal_batch": regard.causal(torch.tensor([2, -1])),
    "causal_tensor": regard.causal(torch.tensor(1)),
    "padding": regard.padding(torch.tensor([6, 0])),
    "padding_both": regard.padding(torch.tensor([6, 2]), torch.tensor([1, 4])),
    "window": regard.causal(1) & ~regard.causal(-2),
    "suffix": ~regard.prefix(4),
    "nothing": regard.prefix(0) & regard.causal(),
    "tensor": regard.allow(torch.ones(T, S, dtype=torch.bool).tril()),
    "one_key": regard.allow(torch.eye(T, S).bool()),
}
GAPPED = {
    "tensor": regard.allow(HOLES),
    "heads": regard.allow(HOLES.expand(H, 1, S)),
    "beside_a_prefix": regard.prefix(2) | ~regard.prefix(5),
    "only_the_last_row": regard.allow(torch.arange(T)[:, None] < T - 1) | HOLES,
}


@pytest.mark.parametrize("name", SMALL)
def test_a_mask_of_a_number_stays_as_it_is(name: str) -> None:
    assert compact_mask(SMALL[name], SHAPE, CPU) is SMALL[name]


def test_no_mask_stays_no_mask_and_spans_stay_spans() -> None:
    assert compact_mask(None, SHAPE, CPU) is None
    mask = Spans(torch.tensor(2), torch.tensor(5))
    assert compact_mask(mask, SHAPE, CPU) is mask


@pytest.mark.parametrize("block", [1, 2, 256])
@pytest.mark.parametrize("name", GAPLESS)
def test_rows_without_gaps_become_spans(name: str, block: int) -> None:
    got = compact_mask(GAPLESS[name], SHAPE, CPU, block)
    assert isinstance(got, Spans)
    assert got.start.shape[-1] == got.end.shape[-1] == T
    assert torch.equal(whole(got), whole(GAPLESS[name]))


@pytest.mark.parametrize("block", [1, 2, 256])
@pytest.mark.parametrize("name", GAPPED)
def test_a_row_with_a_gap_becomes_a_tensor(name: str, block: int) -> None:
    got = compact_mask(GAPPED[name], SHAPE, CPU, block)
    assert isinstance(got, Allow)
    assert torch.equal(whole(got), whole(GAPPED[name]))


def test_the_tensor_is_nobody_elses() -> None:
    tensor = HOLES.clone()
    got = compact_mask(regard.allow(tensor), SHAPE, CPU)
    tensor[:] = True
    assert torch.equal(whole(got), HOLES.expand(SHAPE))


@pytest.mark.parametrize("name", SMALL)
def test_spans_of_a_mask_of_a_number(name: str) -> None:
    got = spans(SMALL[name], SHAPE, CPU)
    assert isinstance(got, Spans)
    assert torch.equal(whole(got), whole(SMALL[name]))


@pytest.mark.parametrize("shape", [(B, 0, S), (B, T, 0), (B, 0, 0)])
@pytest.mark.parametrize("mask", [regard.padding(torch.tensor([3, 0])), regard.allow(torch.tensor(True))])
def test_masks_of_nothing(shape: tuple[int, ...], mask: Mask) -> None:
    assert whole(compact_mask(mask, shape, CPU), shape).shape == shape


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(st.booleans(), min_size=S, max_size=S), min_size=T, max_size=T), st.integers(1, T))
def test_any_table_is_as_it_was(table: list[list[bool]], block: int) -> None:
    tensor = torch.tensor(table)
    got = compact_mask(regard.allow(tensor), (T, S), CPU, block)
    assert torch.equal(whole(got, (T, S)), tensor)
    gapless = all("01" not in "".join("01"[a] for a in row).strip("0") for row in table)
    assert isinstance(got, Spans) == gapless


# --- biases -------------------------------------------------------------------------------------------------------


def toeplitz(*batch: int, t: int = T, s: int = S) -> Tensor:
    """b_ij = d[j - i + t - 1], with other numbers for every entry of the batch."""
    d = torch.randn(*batch, t + s - 1, generator=torch.Generator().manual_seed(0))
    return torch.stack([torch.stack([d[..., j - i + t - 1] for j in range(s)], -1) for i in range(t)], -2)


@pytest.mark.parametrize("batch", [(), (H,), (B, 1), (B, H)])
def test_a_bias_of_the_distance_alone_becomes_diagonals(batch: tuple[int, ...]) -> None:
    tensor = toeplitz(*batch)
    got = compact_bias(Added(tensor), SHAPE, CPU)
    assert isinstance(got, Diagonals)
    assert got.values.shape == (*batch, T + S - 1)
    assert torch.equal(whole(got), tensor.expand(SHAPE))
    tensor.zero_()
    assert got.values.any()


def spoilt(i: int, j: int) -> Tensor:
    tensor = toeplitz()
    tensor[i, j] += 1
    return tensor


@pytest.mark.parametrize(
    "bias",
    [
        None, Added(spoilt(0, 0)), Added(spoilt(T - 1, S - 1)), Added(spoilt(2, 3)), Added(torch.randn(S)),
        Added(torch.randn(H, 1, S)), Added(torch.randn(T, 1)), Added(torch.tensor(2.0)),
        Diagonals(torch.randn(T + S - 1)),
    ],
)  # fmt: skip
def test_any_other_bias_stays_as_it_is(bias: Bias | None) -> None:
    assert compact_bias(bias, SHAPE, CPU) is bias


@pytest.mark.parametrize("shape", [(0, S), (T, 0), (1, S), (T, 1)])
def test_a_table_too_small_to_gain_anything_stays(shape: tuple[int, int]) -> None:
    bias = Added(torch.zeros(shape))
    assert compact_bias(bias, shape, CPU) is bias


def test_both_parts_are_made_compact() -> None:
    left, right = Added(toeplitz(H)), Added(torch.randn(S))
    got = compact_bias(left + (right + left), SHAPE, CPU)
    assert isinstance(got, Both)
    assert isinstance(got.left, Diagonals)
    assert isinstance(got.right, Both)
    assert got.right.left is right
    torch.testing.assert_close(whole(got), whole(left) * 2 + whole(right))


# --- float masks --------------------------------------------------------------------------------------------------

LOW = torch.finfo(torch.float32).min


def answers(tensor: Tensor, scores: Tensor) -> Tensor:
    """Weights of scores under what the float mask was split into."""
    mask, bias = split_float_mask(tensor)
    rows, columns = torch.arange(scores.shape[-2]), torch.arange(scores.shape[-1])
    if bias is not None:
        scores = scores + bias.tile(rows, columns, tuple(scores.shape))
    allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.tile(rows, columns, scores.shape)
    return scores.masked_fill(~allowed, -inf).softmax(-1).nan_to_num()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("low", [-inf, None])
def test_what_is_as_low_as_can_be_is_forbidden(low: float | None, dtype: torch.dtype) -> None:
    low = torch.finfo(dtype).min if low is None else low
    mask, bias = split_float_mask(torch.tensor([[0.0, low, 0.0], [low, 2.0, -1.0]], dtype=torch.float64).to(dtype))
    assert mask.tensor.tolist() == [[True, False, True], [False, True, True]]
    assert bias.tensor.tolist() == [[0, 0, 0], [0, 2, -1]]
    assert bias.tensor.dtype == dtype
    assert split_float_mask(torch.tensor([[0, low]]).to(dtype))[1] is None


def test_a_mask_that_forbids_nothing_is_a_bias_or_nothing() -> None:
    mask, bias = split_float_mask(torch.tensor([[1.5, -3.0], [0.0, LOW / 2]]))
    assert mask is None
    assert bias.tensor.tolist() == [[1.5, -3.0], [0.0, LOW / 2]]
    assert split_float_mask(torch.zeros(T, S)) == (None, None)


def test_a_row_of_minus_infinity_may_look_nowhere() -> None:
    mask, bias = split_float_mask(torch.tensor([[-inf, -inf], [0.0, 0.0]]))
    assert mask.tensor.tolist() == [[False, False], [True, True]]
    assert bias is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("beside", [0.0, 1.0])
def test_a_row_of_the_lowest_number_stays_a_bias(beside: float, dtype: torch.dtype) -> None:
    low = torch.finfo(dtype).min
    tensor = torch.full((2, 3), low, dtype=dtype)
    tensor[1] = beside
    mask, bias = split_float_mask(tensor)
    assert mask.tensor.all()
    assert bias.tensor.dtype == dtype
    assert bias.tensor.tolist() == [[low] * 3, [beside] * 3]


def test_beside_the_lowest_number_minus_infinity_still_forbids() -> None:
    tensor = torch.tensor([[-inf, LOW, LOW, -inf]])
    torch.testing.assert_close(answers(tensor, torch.randn(1, 4)), torch.tensor([[0, 0.5, 0.5, 0]]))


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.0, 1.5, -2.0, -inf, LOW]), min_size=S, max_size=S), min_size=T, max_size=T
    )
)
def test_the_weights_are_those_of_the_sum(table: list[list[float]]) -> None:
    tensor = torch.tensor(table)
    scores = torch.randn(T, S, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(answers(tensor, scores), (scores + tensor).softmax(-1).nan_to_num())


# --- freezing -----------------------------------------------------------------------------------------------------

SCORES = {
    "scaled_dot": lambda: regard.ScaledDot(softcap=2.0),
    "distance": lambda: regard.Distance(1.7),
    "callable": lambda: lambda q, k: (q @ k.mT).sin(),
    "general": lambda: regard.General(D, D),
    "additive": lambda: regard.Additive(D, D, 3),
    "concat": lambda: regard.Concat(D, D, 3),
}
LEARNED = ["general", "additive", "concat"]


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(B, H, n, D, dtype=dtype, generator=draw) for n in (T, S))


def made(name: str) -> Spec:
    torch.manual_seed(1)
    return make_spec(SCORES[name](), Sink(nn.Parameter(torch.randn(H))), regard.causal(), torch.randn(S), 0.3)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("name", SCORES)
def test_training_does_not_change_what_is_frozen(name: str, projected: bool) -> None:
    spec, (query, key) = made(name), inputs()
    if projected:
        with torch.no_grad():
            key = spec.score.project_key(key)
        spec = Spec(spec.score.projected(), spec.normalizer, spec.mask, spec.bias, spec.dropout)
    want = AttentionMap.from_spec(query, key, spec).full().detach()
    frozen = freeze(query, key, spec)
    for parameter in (*spec.score.parameters(), *spec.normalizer.parameters()):
        parameter.data.mul_(-3)
    torch.testing.assert_close(AttentionMap.from_spec(*frozen).full().detach(), want)
    assert (frozen[2].mask, frozen[2].bias, frozen[2].dropout) == (spec.mask, spec.bias, 0.0)


@pytest.mark.parametrize("name", SCORES)
def test_a_learned_score_becomes_a_comparison(name: str) -> None:
    spec, (query, key) = made(name), inputs()
    q, k, frozen = freeze(query, key, spec)
    if name not in LEARNED:
        assert (q is query, k is key, type(frozen.score) is type(spec.score)) == (True, True, True)
    else:
        assert type(frozen.score) is (Product if name == "general" else Compared)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize(
    ("given", "wide"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2],
)
def test_projections_are_made_in_float32_or_more(name: str, given: torch.dtype, wide: torch.dtype) -> None:
    q, k, _ = freeze(*inputs(given), made(name))
    assert (q.dtype, k.dtype) == (wide, wide)


def test_the_soft_cap_of_a_learned_product_is_kept() -> None:
    spec, (query, key) = made("general"), inputs()
    spec.score.softcap = 0.7
    want = AttentionMap.from_spec(query, key, spec).full()
    frozen = freeze(query, key, spec)
    assert frozen[2].score.softcap == 0.7
    torch.testing.assert_close(AttentionMap.from_spec(*frozen).full(), want)


def test_what_a_copy_of_a_score_shares_and_does_not() -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lock, self.kept = threading.Lock(), [torch.randn(2, requires_grad=True) * 2]
            self.inner = nn.Linear(4, 4)
            self.scale = torch.tensor(2.0)

        def forward(self, *_: Any) -> None:
            self.kept.append(torch.zeros(()))

    owner = Owner()
    owner.inner.register_forward_hook(owner.forward)
    made = frozen_module(owner)
    assert made.lock is owner.lock
    assert made.kept is owner.kept
    owner.inner.register_forward_hook(lambda *_: torch.zeros(4))  # after the copy
    assert not any(one.requires_grad for one in made.parameters())
    with torch.no_grad():
        owner.inner.weight.zero_()
        owner.scale.fill_(9)
    assert made.inner.weight.abs().sum() > 0
    assert float(made.scale) == 2
    assert made.inner(torch.ones(4)).abs().sum() > 0
    assert len(owner.kept) == 2  # the hook of that time takes part in the copy, too


def test_a_bound_method_as_a_score_copies_no_model() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def score(self, query: Tensor, key: Tensor) -> Tensor:
            return query @ self.weight @ key.mT

    model = Model()
    query = torch.randn(5, 4)
    kept = regard.attention_map(query, query, score=model.score).frozen()
    owners = {id(value.__self__) for part in kept.source.spec.score.modules() for value in vars(part).values()
              if hasattr(value, "__self__")}  # fmt: skip
    assert owners == {id(model)}


def test_copies_have_the_hooks_of_their_time_and_settings_of_their_own() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.factors = [2.0]
            self.act = self.scaled  # a method of its own

        def scaled(self, scores: Tensor) -> Tensor:
            return scores * self.weight * self.factors[0]

        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return self.act(query @ key.mT)

    score, query = Scaled(), torch.randn(5, 4)
    score.register_forward_hook(lambda module, given, scores: scores * 3)
    want = torch.softmax(6 * query @ query.mT, -1)
    kept = regard.attention_map(query, query, score=score).frozen()
    compiled = regard.attention_map(query, query, score=torch.compile(score, backend="eager")).frozen()
    with torch.no_grad():
        score.weight.fill_(7)
    score.factors[0] = 9.0
    for one in (kept, compiled):
        torch.testing.assert_close(one.full(), want)
        assert not one.full().requires_grad


def test_copies_of_what_is_scripted_and_hooks_that_are_methods() -> None:
    class Hooked(regard.General):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.times = 2.0
            self.register_forward_hook(self.scaled)

        def scaled(self, module: nn.Module, given: Any, scores: Tensor) -> Tensor:
            return scores * self.times

    score, query = Hooked(), torch.randn(5, 4)
    made = frozen_module(score)
    want = made(query, query)
    score.times = 5.0
    torch.testing.assert_close(made(query, query), want)
    owner = nn.Module()
    with pytest.warns(DeprecationWarning, match="deprecated"):
        owner.key = torch.jit.script(nn.Linear(4, 4, bias=False))
    owner.tree = [owner.key]
    owner.tree.append(owner.tree)  # a list that holds itself
    kept = frozen_module(owner)
    want = kept.key(query).detach()
    with torch.no_grad():
        owner.key.weight.mul_(5)
    torch.testing.assert_close(kept.key(query).detach(), want)
