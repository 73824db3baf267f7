"""Where in a model something happens: module paths, by hooks that the model itself never notices.

Torch chooses other kernels for modules that carry hooks, or while a torch-function mode is active. So the hooks
here are the process-wide ones, which no fast path looks at, and the mode that sees `scaled_dot_product_attention`
is taken away while torch's own attention modules run: those are understood from their arguments instead.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _pop_mode, _push_mode

# torch's modules that look for torch-function modes before they choose a kernel
SHY = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)

Finished = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
Seen = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

_busy: ContextVar[tuple["Tracker", ...]] = ContextVar("busy", default=())
_switch: ContextVar["Switch | None"] = ContextVar("switch", default=None)


class Tracker:
    """Follows which modules of a model are running, in this thread or task.

    Args:
        model: the observed module.
        seen: shown every torch function that is called inside the model; an answer that is not None is its result.
        discreet: whether torch's own attention modules must not notice.
        started: called with a module before it runs.
        finished: called with (module, args, kwargs, output) after it ran; the output is None if it failed.

    Attributes:
        names: {module: path}, "." is the model itself; of shared modules the first path.
        stack: the modules that are running, outermost first.
    """

    def __init__(
        self,
        model: nn.Module,
        seen: Seen,
        *,
        discreet: bool = True,
        started: Callable[[nn.Module], None] = lambda _: None,
        finished: Finished = lambda *_: None,
    ) -> None:
        self.model, self.seen, self.discreet = model, seen, discreet
        self.started, self.finished = started, finished
        self.names: dict[nn.Module, str] = {}
        for path, module in model.named_modules():
            self.names.setdefault(module, path or ".")
        self.stack: list[nn.Module] = []

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Follow the model inside the block; nothing stays behind."""
        busy = _busy.set((*_busy.get(), self))
        switch = _switch.set(_switch.get() or Switch(self.seen))
        hooks = [
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.stack.clear()
            _set_switch()
            _switch.reset(switch)
            _busy.reset(busy)

    def path(self, owner: nn.Module | None = None) -> str | None:
        """The path of a module of this model, or of the innermost one that is running; None outside of it."""
        for module in (owner, *reversed(self.stack)):
            if module in self.names:
                return self.names[module]
        return None

    def _before(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        if self not in _busy.get() or not (self.stack or module in self.names):
            return
        self.stack.append(module)
        _set_switch()
        self.started(module)

    def _after(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        if self not in _busy.get() or module not in self.stack:
            return
        kwargs, output = rest if len(rest) == 2 else ({}, None)  # torch passes no kwargs after an exception
        while self.stack.pop() is not module:  # what an exception has left above this module goes too
            pass
        _set_switch()
        self.finished(module, args, kwargs, output)


class Switch:
    """One torch-function mode for all who are busy: on inside their models, off where it would be noticed."""

    def __init__(self, seen: Seen) -> None:
        class Mode(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                kwargs = kwargs or {}
                answer = seen(func, args, kwargs)
                return func(*args, **kwargs) if answer is None else answer

        self.mode = Mode()
        self.on = False


def _set_switch() -> None:
    switch = _switch.get()
    assert switch is not None  # there is one while anybody is busy
    longest = max(_busy.get(), key=lambda tracker: len(tracker.stack))
    discreet = all(tracker.discreet for tracker in _busy.get())
    inside = longest.stack[-1] if longest.stack else None
    wanted = inside is not None and not (discreet and isinstance(inside, SHY))
    if wanted and not switch.on:
        _push_mode(switch.mode)
        switch.on = True
    elif switch.on and not wanted and _get_current_function_mode() is switch.mode:
        _pop_mode()
        switch.on = False
