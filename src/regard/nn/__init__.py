"""Layers with parameters: embedding, attention of several heads, blocks, the attentional recurrent step, state."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "MultiheadAttention":
        raise AttributeError(f"module 'regard.nn' has no attribute {name!r}")
    from regard.nn.torch_attention import MultiheadAttention

    return MultiheadAttention
