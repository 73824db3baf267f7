"""`attn_implementation="regard"`: regard's attention in every model of transformers.

Registered when this module is imported:

    import regard.interop.transformers
    model = AutoModel.from_pretrained(..., attn_implementation="regard")

Soft caps, learned sinks, position biases, windows, grouped heads and caches are what the model asks for;
`regard.swap` chooses another score or normaliser. It trains.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from regard.attention.watch import owned
from regard.interop.swap import CHOICE, attend_as
from regard.observation.transformers_calls import interface_call

NAME = "regard"


def regard_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: `[B, heads, T, d]` in, `[B, T, heads, d]` out."""
    call = interface_call(NAME, module, query, key, value, attention_mask, **kwargs)
    with owned(module):
        output = attend_as(call, dict(getattr(module, CHOICE, {})))
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, regard_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
