"""regard as an attention function of transformers, with the score or normalizer that `swap` chose for a module."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from regard.attention.operator import attend
from regard.attention.watch import Call, owned
from regard.observation.transformers_calls import interface_call

CHOICE = "regard_choice"  # the attribute of a module that holds what `swap` chose: {"score": …, "normalizer": …}
NAME = "regard"  # of `attn_implementation`


def attend_as(call: Call, choice: Mapping[str, Any]) -> Tensor:
    """The output of a recorded call, computed by `attend` with another score or normalizer."""
    spec = replace(call.spec, **choice)
    return attend(
        call.query, call.key, call.value,
        score=spec.score, normalizer=spec.normalizer, mask=spec.mask, bias=spec.bias, dropout=spec.dropout,
    )  # fmt: skip


def regard_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: `[B, heads, T, d]` in, `[B, T, heads, d]` out."""
    call = interface_call(NAME, module, query, key, value, attention_mask, **kwargs)
    with owned(module):
        output = attend_as(call, dict(getattr(module, CHOICE, {})))
    return output.transpose(1, 2).contiguous(), None


def register() -> None:
    """Register "regard" in transformers' tables of attention functions and of masks; repeating it changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, regard_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
