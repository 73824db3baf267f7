"""Attention that a module computes by hand, recognized by what it does: softmax(query · key …) · value.

The torch-function mode passes every function here. A product of two activations is marked as scores, marks survive
scaling, masks and dropout, a softmax of scores is marked as weights, and a product with weights is an attention. A
product with a parameter (a projection, a router's or a vocabulary's logits) marks nothing.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_PRODUCTS = {"matmul", "rmatmul", "bmm", "baddbmm", "einsum"}
_KEEPING = {
    "add", "radd", "iadd", "sub", "isub", "mul", "rmul", "imul", "div", "truediv", "itruediv", "masked_fill", "where",
    "clamp", "tanh", "dropout", "alpha_dropout", "feature_dropout", "to", "float", "half", "bfloat16", "type",
    "view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "flatten", "unflatten", "contiguous", "getitem",
    "expand", "type_as",
}  # fmt: skip

_callbacks: ContextVar[tuple[Callable[[], None], ...]] = ContextVar("callbacks", default=())
_local = threading.local()


@contextmanager
def on_hand_written(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` whenever hand-written attention is computed inside the block, in this thread or task."""
    _callbacks.set((*_callbacks.get(), callback))
    try:
        yield
    finally:
        _callbacks.set(tuple(other for other in _callbacks.get() if other is not callback))


@lru_cache(1024)
def rule_of(func: Any) -> str | None:
    """How marks pass a torch function: "product", "softmax", "keeping"; None, of most functions, where they end."""
    name = getattr(func, "__name__", "").strip("_")  # __matmul__, add_
    rules = {"product": name in _PRODUCTS, "softmax": name == "softmax", "keeping": name in _KEEPING}
    return next((rule for rule, fits in rules.items() if fits), None)


def follow(rule: str, args: tuple[Any, ...], result: Any) -> None:
    """Mark the result of a torch function by the marks of its arguments."""
    if rule == "product":
        operands = [one for one in _tensors(args) if isinstance(one, Tensor)]
        if any(_is_parameter(one) for one in operands):
            return
        if any(_mark(one) == "weights" for one in operands):
            for callback in _callbacks.get():
                callback()
        else:
            _set(result, "scores")
    elif rule == "softmax":
        if args and _mark(args[0]) == "scores":
            _set(result, "weights")
    else:
        marks = {_mark(one) for one in _tensors(args)} - {None}
        if marks:
            _set(result, "weights" if "weights" in marks else "scores")


def _tensors(args: tuple[Any, ...]) -> Iterator[Any]:
    for one in args[:4]:
        yield from one if isinstance(one, list | tuple) else (one,)


def _marks() -> Any:
    return _local.__dict__.setdefault("marks", WeakTensorKeyDictionary())


def _mark(tensor: Any) -> str | None:
    marks = _marks()
    return marks.get(tensor) if marks and isinstance(tensor, Tensor) else None


def _set(tensor: Any, mark: str) -> None:
    if isinstance(tensor, Tensor):
        _marks()[tensor] = mark


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
