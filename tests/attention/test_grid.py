"""Every kernel × score × normalizer × mask × bias: it equals the reference, with its gradients, or it is refused.

The blocks are made so small that even these small sizes fall into many of them. Types and sizes take turns along the
cells: primes, one query, one key, more queries than keys, no batch axis and three. Everything is on the device that
`REGARD_TEST_DEVICE` names.
"""

import random
from functools import cache
from itertools import combinations, product

import pytest
import torch
from torch import Tensor

import regard
from device import DEVICE, HAS_FLOAT64, in_float64, leaf
from regard.attention.biases import Diagonals
from regard.attention.kernels import additive, blockwise, fused, linear, windowed
from regard.attention.kernels.reference import reference
from regard.attention.operator import KERNELS
from regard.attention.spec import Spec, make_spec

pytestmark = pytest.mark.sampled(4)  # `make test-slow` has every case

H, D = 3, 5
SIZES = [
    ((2, H), 13, 17), ((2, H), 1, 11), ((2, H), 7, 1), ((2, H), 19, 7), ((H,), 11, 13), ((2, 2, H), 7, 11),
]  # fmt: skip

SCORES = {
    "dot": lambda: "dot",
    "scaled_dot": lambda: "scaled_dot",
    "softcap": lambda: regard.ScaledDot(0.4, softcap=1.5),
    "cosine": lambda: regard.Cosine(0.5, 2.0),
    "general": lambda: regard.General(D, D),
    "query_adaptive": lambda: regard.QueryAdaptive(D, D, 2),
    "distance": lambda: regard.Distance(torch.nn.Parameter(torch.tensor(1.7))),
    "additive": lambda: regard.Additive(D, D, 7),
    "concat": lambda: regard.Concat(D, D, 7),
    "random_features": lambda: regard.RandomFeatures(D, 7),
    "elu": regard.EluFeatures,
    "callable": lambda: lambda q, k: (q @ k.transpose(-2, -1)).sin(),
}
NORMALIZERS = {
    "softmax": lambda: "softmax",
    "softmax1": lambda: "softmax1",
    "sink": lambda: regard.Sink(torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))),
    "sparsemax": lambda: "sparsemax",
    "entmax15": lambda: "entmax15",
    "entmax": lambda: regard.Entmax(1.3),
    "sigmoid": lambda: "sigmoid",
    "uniform": lambda: "uniform",
    "hard": regard.Hard,
    "share": regard.Share,
    "callable": lambda: lambda scores, allowed: scores.tanh() * allowed / scores.shape[-1],
}


