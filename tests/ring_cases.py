"""What the processes of test_ring compute: attention across themselves, beside the whole in one process.

Every function is called by all processes, and returns None or what is wrong.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, distributed

from checked import check_types
from regard.errors import RegardError

check_types()  # before anything of regard is imported

import regard  # noqa: E402
from regard.attention.biases import Diagonals  # noqa: E402
from regard.attention.kernels import additive, blockwise, fused, windowed  # noqa: E402
from regard.distributed import ring_attend, ring_map, shard, sum_gradients, unshard  # noqa: E402

H, D, V = 4, 5, 3
TOLERANCE = {torch.float32: (1e-6, 1e-5), torch.float64: (1e-12, 1e-12)}

MASKS: dict[str, Callable[[int, int], Any]] = {
    "none": lambda t, s: None,
    "causal": lambda t, s: regard.causal(),
    "causal_0": lambda t, s: regard.causal(0),
    "window": lambda t, s: regard.window(3, 1),
    "padding": lambda t, s: regard.padding(torch.tensor([s // 2, s])),
    "both_padded": lambda t, s: regard.padding(torch.tensor([s // 2, s]), torch.tensor([t, t - 3])),
    "prefix_lm": lambda t, s: regard.causal(-1) | regard.prefix(2),
    "documents": lambda t, s: regard.documents(torch.arange(t).expand(2, -1) // 4, torch.arange(s).expand(2, -1) // 4),
    "blocks": lambda t, s: regard.blocks(drawn(3, -(-t // 4), -(-s // 4)) < 0.5, 4),
    "tensor": lambda t, s: drawn(3, 2, H, t, s) < 0.2,
    "spread": lambda t, s: regard.causal(torch.tensor([0, 4])) & ~regard.window(1),
    "nothing": lambda t, s: regard.prefix(0),
}


def hooked(module: torch.nn.Module, change: Callable[[Any], Any]) -> torch.nn.Module:
    """The module with a hook that changes what it gives."""
    module.register_forward_hook(lambda module, given, found: change(found))
    return module


NORMALIZERS: dict[str, Callable[[], Any]] = {
    "softmax": lambda: "softmax",
    "softmax1": lambda: "softmax1",
    "sink": lambda: regard.Sink(torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 0.0]))),
    "sigmoid": lambda: "sigmoid",
    "uniform": lambda: "uniform",
    "share": regard.Share,
    "hard": regard.Hard,
    "sparsemax": lambda: "sparsemax",
    "entmax15": lambda: "entmax15",
    "entmax": lambda: regard.Entmax(1.3),
    "callable": lambda: lambda scores, allowed: scores.tanh() * allowed / scores.shape[-1],
    "hooked": lambda: hooked(regard.Entmax(1.5), lambda found: (found[0] / 2, found[1])),
}
BIASES = ("none", "alibi", "tensor", "computed", "relative")
MERGED = ("softmax", "softmax1", "sink", "sigmoid", "uniform", "share")
SCORES: dict[str, Callable[[], Any]] = {
    "scaled_dot": lambda: "scaled_dot",
    "softcap": lambda: regard.ScaledDot(0.4, softcap=1.5),
    "cosine": lambda: regard.Cosine(0.5, 2.0),
    "general": lambda: regard.General(D, D),
    "query_adaptive": lambda: regard.QueryAdaptive(D, D, 2),
    "distance": lambda: regard.Distance(torch.nn.Parameter(torch.tensor(1.7))),
    "additive": lambda: regard.Additive(D, D, 7),
    "concat": lambda: regard.Concat(D, D, 7),
    "elu": regard.EluFeatures,
    "callable": lambda: lambda q, k: (q @ k.transpose(-2, -1)).sin(),
    "hooked": lambda: hooked(regard.General(D, D), lambda scores: scores.tanh()),
}


def join(rank: int, count: int, store: str, timeout: int) -> None:
    """Make this process one of `count`, which meet in a file."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=timeout)
    )


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def bias(name: str, t: int, s: int, dtype: torch.dtype) -> tuple[Any, list[Tensor]]:
    """A bias, and what is learned of it."""
    if name == "none":
        return None, []
    if name == "alibi":
        return regard.alibi(H), []
    if name == "relative":
        buckets = regard.RelativeBias(H, 8, 6).to(dtype)
        torch.nn.init.normal_(buckets.weight, generator=torch.Generator().manual_seed(4))
        return buckets, [buckets.weight]
    if name == "computed":  # by something that itself is learned
        numbers = drawn(4, t + s - 1, dtype=dtype).requires_grad_()
        return Diagonals(numbers.sin() * 2), [numbers]
    tensor = drawn(4, H, 1, s, dtype=dtype).requires_grad_()
    return tensor, [tensor]


