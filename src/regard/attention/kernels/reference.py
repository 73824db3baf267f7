"""The reference kernel: the whole equation on one screen. Every other kernel is tested equal to it."""

from math import prod

from torch import Tensor

from regard.attention.kernels.dropout import drop
from regard.attention.kernels.kernel import Kernel, Seed, number_bytes
from regard.attention.kernels.nonfinite import is_poisoned, isolated, query_by_query
from regard.attention.spec import Spec
from regard.attention.tracing import are_hidden
from regard.shapes import batch_shape, score_dtype


def reference(query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: Seed = 0) -> tuple[Tensor, Tensor]:
    """output = dropout(normalize(score(query, key) + bias, mask)) · value.

    Scores and weights are computed in float32 (float64 for float64 inputs). A NaN or infinity in a
    key or value that a query may not attend to never reaches that query's output or gradient.

    Returns:
        output `[*batch, T, d_v]` in value's dtype, and the row statistic `[*batch, T]`.
    """
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    wide = score_dtype(query, key, value)
    q, k, v = (tensor.to(wide) for tensor in (query, key, value))

    def attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scores = spec.scores(q, k, rows, shape)
        allowed = spec.allowed(rows, shape, scores.device).expand_as(scores)
        weights, statistic = spec.normalize(scores, allowed)
        weights = drop(weights, rows, shape, seed, spec) if spec.dropout else weights
        return weights @ v, statistic

    if spec.mask is None:
        output, statistic = attend(q, k, v)
    elif are_hidden(q, k, v):
        mask = spec.mask
        output, statistic = isolated(attend, (q, k, v), lambda flags: mask.seen_by(flags, shape))
    elif shape[-2] and is_poisoned(q, k, v):
        output, statistic = query_by_query(attend, q, k, v, spec, shape)
    else:
        output, statistic = attend(q, k, v)
    return output.to(value.dtype), statistic


def _three_tables(_query: Tensor, _key: Tensor, value: Tensor, _spec: Spec, shape: tuple[int, ...]) -> int:
    return 3 * prod(shape) * number_bytes(value)


KERNEL = Kernel(
    "reference", reference, "it takes every score, normalizer, mask and bias", extra_bytes=_three_tables,
    traces=True, goes_forward=True,
)  # fmt: skip
