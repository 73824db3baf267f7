"""The linear kernel: weights that are shares of products of positive features, without a table of scores.

    output_i = φ(q_i) (Σ_j φ(k_j) v_jᵀ) / φ(q_i)·Σ_j φ(k_j),

where the sums run over what may be seen: all, some keys for every query, or, for a causal mask, from chunk to chunk.
O((T + S) · features) in time; in memory one chunk's features, or all of them where a gradient is wanted.
Source: Katharopoulos et al. 2020, sections 3.2 and 3.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.attention.kernels.kernel import Kernel, Seed
from regard.attention.masks import And, Causal, Mask
from regard.attention.normalizers import Share
from regard.attention.scores import Positive, Score
from regard.attention.spec import Spec
from regard.shapes import batch_shape, check_widths, score_dtype

LEAST = 2**16  # pairs below which a table is faster in any case
CHUNK = 128  # queries, or keys, whose features are computed at a time


def refusal(query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> str | None:  # noqa: ARG001
    """Why this kernel cannot do the work; None if it can."""
    if not isinstance(spec.score, Positive):
        return f"the score {type(spec.score).__name__} is not a product of positive features"
    if type(spec.normalizer) is not Share:
        return f"the normalizer {type(spec.normalizer).__name__} is not Share"
    if spec.bias is not None:
        return "there is a bias, and with it no product of features any more"
    if spec.dropout:
        return "dropout needs the weights one by one"
    if spec.mask is not None and _parts(spec.mask) is None:
        return "the mask is neither causal nor the same for every query"
    return None


def pays(shape: tuple[int, ...], width: int, mask: Mask | None) -> bool:
    """Whether sums over the keys are less work than a table of scores `shape`, for values of this width."""
    t, s = shape[-2:]
    for_each = width if mask is None or mask.is_by_key() else max(width, CHUNK)
    return prod(shape) >= LEAST and t * s >= for_each * (t + s)


def _extra_bytes(query: Tensor, key: Tensor, value: Tensor, spec: Spec, shape: tuple[int, ...]) -> int:
    """About what the forward needs beside inputs and output: the sums and a chunk, or all features for a gradient."""
    with torch.no_grad():
        features = spec.score.project_key(key[..., :0, :]).shape[-1]
    t, s = shape[-2:]
    numbers = (2 * features + t) * (value.shape[-1] + 1) + 3 * min(CHUNK, max(t, s)) * features
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        numbers += 2 * (t + s) * features
    return prod(shape[:-2]) * numbers * (8 if value.dtype == torch.float64 else 4)


def linear(query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: Seed = 0) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """The same attention as the reference kernel, in sums over keys; features are computed chunk by chunk.

    Returns:
        output `[*batch, T, d_v]` in value's dtype, and each row's sum of scores `[*batch, T]`.
    """
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    summed = _joined(_sums(query, key, value, spec, shape), shape[-2])
    total = summed[..., -1:]
    output = summed[..., :-1] / total.masked_fill(total == 0, 1)
    return output.to(value.dtype), total.squeeze(-1)


def _sums(query: Tensor, key: Tensor, value: Tensor, spec: Spec, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Σ_j φ(q_i)·φ(k_j) [v_j, 1] over the keys that may be seen, for one chunk of queries after the other."""
    causal, by_key = (None, None) if spec.mask is None else _parts(spec.mask) or (None, None)
    wide = score_dtype(query, key, value)
    keys = _Keys(spec.score, key, value, None if by_key is None else by_key.of_keys(shape, key.device), wide)
    place = shape[-1] if causal is None else _place(causal, shape)  # of query 0; then every key stands before it
    state, done = _product(*keys.part(0, 0)), 0
    for start in range(0, max(1, shape[-2]), CHUNK):
        stop = min(start + CHUNK, shape[-2])
        q = spec.score.project_query(query[..., start:stop, :].to(wide))
        check_widths(q, state.transpose(-2, -1))
        before, last = (min(max(i + place, 0), shape[-1]) for i in (start, stop))
        for first in range(done, before, CHUNK):
            state = state + _product(*keys.part(first, min(first + CHUNK, before)))
        done = last
        if before == last:
            yield q @ state
            continue
        near = keys.part(before, last)
        yield q @ state + _triangle(q, *near, start + place - before)
        state = state + _product(*near)


def _joined(chunks: Iterator[Tensor], length: int) -> Tensor:
    """All rows; without a gradient each is written to its place at once: kept chunks would scatter the memory."""
    first = next(chunks)
    if first.requires_grad:
        return torch.cat([first, *chunks], -2)
    whole, start = first.new_empty(*first.shape[:-2], length, first.shape[-1]), 0
    for chunk in chain([first], chunks):
        whole[..., start : start + chunk.shape[-2], :] = chunk
        start += chunk.shape[-2]
    return whole


@dataclass(frozen=True, eq=False)
class _Keys:
    """Keys and values, and which of them may be looked at, `[..., S, 1]`."""

    score: Score
    key: Tensor
    value: Tensor
    seen: Tensor | None
    wide: torch.dtype

    def part(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """φ(k) `[*batch, n, features]` and v with a one beside it, for the sums, `[*batch, n, d_v + 1]`."""
        k = self.score.project_key(self.key[..., first:last, :].to(self.wide))
        v = pad(self.value[..., first:last, :].to(self.wide), (0, 1), value=1.0)
        if self.seen is None:
            return k, v
        seen = self.seen[..., first:last, :]
        return torch.where(seen, k, 0), torch.where(seen, v, 0)


def _product(k: Tensor, v: Tensor) -> Tensor:
    """Σ_j φ(k_j) v_jᵀ."""
    return k.transpose(-2, -1) @ v


def _triangle(q: Tensor, k: Tensor, v: Tensor, place: int) -> Tensor:
    """Σ_j φ(q_i)·φ(k_j) v_j over the keys up to i + place."""
    return (q @ k.transpose(-2, -1)).tril(place) @ v


def _place(causal: Causal, shape: tuple[int, ...]) -> int:
    return shape[-1] - shape[-2] if causal.offset is None else int(causal.offset)


def _parts(mask: Mask) -> tuple[Causal | None, Mask | None] | None:
    """A mask as a causal one and one that is the same for every query; None: it is not made of these."""
    if mask.is_by_key():
        return None, mask
    if isinstance(mask, Causal) and not isinstance(mask.offset, Tensor):
        return mask, None
    parts = [_parts(mask.left), _parts(mask.right)] if isinstance(mask, And) else []
    known = [part for part in parts if part is not None]
    causal = [part[0] for part in known if part[0] is not None]
    if len(known) != 2 or len(causal) > 1:
        return None
    keys = [part[1] for part in known if part[1] is not None]
    return (causal[0] if causal else None), (keys[0] & keys[1] if len(keys) == 2 else keys[0])


def _worth(_query: Tensor, _key: Tensor, value: Tensor, spec: Spec, shape: tuple[int, ...]) -> str | None:
    t, s = shape[-2:]
    few = not pays(shape, value.shape[-1], spec.mask)
    return f"{t:,} queries and {s:,} keys are too few for sums over features" if few else None


KERNEL = Kernel(
    "linear", linear, "shares of products of positive features: sums over the keys, and no table of scores", refusal,
    _worth, _extra_bytes, goes_forward=True,
)  # fmt: skip