def mask(name: str, batch: tuple[int, ...], t: int, s: int) -> object:
    draw = torch.Generator().manual_seed(3)
    first = batch[0] if len(batch) > 1 else None
    lengths = (torch.tensor([s // 2, s])[:first] if first else torch.tensor(s // 2)).to(DEVICE)
    ids = torch.arange(t, device=DEVICE) // 3, torch.arange(s, device=DEVICE) // 3
    return {
        "none": lambda: None,
        "causal": lambda: regard.causal(),
        "causal_0": lambda: regard.causal(0),
        "window": lambda: regard.window(2, 1),
        "padding": lambda: regard.padding(lengths),
        "prefix_lm": lambda: regard.causal(-1) | regard.prefix(2),
        "documents": lambda: regard.documents(*(i.expand(first, -1) if first else i for i in ids)),
        "blocks": lambda: regard.blocks((torch.rand(-(-t // 4), -(-s // 4), generator=draw) < 0.5).to(DEVICE), 4),
        "tensor": lambda: (torch.rand(*batch, t, s, generator=draw) < 0.6).to(DEVICE),
        "band_without_its_middle": lambda: regard.window(4) & ~regard.window(1),
        "nobody": lambda: regard.prefix(0),
    }[name]()


MASKS = [
    "none", "causal", "causal_0", "window", "padding", "prefix_lm", "documents", "blocks", "tensor",
    "band_without_its_middle", "nobody",
]  # fmt: skip


def bias(name: str, t: int, s: int, dtype: torch.dtype) -> tuple[object, list[Tensor]]:
    """A bias, and what is learned of it."""
    draw = torch.Generator().manual_seed(4)
    if name == "none":
        return None, []
    if name == "alibi":
        return regard.alibi(H), []
    if name == "tensor":
        return torch.randn(H, t, s, generator=draw).to(DEVICE), []
    if name == "learned":
        tensor = leaf(torch.randn(H, 1, s, generator=draw, dtype=dtype))
        return tensor, [tensor]
    if name == "computed":  # by something that itself is learned
        tensor = leaf(torch.randn(t + s - 1, generator=draw, dtype=dtype))
        return Diagonals(tensor.sin() * 2), [tensor]
    buckets = regard.RelativeBias(H, 4, 5).to(dtype)
    torch.nn.init.normal_(buckets.weight, generator=draw)
    buckets.to(DEVICE)
    return buckets, [buckets.weight]


BIASES = ["none", "alibi", "tensor", "learned", "computed", "relative"]

# the committed list: a cell is refused where one of its parts stands here, and nowhere else
DOTS_ALONE = {
    "score": {"softcap", "distance", "additive", "concat", "callable"},
    "normalizer": set(NORMALIZERS) - {"softmax"},
}
REFUSED: dict[str, dict[str, set[str]]] = {
    "fused": DOTS_ALONE,
    "windowed": DOTS_ALONE | {"mask": {"none"}},
    "additive": {"score": set(SCORES) - {"additive", "concat"}},
    "linear": {
        "score": set(SCORES) - {"random_features", "elu"},
        "normalizer": set(NORMALIZERS) - {"share"},
        "mask": {"window", "prefix_lm", "documents", "blocks", "tensor", "band_without_its_middle"},
        "bias": set(BIASES) - {"none"},
    },
    "blockwise": {},
    "reference": {},
}
# what is refused on an accelerator besides
REFUSED_ON_ACCELERATORS = {
    "fused": {"bias": {"learned", "computed", "relative"}},  # torch's kernel keeps the sums that their gradients need
    "windowed": {"mask": set(MASKS)},  # which blocks a mask leaves empty is a question about values
}
if DEVICE.type != "cpu":
    REFUSED |= {name: REFUSED[name] | more for name, more in REFUSED_ON_ACCELERATORS.items()}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fused, blockwise):
        monkeypatch.setattr(module, "BLOCK", 150)
    monkeypatch.setattr(blockwise, "PART", 150)
    monkeypatch.setattr(blockwise, "ROWS", 4)
    monkeypatch.setattr(additive, "TILE", 200)
    monkeypatch.setattr(linear, "CHUNK", 4)
    pieces = windowed.pieces.__globals__
    monkeypatch.setitem(pieces, "HEIGHT", 5)
    monkeypatch.setitem(pieces, "WIDTH", 3)


def test_every_kernel_has_its_list() -> None:
    assert set(REFUSED) == set(KERNELS)


on_every_kernel_and_score = [
    pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "reference"]),
    pytest.mark.parametrize("score", SCORES),
]


def on_every(test):
    for mark in on_every_kernel_and_score:
        test = mark(test)
    return test


@on_every
def test_a_cell_is_refused_if_and_only_if_the_list_says_so(kernel: str, score: str) -> None:
    for cell in cells(score):
        batch, t, s = SIZES[0]
        inputs = [torch.zeros(*batch, size, D, device=DEVICE) for size in (t, s, s)]
        spec = a_spec(cell, batch, t, s, torch.float32)[0]
        reason = KERNELS[kernel].refusal(*inputs, spec)
        assert (reason is not None) == is_refused(kernel, cell), (cell, reason)


@on_every
@pytest.mark.usefixtures("small_blocks")
def test_a_cell_equals_the_reference(kernel: str, score: str) -> None:
    """A sample with every pair of parts on every kernel; the slow test takes all cells."""
    check_cells(kernel, score, [cell for cell in pairwise(kernel) if cell["score"] == score])


def pairs(cell: dict[str, str]) -> set[tuple[tuple[str, str], ...]]:
    """The six pairs of parts that meet in a cell."""
    return set(combinations(cell.items(), 2))


@cache
def pairwise(kernel: str) -> list[dict[str, str]]:
    """Cells of a kernel in which every pair of parts that it takes occurs, chosen greedily in a fixed random order."""
    able = [cell for score in SCORES for cell in cells(score) if not is_refused(kernel, cell)]
    random.Random(kernel).shuffle(able)
    missing = set().union(*map(pairs, able)) if able else set()
    chosen = []
    for wanted in (5, 3, 2, 1):
        for cell in able:
            if len(new := pairs(cell) & missing) >= wanted:
                chosen.append(cell)
                missing -= new
    return chosen


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "reference"])
def test_the_sample_has_every_pair(kernel: str) -> None:
    able = [cell for score in SCORES for cell in cells(score) if not is_refused(kernel, cell)]
    assert set().union(*map(pairs, pairwise(kernel))) == set().union(*map(pairs, able))


@pytest.mark.slow
@on_every
@pytest.mark.usefixtures("small_blocks")
def test_every_cell_equals_the_reference(kernel: str, score: str) -> None:
    check_cells(kernel, score, [cell for cell in cells(score) if not is_refused(kernel, cell)])


def cells(score: str) -> list[dict[str, str]]:
    names = product(NORMALIZERS, MASKS, BIASES)
    return [{"score": score, "normalizer": n, "mask": m, "bias": b} for n, m, b in names]


def is_refused(kernel: str, cell: dict[str, str]) -> bool:
    return any(part in REFUSED[kernel].get(axis, ()) for axis, part in cell.items())


def a_spec(
    cell: dict[str, str], batch: tuple[int, ...], t: int, s: int, dtype: torch.dtype
) -> tuple[Spec, list[Tensor]]:
    """The cell's spec, and what is learned in it."""
    given, learned = bias(cell["bias"], t, s, dtype)
    normalizer = NORMALIZERS[cell["normalizer"]]()
    spec = make_spec(SCORES[cell["score"]](), normalizer, mask(cell["mask"], batch, t, s), given)
    spec.score.to(DEVICE, dtype), spec.normalizer.to(DEVICE, dtype)
    return spec, [*learned, *spec.score.parameters(), *spec.normalizer.parameters()]


def check_cells(kernel: str, score: str, chosen: list[dict[str, str]]) -> None:
    for n, cell in enumerate(chosen, sum(map(ord, kernel + score))):
        batch, t, s = SIZES[n % len(SIZES)]
        # shares of scores that may cancel lose a float32's digits on every kernel
        dtype = torch.float64 if n % 4 or cell["normalizer"] == "share" else torch.float32
        if dtype == torch.float64 and not HAS_FLOAT64:
            if cell["normalizer"] == "share":
                continue
            dtype = torch.float32
        torch.manual_seed(n)
        inputs = [leaf(torch.randn(*batch, size, D, dtype=dtype)) for size in (t, s, s)]
        spec, learned = a_spec(cell, batch, t, s, dtype)
        where = f"{cell} {batch} {t} {s} {dtype}"
        near = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 5e-4, "atol": 5e-5}
        got, want = KERNELS[kernel].run(*inputs, spec, 0), reference(*inputs, spec, 0)
        torch.testing.assert_close(got[0], want[0], **near, msg=lambda m, where=where: f"{where}: {m}")
        rows = [numbers.detach().to(dtype) for numbers in (got[1], want[1])]
        if kernel == "fused" and DEVICE.type != "cpu":  # torch's kernel keeps them: NaN says so
            assert bool(rows[0].isnan().all()), where
        else:
            torch.testing.assert_close(*rows, **near, msg=lambda m, where=where: f"rows of {where}: {m}")
        parameters, upstream = [*inputs, *learned], torch.randn_like(want[0])
        slopes = [
            torch.autograd.grad(o, parameters, upstream, allow_unused=True, retain_graph=True)
            for o in (got[0], want[0])
        ]
        for which, pair in enumerate(zip(*slopes, strict=True)):
            ours, theirs = (torch.zeros_like(parameters[which]) if slope is None else slope for slope in pair)
            what = f"gradient {which} of {where}"
            torch.testing.assert_close(ours, theirs, **near, msg=lambda m, what=what: f"{what}: {m}")


@in_float64
@pytest.mark.parametrize("kernel", ["blockwise", "additive"])
@pytest.mark.parametrize("covered", MASKS)
@pytest.mark.usefixtures("small_blocks")
def test_dropout_drops_the_same_weights_on_every_kernel(kernel: str, covered: str) -> None:
    batch, t, s = SIZES[3]
    inputs = [leaf(torch.randn(*batch, n, D, dtype=torch.float64)) for n in (t, s, s)]
    spec = make_spec(
        regard.Additive(D, D, 7).to(DEVICE, torch.float64), "softmax", mask(covered, batch, t, s), None, 0.4
    )
    got, want = KERNELS[kernel].run(*inputs, spec, 19)[0], reference(*inputs, spec, 19)[0]
    torch.testing.assert_close(got, want)
    upstream = torch.randn_like(want)
    slopes = [torch.autograd.grad(output, inputs, upstream, allow_unused=True) for output in (got, want)]
    for ours, theirs, like in zip(*slopes, inputs, strict=True):
        zero = torch.zeros_like(like)
        torch.testing.assert_close(zero if ours is None else ours, zero if theirs is None else theirs)


TWICE = [
    *(("blockwise", "scaled_dot", name, "none") for name in NORMALIZERS if name != "hard"),
    *(("blockwise", name, "softmax", "computed") for name in SCORES),
    *(("additive", name, n, "learned") for name in ("additive", "concat") for n in ("softmax", "entmax15")),
    *((kernel, "scaled_dot", "softmax", b) for kernel in ("fused", "windowed") for b in BIASES),
    ("linear", "elu", "share", "none"),
]


@in_float64
@pytest.mark.parametrize(("kernel", "score", "normalizer", "added"), TWICE)
@pytest.mark.usefixtures("small_blocks")
def test_both_derivatives_through_blocks(
    kernel: str, score: str, normalizer: str, added: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (fused, blockwise):
        monkeypatch.setattr(module, "BLOCK", 12)
    monkeypatch.setattr(blockwise, "PART", 12)
    torch.manual_seed(5)
    batch, t, s = (1, H), 4, 5
    inputs = [leaf(torch.randn(*batch, n, D, dtype=torch.float64)) for n in (t, s, s)]
    cell = {"score": score, "normalizer": normalizer, "mask": "causal", "bias": added}
    if is_refused(kernel, cell):
        pytest.skip(f"{kernel} refuses this on {DEVICE}")
    spec, learned = a_spec(cell, batch, t, s, torch.float64)
    if added == "computed":  # before, and not anew for every small step of gradcheck
        learned = learned[1:]
    attend = lambda *x: KERNELS[kernel].run(*x[:3], spec, 0)[0]  # noqa: E731
    assert torch.autograd.gradcheck(attend, (*inputs, *learned), fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, (*inputs, *learned), fast_mode=True)
