"""What the public functions and classes are given: each argument is what its annotation says, or is refused by name."""

import collections.abc
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from inspect import Parameter, isclass, signature
from numbers import Integral, Real
from operator import index
from os import fspath
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from jaxtyping import AbstractArray

from regard.errors import ConfigError, ShapeError, shown

P = ParamSpec("P")
R = TypeVar("R")
MOST = 2**40  # a size beyond it is no tensor's


class Kind(NamedTuple):
    """What an annotation allows.

    Attributes:
        read: gives the value as that kind, or raises a TypeError, a ValueError or an OverflowError.
        one, several: its words, of one and of several.
    """

    read: Callable[[Any], Any]
    one: str
    several: str


def _whole(value: Any) -> Any:
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if isinstance(value, torch.Tensor) and (value.ndim or value.is_floating_point() or value.is_complex()):
        raise TypeError
    return index(value)


def _number(value: Any) -> Any:
    if isinstance(value, float | torch.SymInt | torch.SymFloat):
        return value
    if isinstance(value, torch.Tensor) and not value.is_complex():  # one that is learned, or one for each head
        return value
    several = bool(getattr(value, "ndim", False))
    if several or isinstance(value, complex | torch.Tensor) or not hasattr(value, "__float__"):
        raise TypeError
    return float(value)


def _path(value: Any) -> Path:
    return value if isinstance(value, Path) else Path(fspath(value))


def _of(*classes: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, classes):
            raise TypeError
        return value

    return read


PLAIN: dict[Any, Kind] = {
    int: Kind(_whole, "a whole number", "whole numbers"),
    float: Kind(_number, "a number", "numbers"),
    str: Kind(_of(str), "a text", "texts"),
    Path: Kind(_path, "a path", "paths"),
    slice: Kind(_of(slice), "a slice", "slices"),
    torch.Tensor: Kind(_of(torch.Tensor), "a tensor", "tensors"),
    torch.nn.Parameter: Kind(_of(torch.nn.Parameter), "a parameter", "parameters"),
    NoneType: Kind(_of(NoneType), "None", ""),
}


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """A function that refuses arguments of another kind than its annotations name.

    Checked are numbers, texts, paths, functions, objects of one class, dicts, and lists of numbers, texts or paths; a
    number of another library becomes Python's. Not checked are tensors, which `regard.shapes` checks, arguments that
    may be of one of several classes, those that are only asked whether they are true, and all within a graph that
    `torch.compile` makes.

    Raises:
        ConfigError: names the function, the argument, what it must be, and what was given.
    """
    parameters = signature(function).parameters
    names = [name for name, one in parameters.items() if one.kind is not Parameter.VAR_POSITIONAL]
    spread = next((name for name, one in parameters.items() if one.kind is Parameter.VAR_POSITIONAL), "")
    kinds: dict[str, tuple[Kind, ...]] = {}
    title = function.__qualname__.replace(".__init__", "")

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if not kinds:  # late: an annotation may name what its module defines below
            kinds.update(_kinds(function))

        def read(name: str, value: Any) -> Any:
            for kind in kinds.get(name, ()):
                try:
                    return kind.read(value)
                except (TypeError, ValueError, OverflowError):
                    continue
            if not kinds.get(name):
                return value
            words = list(dict.fromkeys(kind.one for kind in kinds[name]))
            last = f" or {words.pop()}" if len(words) > 1 else ""
            raise ConfigError(f"{title}: {name} must be {', '.join(words)}{last}; got {shown(value)}")

        given = [read(name, value) for name, value in zip(names, args, strict=False)]
        given += [read(spread, value) for value in args[len(given) :]]
        return function(*given, **{name: read(name, value) for name, value in kwargs.items()})

    return run


def _kinds(function: Callable[..., Any]) -> dict[str, tuple[Kind, ...]]:
    """Of every argument, the kinds of which it must be one; none where it is not checked."""
    found: dict[str, tuple[Kind, ...]] = {"return": ()}
    for name, written in function.__annotations__.items():
        try:  # one by one: some name what is imported for type checkers alone
            hint = get_type_hints(_Annotated(name, written), function.__globals__)[name]
        except NameError:
            continue
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [_kind(one) for one in members]
        if _kind(hint) is PLAIN[torch.Tensor]:  # `regard.shapes` says which one, and of which shape
            continue
        several = len({*members} - {NoneType}) > 1 and any(map(_is_own_class, members))
        found[name] = () if several else tuple(kind for kind in kinds if kind) if None not in kinds else ()
    return found


def _is_own_class(hint: Any) -> bool:
    """Whether an annotation is a class of which values are instances, and none of the plain kinds."""
    if not isclass(hint) or hint in PLAIN or hint in (bool, object, Any) or issubclass(hint, AbstractArray):
        return False
    return not getattr(hint, "_is_protocol", False)


class _Annotated:
    """An object with one annotation, which `get_type_hints` reads."""

    def __init__(self, name: str, hint: Any) -> None:
        self.__annotations__ = {name: hint}


def _named(of: type) -> str:
    return f"a{'n' if of.__name__[0] in 'AEIOU' else ''} {of.__name__}"


def _kind(hint: Any) -> Kind | None:
    """What one annotation allows; None where that is not checked."""
    hint = torch.Tensor if isclass(hint) and issubclass(hint, AbstractArray) else hint
    if hint in PLAIN:
        return PLAIN[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is collections.abc.Callable:
        return Kind(_callable, "a function", "functions")
    if _is_own_class(hint):
        return Kind(_of(hint), _named(hint), "")
    if _is_own_class(inner[0] if inner else None):
        return None
    if origin in (Sequence, Collection, list) and (of := _kind(inner[0])):
        return Kind(_listed(of.read), f"a list of {of.several}", "")
    if origin is tuple and len(set(inner)) == 1 and (of := _kind(inner[0])):
        return Kind(_listed(of.read, len(inner)), f"{len(inner)} {of.several}", "")
    if origin in (Mapping, dict):
        return Kind(_of(Mapping), "a dict", "")
    return None


def _callable(value: Any) -> Any:
    if not callable(value):
        raise TypeError
    return value


def _listed(read: Callable[[Any], Any], count: int | None = None) -> Callable[[Any], Any]:
    def read_all(value: Any) -> Any:
        if not isinstance(value, Collection) or count not in (None, len(value)):  # a tensor, an array and a set, too
            raise TypeError
        for one in value:
            read(one)
        return value

    return read_all


def check_least(owner: str, least: int, **sizes: int) -> None:
    """Refuse sizes below the least one, and those that no tensor has.

    Raises:
        ShapeError: names the owner, the size, the least one, and what was given.
    """
    for name, size in sizes.items():
        if not isinstance(size, torch.SymInt) and not least <= size < MOST:
            least_or_most = f"at least {least}" if size < least else f"below {MOST:,}"
            raise ShapeError(f"{owner}: {name} must be {least_or_most}; got {shown(size)}")


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
