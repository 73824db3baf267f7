"""The linear kernel: weights that are shares of products of positive features, without a table of scores.

    output_i = φ(q_i) (Σ_j φ(k_j) v_jᵀ) / φ(q_i)·Σ_j φ(k_j),

where the sums run over what may be seen: all, some keys for every query, or, for a causal mask, from chunk to chunk.
O((T + S) · features) in time and memory. Source: Katharopoulos et al. 2020, sections 3.2 and 3.3.
"""

import torch
from torch import Tensor

from regard.attention.approximate.linear import Positive, Share
from regard.attention.masks import And, Causal, Mask
from regard.attention.spec import Spec
from regard.shapes import batch_shape, check_widths

CHUNK = 128  # queries of a causal chunk


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
    if torch._C._are_functorch_transforms_active():
        return "inside a torch.func transform"
    if spec.mask is not None and _parts(spec.mask) is None:
        return "the mask is neither causal nor the same for every query"
    return None


def linear(query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: int = 0) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """The same attention as the reference kernel, in sums over keys.

    Returns:
        output `[*batch, T, d_v]` in value's dtype, and each row's sum of scores `[*batch, T]`.
    """
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    wide = torch.float64 if torch.float64 in (query.dtype, key.dtype, value.dtype) else torch.float32
    q, k = spec.score.project_query(query.to(wide)), spec.score.project_key(key.to(wide))
    check_widths(q, k)
    v = torch.cat([value.to(wide), value.new_ones(*value.shape[:-1], 1, dtype=wide)], -1)  # the sums as one more value
    causal, keys = (None, None) if spec.mask is None else _parts(spec.mask) or (None, None)
    if keys is not None:
        first, columns = torch.zeros(1, dtype=torch.long, device=q.device), torch.arange(shape[-1], device=q.device)
        seen = keys.tile(first, columns, shape).transpose(-2, -1)
        k, v = torch.where(seen, k, 0), torch.where(seen, v, 0)
    summed = q @ (k.transpose(-2, -1) @ v) if causal is None else _causally(q, k, v, causal, shape)
    total = summed[..., -1:]
    output = summed[..., :-1] / total.masked_fill(total == 0, 1)
    return output.to(value.dtype), total.squeeze(-1)


def _causally(q: Tensor, k: Tensor, v: Tensor, mask: Causal, shape: tuple[int, ...]) -> Tensor:
    """Σ_j φ(q_i)·φ(k_j) v_j over the keys up to the query's place: what came before the chunk, and what is in it."""
    t, s = shape[-2:]
    place = s - t if mask.offset is None else int(mask.offset)
    state = k[..., :0, :].transpose(-2, -1) @ v[..., :0, :]
    done, chunks = 0, []
    for start in range(0, t, CHUNK):
        rows = torch.arange(start, min(start + CHUNK, t), device=q.device)
        before = min(max(start + place + 1, 0), s)  # keys that the whole chunk sees
        last = min(max(int(rows[-1]) + place + 1, 0), s)
        state = state + k[..., done:before, :].transpose(-2, -1) @ v[..., done:before, :]
        done = before
        asked = q[..., start : start + len(rows), :]
        near = asked @ k[..., before:last, :].transpose(-2, -1)
        near = near.masked_fill(torch.arange(before, last, device=q.device) > rows[:, None] + place, 0)
        chunks.append(asked @ state + near @ v[..., before:last, :])
    return torch.cat(chunks, -2) if chunks else q @ state


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
