"""Normalisers: rows of scores to rows of weights, against plain Python."""

import inspect
import re
from math import exp, inf, log, nan

import pytest
import torch
from torch import Tensor, nn

import regard
from device import DEVICE, in_float64, leaf, of_torch
from regard.attention.entmax import _by_shapes, entmax
from regard.attention.normalizers import Normalizer, Sink, Softmax, Uniform, WholeRows, as_normalizer

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


@pytest.mark.parametrize("name", ["softmax", "softmax1", "uniform"])
def test_forbidden_scores_get_no_gradient(name: str) -> None:
    scores = SCORES.clone().requires_grad_()
    weights, numbers = as_normalizer(name)(scores, ALLOWED)
    if weights.requires_grad:
        (weights.square().sum() + numbers[0]).backward()
        assert scores.grad.isfinite().all()
        assert not scores.grad[~ALLOWED].any()
        assert not scores.grad[1:].any()


def sink_by_hand(scores: list[float], allowed: list[bool], z: float) -> tuple[list[float], float]:
    """One row of softmax with an extra logit, and the logarithm of its denominator."""
    seen = [e for e, a in zip(scores, allowed, strict=True) if a]
    total = exp(z) + sum(exp(e) for e in seen)
    return [exp(e) / total if a else 0.0 for e, a in zip(scores, allowed, strict=True)], log(total)


@pytest.mark.parametrize("z", [0.0, -1.3, 2.0])
def test_a_sink_in_plain_python(z: float) -> None:
    rows = [
        sink_by_hand(e, a, z) if any(a) else ([0.0] * 5, z)
        for e, a in zip(SCORES.tolist(), ALLOWED.tolist(), strict=True)
    ]
    for normalizer in (Sink(z), Sink(torch.tensor(z)), *([as_normalizer("softmax1")] if z == 0 else [])):
        weights, numbers = normalizer(SCORES, ALLOWED)
        torch.testing.assert_close(weights, torch.tensor([w for w, _ in rows], dtype=torch.float64), rtol=1e-6, atol=0)
        torch.testing.assert_close(numbers, torch.tensor([n for _, n in rows], dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shared", [False, True])
def test_every_head_has_its_own_sink(shared: bool) -> None:
    z = torch.tensor([0.7] if shared else [0.7, -1.1, 0.0], dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=draw)
    allowed = torch.rand(2, 3, 5, 7, generator=draw) < 0.6
    allowed[1, 2, 3] = False
    weights, numbers = Sink(z)(scores, allowed)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (2, 3, 5))).tolist():
        logit = float(z[0 if shared else h])
        want, number = sink_by_hand(scores[b, h, i].tolist(), allowed[b, h, i].tolist(), logit)
        assert weights[b, h, i].tolist() == pytest.approx(want, rel=1e-12)
        assert float(numbers[b, h, i]) == pytest.approx(number, rel=1e-12)


def test_a_sink_of_minus_infinity_is_softmax() -> None:
    for got, want in zip(Sink(-inf)(SCORES, ALLOWED), Softmax()(SCORES, ALLOWED), strict=True):
        torch.testing.assert_close(got, want)


def test_large_scores_do_not_overflow_beside_a_sink() -> None:
    weights, numbers = Sink(900.0)(torch.tensor([[900.0, 900.0, -900.0]]), torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.tensor([[1 / 3, 1 / 3, 0]]))
    torch.testing.assert_close(numbers, torch.tensor([900 + log(3)]))


