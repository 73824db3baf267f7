"""Whether Python may read the numbers in a tensor: not in a graph, where there are none, nor on an accelerator.

Code that runs in both worlds decides by shapes wherever this room says so, and by values where that saves work.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# looked up once: attend calls these before everything else
_is_compiling = torch.compiler.is_compiling
is_transformed = torch._C._are_functorch_transforms_active  # whether a torch.func transform runs
_is_traced_by_jit = torch._C._is_tracing
_mode = torch._C._get_dispatch_mode
_PROXY = torch._C._TorchDispatchModeKey.PROXY
_forward = torch.autograd.forward_ad


def is_traced(*tensors: Tensor) -> bool:
    """Whether operations are recorded or shapes propagated instead of numbers computed.

    True while `torch.compile`, `torch.export` or `torch.jit.trace` builds a graph, under a `torch.func` transform, and
    for tensors without numbers: on the meta device, or fake.
    """
    if _is_compiling():  # dynamo takes this for a constant, and does not follow the calls below
        return True
    if is_transformed() or _is_traced_by_jit() or _mode(_PROXY) is not None:
        return True
    for tensor in tensors:  # noqa: SIM110 - a generator costs attend a microsecond
        if tensor.is_meta or isinstance(tensor, FakeTensor):
            return True
    return False


def goes_forward(*tensors: Tensor, also: Callable[[], Iterable[Tensor]] = tuple) -> bool:
    """Whether a derivative of one of the tensors is taken forward (`torch.autograd.forward_ad`).

    Args:
        also: further tensors, which are asked for only where it may be so.
    """
    if _is_compiling() or _forward._current_level < 0 or is_transformed():  # which has derivatives of its own
        return False
    return any(_forward.unpack_dual(one).tangent is not None for one in (*tensors, *also()))


def is_autocast(device: str) -> bool:
    """Whether autocast is on for a kind of device; torch knows none for the meta device."""
    return device != "meta" and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """A block that computes in the types of its tensors, whatever is around it."""
    return torch.autocast(device, enabled=False) if is_autocast(device) else nullcontext()


def are_hidden(*tensors: Tensor) -> bool:
    """Whether the tensors' numbers must not decide what Python does.

    True in a graph (`is_traced`), and on an accelerator, which every question makes wait.
    """
    for tensor in tensors:
        if not tensor.is_cpu:
            return True
    return is_traced(*tensors)
