"""NaN and infinity in a key or value: they never reach a query that may not attend to it, on any kernel.

0 · NaN is NaN, so a weight of 0 does not keep a NaN out of a sum: forbidden keys and values become 0 first.
"""

from collections.abc import Callable, Sequence
from math import isfinite

import torch
from torch import Tensor

from regard.attention.kernels.kernel import Kernel, Seed
from regard.attention.masks import Mask
from regard.attention.spec import Spec
from regard.attention.tracing import are_hidden
from regard.shapes import batch_shape

Inputs = tuple[Tensor, Tensor, Tensor]
Attend = Callable[..., tuple[Tensor, Tensor]]
SeenBy = Callable[[Tensor], tuple[Tensor, Tensor]]


def guarded(
    kernel: Kernel, inputs: Inputs, spec: Spec, seed: Seed, exact: Callable[[Inputs], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """A kernel's output and row numbers, computed again where a non-finite key may have reached a query it must not.

    Args:
        kernel: computes the output.
        inputs: query, key, value.
        spec: with a mask.
        seed: of dropout.
        exact: computes both pair by pair, from inputs in which keys that no query sees are 0.
    """
    assert spec.mask is not None
    if are_hidden(*inputs):
        mask, whole = spec.mask, (*batch_shape(*inputs[:2]), inputs[0].shape[-2], inputs[1].shape[-2])
        return isolated(lambda *clean: kernel.run(*clean, spec, seed), inputs, lambda f: mask.seen_by(f, whole))
    shape = (inputs[0].shape[-2], inputs[1].shape[-2])
    early = kernel.witness is None or (torch.is_grad_enabled() and any(t.requires_grad for t in inputs))
    if not (early and is_poisoned(*inputs)):
        output, rows = kernel.run(*inputs, spec, seed)
        if not is_poisoned(output if kernel.witness is None else kernel.witness(output, spec, shape)):
            return output, rows
    inputs = only_seen(*inputs, spec.mask)
    if not is_poisoned(*inputs):
        output, rows = kernel.run(*inputs, spec, seed)
        if not is_poisoned(output):
            return output, rows
    return exact(inputs)


def isolated(attend: Attend, inputs: Sequence[Tensor], seen_by: SeenBy) -> tuple[Tensor, Tensor]:
    """Rows decided by shapes alone: what holds no finite numbers is 0 while they are computed.

    A query that may attend to a key with a non-finite component, or to the key of such a value, gets NaN; so does a
    query that has one itself, unless it may attend to nothing. Neither passes a gradient.

    Args:
        attend: the inputs -> rows `[*batch, T, …]` and row statistic.
        inputs: query, key and, where there is one, value.
        seen_by: flags of the keys -> which queries may attend to any key, and which to one whose flag is set.

    Returns:
        the rows, and the row statistic of the inputs with zeros.
    """
    poisoned = [~torch.isfinite(tensor.detach()).all(-1) for tensor in inputs]
    clean = [t.masked_fill(flags[..., None], 0) for t, flags in zip(inputs, poisoned, strict=True)]
    alive, reached = seen_by(poisoned[1] if len(inputs) == 2 else poisoned[1] | poisoned[2])
    output, rows = attend(*clean)
    return output.masked_fill(((poisoned[0] | reached) & alive)[..., None], torch.nan), rows


def query_by_query(
    attend: Attend, query: Tensor, key: Tensor, value: Tensor, spec: Spec, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Outputs and row statistics of all queries, each computed beside only the keys that it may attend to.

    Args:
        attend: (query, key, value, rows) -> output and row statistic of the queries `rows`.
        query, key, value: the inputs.
        spec: with a mask.
        shape: of the scores, `(*batch, T, S)`.
    """
    answers = []
    for row in torch.arange(shape[-2], device=query.device).split(1):
        seen = spec.allowed(row, shape, row.device).expand(*shape[:-2], 1, shape[-1]).transpose(-2, -1)
        alive = torch.where(seen.any(-2, keepdim=True), query[..., row, :], 0)
        answers.append(attend(alive, torch.where(seen, key, 0), torch.where(seen, value, 0), row))
    outputs, statistics = zip(*answers, strict=True)
    return torch.cat(outputs, -2), torch.cat(statistics, -1)


def only_seen(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs with dead queries, and keys and values that no query may attend to, set to 0."""
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    columns = torch.arange(shape[-1], device=query.device)
    alive, seen = [], torch.zeros(*shape[:-2], shape[-1], dtype=torch.bool, device=query.device)
    for rows in torch.arange(shape[-2], device=query.device).split(64):
        allowed = mask.tile(rows, columns, shape).expand(*shape[:-2], len(rows), shape[-1])
        alive.append(allowed.any(-1))
        seen |= allowed.any(-2)
    living, batch = torch.cat(alive, -1)[..., None], seen.shape[:-1]
    # a key that several entries of the batch share may be seen by one of them and not by another
    return (
        torch.where(living, query.expand(*batch, *query.shape[-2:]), 0),
        torch.where(seen[..., None], key.expand(*batch, *key.shape[-2:]), 0),
        torch.where(seen[..., None], value, 0),
    )


def is_poisoned(*tensors: Tensor) -> bool:
    """Whether a tensor holds a NaN or an infinity; reads their values (`are_hidden` says whether it may)."""
    if all(isfinite(_sum(t)) for t in tensors):
        return False  # the quick look: a sum of finite numbers may overflow, but no sum hides an infinity
    return any(not bool(torch.isfinite(end)) for t in tensors if t.numel() for end in t.detach().aminmax())


def _sum(tensor: Tensor) -> float:
    wide = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
    return (tensor.detach() if tensor.requires_grad else tensor).sum(dtype=wide).item()