@in_float64
def test_a_sink_is_learned_in_its_own_precision() -> None:
    z = nn.Parameter(torch.randn(3, dtype=torch.float64).to(DEVICE))
    assert [name for name, _ in Sink(z).named_parameters()] == ["logits"]
    assert list(Sink(z.detach()).parameters()) == list(Sink().state_dict()) == []
    assert Sink(z.detach()).logits.dtype == torch.float64
    scores = leaf(torch.randn(2, 3, 4, 5, dtype=torch.float64))
    allowed = torch.ones(4, 5, dtype=torch.bool, device=DEVICE).tril(-1).expand(2, 3, 4, 5)  # query 0 looks nowhere

    def run(e: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return Sink(logits)(e, allowed)

    assert torch.autograd.gradcheck(run, (scores, z))


@pytest.mark.parametrize(
    ("logits", "shape", "heads"),
    [((2,), (2, 3, 5, 7), 3), ((3,), (5, 7), 1), ((1,), (5, 7), 1), ((3, 1), (2, 3, 5, 7), 3), ((3, 2), (3, 5, 7), 3)],
)
def test_a_sink_that_does_not_fit_the_heads(logits: tuple[int, ...], shape: tuple[int, ...], heads: int) -> None:
    message = rf"Sink has logits of shape {re.escape(str(list(logits)))} and the scores have {heads} heads"
    with pytest.raises(regard.ShapeError, match=message):
        Sink(torch.zeros(logits))(torch.zeros(shape), torch.ones(shape, dtype=torch.bool))


def test_attend_and_its_map_beside_a_sink() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, n, 4, dtype=torch.float64, generator=draw) for n in (5, 7))
    z = torch.tensor([0.7, -1.1, 0.0], dtype=torch.float64)
    logits = torch.cat([query @ key.mT / 2, z[:, None, None].expand(2, 3, 5, 1)], -1)
    want = logits.softmax(-1)[..., :-1]
    torch.testing.assert_close(regard.attend(query, key, key, normalizer=Sink(z)), want @ key)
    torch.testing.assert_close(regard.attention_map(query, key, normalizer=Sink(z)).full(), want)
    with pytest.raises(regard.KernelError, match="the normalizer Sink is not softmax"):
        regard.attend(query, key, key, normalizer="softmax1", kernel="fused")


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


@pytest.mark.parametrize("name", ["softmax", "softmax1", "uniform"])
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
    """DESIGN section 3: all −inf is a dead row, whoever normalizes."""
    scores = torch.stack([torch.full((5,), -inf), torch.zeros(5)])
    weights = as_normalizer(lambda s, allowed: s.softmax(-1))(scores, torch.ones(2, 5, dtype=torch.bool))[0]
    torch.testing.assert_close(weights, torch.tensor([[0.0] * 5, [0.2] * 5]))


def test_as_normalizer() -> None:
    assert isinstance(as_normalizer("softmax"), Softmax)
    assert isinstance(as_normalizer("softmax1"), Sink)
    assert isinstance(as_normalizer("uniform"), Uniform)
    given = Uniform()
    assert as_normalizer(given) is given
    assert isinstance(given, Normalizer)


@pytest.mark.parametrize(("given", "first"), [("sofmax", "softmax"), ("unifrom", "uniform"), ("sparsmax", "sparsemax")])
def test_an_unknown_normalizer(given: str, first: str) -> None:
    with pytest.raises(regard.ChoiceError, match=f"unknown normalizer '{given}': expected one of '{first}'"):
        as_normalizer(given)


def test_a_number_is_no_normalizer() -> None:
    with pytest.raises(regard.ChoiceError, match="unknown normalizer 5: expected one of"):
        inspect.unwrap(as_normalizer)(5)


def simplex_by_sorting(row: list[float]) -> list[float]:
    """The projection onto the simplex (Martins and Astudillo 2016, algorithm 1)."""
    ranked = sorted(row, reverse=True)
    k = max(n for n in range(1, len(row) + 1) if 1 + n * ranked[n - 1] > sum(ranked[:n]))
    threshold = (sum(ranked[:k]) - 1) / k
    return [max(0.0, e - threshold) for e in row]


def by_halving(row: list[float], alpha: float) -> list[float]:
    """Entmax of one row, by 200 halvings in Python."""
    z = [(alpha - 1) * e for e in row]
    low, high = max(z) - 1, max(z)
    for _ in range(200):
        middle = (low + high) / 2
        over = sum(max(0.0, e - middle) ** (1 / (alpha - 1)) for e in z) >= 1
        low, high = (middle, high) if over else (low, middle)
    return [max(0.0, e - low) ** (1 / (alpha - 1)) for e in z]


