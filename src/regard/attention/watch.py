"""Watchers and changers: callbacks that receive every attention computed in this thread or task.

Watching never changes what is computed, nor which kernel computes it. A changer may return another output.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from regard.attention.spec import Spec


@dataclass(frozen=True, eq=False)
class Call:
    """One attention: queries `[*batch, T, d_k]`, keys `[*batch, S, d_k]`, values, and the spec that joins them.

    Attributes:
        owner: the module that computes it, where that module declares itself (`owned`).
        through: `[..., S, N]` where the weights over these keys are only on the way to N values: the map is theirs
            times this.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    spec: Spec
    owner: nn.Module | None = None
    through: Tensor | None = None


Listener = Callable[[nn.Module, Mapping[str, Any]], None]
Watcher = Callable[[Call], None]
Changer = Callable[[Call], Tensor | None]


class Entry:
    """A callback, alive while its block lasts."""

    def __init__(self, callback: Callable[..., Any]) -> None:
        self.callback = callback
        self.alive = True


own_hooks: set[int] = set()  # of the hooks on all modules of the process, those that are regard's


def hooks_of_others() -> bool:
    """Whether there are hooks on all modules of the process beside regard's own."""
    return not {*_global_forward_hooks, *_global_forward_pre_hooks} <= own_hooks


_watchers: ContextVar[tuple[Entry, ...]] = ContextVar("watchers", default=())
_listeners: ContextVar[tuple[Entry, ...]] = ContextVar("listeners", default=())
_changers: ContextVar[tuple[Entry, ...]] = ContextVar("changers", default=())
_owner: ContextVar[nn.Module | None] = ContextVar("owner", default=None)
_computing: ContextVar[bool] = ContextVar("computing", default=False)

# Blocks with a callback that are open, in any thread or task. While there are none, no context variable is read or
# set: a compiled graph holds nothing but a guard on this one global.
_is_open = False
_count = 0
_lock = Lock()


def watching(watcher: Watcher) -> AbstractContextManager[None]:
    """Call `watcher` with every attention computed inside the block."""
    return _with(_watchers, watcher)


def unwatched() -> AbstractContextManager[None]:
    """Call no watcher inside the block: its attentions are announced in another way, or not at all."""
    return _set(_watchers, ())


@contextmanager
def suppress() -> Iterator[None]:
    """Call neither watchers nor changers inside the block: the caller has called them already."""
    with _set(_watchers, ()), _set(_changers, ()):
        yield


def on_search_result(listener: Listener) -> AbstractContextManager[None]:
    """Call `listener` with the maps announced inside the block: those of a search, when it has ended."""
    return _with(_listeners, listener)


def announce(model: nn.Module, maps: Mapping[str, Any]) -> None:
    """Call the listeners with the maps {site: AttentionMap} of one hypothesis that `model` has returned."""
    for listener in _callbacks(_listeners):
        listener(model, maps)


def has_search_listeners() -> bool:
    """Whether there is a listener for announcements."""
    return bool(_callbacks(_listeners))


def changing(changer: Changer) -> AbstractContextManager[None]:
    """Call `changer` for the output of every attention inside the block; None leaves it as it is."""
    return _with(_changers, changer)


def owned(owner: nn.Module) -> AbstractContextManager[None]:
    """Declare the module that the attentions inside the block belong to."""
    return _set(_owner, owner)


def _set(variable: ContextVar[Any], value: Any) -> AbstractContextManager[None]:
    return _held(variable, value) if _is_open else nullcontext()


@contextmanager
def _held(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def _with(variable: "ContextVar[tuple[Entry, ...]]", callback: Callable[..., Any]) -> Iterator[None]:
    """Add a callback for the block. Blocks may close in any order; after its own, it is not called."""
    entry = Entry(callback)
    variable.set((*variable.get(), entry))
    _add_open(1)
    try:
        yield
    finally:
        _add_open(-1)
        entry.alive = False
        variable.set(tuple(other for other in variable.get() if other is not entry))


def _add_open(change: int) -> None:
    global _count, _is_open
    with _lock:
        _count += change
        _is_open = _count > 0


def _callbacks(variable: "ContextVar[tuple[Entry, ...]]") -> list[Callable[..., Any]]:
    return [entry.callback for entry in variable.get() if entry.alive] if _is_open else []


def computing() -> AbstractContextManager[None]:
    """Suppress nested notifications: SDPA calls made by this kernel belong to the attention already reported."""
    return _held(_computing, True)


def is_computing() -> bool:
    """Whether an attention that has been reported is being computed."""
    return _computing.get()


def is_watching(watcher: Watcher) -> bool:
    """Whether this watcher is called with attentions here."""
    return watcher in _callbacks(_watchers)


def is_attended() -> bool:
    """Whether there is a watcher or a changer."""
    return _is_open and bool(_callbacks(_watchers) or _callbacks(_changers))


def is_changing() -> bool:
    """Whether any changer is asked for outputs here."""
    return bool(_callbacks(_changers))


def notify(query: Tensor, key: Tensor, value: Tensor, spec: Spec, through: Tensor | None = None) -> Tensor | None:
    """Report one attention to all watchers and changers; the output of a changer, where one returns an output."""
    if not is_attended():
        return None
    return query_changers(Call(query, key, value, spec, _owner.get(), through))


def query_changers(call: Call, seen: Call | None = None) -> Tensor | None:
    """Call the watchers; then the output of the innermost changer that returns one.

    Args:
        call: the attention.
        seen: what the watchers are told instead, where the changers are given values that the model has not.
    """
    for watcher in _callbacks(_watchers):
        watcher(seen or call)
    for changer in reversed(_callbacks(_changers)):
        answer: Tensor | None = changer(call)
        if answer is not None:
            return answer
    return None


def calls_by_site(model: nn.Module, calls: Iterable[Call]) -> dict[str, list[Call]]:
    """Recorded calls by the path of the module they belong to within `model`, sites in order of their first call.

    A call is matched by its owner, never by counting; a call whose owner is no part of `model` is left out.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    found: dict[str, list[Call]] = {}
    for call in calls:
        if (path := paths.get(id(call.owner))) is not None:
            found.setdefault(path, []).append(call)
    return found
