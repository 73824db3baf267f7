"""regard as an attention function of transformers, with the score or normalizer that `swap` chose for a module."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import ModuleType
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
    """The mask of a model that calls an attention function: torch's, or eager attention's.

    A model that transformers does not run with torch's function may say that it is not causal where it is, or compute
    some of its attentions by hand and add the mask to their scores: such a model gets the mask of eager attention.

    Raises:
        RegardError: the model calls no attention function.
    """
    from transformers.masking_utils import eager_mask, sdpa_mask

    config = kwargs.get("config")
    code = _code_of(config)
    if code is not None and not calls_interface(code):
        raise RegardError(
            f"attn_implementation = {NAME!r}: the models of {type(config).__name__} compute attention by hand, and do "
            'not call an attention function by its name: load them with attn_implementation="eager"'
        )
    return (sdpa_mask if code is not None and _takes_torchs_mask(code) else eager_mask)(*args, **kwargs)


@cache
def calls_interface(code: ModuleType) -> bool:
    """Whether a module of transformers' models, or one that it takes modules from, calls attention by its name."""
    return any(hasattr(one, "ALL_ATTENTION_FUNCTIONS") for one in (code, *_sources(code)))


def _code_of(config: Any) -> ModuleType | None:
    """The module of transformers with the models of a config; None for another library's, and where it is not known."""
    code = sys.modules.get(type(config).__module__.replace("configuration_", "modeling_"))
    return code if code is not None and _is_code(code.__name__) else None


def _is_code(name: str) -> bool:
    return name.startswith("transformers.models.") and "modeling_" in name


def _sources(code: ModuleType) -> list[ModuleType]:
    """The modules of models that the classes in a module's namespace come from."""
    kinds = [one for one in list(vars(code).values()) if isinstance(one, type) and issubclass(one, nn.Module)]
    return [sys.modules[name] for name in {kind.__module__ for kind in kinds} if _is_code(name)]


@cache
def _takes_torchs_mask(code: ModuleType) -> bool:
    """Whether transformers runs all models of a module with torch's function, too."""
    from transformers import PreTrainedModel

    kinds = [one for one in list(vars(code).values()) if isinstance(one, type) and issubclass(one, PreTrainedModel)]
    return all(kind._supports_sdpa for kind in kinds if _is_code(kind.__module__))


def register() -> None:
    """Register "regard" in transformers' tables of attention functions and of masks; repeating it changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, regard_attention)
    AttentionMaskInterface.register(NAME, regard_mask)