@contextmanager
def small_blocks() -> Iterator[None]:
    """Blocks of so few pairs that a tile falls into many of them."""
    small = [(fused, "BLOCK", 90), (blockwise, "BLOCK", 90), (blockwise, "PART", 90), (blockwise, "ROWS", 2)]
    small += [(additive, "TILE", 100), (windowed, "LARGE", 1)]
    before = [(module, name, getattr(module, name)) for module, name, _ in small]
    for module, name, number in small:
        setattr(module, name, number)
    try:
        yield
    finally:
        for module, name, number in before:
            setattr(module, name, number)


def cut(tensor: Tensor, lengths: list[int] | None, balanced: bool = False) -> Tensor:
    """This process's part: as `shard` cuts, or of given lengths."""
    if lengths is None:
        return shard(tensor, balanced=balanced)
    return tensor.split(lengths, -2)[distributed.get_rank()]


def equals_one_process(
    *, t: int = 13, s: int = 13, score: str = "scaled_dot", normalizer: str = "softmax", mask: str = "none",
    bias_name: str = "none", key_heads: int = H, dropout: float = 0.0, exchange: str = "auto", small: bool = False,
    dtypes: tuple[str, ...] = ("float32", "float64"), queries: list[int] | None = None, keys: list[int] | None = None,
    batch: int = 2, poison: bool = False, balanced: bool = False,
) -> str | None:  # fmt: skip
    """Output and gradients of ring_attend, beside those of attend on the whole.

    A fault ends nothing: other processes may see none, and go on.
    """
    faults = []
    for name in dtypes:
        dtype = getattr(torch, name)
        whole = [drawn(1, batch, H, t, D), drawn(2, batch, key_heads, s, D), drawn(3, batch, key_heads, s, V)]
        if poison:
            whole[1][..., s // 2, :], whole[2][..., s // 2 + 1, :] = torch.nan, torch.inf
        whole = [tensor.to(dtype) for tensor in whole]
        up = drawn(5, batch, H, t, V, dtype=dtype)
        outcomes = []
        for across in (False, True):
            torch.manual_seed(7)  # parameters, and the seed of dropout
            made = SCORES[score](), NORMALIZERS[normalizer](), MASKS[mask](t, s)
            modules = [part.to(dtype) for part in made[:2] if isinstance(part, torch.nn.Module)]
            added, learned = bias(bias_name, t, s, dtype)
            learned = learned + [p for module in modules for p in module.parameters()]
            settings = {"score": made[0], "normalizer": made[1], "mask": made[2], "bias": added, "dropout": dropout}
            torch.manual_seed(8 if not across or distributed.get_rank() == 0 else 9)  # the first process's counts
            inputs = [part.clone().requires_grad_() for part in whole]
            if across:
                inputs = [
                    cut(part, lengths, balanced).detach().clone().requires_grad_()
                    for part, lengths in zip(whole, (queries, keys, keys), strict=True)
                ]
                with small_blocks() if small else torch.enable_grad():
                    output = ring_attend(*inputs, **settings, exchange=exchange, balanced=balanced)
                    output.backward(cut(up, queries, balanced))
                sum_gradients(learned)
                outcomes.append((output, [p.grad for p in (*inputs, *learned)]))
            else:
                output = regard.attend(*inputs, **settings, kernel="reference")
                output.backward(up)
                of_inputs, of_learned = (
                    [torch.zeros_like(p) if p.grad is None else p.grad for p in part] for part in (inputs, learned)
                )
                lengths = queries, keys, keys
                wanted = [cut(grad, length, balanced) for grad, length in zip(of_inputs, lengths, strict=True)]
                outcomes.append((cut(output, queries, balanced), [*wanted, *of_learned]))
        (expected, expected_gradients), (found, gradients) = outcomes
        limits = TOLERANCE[dtype]
        named = ["output", "query", "key", "value", *(f"learned {n}" for n in range(len(learned)))]
        pairs = [(expected, found), *zip(expected_gradients, gradients, strict=True)]
        for what, (left, right) in zip(named, pairs, strict=True):
            limit = limits[what != "output"]
            if found.dtype != dtype or not torch.allclose(left, right, rtol=limit, atol=limit, equal_nan=True):
                faults.append(f"{what} in {name}: off by {(left - right).abs().max():.1e}\n{left}\n{right}")
    return "\n".join(faults) or None


def all_equal_one_process(cases: list[dict[str, Any]]) -> str | None:
    """Several cases: the faults of all."""
    faults = [f"{case}: {fault}" for case in cases if (fault := equals_one_process(**case))]
    return "\n".join(faults) or None


def map_answers_for_own_rows(mask: str, bias_name: str, normalizer: str, key_heads: int = H) -> str | None:
    """Every answer of ring_map is the whole map's for this process's queries, or its sum over all queries."""
    t, s = 11, 17
    torch.manual_seed(7)
    added, _ = bias(bias_name, t, s, torch.float64)
    settings = {"normalizer": NORMALIZERS[normalizer](), "mask": MASKS[mask](t, s), "bias": added}
    query, key = drawn(1, 2, H, t, D), drawn(2, 2, key_heads, s, D)
    whole = regard.attention_map(query, key, **settings)
    found = ring_map(shard(query), shard(key), **settings)
    rows = found.rows
    assert found.shape == (2, H, rows.stop - rows.start, s)
    torch.testing.assert_close(found.full(), whole.full()[..., rows, :])
    torch.testing.assert_close(found.entropy(), whole.entropy()[..., rows])
    torch.testing.assert_close(found.argmax(), whole.argmax()[..., rows])
    for ours, theirs in zip(found.top(3), whole.top(3), strict=True):
        torch.testing.assert_close(ours, theirs[..., rows, :])
    torch.testing.assert_close(found.tile([0, 2], slice(3, 9)), whole.tile(rows, slice(3, 9))[..., [0, 2], :])
    torch.testing.assert_close(found.column(4), whole.column(4)[..., rows])
    torch.testing.assert_close(found.received(), whole.received())
    torch.testing.assert_close(found.distance(), whole.distance())
    torch.testing.assert_close(found.frozen().full(), found.full())
    torch.testing.assert_close(found.frozen().received(), whole.received())
    if whole.full().ndim > 2:
        torch.testing.assert_close(found.select(0).received(), whole.select(0).received())
        torch.testing.assert_close(found.select(0).distance(), whole.select(0).distance())
    with pytest.raises(RegardError, match="keeps the"):
        found.crop(found.shape[-2] - 1, 0, 1)
    return None


def map_has_gradients() -> str | None:
    """The gradient of what keys receive goes back to every process's queries and keys."""
    query, key = drawn(1, 2, H, 11, D).requires_grad_(), drawn(2, 2, H, 17, D).requires_grad_()
    regard.attention_map(query, key, mask=regard.causal()).received().square().sum().backward()
    own = [shard(part).detach().clone().requires_grad_() for part in (query, key)]
    received = ring_map(*own, mask=regard.causal()).received()
    (received.square().sum() / distributed.get_world_size()).backward()  # the losses' sum is one of them
    for ours, theirs in zip(own, (query, key), strict=True):
        torch.testing.assert_close(ours.grad, shard(theirs.grad))
    return None


def shards_are_joined_again() -> str | None:
    """unshard(shard(x)) is x along any axis, and a shard's gradient is the sum of what all processes ask of it."""
    rank, count = distributed.get_rank(), distributed.get_world_size()
    whole = drawn(1, 5, 7, 2)
    for axis, balanced in product(range(-3, 3), (False, True)):
        own = shard(whole, axis, balanced=balanced).clone().requires_grad_()
        joined = unshard(own, axis, balanced=balanced)
        torch.testing.assert_close(joined, whole, rtol=0, atol=0)
        (joined * (rank + 1)).sum().backward()
        torch.testing.assert_close(own.grad, torch.full_like(own, count * (count + 1) / 2))
    assert shard(torch.zeros(7), 0).numel() == 7 // count + (rank < 7 % count)
    return None


def refuses_together() -> str | None:
    """What one process refuses, all refuse, so that none waits; and the ring works afterward."""
    rank = distributed.get_rank()
    query = drawn(1, 2, H, 4, D)
    last = distributed.get_world_size() - 1
    wide = drawn(1, 2, H, 4, D + 1)
    needing = query.clone().requires_grad_()
    only_here = regard.ShapeError if rank == last else regard.RegardError
    differs = f"query has shape [2, 4, 4, 6] on process {last} and [2, 4, 4, 5] on process 0: shards may differ on axis"
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: ring_attend(query, query, query[..., : 3 + (rank < last), :]), only_here, "exactly one value"),
        (lambda: ring_attend(query, query, query, mask=regard.padding(torch.tensor([1, 2, 3]))), regard.ShapeError,
            "padding lengths have shape [3]"),
        (lambda: ring_attend(query, query, query, bias=drawn(1, H, 3, 4)), regard.ShapeError, "bias has shape"),
        (lambda: ring_attend(query, wide, query), regard.ShapeError, "query has width 5 on axis -1 and key has 6"),
        (lambda: ring_attend(query, query, query, normalizer=regard.Sink(torch.zeros(3))), regard.ShapeError,
            "4 heads"),
        (lambda: ring_attend(query, query, query, exchange="rign"), regard.ChoiceError, "expected one of 'ring'"),
        (lambda: ring_attend(query, query, query, normalizer="sparsemax", exchange="ring"), regard.KernelError,
            "exchange 'ring' cannot do this: the normalizer Entmax needs whole rows; exchange='auto' or 'gather' can"),
        (lambda: ring_attend(query, query, drawn(1, 2, H, 4, 3), score="dto"), regard.ChoiceError, "'dot'"),
        (lambda: ring_map(query, query[0]), regard.ShapeError, "key has 3 axes"),
        (lambda: unshard(query, 4), regard.ShapeError, "unshard needs a tensor with axis 4; got shape [2, 4, 4, 5]"),
        (lambda: shard(query, 4), regard.ShapeError, "shard needs a tensor with axis 4"),
    ]  # fmt: skip
    if last:
        cases += [
            (lambda: ring_attend(*[wide if rank == last else query] * 3), regard.ShapeError, differs),
            (lambda: ring_attend(*[query.float() if rank == last else query] * 3), regard.ShapeError,
                f"query is torch.float32 on process {last} and torch.float64 on process 0: convert one of them"),
            (lambda: ring_attend(*[needing if rank == last else query] * 3), regard.RegardError,
                f"query needs a gradient on process {last} and none on process 0"),
            (lambda: ring_attend(*[query[..., : 3 + (rank < last), :]] * 3, balanced=True), regard.ShapeError,
                "cut them by shard(..., balanced=True)"),
            (lambda: ring_attend(query, query, query, exchange="gather" if rank == last else "ring"),
                regard.RegardError, "by gather and process 0 for (ScaledDot, Softmax, none, none, dropout 0.0) by"),
            (lambda: unshard(query[: 1 + (rank == last)]), regard.ShapeError,
                f"tensor has shape [2, 4, 4, 5] on process {last} and [1, 4, 4, 5] on process 0"),
        ]  # fmt: skip
    for number, (call, kind, sentence) in enumerate(cases):
        try:
            call()
        except kind as error:
            if sentence not in str(error):
                return f"case {number}: {error}"
        else:
            return f"case {number} was not refused"
    return equals_one_process()


