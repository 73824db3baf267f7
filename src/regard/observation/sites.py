"""Where in a model something happens: module paths, by hooks that the model itself never notices.

Torch chooses other kernels for modules that carry hooks, or while a torch-function mode is active. So the hooks
here are the process-wide ones, which no fast path looks at, and the mode that sees `scaled_dot_product_attention`
is taken away while torch's own attention modules run: those are understood from their arguments instead.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from regard.observation.torch_calls import seen

Finished = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]

_busy: ContextVar[tuple["Tracker", ...]] = ContextVar("busy", default=())


class Tracker:
    """Follows which modules of a model are running, in this thread or task.

    Args:
        model: the observed module.
        discreet: whether torch's own attention modules must not notice.
        started: called with a module before it runs.
        finished: called with (module, args, kwargs, output) after it ran; the output is None if it failed.

    Attributes:
        names: {module: path}, "." is the model itself; of shared modules the first path.
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
        self.names: dict[nn.Module, str] = {}
        for path, module in model.named_modules():
            self.names.setdefault(module, path or ".")
        self._local = threading.local()  # a context that is copied into a thread runs beside its original
        self._alive = False

    @property
    def stack(self) -> list[nn.Module]:
        """The modules that are running in this thread, outermost first."""
        stack: list[nn.Module] = self._local.__dict__.setdefault("stack", [])
        return stack

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Follow the model inside the block; nothing stays behind."""
        _busy.set((*_busy.get(), self))
        self._alive = True
        hooks = [
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
                _global_forward_hooks_with_kwargs.pop(hook.id, None)  # which torch forgets
            self._alive = False
            self.stack.clear()
            _busy.set(tuple(other for other in _busy.get() if other is not self))
            _switch()

    def path(self, owner: nn.Module | None = None) -> str | None:
        """The path of a module of this model, or of the innermost one that is running; None outside of it."""
        for module in (owner, *reversed(self.stack)):
            if module in self.names:
                return self.names[module]
        return None

    def _before(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        if not self._alive or self not in _busy.get() or not (self.stack or module in self.names):
            return
        self.stack.append(module)
        _switch()
        self.started(module)

    def _after(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        if not self._alive or self not in _busy.get() or module not in self.stack:
            return
        kwargs, output = rest if len(rest) == 2 else ({}, None)  # torch passes no kwargs after an exception
        while self.stack.pop() is not module:  # what an exception has left above this module goes too
            pass
        _switch()
        self.finished(module, args, kwargs, output)


def is_torchs_own(module: nn.Module) -> bool:
    """Whether this is one of torch's modules that look for torch-function modes before they choose a kernel.

    A subclass with a forward of its own is not, nor is one whose weights are computed: to read them is to run them.
    """
    kind: Any = type(module)
    if isinstance(module, nn.MultiheadAttention):
        return kind.forward is nn.MultiheadAttention.forward and not is_parametrized(module)
    if isinstance(module, nn.TransformerEncoderLayer):
        own = nn.TransformerEncoderLayer
        return kind.forward is own.forward and kind._sa_block is own._sa_block and is_torchs_own(module.self_attn)
    return isinstance(module, nn.TransformerEncoder) and kind.forward is nn.TransformerEncoder.forward


class _Mode(TorchFunctionMode):
    """Shows every torch function to `seen`; what it answers instead of None is the result."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = seen(func, args, kwargs)
        return func(*args, **kwargs) if answer is None else answer


_MODE = _Mode()


def _switch() -> None:
    """The mode is on inside the models of all who are busy, and off where it would be noticed."""
    busy = [tracker for tracker in _busy.get() if tracker._alive and tracker.stack]
    inside = max(busy, key=lambda tracker: len(tracker.stack)).stack[-1] if busy else None
    discreet = all(tracker.discreet for tracker in busy)
    wanted = inside is not None and not (discreet and is_torchs_own(inside))
    on = _get_current_function_mode_stack()
    if wanted and _MODE not in on:
        _push_mode(_MODE)
    elif _MODE in on and not wanted:
        above = []
        while (mode := _pop_mode()) is not _MODE:  # somebody has left a mode of their own on ours
            above.append(mode)
        for mode in reversed(above):
            _push_mode(mode)
