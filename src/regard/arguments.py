"""What the public functions and classes are given: each argument is what its annotation says, or is refused by name."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from jaxtyping import AbstractArray

from regard.errors import ConfigError, shown

P = ParamSpec("P")
R = TypeVar("R")
Check = Callable[[object], bool]


def _is_whole(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.ndim and not (value.is_floating_point() or value.is_complex())
    return isinstance(value, Integral | torch.SymInt)


def _is_number(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.ndim and not value.is_complex()
    return isinstance(value, Real | torch.SymInt | torch.SymFloat)


# what an annotation allows: how it is tested, and its words, of one and of several
PLAIN: dict[Any, tuple[Check, str, str]] = {
    int: (_is_whole, "a whole number", "whole numbers"),
    float: (_is_number, "a number", "numbers"),
    str: (lambda value: isinstance(value, str), "a text", "texts"),
    Path: (lambda value: isinstance(value, Path), "a path", "paths"),
    slice: (lambda value: isinstance(value, slice), "a slice", "slices"),
    torch.Tensor: (lambda value: isinstance(value, torch.Tensor), "a tensor", "tensors"),
    torch.nn.Parameter: (lambda value: isinstance(value, torch.nn.Parameter), "a parameter", "parameters"),
    NoneType: (lambda value: value is None, "None", ""),
}


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """A function that refuses arguments of another kind than its annotations name.

    Numbers, texts, paths, tensors, and lists and dicts of them are checked. An argument that may also be something
    else, and one that is only asked whether it is true, are not.

    Raises:
        ConfigError: names the function, the argument, what it must be, and what was given.
    """
    parameters = signature(function).parameters
    names = [name for name, one in parameters.items() if one.kind is not Parameter.VAR_POSITIONAL]
    spread = next((name for name, one in parameters.items() if one.kind is Parameter.VAR_POSITIONAL), None)
    found: dict[str, tuple[list[Check], str]] | None = None
    title = function.__qualname__.removesuffix(".__init__").replace(".__init__", "")

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal found
        if found is None:  # late: an annotation may name what its module defines below
            found = _checks(function)
        given = [*zip(names, args, strict=False)]
        if spread is not None:
            given += [(spread, one) for one in args[len(given) :]]
        for name, value in (*given, *kwargs.items()):
            checks, words = found.get(name, ((), ""))
            if checks and not any(check(value) for check in checks):
                raise ConfigError(f"{title}: {name} must be {words}; got {shown(value)}")
        return function(*args, **kwargs)

    return run


def _checks(function: Callable[..., Any]) -> dict[str, tuple[list[Check], str]]:
    """Of every argument that can be checked: the tests of which it must pass one, and the words for them."""
    found = {}
    for name, hint in get_type_hints(function).items():
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        ways = [_way(one) for one in members]
        if name != "return" and all(ways):
            words = list(dict.fromkeys(way[1] for way in ways if way))
            last = f" or {words.pop()}" if len(words) > 1 else ""
            found[name] = [way[0] for way in ways if way], ", ".join(words) + last
    return found


def _way(hint: Any) -> tuple[Check, str] | None:
    """How one annotation is tested, and its words; None where it is not."""
    hint = torch.Tensor if isinstance(hint, type) and issubclass(hint, AbstractArray) else hint
    if hint in PLAIN:
        return PLAIN[hint][:2]
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Sequence, Collection, list) and inner[0] in PLAIN:
        check, _, words = PLAIN[inner[0]]
        kind = Collection if origin is Collection else Sequence
        return (
            lambda value: isinstance(value, kind) and not isinstance(value, str) and all(map(check, value)),
            f"a list of {words}",
        )
    if origin is tuple and len(set(inner)) == 1 and inner[0] in PLAIN:
        check, _, words = PLAIN[inner[0]]
        return (
            lambda value: isinstance(value, Sequence) and len(value) == len(inner) and all(map(check, value)),
            f"{len(inner)} {words}",
        )
    if origin in (Mapping, dict):
        return lambda value: isinstance(value, Mapping), "a dict"
    return None


def check_whole(name: str, value: object, most: int | None = None) -> None:
    """Refuse a setting that is no whole number, or above a limit.

    Raises:
        ConfigError: the sentence.
    """
    if not isinstance(value, Integral) or (most is not None and int(value) > most):
        limit = "" if most is None else f" of at most {most:,}"
        raise ConfigError(f"{name} must be a whole number{limit}; got {shown(value)}")


def check_number(name: str, value: object) -> None:
    """Refuse a setting that is no number.

    Raises:
        ConfigError: the sentence.
    """
    if not isinstance(value, Real):
        raise ConfigError(f"{name} must be a number; got {shown(value)}")


def check_texts(name: str, value: object) -> None:
    """Refuse a setting that is no list of texts; one text alone is none.

    Raises:
        ConfigError: the sentence.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(one, str) for one in value):
        raise ConfigError(f"{name} must be a list of texts; got {shown(value)}")


def check_settings(settings: Mapping[str, object]) -> None:
    """Refuse settings of which Python cannot say whether they are set: a tensor of several numbers, say.

    Raises:
        ConfigError: the sentence; or `first_index` or `indices` are no whole numbers.
    """
    for name, value in settings.items():
        if name == "first_index":
            check_whole(name, value)
        elif name == "indices" and value is not None:
            if not isinstance(value, Sequence) or not all(isinstance(one, Integral) for one in value):
                raise ConfigError(f"indices must be a list of whole numbers; got {shown(value)}")
        else:
            try:
                bool(value)
            except Exception as error:
                raise ConfigError(f"{name} must be one value; got {shown(value)}") from error
