"""Low-rank attention (Linformer): the keys of a sequence are projected to a few before the scores are computed."""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.arguments import check_arguments
from regard.attention.maps.map import AttentionMap
from regard.attention.masks import MaskLike, as_mask
from regard.attention.operator import attend
from regard.attention.spec import Spec, make_spec
from regard.attention.watch import notify, owned, suppress
from regard.errors import ChoiceError, ShapeError
from regard.shapes import batch_shape, check, share_heads

Some = Float[Tensor, "..."]


class LowRank(nn.Module):
    """output = softmax(q (E k)ᵀ / √d_k) (F v): S keys become `rank`, at O(T · rank) in time and memory.

    The map that it really applies is softmax(…) F, `[*batch, T, S]`: its weights can be negative and its rows sum to
    anything, so it has no entropy. A shorter sentence uses the first S columns of E and F.

    Args:
        length: most keys of a sentence.
        rank: keys that they are mixed into.

    Raises:
        ShapeError: a sentence longer than `length`; sizes that do not fit.
        ChoiceError: a mask that differs among queries (causal, window …): a mixed key holds all of its sentence.

    Source: Wang et al. 2020, equation 7.
    """

    @check_arguments
    def __init__(self, length: int, rank: int) -> None:
        super().__init__()
        if rank < 1 or length < 1:
            raise ShapeError(f"LowRank needs a length and a rank of at least 1; got length {length} and rank {rank}")
        self.of_keys = nn.Parameter(torch.empty(rank, length).normal_() / sqrt(rank))
        self.of_values = nn.Parameter(torch.empty(rank, length).normal_() / sqrt(rank))

    def forward(self, query: Some, key: Some, value: Some, mask: MaskLike | None = None) -> Some:
        """What the queries find `[*batch, T, d_v]`; `mask` forbids keys to all queries alike."""
        check(query, key, value)
        key, value = share_heads(query, key), share_heads(query, value)
        seen = self._seen(query, key, mask)
        mixed, through, spec = self._mixed(key, seen)
        value = value if seen is None else torch.where(seen, value, 0)
        with owned(self):
            answer = notify(query, mixed, value, spec, through)
        if answer is not None:
            return answer
        with suppress():
            return attend(query, mixed, through.to(value.dtype) @ value)

    def attention_map(self, query: Some, key: Some, mask: MaskLike | None = None) -> AttentionMap:
        """The map that is really applied, softmax(q (E k)ᵀ / √d_k) F, computed when asked for."""
        check(query, key)
        key = share_heads(query, key)
        mixed, through, spec = self._mixed(key, self._seen(query, key, mask))
        return AttentionMap.from_spec(query, mixed, spec).through(through)

    def _mixed(self, key: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor, Spec]:
        """E k and F without the keys that are masked for all queries, and their spec."""
        s = key.shape[-2]
        if s > self.of_keys.shape[1]:
            raise ShapeError(
                f"key has {s} positions on axis -2 and this LowRank was made for {self.of_keys.shape[1]} at most: "
                "make it with a larger length"
            )
        through = self.of_values[:, :s].to(key.dtype)
        if seen is not None:
            key, through = torch.where(seen, key, 0), through * seen.transpose(-2, -1)
        return self.of_keys[:, :s].to(key.dtype) @ key, through, make_spec("scaled_dot", "softmax", None, None)

    def _seen(self, query: Tensor, key: Tensor, mask: MaskLike | None) -> Tensor | None:
        """Which keys may be looked at, `[..., S, 1]`."""
        if mask is None:
            return None
        mask = as_mask(mask)
        if not mask.is_by_key():
            raise ChoiceError(
                "LowRank mixes the keys before a query asks, so it cannot keep a mask that differs among queries "
                "(causal, window, documents): use regard.attend, or RandomFeatures with Share, which can be causal"
            )
        shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
        return mask.of_keys(shape, key.device)
