"""Calls of transformers' attention interface as regard's queries, keys, values and specs, for every backend.

Every model from transformers 5 fetches its attention function from `AttentionInterface.get_interface` and calls it with
(module, query, key, value, attention_mask, scaling, softcap, sinks, position_bias …). While an observation or an
intervention is active, the fetched function is wrapped: the wrapper reports the call and then calls the function.
Nothing else is changed.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from regard.attention.biases import Added, Bias
from regard.attention.masks import Causal, Mask
from regard.attention.normalizers import Normalizer, Sink, Softmax
from regard.attention.scores import ScaledDot
from regard.attention.spec import Spec
from regard.attention.watch import Call, computing, is_attended, query_changers
from regard.observation.sites import without_mode
from regard.observation.torch_calls import is_mapped, is_tracing, masks_of, unread_call

_lock = threading.Lock()
_users = 0
_original: Any = None


@contextmanager
def interface_notified() -> Iterator[None]:
    """Report every attention that transformers computes inside the block, in this thread or task."""
    global _users, _original
    module = sys.modules.get("transformers.modeling_utils")
    if module is None:  # no model from the transformers library has been loaded
        yield
        return
    interface = module.AttentionInterface
    with _lock:
        if not _users:
            _original = interface.get_interface
            interface.get_interface = _reporting_interface(_original)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                interface.get_interface = _original


def _reporting_interface(get_interface: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(get_interface)
    def get(self: Any, name: str, default: Any) -> Any:
        function = get_interface(self, name, default)
        # "regard" is regard.attend, which reports its own calls
        return _reporting(function, name) if is_attended() and name != "regard" else function

    return get


def _reporting(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(function)
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if is_tracing():
            return function(module, query, key, value, attention_mask, *args, **kwargs)
        if is_mapped():
            answer = query_changers(replace(unread_call(query, key, value), owner=module))
        else:
            answer = query_changers(interface_call(name, module, query, key, value, attention_mask, *args, **kwargs))
        if answer is not None:
            return answer.transpose(1, 2).contiguous(), None
        with computing(), without_mode():
            return function(module, query, key, value, attention_mask, *args, **kwargs)

    return attention


def interface_call(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> Call:
    """One call of an attention function of transformers: `[B, heads, T, d]`, `[B, key heads, S, d]`."""
    mask, bias = _mask(attention_mask)
    if attention_mask is None and name != "eager" and query.shape[2] > 1:
        causal = kwargs.get("is_causal")
        if getattr(module, "is_causal", True) if causal is None else causal:
            if "flash" not in name:  # as torch's kernel: keys of a longer cache beyond the queries are not filled yet
                key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
            mask = Causal()
    position_bias = kwargs.get("position_bias")
    if position_bias is not None:
        bias = Added(position_bias[..., : key.shape[2]]) + bias
    softcap = kwargs.get("softcap")
    if "flash" in name and kwargs.get("sliding_window"):
        raise NotImplementedError("flash attention's sliding windows need a GPU, and are not understood yet")
    spec = Spec(ScaledDot(scaling, softcap), _normalizer(module, kwargs), mask, bias, dropout)
    return Call(query, key, value, spec, module)


def _mask(attention_mask: Any) -> tuple[Mask | None, Bias | None]:
    if attention_mask is None or isinstance(attention_mask, Tensor):
        if attention_mask is not None and attention_mask.ndim == 2:  # flash attention's: True = a real token
            attention_mask = attention_mask.bool()[:, None, None]
        return masks_of(attention_mask)
    return FlexMask(attention_mask), None


class FlexMask(Mask):
    """A `BlockMask` of flex attention, by its `mask_mod`."""

    def __init__(self, block_mask: Any) -> None:
        self.block_mask = block_mask

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        batch, heads = self.block_mask.shape[:2]
        places = (
            torch.arange(batch, device=rows.device)[:, None, None, None],
            torch.arange(heads, device=rows.device)[:, None, None],
            rows[:, None], columns,
        )  # fmt: skip
        allowed: Tensor = self.block_mask.mask_mod(*places)
        return allowed.expand(batch, heads, len(rows), len(columns))


def _normalizer(module: nn.Module, kwargs: dict[str, Any]) -> Normalizer:
    """Softmax, or softmax beside the layer's learned sinks."""
    sinks = kwargs.get("s_aux")
    if sinks is None:
        sinks = kwargs.get("sinks")
    if sinks is None:
        sinks = getattr(module, "sinks", None)
    if sinks is None:
        return Softmax()
    return Sink(sinks if sinks.ndim == 1 else sinks.detach()[0, :, 0, 0])