ENTMAX = [1.1, 1.5, 2.0, 2.5, 4.0]


@pytest.mark.parametrize("alpha", ENTMAX)
@pytest.mark.parametrize("size", [0.1, 1.0, 30.0, 1e4])
def test_entmax_by_hand(alpha: float, size: float) -> None:
    scores = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * size
    allowed = torch.rand(5, 9, generator=torch.Generator().manual_seed(1)) < 0.7
    weights, numbers = regard.Entmax(alpha)(scores, allowed)
    for row, seen, got in zip(scores.tolist(), allowed.tolist(), weights.tolist(), strict=True):
        want = iter(by_halving([e for e, a in zip(row, seen, strict=True) if a], alpha))
        assert got == pytest.approx([next(want) if a else 0.0 for a in seen], abs=1e-9)
        if alpha == 2:
            want = iter(simplex_by_sorting([e for e, a in zip(row, seen, strict=True) if a]))
            assert got == pytest.approx([next(want) if a else 0.0 for a in seen], abs=1e-9)
    torch.testing.assert_close(
        regard.Entmax(alpha).reweight(scores, numbers[:, None]).masked_fill(~allowed, 0), weights, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("alpha", [1.1, 1.5, 1.7, 2.0, 4.0])
@pytest.mark.parametrize("keys", [63, 127, 1031])
def test_entmax_of_long_rows(alpha: float, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that get a first estimate from a part of them, in pieces of three rows; half precision as good as single."""
    monkeypatch.setattr("regard.attention.entmax.PIECE", 3 * keys)
    draw = torch.Generator().manual_seed(keys)
    sizes = torch.tensor([0, 0.1, 1, 3, 50], dtype=torch.float64)[:, None]
    scores = torch.randn(5, keys, dtype=torch.float64, generator=draw) * sizes
    allowed = torch.rand(5, keys, generator=draw) < 0.7
    rows = zip(scores.tolist(), allowed.tolist(), strict=True)
    seen = [by_halving([e if a else -inf for e, a in zip(*row, strict=True)], alpha) for row in rows]
    want = torch.tensor(seen, dtype=torch.float64)
    torch.testing.assert_close(regard.Entmax(alpha)(scores, allowed)[0], want, atol=1e-9, rtol=0)
    for dtype, error in ((torch.float32, 1e-5 if alpha < 4 else 5e-3), (torch.bfloat16, 0.008)):
        rounded = scores.to(dtype)
        weights, numbers = regard.Entmax(alpha)(rounded, allowed)
        assert weights.dtype == numbers.dtype == dtype
        want = regard.Entmax(alpha)(rounded.double(), allowed)[0]
        torch.testing.assert_close(weights.double(), want, atol=error, rtol=0)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("place", [0, 63, 70])
@pytest.mark.parametrize("bad", [nan, inf])
def test_nothing_bad_in_a_long_row_is_overlooked(alpha: float, place: int, bad: float) -> None:
    scores = torch.randn(3, 71, generator=torch.Generator().manual_seed(0))
    scores[1, place] = bad
    scores[2] = -inf
    weights, numbers = regard.Entmax(alpha)(scores, torch.ones(1, 1, dtype=torch.bool).expand(3, 71))
    assert weights[1].isnan().all()
    assert numbers[1].isnan()
    assert weights[0].sum() == pytest.approx(1, abs=1e-5)
    assert not weights[2].any()
    assert numbers[2] == inf


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("value", [torch.finfo(torch.float32).min, 3e8, torch.finfo(torch.float32).max])
def test_entmax_of_equal_huge_scores_is_uniform(alpha: float, value: float) -> None:
    weights, _ = regard.Entmax(alpha)(torch.full((2, 70), value), torch.ones(2, 70, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.full((2, 70), 1 / 70))


def test_entmax_of_one_is_softmax_and_below_it_is_refused() -> None:
    for got, want in zip(regard.Entmax(1.0)(SCORES, ALLOWED), Softmax()(SCORES, ALLOWED), strict=True):
        torch.testing.assert_close(got, want)
    with pytest.raises(regard.ShapeError, match="Entmax needs an alpha of at least 1"):
        regard.Entmax(0.9)


SPARSE = [*map(regard.Entmax, ENTMAX), as_normalizer("sparsemax"), as_normalizer("entmax15"), as_normalizer("sigmoid")]


@in_float64
@pytest.mark.parametrize("normalizer", SPARSE, ids=str)
def test_both_derivatives(normalizer: Normalizer) -> None:
    scores = leaf(torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).mul(2))
    allowed = (torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) < 0.8).to(DEVICE)
    allowed[1] = False

    def weights(e: torch.Tensor) -> torch.Tensor:
        return normalizer(e, allowed)[0]

    assert torch.autograd.gradcheck(weights, (scores,))
    assert torch.autograd.gradgradcheck(weights, (scores,))


@in_float64
@of_torch
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's forward mode
@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0, 2.5])
def test_derivatives_of_entmax_in_every_mode(alpha: float) -> None:
    """Of the row numbers too; forwards; many at once; twice, by torch.func."""
    draw = torch.Generator().manual_seed(2)
    scores = leaf(torch.randn(3, 5, dtype=torch.float64, generator=draw).mul(2))
    allowed = (torch.rand(3, 5, generator=draw) < 0.8).to(DEVICE)
    allowed[1] = False

    def both(e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, numbers = regard.Entmax(alpha)(e, allowed)
        return weights, numbers.masked_fill(numbers == inf, 0)

    def some(e: torch.Tensor) -> torch.Tensor:
        return (both(e)[0] * torch.arange(5.0, device=e.device)).sum() + both(e)[1].sum()

    assert torch.autograd.gradcheck(both, (scores,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(both, (scores,))
    e = scores.detach()
    want = torch.autograd.functional.hessian(some, e)
    torch.testing.assert_close(torch.func.hessian(some)(e), want)
    torch.testing.assert_close(torch.func.jacrev(torch.func.grad(some))(e), want)
    each = torch.func.vmap(torch.func.grad(lambda row, seen: regard.Entmax(alpha)(row, seen)[0].square().sum()))
    together = torch.func.grad(lambda row: regard.Entmax(alpha)(row, allowed)[0].square().sum())
    torch.testing.assert_close(each(e[:, None], allowed[:, None])[:, 0], together(e))


@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0, 2.5])
def test_a_bad_gradient_does_not_get_past_a_weight_of_zero(alpha: float) -> None:
    scores = torch.tensor([[0.0, -5.0, 0.3], [1.0, 2.0, 1.5]], dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[True, True, True], [True, False, True]])
    weights = regard.Entmax(alpha)(scores, allowed)[0]
    good = torch.tensor([[1.0, 0, -2.0], [0.5, 0, 3.0]], dtype=torch.float64)
    (want,) = torch.autograd.grad(weights, scores, good, retain_graph=True)
    for bad in (nan, inf):
        (got,) = torch.autograd.grad(weights, scores, good.masked_fill(weights == 0, bad), retain_graph=True)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("normalizer", [*SPARSE, regard.Hard()], ids=str)
def test_every_normalizer_keeps_the_declared_meaning(normalizer: Normalizer) -> None:
    scores = SCORES.clone().requires_grad_()
    weights, _ = normalizer(scores, ALLOWED)
    assert not weights[~ALLOWED].any()
    assert not weights[1:].any()
    assert not weights[0, 4].any()  # -inf, allowed
    weights.square().sum().backward()
    assert scores.grad.isfinite().all()
    assert not scores.grad[~ALLOWED].any()
    poisoned = SCORES.clone()
    poisoned[0, 0], poisoned[0, 1] = nan, nan  # of these two, one is allowed
    assert normalizer(poisoned, ALLOWED)[0][0, 0].isnan()
    forbidden = SCORES.clone()
    forbidden[0, 1] = nan
    torch.testing.assert_close(normalizer(forbidden, ALLOWED)[0], weights.detach())
    vmapped = torch.func.vmap(lambda e: normalizer(e, ALLOWED)[0])(torch.stack([SCORES, SCORES + 1]))
    torch.testing.assert_close(vmapped[0], weights.detach(), atol=1e-7, rtol=1e-6)


def test_an_infinite_score_makes_a_row_nan() -> None:
    scores = torch.tensor([[0.0, inf, 1.0], [0.0, 2.0, 1.0]])
    for normalizer in (regard.Entmax(1.5), regard.Entmax(2.0), regard.Entmax(3.0), regard.Hard()):
        weights = normalizer(scores, torch.ones(2, 3, dtype=torch.bool))[0]
        assert weights[0].isnan().all()
        assert weights[1].sum() == pytest.approx(1)


def test_hard_takes_the_highest_and_the_lower_on_a_tie() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [5.0, 9.0, 0.0]], requires_grad=True)
    allowed = torch.tensor([[True, True, True], [True, False, True]])
    weights, numbers = regard.Hard()(scores, allowed)
    assert weights.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert numbers.tolist() == [1, 0]
    (got,) = torch.autograd.grad((weights * torch.tensor([1.0, 2.0, 3.0])).sum(), scores)
    soft = Softmax()(scores, allowed)[0]
    (want,) = torch.autograd.grad((soft * torch.tensor([1.0, 2.0, 3.0])).sum(), scores)
    torch.testing.assert_close(got, want)  # straight through


def test_hard_draws_by_the_softmax() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([0.0, 1.0, -inf, 2.0]).expand(5000, 4)
    weights, _ = regard.Hard(sample=True)(scores, torch.tensor([True, True, True, False]).expand(5000, 4))
    assert set(weights.unique().tolist()) == {0, 1}
    assert (weights.sum(-1) == 1).all()
    assert weights.mean(0).tolist() == pytest.approx([1 / (1 + exp(1)), exp(1) / (1 + exp(1)), 0, 0], abs=0.03)


@pytest.mark.parametrize("name", ["softmax", "sink", "softmax1", "sigmoid", "uniform", "share"])
def test_parts_of_rows_are_merged(name: str) -> None:
    """Weights of two parts of the keys, each normalized alone, are the whole's; so is what is not in any part."""
    given = {"sink": regard.Sink(torch.tensor([0.5, -1.0, 2.0])), "share": regard.Share()}
    whole = as_normalizer(given.get(name, name))
    part = whole.of_part()
    scores = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    allowed = torch.rand(2, 3, 5, 7) < 0.6
    allowed[0, 0, 0] = False
    allowed[0, 0, 1, :4] = False
    scores[0, 0, 2, :4] = -inf
    want, numbers = whole(scores, allowed)
    rows = whole(scores[..., :1], torch.zeros_like(allowed[..., :1]))[1]
    found = []
    for keys in (slice(0, 4), slice(4, 7)):
        weights, of_part = part(scores[..., keys], allowed[..., keys])
        found.append((weights, of_part))
        rows = whole.merge(rows, of_part)
    torch.testing.assert_close(rows, numbers)
    torch.testing.assert_close(torch.cat([w * whole.share(n, rows)[..., None] for w, n in found], -1), want)


@pytest.mark.parametrize("normalizer", ["sparsemax", regard.Hard(), lambda scores, allowed: allowed.float()])
def test_other_rows_have_no_parts(normalizer) -> None:
    assert as_normalizer(normalizer).of_part() is None


def test_nothing_to_look_at() -> None:
    nothing = torch.zeros(3, 0), torch.ones(3, 0, dtype=torch.bool)
    for normalizer in (*SPARSE, regard.Hard(), regard.Hard(sample=True)):
        assert normalizer(*nothing)[0].shape == (3, 0)


@pytest.mark.parametrize("alpha", [1 + 1e-7, 1 + 1e-6, 1.0001, 1.01, 1.03])
def test_rows_of_entmax_near_softmax_sum_to_one_and_are_near_it(alpha: float) -> None:
    scores = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) * 2
    weights, _ = as_normalizer(regard.Entmax(alpha))(scores, torch.ones_like(scores, dtype=torch.bool))
    torch.testing.assert_close(weights.sum(-1), torch.ones(4))
    torch.testing.assert_close(weights, scores.softmax(-1), atol=0.2 * (alpha - 1) + 1e-6, rtol=10 * (alpha - 1) + 1e-5)


def test_an_infinite_alpha_is_refused() -> None:
    with pytest.raises(regard.ShapeError, match=r"Entmax needs an alpha of at least 1 .*, not infinite; got inf"):
        regard.Entmax(inf)
    with pytest.raises(regard.ShapeError, match="softcap must be a positive number; got inf"):
        regard.ScaledDot(softcap=inf)


@pytest.mark.parametrize("alpha", [1.3, 3.0, 4.0, 8.0, 20.0, 1000.0])
def test_entmax_of_equal_keys_sums_to_one_on_every_way(alpha: float) -> None:
    scores = torch.zeros(2, 1000)
    scores[1, :500] = -1e-3
    allowed = torch.ones(2, 1000, dtype=torch.bool)
    for solve in (entmax, _by_shapes):
        weights, _ = solve(scores, allowed, alpha)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2), atol=1e-3, rtol=0)
        torch.testing.assert_close(weights[0], torch.full((1000,), 1e-3), atol=1e-6, rtol=1e-3)


