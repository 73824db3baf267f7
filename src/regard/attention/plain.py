"""What a call of a module runs: the `forward` of its class alone, or more than that.

Fast paths read a layer's weights, or call a method that its `forward` would call. They may where the call runs nothing
else; these functions are the one place that says so.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Equal:
    """A `forward` that regard sets on a module for a while, and that computes what the module's own would.

    Args:
        forward: called in place of the module's own.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks before or behind its `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def has_own_call(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class's `forward`: it has hooks, or a `forward` of its own.

    Hooks of its gradient count where there is one.
    """
    own = vars(module).get("forward")
    if has_hooks(module) or not (own is None or isinstance(own, Equal)):
        return True
    return bool(module._backward_hooks or module._backward_pre_hooks) and torch.is_grad_enabled()


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether a layer is its weight and its bias alone: no class with another `forward` (LoRA, say), and no hooks."""
    return getattr(type(layer), "forward", None) is nn.Linear.forward and not has_own_call(layer)
