"""Where in a model something happens: module paths, by hooks that the model itself never notices.

Torch chooses other kernels for modules that carry hooks, or while a torch-function mode is active. Therefore the hooks
here are the process-wide ones, which no fast path looks at, and the mode that sees `scaled_dot_product_attention` is
removed while torch's own attention modules run: their attention is read from their arguments instead. While dynamo
compiles or `torch.export` traces, hooks and mode do nothing.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ContextDecorator, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar, no_type_check

import torch
from torch import nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from regard.attention.watch import is_computing, own_hooks
from regard.errors import RegardError
from regard.observation.hand_written import follow, rule_of
from regard.observation.torch_calls import ATTENTIONS, is_tracing, report

T = TypeVar("T")
Finished = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]

_busy: ContextVar[tuple["Tracker", ...]] = ContextVar("busy", default=())
_entered: ContextVar[tuple["_Entry", ...]] = ContextVar("entered", default=())


class Repeatable(AbstractContextManager[T], ContextDecorator, Generic[T]):
    """A block that may be entered several times, within itself and in threads and in tasks; each entry begins anew.

    Where it is left in another thread or task than it was entered in, the one that was entered last ends: there every
    thread or task needs a block of its own.

    Args:
        make: gives a block that is entered once. It is called at once: what it refuses is refused there.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[T]]) -> None:
        self._make, self._ready = make, [make()]
        self._entered: list[_Entry] = []

    def __enter__(self) -> T:
        try:
            block = self._ready.pop()
        except IndexError:
            block = self._make()
        found = block.__enter__()
        entry = _Entry(self, block)
        self._entered.append(entry)
        _entered.set((*(one for one in _entered.get() if one.owner is not None), entry))
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> bool | None:
        # a block may be left in another thread than it was entered in, as where fixtures or streams end
        own = [entry for entry in _entered.get() if entry.owner is self] or self._entered
        if not own:
            raise RegardError("this block is left, and was not entered: use it in a with statement")
        entry = own[-1]
        block, entry.owner, entry.block = entry.block, None, None
        self._entered.remove(entry)
        _entered.set(tuple(one for one in _entered.get() if one.owner is not None))
        assert block is not None  # it has not been left
        return block.__exit__(kind, error, where)


@dataclass(eq=False)
class _Entry:
    """A block that was entered, in the contexts that know of it; empty once it was left."""

    owner: Repeatable[Any] | None
    block: AbstractContextManager[Any] | None


