"""What a kernel is to the operator: how to run it, what it refuses, when it pays, and what it costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from regard.attention.pieces import BLOCK
from regard.attention.spec import Spec
from regard.attention.tracing import goes_forward

Shape = tuple[int, ...]
Seed = int | Tensor  # of dropout; a 0-d tensor is never read by Python
Run = Callable[..., tuple[Tensor, Tensor]]  # (query, key, value, spec, seed) -> output and row statistic
Gradients = Callable[..., list[Tensor]]  # (TileUpstream, query, key, value, spec, seed, learned) -> theirs
Refusal = Callable[[Tensor, Tensor, Tensor, Spec], str | None]
Worth = Callable[[Tensor, Tensor, Tensor, Spec, Shape], str | None]
Bytes = Callable[[Tensor, Tensor, Tensor, Spec, Shape], int]
Witness = Callable[[Tensor, Spec, Shape], Tensor]


def never(_query: Tensor, _key: Tensor, _value: Tensor, _spec: Spec) -> str | None:
    """A kernel that takes everything refuses nothing."""
    return None


def always(_query: Tensor, _key: Tensor, _value: Tensor, _spec: Spec, _shape: Shape) -> str | None:
    """A kernel that is the fastest of those that can do the work is always worth it."""
    return None


def a_block(query: Tensor, key: Tensor, value: Tensor, _spec: Spec, shape: Shape) -> int:
    """Wide copies of the inputs, and one block of scores, weights and what lies between."""
    return (query.numel() + key.numel() + value.numel() + 3 * min(BLOCK, prod(shape))) * number_bytes(value)


def number_bytes(value: Tensor) -> int:
    """Bytes of one score: scores are computed in float32, or in float64 for float64 values."""
    return 8 if value.itemsize == 8 else 4


@dataclass(frozen=True, eq=False)
class TileUpstream:
    """What the gradient of some keys of longer rows needs to know of the whole rows.

    Attributes:
        g: the gradient of the rows' output `[*batch, T, d_v]`.
        output: the rows' output, over all of their keys.
        rows: the rows' numbers `[*batch, T]`, over all of their keys.
    """

    g: Tensor
    output: Tensor
    rows: Tensor

    def of(self, rows: slice) -> "TileUpstream":
        """The same of some of the rows."""
        return TileUpstream(self.g[..., rows, :], self.output[..., rows, :], self.rows[..., rows])


@dataclass(frozen=True)
class Kernel:
    """One way to compute attention.

    Attributes:
        name: as in `attend(kernel=…)`.
        run: computes the output.
        why: one sentence on why it is chosen.
        refusal: why it cannot do the work; None if it can.
        worth: why it would not be faster than the next one; None if it would.
        extra_bytes: memory that its forward needs beside inputs and output, about.
        gradients: computes the gradients of projected queries, of some of their keys, of these keys' values and of what
            is learned in the spec, all with the same batch axes; None where the blockwise kernel's do as well.
        traces: whether its forward and backward decide by shapes alone, so that they can be part of a graph.
        goes_forward: whether derivatives can be taken forward through it.
        witness: the part of the output in which every non-finite number that matters shows; None where a gradient may
            be spoiled while the output is not.
    """

    name: str
    run: Run
    why: str
    refusal: Refusal = never
    worth: Worth = always
    extra_bytes: Bytes = a_block
    witness: Witness | None = None
    gradients: Gradients | None = None
    traces: bool = False
    goes_forward: bool = False


def independent(learned: Sequence[Tensor]) -> list[Tensor]:
    """Learned tensors of which none is computed from another, each once: a gradient would be counted twice.

    Where one is, the leaves that they all are computed from stand in their place.
    """
    once = list({id(one): one for one in learned}.values())
    made = [one.grad_fn for one in once if one.grad_fn is not None]
    if len(once) < 2 or not made:
        return once
    leaves = {id(one): one for one in once if one.grad_fn is None}
    given, stops = set(leaves), set(made)
    nodes, seen, overlap = [after for node in made for after, _ in node.next_functions], set(), False
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            overlap |= id(node.variable) in given
            leaves[id(node.variable)] = node.variable
        overlap |= node in stops
        nodes += [after for after, _ in node.next_functions]
    return list(leaves.values()) if overlap else once


BATCHED = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor  # of vmap, old and new


def is_differentiated(upstream: Tensor) -> bool:
    """Whether a derivative is itself differentiated, or taken for several upstreams at once (`vmap`)."""
    return torch.is_grad_enabled() or any(is_batched(upstream) for is_batched in BATCHED) or goes_forward(upstream)


class _Entered(torch.autograd.Function):
    """A tensor as an input of its own: a first derivative ends there, those of that derivative go on."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, first: list[bool]) -> Tensor:
        ctx.first = first
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None]:
        return None if ctx.first[0] else upstream, None


def derivatives(
    output: Callable[..., Tensor], inputs: Sequence[Tensor], learned: Sequence[Tensor], upstream: Tensor
) -> list[Tensor | None]:
    """The gradients of an output, which can be differentiated again; None for inputs that need none.

    Args:
        output: of the inputs.
        inputs: each counts by itself, also where two are one tensor, or one was computed from what is learned.
        learned: what `output` takes beside them.
        upstream: gradient of the output.
    """
    first = [True]
    with torch.enable_grad():
        entered = [_Entered.apply(one, first) if one.requires_grad else one for one in inputs]  # type: ignore[no-untyped-call]
        known = [*entered, *learned]
        wanted = [one for one in known if one.requires_grad]
        found = iter(torch.autograd.grad(output(*entered), wanted, upstream, create_graph=True, allow_unused=True))
    first[0] = False
    return [next(found) if one.requires_grad else None for one in known]
