"""A Transformer's decoder whose steps are planned: what no step changes is computed before the first one.

`Transformer.step` is the meaning. Here the projections of queries, keys and values are one product, the scale of the
scores is part of the queries' weights, keys and values of all layers lie in one buffer that is written in place, and
positions are rows of a table; nothing is checked or chosen at a step. Products are computed in float32, in bfloat16, or
in int8 with one scale for each row of weights and of states, so that a sentence does not depend on its batch mates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, relu, rms_norm, silu

from regard.attention.biases import alibi
from regard.attention.maps.map import AttentionMap
from regard.models.seq2seq import Memory
from regard.models.transformer import Transformer
from regard.nn.state import BlockState, CrossAttentionState, DecoderState, SelfAttentionState
from regard.nn.kv_cache import KVCache

ROOM = 32  # tokens that the buffers hold at first
Product = Callable[[Tensor], Tensor]


class Product32:
    """x W + b in the precision of W."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.contiguous(), bias

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Product8:
    """x W + b with int8 factors: x ≈ s q, W ≈ q' t, q and q' whole numbers from -127 to 127.

    s is a scale of each row of x, max |x| / 127, and t one of each output of W. The products of whole numbers are exact.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.weight = (weight / scale[:, None]).round().to(torch.int8).t()
        self.scale = scale / 127
        self.bias = torch.zeros_like(scale) if bias is None else bias

    def __call__(self, x: Tensor) -> Tensor:
        largest = x.abs().amax(-1, keepdim=True).clamp_(min=1e-12)
        whole = (x * (127 / largest)).round_().to(torch.int8)
        return torch.addcmul(self.bias, torch._int_mm(whole, self.weight) * largest, self.scale)
