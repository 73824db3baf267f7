"""Layers with parameters: embeddings, multi-head attention, contexts of its queries, blocks, recurrence; and state."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.interop.torch_attention import MultiheadAttention as MultiheadAttention
    from regard.nn.context import Context as Context
    from regard.nn.context import Convolution as Convolution
    from regard.nn.context import Mixed as Mixed
    from regard.nn.context import Recurrence as Recurrence
    from regard.nn.context import RunningMean as RunningMean
    from regard.nn.multihead import MultiHead as MultiHead

_HOMES = {
    "nn.context": ("Context", "Convolution", "Mixed", "Recurrence", "RunningMean"),
    "nn.multihead": ("MultiHead",),
    "interop.torch_attention": ("MultiheadAttention",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'regard.nn' has no attribute {name!r}")
    return getattr(import_module(f"regard.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
