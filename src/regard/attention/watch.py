"""Who is watching: callables that are told of every attention. Watching never changes what is computed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

from regard.attention.spec import Spec


@dataclass(frozen=True, eq=False)
class Call:
    """One attention: queries `[*batch, T, d_k]`, keys `[*batch, S, d_k]`, and what is done with them."""

    query: Tensor
    key: Tensor
    spec: Spec


Watcher = Callable[[Call], None]

_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of every attention computed inside the block, in this thread or task."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


def tell(query: Tensor, key: Tensor, spec: Spec) -> None:
    """Pass one attention on to whoever is watching."""
    for watcher in _watchers.get():
        watcher(Call(query, key, spec))
