"""Attention that a module computes by hand, recognized by what it does: softmax(query · key …) · value.

The torch-function mode passes every function here. A product of two activations is marked as scores, marks survive
scaling, masks and dropout, a softmax of scores is marked as weights, and a product with weights is an attention. So is
a softmax that is written out: exponentials of scores, divided by a tensor. A product with a parameter (a projection, a
router's or a vocabulary's logits) marks nothing.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_PRODUCTS = {"matmul", "rmatmul", "mm", "addmm", "bmm", "baddbmm", "mv", "dot", "inner", "tensordot", "einsum"}
_KEEPING = {
    "add", "radd", "iadd", "sub", "isub", "mul", "rmul", "imul", "masked_fill", "where",
    "clamp", "tanh", "dropout", "alpha_dropout", "feature_dropout", "to", "float", "half", "bfloat16", "type",
    "view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "flatten", "unflatten", "contiguous", "getitem",
    "expand", "type_as", "cat", "concat", "stack", "tril", "triu",
}  # fmt: skip
_RULES = {"softmax": "softmax", "exp": "exp", "div": "quotient", "truediv": "quotient", "itruediv": "quotient"}

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
    """How marks pass a torch function: its rule in `follow`; None, of most functions, where they end."""
    name = getattr(func, "__name__", "").strip("_")  # __matmul__, add_
    return "product" if name in _PRODUCTS else "keeping" if name in _KEEPING else _RULES.get(name)


def follow(rule: str, args: tuple[Any, ...], result: Any) -> None:
    """Mark the result of a torch function by the marks of its arguments."""
    operands = [one for one in _tensors(args) if isinstance(one, Tensor)]
    marks = {_mark(one) for one in operands}
    if rule == "product":
        if any(_is_parameter(one) for one in operands):
            return
        if "weights" in marks:
            for callback in _callbacks.get():
                callback()
        else:
            _set(result, "scores")
    elif rule in ("softmax", "exp"):
        if "scores" in marks:
            _set(result, "weights" if rule == "softmax" else "exponentials")
    elif rule == "quotient" and len(operands) == 2 and _mark(operands[0]) == "exponentials":
        _set(result, "weights")
    elif marks - {None}:
        _set(result, next(mark for mark in ("weights", "exponentials", "scores") if mark in marks))


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
