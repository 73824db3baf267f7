"""wᵀA and A·w: equal to the whole matrix's, for both backings and every spec, in one block's memory."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import regard
from device import leaf
from regard.attention.maps import map as map_module
from regard.attention.maps.map import AttentionMap
from regard.attention.normalizers import NAMED

B, H, T, S, D = 2, 3, 5, 7, 11


def inputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(B, H, n, D, dtype=torch.float64, generator=draw) for n in (T, S))
    return query, key


def vector(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def both(seen: AttentionMap, rows: Tensor, columns: Tensor) -> list[Tensor]:
    return [seen.pull(rows), seen.push(columns)]


def by_hand(whole: Tensor, rows: Tensor, columns: Tensor) -> list[Tensor]:
    return [(rows[..., None] * whole).sum(-2), (whole * columns[..., None, :]).sum(-1)]


HOLES = torch.rand(B, H, T, S, generator=torch.Generator().manual_seed(2)) < 0.6
HOLES[0, 1, 2] = False
SPECS = {
    **{name: {"normalizer": name} for name in NAMED},
    "holes": {"mask": HOLES},
    "causal": {"mask": regard.causal()},
    "window": {"mask": regard.window(1, 0), "bias": regard.alibi(H)},
    "padding": {"mask": regard.padding(torch.tensor([0, 4]))},
    "bias": {"bias": vector(H, T, S)},
    "cosine": {"score": "cosine", "normalizer": "entmax15", "mask": HOLES},
    "additive": {"score": regard.Additive(D, D, 2).double()},
}


@pytest.fixture(params=[16 * 2**20, 1])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows at once, and one row at a time."""
    monkeypatch.setattr(map_module, "BLOCK", request.param)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shapes", [((T,), (S,)), ((B, H, T), (B, H, S)), ((B, 1, T), (H, S))])
def test_products_are_the_matrix(spec: str, shapes: tuple[tuple[int, ...], ...], block: None) -> None:
    seen = regard.attention_map(*inputs(), **SPECS[spec])
    vectors = [vector(*shape) for shape in shapes]
    want = by_hand(seen.full().detach(), *vectors)
    for one in (seen, AttentionMap.from_weights(seen.full().detach())):
        for got, wanted in zip(both(one, *vectors), want, strict=True):
            torch.testing.assert_close(got.detach(), wanted)


def test_a_dead_row_gives_and_collects_nothing(block: None) -> None:
    seen = regard.attention_map(*inputs(), mask=HOLES)
    assert not seen.pull(torch.eye(T)[2].double())[0, 1].any()
    assert not seen.push(torch.ones(S))[0, 1, 2]


def test_of_derived_maps(block: None) -> None:
    query, key = inputs()
    seen = regard.attention_map(query, key, mask=HOLES)
    for one in (
        seen.mean_heads(),
        seen.crop(3, 1, 6),
        seen.norms(vector(B, H, S, 2), vector(H, 2, 4)),
        seen.select(0, 2),
    ):
        vectors = vector(one.shape[-2]), vector(one.shape[-1])
        for got, want in zip(both(one, *vectors), by_hand(one.full(), *vectors), strict=True):
            torch.testing.assert_close(got, want)
    grouped = regard.attention_map(query[:1].expand(B, H, T, D), key[:, :1], mask=regard.causal())
    torch.testing.assert_close(grouped.pull(vector(T)), by_hand(grouped.full(), vector(T), vector(S))[0])


