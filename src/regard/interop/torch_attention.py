"""`torch.nn.MultiheadAttention` with any score, normalizer, mask and bias: same arguments, same state dict."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from regard.arguments import check_arguments
from regard.attention.biases import BiasLike, as_bias
from regard.attention.maps.map import AttentionMap
from regard.attention.masks import MaskLike, as_mask
from regard.attention.normalizers import Normalizer, NormalizerLike, as_normalizer
from regard.attention.operator import attend
from regard.attention.scores import Score, ScoreLike, as_score
from regard.attention.spec import make_spec
from regard.attention.watch import owned
from regard.errors import ConfigError
from regard.observation.torch_calls import module_call


class MultiheadAttention(nn.MultiheadAttention):
    """Concat(head_1 … head_h) W_O, head_i = attend(q W_Q^i, k W_K^i, v W_V^i) (Vaswani et al. 2017, section 3.2.2).

    Takes the arguments of `torch.nn.MultiheadAttention`, loads and gives its state dict, and by default computes
    the same function. What differs: a query that may attend to no key gives 0, not NaN; the returned weights are those
    before dropout.

    Args:
        embed_dim, num_heads, ...: as torch's.
        score: a name, a `Score` over one head's width, or a callable; torch's scaled dot product by default.
        normalizer: a name, a `Normalizer`, or a callable; softmax by default.
        mask: a regard mask for every call, besides `attn_mask` and `key_padding_mask`.
        score_bias: a regard bias or a float tensor for every call (`bias` is torch's, of the projections).
    """

    @check_arguments
    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *args: Any,
        score: ScoreLike = "scaled_dot",
        normalizer: NormalizerLike = "softmax",
        mask: MaskLike | None = None,
        score_bias: BiasLike | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim, num_heads, *args, **kwargs)
        self.choose(score, normalizer, mask, score_bias)

    def choose(
        self,
        score: ScoreLike = "scaled_dot",
        normalizer: NormalizerLike = "softmax",
        mask: MaskLike | None = None,
        score_bias: BiasLike | None = None,
    ) -> None:
        """Set score, normalizer, mask and bias; see the class."""
        self.score: Score = score if isinstance(score, Score) else as_score(score)
        self.normalizer: Normalizer = normalizer if isinstance(normalizer, Normalizer) else as_normalizer(normalizer)
        self.mask = None if mask is None else as_mask(mask)
        self.score_bias = None if score_bias is None else as_bias(score_bias)
        # otherwise torch's encoder layer takes a fast path that never calls this module
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output and, where `need_weights`, the weights; see `torch.nn.MultiheadAttention.forward`."""
        if is_causal and attn_mask is None:
            raise ConfigError("is_causal says that attn_mask is causal: give it too, or choose mask=regard.causal()")
        more = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}
        call = module_call(self, (query, key, value), more | {"is_causal": is_causal, "need_weights": need_weights})
        spec = call.spec
        mask = spec.mask if self.mask is None else self.mask if spec.mask is None else spec.mask & self.mask
        bias = spec.bias if self.score_bias is None else self.score_bias + spec.bias
        with owned(self):
            heads = attend(
                call.query, call.key, call.value,
                score=self.score, normalizer=self.normalizer, mask=mask, bias=bias, dropout=spec.dropout,
            )  # fmt: skip
        output = linear(heads.transpose(-3, -2).flatten(-2), self.out_proj.weight, self.out_proj.bias)
        if output.ndim == 3 and not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        seen = AttentionMap.from_spec(call.query, call.key, make_spec(self.score, self.normalizer, mask, bias))
        weights = seen.full(force=True).to(output.dtype)
        return output, weights.mean(-3) if average_attn_weights else weights
