"""A map as tensors and a note, from which another program computes its rows again: the page of `look`.

The tensors are those of a saved map (`regard.attention.maps.saved`), with masks and biases for every row, and with
statistics where the map is too large for a browser to compute them.
"""

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.attention.maps.saved import take_apart

if TYPE_CHECKING:
    from regard.attention.maps.map import AttentionMap

SMALL = 2**16  # numbers that queries and keys may have even where weights take less: they say why a weight is so
HALF = 2**15  # what values must be below to be float16
LONG = 4096  # queries or keys from which on vectors are float16
POOLED = 256  # queries or keys from which on statistics and an overview are packed
OVERVIEW = 1024  # its cells to a side


def pack_map(seen: "AttentionMap") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The note and the tensors of a map `[heads, T, S]` or `[T, S]`.

    Args:
        seen: the map; select one of a batch before.

    Returns:
        the note: "heads", "queries" T, "keys" S, and how rows are computed ("score", "normalizer" and their numbers);
        and the tensors by name: "weights" `[heads, T, S]`, or "query" `[., T, d]`, "key" `[., S, d]` and what they
        need besides; "value" `[., S, d_v]` where the map has it; of a long map also "entropy" and "numbers"
        `[heads, T]`, "received" `[heads, S]` and "pool" `[heads, rows, columns]`, the largest weight of each cell.
    """
    t, s = seen.shape[-2:]
    heads = prod(seen.shape[:-2])
    full = lambda source, shape: type(seen)(shape, source).full()  # noqa: E731
    with torch.no_grad():
        tensors, how = take_apart(seen.source, tuple(seen.shape), full)
        parts = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        vectors = sum(part.numel() for name, part in parts.items() if name in ("query", "key"))
        if "through" in parts or (
            "query" in parts and (2 * vectors > max(heads * t * s, 2 * SMALL) or parts["query"].ndim < 2)
        ):
            parts, how = {"weights": seen.full().cpu()}, {}
        if "query" in parts:
            parts["query"] = parts["query"][..., :t, :]
        if seen.value is not None:
            parts["value"] = seen.value.detach()
        for name, size in (("mask.start", (t,)), ("mask.end", (t,)), ("mask", (t, s)), ("bias", (t, s))):
            if name in parts:
                parts[name] = _rows(parts[name], size)
        large = max(t, s) > POOLED
        if large:
            found = seen.summary(pool=(OVERVIEW, OVERVIEW))
            assert found.pooled is not None
            parts |= {"entropy": found.entropy, "received": found.received, "pool": found.pooled}
            if found.numbers is not None and "query" in parts:
                parts["numbers"] = found.numbers
    note = {"heads": heads, "queries": t, "keys": s, **how}
    return note, {name: _narrow(name, part.cpu(), max(t, s)) for name, part in parts.items()}


def _rows(part: Tensor, size: tuple[int, ...]) -> Tensor:
    """A mask or bias for all of a map's own rows and keys, broadcast where it is one for all."""
    wide = part[None] if part.ndim < len(size) else part
    cut = wide[..., : size[0]] if len(size) == 1 else wide[..., : size[0], : size[1]]
    return cut.expand(*cut.shape[: -len(size)], *size).contiguous()


def _narrow(name: str, part: Tensor, longest: int) -> Tensor:
    """In the narrowest type that is exact enough to be shown."""
    if not part.is_floating_point():
        return part
    half = name in ("pool", "entropy") or (name == "weights" and part.numel() > SMALL)
    half = half or (longest > LONG and name in ("query", "key")) or (name == "value" and part.numel() > SMALL)
    fits = not part.numel() or bool(part.abs().amax() < HALF)
    return part.to(torch.float16 if half and fits else torch.float32)