def gathers_what_cannot_travel() -> str | None:
    """One map for several values, and a score that follows the last look: asked of the ring, the reason is given."""
    query, key, values = drawn(1, 1, H, 7, D), drawn(2, 1, H, 11, D), drawn(3, 3, H, 11, V)
    followed = torch.cat([query, drawn(4, 1, H, 7, 11).softmax(-1)], -1)
    follows = regard.attention.scores.LocationAware(D, D, 7, 2, 3).double()
    torch.manual_seed(7)
    for parameter in follows.parameters():
        torch.nn.init.normal_(parameter)
    cases = [
        ((query, key, values), "scaled_dot", "the values have more batch axes than the scores"),
        ((followed, key, values[:1]), follows, "the score LocationAware needs the weights of the last look"),
    ]
    for whole, score, reason in cases:
        own = [shard(part) for part in whole]
        found = ring_attend(*own, score=score, mask=regard.causal())
        torch.testing.assert_close(found, shard(regard.attend(*whole, score=score, mask=regard.causal())))
        try:
            ring_attend(*own, score=score, exchange="ring")
        except regard.KernelError as error:
            if reason in str(error):
                continue
        return f"not refused: {reason}"
    return None


def has_no_second_derivative(exchange: str) -> str | None:
    query = drawn(1, 2, H, 4, D).requires_grad_()
    output = ring_attend(query, query, query, exchange=exchange)
    try:
        torch.autograd.grad(output.sum(), query, create_graph=True)
    except regard.RegardError as error:
        return None if "first derivative alone" in str(error) else str(error)
    return "was not refused"