class Halved(regard.Sink):
    """A sink of one's own."""

    def forward(self, scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        weights, numbers = super().forward(scores, allowed)
        return weights / 2, numbers


def test_a_sink_of_ones_own_stays_in_parts_and_copies_of_a_map() -> None:
    query, key = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 6, 4)
    for logits in (0.5, torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 1, 2])):
        seen = regard.attention_map(query, key, normalizer=Halved(logits))
        torch.testing.assert_close(seen.frozen().full(), seen.full())
        torch.testing.assert_close(seen.select(0).full(), seen.full()[0])
        torch.testing.assert_close(seen.select(slice(None), 2).full(), seen.full()[:, 2])
        assert seen.select(slice(0, 0)).full().shape == (0, 3, 5, 6)


def test_a_drawn_row_of_nan_is_nan() -> None:
    scores = torch.randn(3, 4)
    scores[1] = torch.nan
    weights, _ = regard.Hard(sample=True)(scores, torch.ones(3, 4, dtype=torch.bool))
    assert weights.isnan().any(-1).tolist() == [False, True, False]


def test_a_function_of_whole_rows_is_given_whole_rows() -> None:
    def top(scores: Tensor, allowed: Tensor) -> Tensor:
        best = scores.masked_fill(~allowed, -torch.inf).topk(8, -1).values[..., -1:]
        return scores.masked_fill(scores < best, -torch.inf).softmax(-1)

    x = torch.randn(1, 2048, 4, requires_grad=True)
    regard.attend(x, x, x, normalizer=top).sum().backward()
    torch.testing.assert_close(
        regard.attend(x, x, x, normalizer=top), regard.attend(x, x, x, normalizer=top, kernel="reference")
    )


