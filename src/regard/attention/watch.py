"""Who is watching, and who intervenes: callables that are told of every attention, in this thread or task.

Watching never changes what is computed, nor which kernel computes it. A changer may answer with another output.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from regard.attention.spec import Spec


@dataclass(frozen=True, eq=False)
class Call:
    """One attention: queries `[*batch, T, d_k]`, keys `[*batch, S, d_k]`, values, and what is done with them.

    Attributes:
        owner: the layer it belongs to, where the layer said so (`owned`).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    spec: Spec
    owner: nn.Module | None = None


Listener = Callable[[nn.Module, Mapping[str, Any]], None]
Watcher = Callable[[Call], None]
Changer = Callable[[Call], Tensor | None]

_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())
_changers: ContextVar[tuple[Changer, ...]] = ContextVar("changers", default=())
_owner: ContextVar[nn.Module | None] = ContextVar("owner", default=None)
_computing: ContextVar[bool] = ContextVar("computing", default=False)


def watching(watcher: Watcher) -> AbstractContextManager[None]:
    """Tell `watcher` of every attention computed inside the block."""
    return _set(_watchers, (*_watchers.get(), watcher))


def unwatched() -> AbstractContextManager[None]:
    """Tell nobody inside the block: what happens there is announced in another way, or is nobody's business."""
    return _set(_watchers, ())


def listening(listener: Listener) -> AbstractContextManager[None]:
    """Tell `listener` of maps that are announced inside the block: a search's, which come when it is over."""
    return _set(_listeners, (*_listeners.get(), listener))


def announce(model: nn.Module, maps: Mapping[str, Any]) -> None:
    """Tell the listeners of the maps {site: AttentionMap} of one hypothesis that `model` has returned."""
    for listener in _listeners.get():
        listener(model, maps)


def is_listened() -> bool:
    """Whether anybody listens to announcements."""
    return bool(_listeners.get())


def changing(changer: Changer) -> AbstractContextManager[None]:
    """Ask `changer` for the output of every attention inside the block; None leaves it as it is."""
    return _set(_changers, (*_changers.get(), changer))


def owned(owner: nn.Module) -> AbstractContextManager[None]:
    """Say whose the attentions inside the block are."""
    return _set(_owner, owner)


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def computing() -> AbstractContextManager[None]:
    """Say that an attention that was told of is now being computed: what its kernel calls is not another one."""
    return _set(_computing, True)


def is_computing() -> bool:
    """Whether an attention that was told of is being computed."""
    return _computing.get()


def is_watching(watcher: Watcher) -> bool:
    """Whether this watcher is being told of attentions here."""
    return watcher in _watchers.get()


def is_attended() -> bool:
    """Whether anybody watches or changes."""
    return bool(_watchers.get() or _changers.get())


def tell(query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> Tensor | None:
    """Pass one attention on to whoever is watching or changing; an answer is the output."""
    if not is_attended():
        return None
    return ask(Call(query, key, value, spec, _owner.get()))


def ask(call: Call) -> Tensor | None:
    """Tell the watchers of a call; what the innermost changer that cares answers."""
    for watcher in _watchers.get():
        watcher(call)
    for changer in reversed(_changers.get()):
        answer = changer(call)
        if answer is not None:
            return answer
    return None
