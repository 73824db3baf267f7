"""Modules as they are now: copies that neither training nor a write to their tensors changes."""

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from numbers import Number
from types import MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from regard.attention.plain import has_hooks
from regard.attention.tracing import is_traced

M = TypeVar("M", bound=nn.Module)

_STORES = ("_parameters", "_buffers", "_modules")


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """All tensors of a module and those within it: parameters, buffers and plain attributes."""
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        yield from (value for value in list(vars(part).values()) if isinstance(value, Tensor))


def settings_of(module: nn.Module, depth: int = 4) -> Iterator[Any]:
    """`settings_in` a module and those within it."""
    for part in module.modules():
        yield from settings_in(part, depth)


def settings_in(owner: Any, depth: int = 4) -> Iterator[Any]:
    """What may change of an object's attributes: numbers, texts, how often tensors were written to, and the same of
    objects among them."""
    for name, value in list(getattr(owner, "__dict__", {}).items()):
        if not (isinstance(owner, nn.Module) and name.startswith("_")):
            yield from _settings_of_value(value, depth)


def _settings_of_value(value: Any, depth: int) -> Iterator[Any]:
    if isinstance(value, Number | str):
        yield value
    elif isinstance(value, Tensor):
        yield id(value), -1 if value.is_inference() or is_traced(value) else value._version
    elif not depth or isinstance(value, type | ModuleType):
        return
    elif isinstance(value, nn.Module):  # that no module has registered
        for tensor in tensors_of(value):
            yield from _settings_of_value(tensor, depth)
        yield from settings_of(value, depth - 1)
    elif type(value) in (list, tuple, dict):
        if len(value) <= 64:  # settings, and no store
            for one in list(value.values() if isinstance(value, dict) else value):
                yield from _settings_of_value(one, depth - 1)
    elif isinstance(value, MethodType):
        yield from _settings_of_value(value.__self__, depth - 1)
    elif isinstance(value, partial):
        for one in (value.func, value.args, value.keywords):
            yield from _settings_of_value(one, depth - 1)
    elif len(getattr(value, "__dict__", ())) <= 64:
        yield from settings_in(value, depth - 1 if callable(value) or hasattr(value, "tile") else 0)


def frozen_module(module: M) -> M:
    """A copy with copies of its tensors, without a gradient (but within scripted modules, which torch copies whole).

    It is the module itself where there is nothing to copy.

    Modules, tensors, settings (numbers and texts, and lists, tuples and dicts of them, up to four deep), the names of
    attributes, and the list of forward hooks are copied; a method of a module within it becomes that of the copy. What
    other attributes hold (a function, a lock, a list of tensors) is shared.
    """
    settings = any(not name.startswith("_") and name != "training" for name in vars(module))
    parts = bool(module._modules or module._parameters or module._buffers)
    if not settings and not parts and not has_hooks(module):
        return module
    return _copied(module, {}, {id(part) for part in module.modules()})  # type: ignore[return-value]


def _copied(module: nn.Module, made: dict[int, Any], within: set[int]) -> nn.Module:
    if id(module) in made:  # a module, or a tensor, may stand in several places
        return made[id(module)]  # type: ignore[no-any-return]
    if isinstance(module, torch.jit.ScriptModule):
        scripted = made[id(module)] = deepcopy(module)
        return scripted
    if isinstance(plain := module._modules.get("_orig_mod"), nn.Module):  # torch.compile's, which calls its own module
        return _copied(plain, made, within)

    def own(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in made:
                kept = value.detach().clone()
                made[id(value)] = nn.Parameter(kept, requires_grad=False) if isinstance(value, nn.Parameter) else kept
            return made[id(value)]
        if isinstance(value, MethodType) and id(value.__self__) in within:
            return MethodType(value.__func__, _copied(value.__self__, made, within))  # type: ignore[arg-type]
        if type(value) in (list, tuple, dict):
            return deepcopy(value) if _is_plain(value) else value
        return value

    found = type(module).__new__(type(module))
    made[id(module)] = found
    state: dict[str, Any] = {name: own(value) for name, value in list(vars(module).items()) if name not in _STORES}
    for name in ("_parameters", "_buffers"):
        state[name] = {key: own(value) for key, value in vars(module)[name].items()}
    parts = module._modules.items()
    state["_modules"] = {key: None if part is None else _copied(part, made, within) for key, part in parts}
    for name, value in vars(nn.Module()).items():
        if "hook" in name and value is not None:
            kept = vars(module).get(name, value)  # a module that an older torch made may not have it
            hooks = {key: own(hook) for key, hook in kept.items()} if name.startswith("_forward") else {}
            state[name] = type(value)(hooks)
    object.__setattr__(found, "__dict__", state)
    return found


def _is_plain(value: Any, depth: int = 4) -> bool:
    """Whether a value is a number or a text, or a list, a tuple or a dict of such values."""
    if type(value) in (list, tuple, dict):  # which may hold itself
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(one, depth - 1) for one in parts)
    return isinstance(value, str | bytes | Number | None)