@pytest.mark.parametrize("spec", ["holes", "entmax15", "bias", "additive"])
def test_products_are_differentiable(spec: str, block: None) -> None:
    query, key, rows, columns = leaves = [leaf(one) for one in (*inputs(), vector(B, H, T), vector(S))]
    got = both(regard.attention_map(query, key, **SPECS[spec]), rows, columns)
    want = by_hand(regard.attention_map(query, key, **SPECS[spec]).full(), rows, columns)
    slopes = [torch.autograd.grad(sum(one.square().sum() for one in some), leaves) for some in (got, want)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_derivative() -> None:
    query, key = (one[0, 0] for one in inputs())
    pull = lambda q: regard.attention_map(q[:3, :4], key[:3, :4]).pull(vector(3))  # noqa: E731
    torch.autograd.gradgradcheck(pull, query[:3, :4].detach().requires_grad_())


def test_a_vector_alone_with_a_gradient(block: None) -> None:
    """The buffer of a block is not written over while the backward pass needs it."""
    seen, rows = regard.attention_map(*inputs(), mask=regard.causal()), leaf(vector(T))
    (slope,) = torch.autograd.grad(seen.pull(rows).square().sum(), rows)
    whole, plain = seen.full(), leaf(vector(T))
    (want,) = torch.autograd.grad(by_hand(whole, plain, vector(S))[0].square().sum(), plain)
    torch.testing.assert_close(slope, want)


def test_under_torch_func() -> None:
    query, key = inputs()
    pull = lambda q: regard.attention_map(q, key).pull(vector(T)).square().sum()  # noqa: E731
    leaves = leaf(query)
    (want,) = torch.autograd.grad(pull(leaves), leaves)
    torch.testing.assert_close(torch.func.grad(pull)(query), want)


def test_dtype_and_empty_axes() -> None:
    query, key = (one.float() for one in inputs())
    assert regard.attention_map(query, key).pull(torch.ones(T, dtype=torch.float64)).dtype == torch.float32
    assert regard.attention_map(query.double(), key.double()).push(torch.ones(S)).dtype == torch.float64
    assert not regard.attention_map(query[..., :0, :], key).pull(torch.ones(0)).any()
    assert not regard.attention_map(query, key[..., :0, :]).push(torch.ones(0)).any()
    assert AttentionMap.from_weights(torch.zeros(H, 0, S)).push(torch.ones(S)).shape == (H, 0)


@pytest.mark.parametrize(
    ("size", "words"),
    [((T + 1,), "5 queries; got shape \\[6\\]"), ((), "5 queries"), ((H + 1, T), "batch axes are \\[2, 3\\]")],
)
def test_sizes_that_do_not_fit(size: tuple[int, ...], words: str) -> None:
    with pytest.raises(regard.ShapeError, match=words):
        regard.attention_map(*inputs()).pull(torch.ones(size))


def test_keys_that_do_not_fit() -> None:
    with pytest.raises(regard.ShapeError, match="7 keys"):
        regard.attention_map(*inputs()).push(torch.ones(T))


PEAK = """
import resource, sys, torch, regard
torch.set_num_threads(1)
heads, n, d = 2, 32768, 64
query, key = (torch.randn(heads, n, d, requires_grad=sys.argv[1] == "gradient") for _ in range(2))
small = regard.attention_map(query[:, :600], key[:, :600], mask=regard.causal())
small.pull(torch.ones(600)).sum().backward() if sys.argv[1] == "gradient" else small.pull(torch.ones(600))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seen = regard.attention_map(query, key, mask=regard.causal())
pulled = seen.pull(torch.ones(n))
if sys.argv[1] == "gradient":
    (pulled * torch.randn(n)).sum().backward()
else:
    seen.push(torch.ones(n))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["products", "gradient"])
def test_memory_at_32768_tokens(what: str) -> None:
    """43 MiB; with a gradient, whose blocks the allocator must give back at once, 193 MiB instead of T × S's 8 GiB."""
    # glibc: what is freed between tensors that are kept goes back to the system
    command, given = [sys.executable, "-c", PEAK, what], {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=given)
    assert float(done.stdout) < {"products": 100, "gradient": 300}[what], f"{done.stdout.strip()} MiB"


@pytest.mark.parametrize("gradient", [False, True])
def test_a_score_that_takes_no_call_without_queries(gradient: bool) -> None:
    def score(query: Tensor, key: Tensor) -> Tensor:
        product = query @ key.transpose(-1, -2)
        return product / product.abs().max()

    query, key = (one.requires_grad_(gradient) for one in inputs())
    seen = regard.attention_map(query, key, score=score)
    torch.testing.assert_close(seen.push(torch.ones(S, dtype=torch.float64)), torch.ones(B, H, T, dtype=torch.float64))