def computes_only_what_is_seen() -> str | None:
    """Under a causal mask process r computes r + 1 tiles, only the last of them masked; a short window needs two."""
    from regard.attention.ring import operator

    rank, count = distributed.get_rank(), distributed.get_world_size()
    seen = []

    def counted(name: str, query: Tensor, key: Tensor, value: Tensor, spec: Any, seed: int) -> tuple[Tensor, Tensor]:
        seen.append(spec.mask is not None)
        return compute(name, query, key, value, spec, seed)

    compute, operator.compute = operator.compute, counted
    try:
        query = drawn(1, 2, H, 4 * count, D)
        own = shard(query)
        ring_attend(own, own, own, mask=regard.causal())
        assert sorted(seen) == [False] * rank + [True], seen
        seen.clear()
        ring_attend(own, own, own, mask=regard.window(1, 0))
        assert len(seen) == 1 + (rank > 0), seen
        seen.clear()
        own = shard(query, balanced=True)
        ring_attend(own, own, own, mask=regard.causal(), balanced=True)
        assert sorted(seen) == [False] * (2 * count - 1) + [True] * 2, seen  # on every process
    finally:
        operator.compute = compute
    return None


def half_precision_is_no_worse(exchange: str) -> str | None:
    """The error of bfloat16 against float64 is at most that of torch's own kernel on the whole; the type stays."""
    whole = [drawn(seed, 2, H, 40, 16).bfloat16() for seed in (1, 2, 3)]
    exact = regard.attend(*[part.double() for part in whole], mask=regard.causal())
    theirs = torch.nn.functional.scaled_dot_product_attention(*whole, is_causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = ring_attend(*map(shard, whole), mask=regard.causal(), exchange=exchange)
    assert ours.dtype == torch.bfloat16
    errors = [(shard(exact) - part.double()).abs().max() for part in (shard(theirs), ours)]
    return None if errors[1] <= errors[0] else f"{errors}"


def works_within_a_group() -> str | None:
    """Other processes take no part: the first and the last are a ring, and a process outside is refused."""
    count = distributed.get_world_size()
    group = distributed.new_group([0, count - 1])
    query = drawn(1, 2, H, 7, D)
    if distributed.get_rank() not in (0, count - 1):
        try:
            shard(query, group=group)
        except regard.RegardError as error:
            return None if "not in the group" in str(error) else str(error)
        return "was not refused"
    own = shard(query, group=group)
    found = unshard(ring_attend(own, own, own, mask=regard.causal(), group=group), group=group)
    torch.testing.assert_close(found, regard.attend(query, query, query, mask=regard.causal()))
    return None


class Layer(torch.nn.Module):
    """Self-attention with projections, a learned bias and a learned sink."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = torch.nn.Linear(8, 3 * 8), torch.nn.Linear(8, 8)
        self.bias, self.sink = regard.RelativeBias(2, 8, 6), regard.Sink(torch.nn.Parameter(torch.zeros(2)))

    def forward(self, states: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        heads = self.project(states).unflatten(-1, (3, 2, 4)).movedim(-3, 0).transpose(-2, -3)
        mixed = attend(*heads, normalizer=self.sink, mask=regard.causal(), bias=self.bias)
        return self.out(mixed.transpose(-2, -3).flatten(-2))


def trains_as_one_process() -> str | None:
    """Five steps of a layer, each process with its part of the sequence and of the loss, are one process's steps."""
    states, wanted = drawn(1, 2, 13, 8), drawn(2, 2, 13, 8)
    layers = []
    for attend in (regard.attend, ring_attend):
        torch.manual_seed(3)
        layer = Layer().double().train()
        optimizer = torch.optim.Adam(layer.parameters(), 0.05)
        across = attend is ring_attend
        inputs, targets = (shard(states), shard(wanted)) if across else (states, wanted)
        for _ in range(5):
            optimizer.zero_grad()
            (layer(inputs, attend) - targets).square().sum().backward()
            if across:
                sum_gradients(layer.parameters())
            optimizer.step()
        layers.append(layer)
    for (name, one), other in zip(layers[0].named_parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")
    return None


def runs(code: str) -> str | None:
    """A page's block runs as in a process that torchrun has started; here the processes have met already."""
    with mock.patch.object(distributed, "init_process_group"):
        exec(compile(code, "docs/scale.md", "exec"), {})
    return None


def peak_of(positions: int, backward: bool) -> int:
    """The most bytes that this process's tensors hold at a time, in attention over so many positions of all."""
    query = drawn(1, 1, 2, positions, 16, dtype=torch.float32)
    own = [shard(query).clone().requires_grad_(backward) for _ in range(3)]
    del query
    with Held() as held:
        output = ring_attend(*own, mask=regard.causal())
        if backward:
            output.sum().backward()
    return held.peak


def memory_falls(positions: int, forward: float, both: float) -> str | None:
    """Peak bytes, forward and with backward, are at most so many times those of a shard of queries, of however many."""
    shard_bytes = 4 * 2 * 16 * -(-positions // distributed.get_world_size())
    for backward, limit in ((False, forward), (True, both)):
        found = peak_of(positions, backward) / shard_bytes
        if found > limit:
            return f"{'backward' if backward else 'forward'}: {found:.1f} shards, at most {limit}"
    return None


class Held(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the bytes of the storages that are made inside the block and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(found):
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return found

    def count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self.known:
            return
        self.known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, place, size)

    def forget(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size
