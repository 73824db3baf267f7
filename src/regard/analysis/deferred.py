"""Tensors that are computed where they are read.

A metric reads a few positions of an output, and an output layer over a vocabulary costs as much as several blocks. What
treats every position by itself (a norm, a feed-forward, the output layer, a sum) can wait until it is known which
positions are read; anything else that reads the tensor gets the whole of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_PROPERTIES = ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda")
METADATA = {
    *(getattr(Tensor, name).__get__ for name in _PROPERTIES),
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point, torch.is_floating_point,
    Tensor.is_complex, torch.is_complex, torch.numel,
}  # fmt: skip
BY_POSITION = {
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__,
    torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.div, Tensor.div, Tensor.__truediv__, torch.tanh,
    Tensor.tanh, Tensor.float,
}  # fmt: skip


class Stale(RuntimeError):
    """A tensor was changed in place before what depends on it was computed."""


class Deferred(Tensor):
    """A tensor `[rows, T, d]` whose positions are computed when they are read.

    Args:
        shape: rows, T, d.
        dtype: of its numbers.
        sources: what it is computed from.
        compute: from the sources, all at the same positions, to the tensor there.
        whole: the same of all positions, where there is a faster way.
    """

    def __new__(
        cls, shape: Sequence[int], dtype: torch.dtype, sources: Sequence[Any], *_: Any, **__: Any
    ) -> "Deferred":
        device = next(one.device for one in sources if isinstance(one, Tensor))
        new: Deferred = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)
        return new

    def __init__(
        self,
        _shape: Sequence[int],
        _dtype: torch.dtype,
        sources: Sequence[Any],
        compute: Callable[..., Tensor],
        whole: Callable[..., Tensor] | None = None,
    ) -> None:
        self._sources = [_Source(one) for one in sources]
        self._compute, self._compute_whole = compute, whole or compute
        self._mode = torch.is_grad_enabled()
        self.found: dict[tuple[int, ...], Tensor] = {}
        self.done: Tensor | None = None  # the whole, once it has been read
        self.version = 0

    def whole(self) -> Tensor:
        """All positions `[rows, T, d]`."""
        if self.done is None:
            with torch.set_grad_enabled(self._mode):
                self.done = self._compute_whole(*(one.whole() for one in self._sources))
            self.version = self.done._version
            self._sources, self.found = [], {}
        return self.done

    def at(self, positions: Sequence[int]) -> Tensor:
        """Some positions `[rows, n, d]`; of all rows, since one row after the other is read at the same ones."""
        if self.done is not None or len(positions) == self.shape[1]:
            return self.whole()[:, list(positions)]
        key = tuple(positions)
        if key not in self.found:
            index = torch.tensor(key, device=self.device)
            with torch.set_grad_enabled(self._mode):
                self.found[key] = self._compute(*(one.at(index, self.shape[1]) for one in self._sources))
        return self.found[key]

    def __getitem__(self, index: Any) -> Tensor:
        """As of any tensor; whole rows stay deferred, and whole numbers and slices read only what they choose."""
        chosen = list(index) if isinstance(index, tuple) else [index]
        if any(type(one) is not int and not isinstance(one, slice) and one is not ... for one in chosen):
            return self.whole()[index]
        if chosen.count(...) == 1:
            n = chosen.index(...)
            chosen[n : n + 1] = [slice(None)] * (self.ndim + 1 - len(chosen))
        chosen += [slice(None)] * (self.ndim - len(chosen))
        if len(chosen) != self.ndim or any(isinstance(one, slice) and (one.step or 1) < 1 for one in chosen):
            return self.whole()[index]
        rows, positions, features = chosen
        whole = all(range(n)[one] == range(n) for n, one in zip(self.shape[1:], chosen[1:], strict=True))
        if whole and isinstance(rows, slice):
            count = len(range(self.shape[0])[rows])
            if count == self.shape[0]:
                return self
            return Deferred((count, *self.shape[1:]), self.dtype, [self], lambda own: own[rows])
        if isinstance(positions, slice):
            return self.at(list(range(self.shape[1])[positions]))[rows, :, features]
        if not -self.shape[1] <= positions < self.shape[1]:
            return self.whole()[index]  # which refuses it
        return self.at([positions % self.shape[1]])[rows, 0, features]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func is Tensor.__getitem__ and isinstance(args[0], Deferred):
            return Deferred.__getitem__(*args)
        if func in BY_POSITION and not kwargs:
            found = _by_position(func, args)
            if found is not None:
                return found
        args, kwargs = pytree.tree_map_only(Deferred, Deferred.whole, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = pytree.tree_map_only(Deferred, Deferred.whole, (args, kwargs or {}))
        return func(*args, **kwargs)


class _Source:
    """What a deferred tensor is computed from, as it was when the tensor was deferred."""

    def __init__(self, value: Any) -> None:
        self.value: Any = value.done if isinstance(value, Deferred) and value.done is not None else value
        self.version = self.value._version if isinstance(self.value, Tensor) and not _waits(self.value) else 0

    def whole(self) -> Any:
        """All positions."""
        found = self.value.whole() if _waits(self.value) else self.value
        self._check(found)
        return found

    def at(self, index: Tensor, positions: int) -> Any:
        """These of so many positions."""
        if _waits(self.value) and self.value.done is None:
            return self.value.at(index.tolist())
        found = self.whole()
        by_position = isinstance(found, Tensor) and found.ndim > 1 and found.shape[-2] == positions
        return found[..., index, :] if by_position else found

    def _check(self, found: Any) -> None:
        wanted = self.value.version if _waits(self.value) else self.version
        if isinstance(found, Tensor) and found._version != wanted:
            raise Stale("a tensor was changed in place before what depends on it was computed")


def _waits(value: Any) -> bool:
    return isinstance(value, Deferred)


def _by_position(func: Any, args: Sequence[Any]) -> Deferred | None:
    """The function of deferred tensors and of what has their positions or none; None where others are among them."""
    positions = next(one.shape[1] for one in args if isinstance(one, Deferred))
    for one in args:
        fits = isinstance(one, int | float)
        if isinstance(one, Tensor):
            fits = one.ndim < 2 or (one.ndim < 4 and one.shape[-2] in (1, positions))
        if not fits:
            return None
    shapes = [
        torch.empty(one.shape, dtype=one.dtype, device="meta") if isinstance(one, Tensor) else one for one in args
    ]
    with torch._C.DisableTorchFunctionSubclass():
        like = func(*shapes)
    if like.ndim != 3 or like.shape[1] != positions:
        return None
    return Deferred(like.shape, like.dtype, args, func)
