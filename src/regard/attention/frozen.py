"""Modules as they are now: copies that neither training nor a write to their tensors changes."""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """All tensors of a module and those within it: parameters, buffers and plain attributes."""
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))


def frozen_module(module: M) -> M:
    """A copy with copies of its tensors, without a gradient and without hooks; itself where there is nothing to copy.

    Modules, tensors and the names of attributes are copied; what other attributes hold (a function, a lock, a list) is
    shared.
    """
    settings = any(not name.startswith("_") and name != "training" for name in vars(module))
    if not settings and not module._modules and not module._parameters and not module._buffers:
        return module
    return _copied(module, {})  # type: ignore[return-value]


def _copied(module: nn.Module, made: dict[int, Any]) -> nn.Module:
    if id(module) in made:  # a module, or a tensor, may stand in several places
        return made[id(module)]  # type: ignore[no-any-return]

    def tensor(value: Tensor) -> Tensor:
        if id(value) not in made:
            own = value.detach().clone()
            made[id(value)] = nn.Parameter(own, requires_grad=False) if isinstance(value, nn.Parameter) else own
        return made[id(value)]  # type: ignore[no-any-return]

    found = type(module).__new__(type(module))
    made[id(module)] = found
    state: dict[str, Any] = {
        name: tensor(value) if isinstance(value, Tensor) else value for name, value in vars(module).items()
    }
    for name in ("_parameters", "_buffers"):
        state[name] = {key: None if value is None else tensor(value) for key, value in state[name].items()}
    state["_modules"] = {k: None if part is None else _copied(part, made) for k, part in module._modules.items()}
    empty = torch.nn.Module()
    state |= {name: type(value)() for name, value in vars(empty).items() if "hook" in name and value is not None}
    object.__setattr__(found, "__dict__", state)
    return found