def test_parts_of_a_map_are_those_of_its_rows_for_a_large_alpha() -> None:
    for alpha, level in ((4.0, 5.0), (20.0, 0.0)):
        query, key = torch.full((3, 1), level), torch.ones(600, 1)
        seen = regard.attention_map(query, key, score="dot", normalizer=regard.Entmax(alpha))
        seen.received()
        torch.testing.assert_close(seen.tile([0], list(range(600))).sum(-1), torch.ones(1), atol=2e-3, rtol=0)


def test_logits_that_were_set_later_stay_in_parts_of_a_map() -> None:
    sink = regard.Sink(0.0)
    sink.logits = torch.randn(3)
    seen = regard.attention_map(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 6, 4), normalizer=sink)
    torch.testing.assert_close(seen.select(0, 1).full(), seen.full()[0, 1])


class Sharper(Softmax):
    def forward(self, scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(3 * scores, allowed)


class Shifted(Sink):
    def forward(self, scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(scores + 1, allowed)


@pytest.mark.parametrize("normalizer", [Sharper(), Shifted(0.5)])
def test_a_forward_of_ones_own_leaves_nothing_of_the_class_that_it_replaces(normalizer: Normalizer) -> None:
    query, key = torch.randn(2, 5, 4), torch.randn(2, 700, 4)
    seen = regard.attention_map(query, key, normalizer=normalizer, mask=regard.causal())
    whole = seen.full()
    seen.entropy()
    torch.testing.assert_close(seen.tile(slice(1, 3), slice(0, 9)), whole[..., 1:3, 0:9])
    torch.testing.assert_close(seen.column(3), whole[..., 3])
    for kernel in ("auto", "blockwise"):
        found = regard.attend(query, key, key, normalizer=normalizer, mask=regard.causal(), kernel=kernel)
        torch.testing.assert_close(found, whole @ key)
    assert normalizer.of_part() is None
    assert Softmax().of_part() is not None


def test_one_logit_for_all_heads_stays_one_where_a_head_is_selected() -> None:
    query = torch.randn(1, 1, 5, 4)
    seen = regard.attention_map(query, query, normalizer=Sink(torch.zeros(1)))
    torch.testing.assert_close(seen.select(0, 0).full(), seen.full()[0, 0])


class Doubling:
    def forward(self, scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        return torch.softmax(2 * scores, -1), torch.logsumexp(2 * scores, -1)


class Mixed(Doubling, Softmax):
    """The `forward` of another base than that of `reweight` and `of_part`."""


class Later(Mixed):
    pass


def test_a_forward_of_another_base_leaves_nothing_of_the_class_beside_it() -> None:
    query = torch.randn(2, 5, 4)
    for normalizer in (Mixed(), Later()):
        assert not normalizer.masks
        assert normalizer.of_part() is None
        seen = regard.attention_map(query, query, normalizer=normalizer, mask=regard.causal()).full()
        torch.testing.assert_close(seen, torch.softmax(query @ query.mT, -1).tril())
    assert Softmax.masks
    assert Sink.masks
    assert Sink().of_part() is not None


@pytest.mark.parametrize("kernel", ["auto", "reference", "blockwise"])
def test_hooks_of_a_normalizer_act(kernel: str) -> None:
    query = torch.randn(2, 3, 5, 4)
    plain, hooked = Sink(torch.randn(3)), Sink(torch.randn(3))
    hooked.load_state_dict(plain.state_dict(), strict=False)
    hooked.logits = plain.logits
    hooked.register_forward_hook(lambda module, given, found: (2 * found[0], found[1]))
    want = 2 * regard.attend(query, query, query, normalizer=plain)
    torch.testing.assert_close(regard.attend(query, query, query, normalizer=hooked, kernel=kernel), want)
    seen = regard.attention_map(query, query, normalizer=hooked)
    torch.testing.assert_close(seen.select(1, 2).full(), seen.full()[1, 2])


def test_several_upstreams_within_a_level_of_forward_derivatives() -> None:
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weights = regard.Entmax(1.5)(scores, torch.ones(3, 5, dtype=torch.bool))[0]
    upstreams = torch.randn(4, 3, 5, dtype=torch.float64)
    want = torch.stack([torch.autograd.grad(weights, scores, one, retain_graph=True)[0] for one in upstreams])
    with torch.autograd.forward_ad.dual_level():
        (found,) = torch.autograd.grad(weights, scores, upstreams, is_grads_batched=True)
    torch.testing.assert_close(found, want)
