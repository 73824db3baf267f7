"""Short attention in bfloat16 by plain batched products: torch's fused kernel needs long sequences to be fast.

Its tiles are made for hundreds of keys; for sentences, most of its time is not spent on products. Scores are computed in
float32 from the bfloat16 vectors, as is their softmax; the weights are rounded to bfloat16 for their product with the
values, as torch's kernel does. The table of all scores exists at once, so this is for tables that fit a block.
"""

from functools import cache
from math import prod

import torch
from torch import Tensor

from regard.attention.pieces import BLOCK

SHORT = 256  # keys


def is_short(query: Tensor, key: Tensor) -> bool:
    """Whether an attention of these bfloat16 vectors is faster by plain products."""
    return (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and key.shape[-2] <= SHORT
        and prod(query.shape[:-1]) * key.shape[-2] <= BLOCK
        and _has_products()
    )


@cache
def _has_products() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, triangle: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of equally wide vectors with all batch axes.

    Args:
        q, k, v: `[*batch, T, d]`, `[*batch, S, d]`, `[*batch, S, d]`.
        mask: added to the scores; -inf at forbidden pairs.
        triangle: whether query i sees keys 0 … i alone.
        scale: of the scores.

    Returns:
        output `[*batch, T, d]` and log-sum-exps `[*batch, T]`; 0 and -inf for a query that may look nowhere.
    """
    scores = _scores(q, k, mask, triangle, scale)
    weights = torch.softmax(scores, -1)
    largest = scores.amax(-1)
    rows = largest - weights.amax(-1).log()
    if mask is not None:
        dead = largest == -torch.inf
        rows, weights = rows.masked_fill_(dead, -torch.inf), weights.masked_fill_(dead[..., None], 0)
    return weights.to(v.dtype) @ v, rows


def backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, rows: Tensor, mask: Tensor | None, triangle: bool,
    scale: float,
) -> list[Tensor]:  # fmt: skip
    """The gradients of q, k and v, for the gradient g of the output (Dao et al. 2022, algorithm 4).

    Args:
        g: `[*batch, T, d]`.
        rows: log-sum-exps; any finite number for a query that may look nowhere.
        q, k, v, output, mask, triangle, scale: as in `forward`.
    """
    weights = _scores(q, k, mask, triangle, scale).sub_(rows[..., None]).exp_()
    own = (g * output).sum(-1, keepdim=True, dtype=torch.float32)
    slope = ((g @ v.mT).float().sub_(own)).mul_(weights).mul_(scale).to(q.dtype)
    return [slope @ k, slope.mT @ q, weights.to(g.dtype).mT @ g]


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, triangle: bool, scale: float) -> Tensor:
    """scale · q kᵀ + mask, in float32."""
    scores = (q.float() @ k.float().mT).mul_(scale)
    if triangle:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(ahead, -torch.inf)
    return scores if mask is None else scores.add_(mask)
