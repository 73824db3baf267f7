"""Modules as they are now: copies that neither training nor a write to their tensors changes."""

from collections.abc import Iterator
from copy import deepcopy
from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """All tensors of a module and those within it: parameters, buffers and plain attributes."""
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))


def frozen_module(module: M) -> M:
    """A copy with copies of its tensors, without a gradient; itself where it has neither tensors nor settings."""
    known = {id(one): one for one in tensors_of(module)}
    settings = any(not name.startswith("_") and name != "training" for name in vars(module))
    if not known and not settings and not module._modules:
        return module
    memo: dict[int, object] = {}
    for number, one in known.items():
        own = one.detach().clone()
        memo[number] = nn.Parameter(own, requires_grad=False) if isinstance(one, nn.Parameter) else own
    return deepcopy(module, memo)