class Tracker:
    """Follows which modules of a model are running, in this thread or task.

    Args:
        model: the observed module.
        discreet: whether torch's own attention modules keep their fast paths.
        started: called with a module before its forward.
        finished: called with (module, args, kwargs, output) after its forward; the output is None if it raised. What it
            returns takes the output's place, unless that is None.

    Attributes:
        paths: {module: paths}, "." is the model itself; a module that is registered twice has two.
        names: {module: the first of its paths}, which is its site.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        discreet: bool = True,
        started: Callable[[nn.Module], None] = lambda _: None,
        finished: Finished = lambda *_: None,
    ) -> None:
        self.model, self.discreet = model, discreet
        self.started, self.finished = started, finished
        self.paths: dict[nn.Module, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self.paths.setdefault(module, []).append(path or ".")
        self.names = {module: paths[0] for module, paths in self.paths.items()}
        self._local = threading.local()  # a copied context may run in another thread beside its original
        self._alive = False

    @property
    def stack(self) -> list[nn.Module]:
        """The modules that are running in this thread, outermost first."""
        stack: list[nn.Module] = self._local.__dict__.setdefault("stack", [])
        return stack

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Follow the model inside the block; hooks and mode are removed at its end."""
        _busy.set((*(one for one in _busy.get() if one._alive), self))
        self._alive = True
        hooks = [
            register_module_forward_pre_hook(_outside_dynamo(self._before)),
            register_module_forward_hook(_outside_dynamo(self._after), with_kwargs=True, always_call=True),
        ]
        own_hooks.update(hook.id for hook in hooks)
        _MODE.report = _outside_dynamo(report)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
                own_hooks.discard(hook.id)
                _global_forward_hooks_with_kwargs.pop(hook.id, None)  # hook.remove() leaves this entry behind
            self._alive = False
            self.stack.clear()
            _busy.set(tuple(other for other in _busy.get() if other is not self))
            _switch()

    def module(self, owner: nn.Module | None = None) -> nn.Module | None:
        """The owner if it is a module of this model, else the innermost one that is running; None outside of it."""
        return next((module for module in (owner, *reversed(self.stack)) if module in self.names), None)

    def path(self, owner: nn.Module | None = None) -> str | None:
        """The site of `module(owner)`."""
        module = self.module(owner)
        return None if module is None else self.names[module]

    def _follows(self, module: nn.Module) -> bool:
        """Whether a module's run matters: the model's own, and torch's attention modules that run inside it."""
        if module in self.names:
            return True
        inside_foreign = bool(self.stack) and self.stack[-1] not in self.names
        return bool(self.stack) and (inside_foreign or is_torchs_own(module))

    def _before(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        if not self._alive or self not in _busy.get() or is_tracing() or not self._follows(module):
            return
        self.stack.append(module)
        _switch()
        self.started(module)

    def _after(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
        if not self._alive or self not in _busy.get() or is_tracing() or module not in self.stack:
            return None
        kwargs, output = rest if len(rest) == 2 else ({}, None)  # torch passes no kwargs after an exception
        while self.stack.pop() is not module:  # modules that an exception left above this one go too
            pass
        _switch()
        return self.finished(module, args, kwargs, output)


def _outside_dynamo(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which dynamo, if it is loaded, neither traces nor compiles: it breaks the graph there."""
    if "torch._dynamo" not in sys.modules:
        return function
    outside: Callable[..., Any] = torch._dynamo.disable(function, reason="regard records attention here")
    return outside


def is_torchs_own(module: nn.Module) -> bool:
    """Whether this is one of torch's modules that check for torch-function modes before they choose a kernel.

    A subclass that overrides forward is not, nor is one with parametrized weights: reading those computes them.
    """
    kind: Any = type(module)
    if isinstance(module, nn.MultiheadAttention):
        return kind.forward is nn.MultiheadAttention.forward and not is_parametrized(module)
    if isinstance(module, nn.TransformerEncoderLayer):
        own = nn.TransformerEncoderLayer
        return kind.forward is own.forward and kind._sa_block is own._sa_block and is_torchs_own(module.self_attn)
    return isinstance(module, nn.TransformerEncoder) and kind.forward is nn.TransformerEncoder.forward


class _Mode(TorchFunctionMode):
    """Passes torch's attention functions to `report`, and what every other one gives to `follow`."""

    report = staticmethod(report)

    @no_type_check  # called for every function of torch: the tests' checks at run time would take longer than it
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ATTENTIONS:
            return self.report(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        # of most functions, reading a tensor's shape among them, there is nothing to follow
        if not torch.compiler.is_dynamo_compiling() and (rule := rule_of(func)) and not is_computing():
            follow(rule, (*args, *(kwargs or {}).values()), result)
        return result


_MODE = _Mode()
_place = threading.local()  # .index: the place of the mode in the stack of modes


def _switch() -> None:
    """Push the mode inside the tracked models; remove it where torch's own modules would notice it."""
    if is_computing():  # the attention has been reported; the mode stays as it is until it is computed
        return
    busy = [tracker for tracker in _busy.get() if tracker._alive and tracker.stack]
    inside = max(busy, key=lambda tracker: len(tracker.stack)).stack[-1] if busy else None
    discreet = all(tracker.discreet for tracker in busy)
    wanted = inside is not None and not (discreet and is_torchs_own(inside))
    if wanted:
        _insert_mode()
    else:
        _remove_mode()
    if inside is None:
        _place.__dict__.clear()


def _insert_mode() -> None:
    """Put the mode where it was in the stack of modes: a forward may have entered modes of its own since."""
    on = _get_current_function_mode_stack()
    if _MODE in on:
        return
    place: int = _place.__dict__.setdefault("index", len(on))
    above = [_pop_mode() for _ in on[place:]]
    for mode in (_MODE, *reversed(above)):
        _push_mode(mode)


def _remove_mode() -> bool:
    """Take the mode out of the stack of modes, from below those that a forward has entered; whether it was there."""
    if _MODE not in _get_current_function_mode_stack():
        return False
    above = []
    while (mode := _pop_mode()) is not _MODE:
        above.append(mode)
    for mode in reversed(above):
        _push_mode(mode)
    return True


@contextmanager
def without_mode() -> Iterator[None]:
    """Remove the mode for the block, inside `computing()`: a compiled kernel guards on the modes that are active."""
    was_on = _remove_mode()
    try:
        yield
    finally:
        if was_on:
            _insert_mode()
