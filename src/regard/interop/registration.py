"""regard as an attention function of transformers, with the score or normalizer that `swap` chose for a module."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from regard.attention.operator import attend
from regard.attention.watch import Call, owned
from regard.errors import RegardError
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


def regard_mask(*args: Any, **kwargs: Any) -> Any:
    """The bool mask of a model that calls an attention function.

    Raises:
        RegardError: the model writes its attention out, and would add the mask to its scores as 0 and 1.
    """
    from transformers.masking_utils import sdpa_mask

    config = kwargs.get("config")
    if not calls_interface(config):
        raise RegardError(
            f"attn_implementation = {NAME!r}: the models of {type(config).__name__} compute attention by hand, and do "
            'not call an attention function by its name: load them with attn_implementation="eager"'
        )
    return sdpa_mask(*args, **kwargs)


def calls_interface(config: Any) -> bool:
    """Whether the models of a config call an attention function by its name; True where their code is not known."""
    code = sys.modules.get(type(config).__module__.replace("configuration_", "modeling_"))
    known = code is not None and code.__name__.startswith("transformers.") and "modeling_" in code.__name__
    return not known or hasattr(code, "ALL_ATTENTION_FUNCTIONS")


def register() -> None:
    """Register "regard" in transformers' tables of attention functions and of masks; repeating it changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, regard_attention)
    AttentionMaskInterface.register(NAME, regard_mask)
