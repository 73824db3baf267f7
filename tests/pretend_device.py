"""A pretend accelerator, "pretend": its tensors compute on the CPU and refuse what CUDA refuses.

    torch.zeros(3, device="pretend"), tensor.to("pretend"), module.to("pretend"), torch.autocast("pretend"), …

- An operation on tensors of two devices is refused. A CPU tensor without axes may stand beside device tensors, and CPU
  tensors of long, int or bool may index a device tensor, as on CUDA.
- A draw with a CPU generator is refused; the device has a random state of its own, under `torch.manual_seed` and
  `torch.get_device_module("pretend")`, and its numbers differ from the CPU's.
- `numpy()` is refused, and so are lengths on the device in `pack_padded_sequence`.
- `no_sync()` refuses, and `syncs()` counts, whatever makes the host wait for the device: `.item()`, `bool(tensor)`,
  `.tolist()`, `.cpu()`, `nonzero`, an index of bool.
- Recurrent layers take the fused cells, and dropout the fused kernel, as on CUDA.

The name is registered with torch when this module is imported, for the whole process, and before the first backward
pass: autograd counts its devices then. `torch.accelerator` reports the device only within `present()`.

The tensors are wrappers (`torch.Tensor._make_wrapper_subclass`) around CPU tensors; operators without a tensor among
their arguments reach them through the PrivateUse1 dispatch key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "pretend"
DEVICE = torch.device("cpu")  # replaced below, once the name is known

aten = torch.ops.aten
CROSSING = {aten._to_copy.default, aten.copy_.default}  # operators between devices
INDEXING = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}  # fmt: skip
ON_CPU = {  # operators with an argument that must stay on the CPU: its place
    aten._pack_padded_sequence.default: 1, aten._pack_padded_sequence_backward.default: 2,
}  # fmt: skip
IGNORED = ("pin_memory", "non_blocking")
INDEX_TYPES = (torch.long, torch.int, torch.bool, torch.uint8)
WAITING = {
    aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default,
    aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.repeat_interleave.Tensor,
    aten.bincount.default,
}  # fmt: skip


class HostSync(RuntimeError):
    """The host waited for the device where it must not."""


class _Switches:
    """State of the pretend device: process-wide, because autograd runs the device's backward in a thread of its own."""

    available = False
    refused: frozenset[str] | None = None  # operators that may wait all the same, or None where every one may
    counters: tuple[Counter[str], ...] = ()


@contextmanager
def present() -> Iterator[torch.device]:
    """Make `torch.accelerator` and `torch.pretend.is_available()` report the device."""
    before, _Switches.available = _Switches.available, True
    try:
        yield DEVICE
    finally:
        _Switches.available = before


@contextmanager
def no_sync(*allowed: str) -> Iterator[None]:
    """Refuse every operator that makes the host wait for the device, apart from those named ("aten.nonzero")."""
    before, _Switches.refused = _Switches.refused, frozenset(allowed)
    try:
        yield
    finally:
        _Switches.refused = before


@contextmanager
def syncs() -> Iterator[Counter[str]]:
    """Count the operators that make the host wait for the device: {"aten._local_scalar_dense": 3, …}."""
    counter: Counter[str] = Counter()
    before, _Switches.counters = _Switches.counters, (*_Switches.counters, counter)
    try:
        yield counter
    finally:
        _Switches.counters = before


class PretendTensor(Tensor):
    """A tensor of the pretend device around the CPU tensor that holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        # a view of an ordinary tensor is one, in inference mode too
        alike = inner.is_inference() == torch.is_inference_mode_enabled()
        with nullcontext() if alike else torch.inference_mode(inner.is_inference()):
            made: PretendTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                layout=inner.layout, device=DEVICE, requires_grad=False,
            )  # fmt: skip
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], _: None, _size: Any, _stride: Any) -> PretendTensor:
        return PretendTensor(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _is_composite(func):  # whole in inference mode alone; in parts it meets the checks of each
            found = func.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return _run(func, *args, **(kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.inner!r} on {NAME}"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.cpu().numpy(force=True)
        raise TypeError(
            f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operator on the wrapped CPU tensors, once its arguments are what CUDA would accept."""
    tensors: list[Tensor] = []
    plain_args = _plain(args, tensors)
    plain_kwargs = {name: _plain(value, tensors) for name, value in kwargs.items() if name not in IGNORED}
    own = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    wanted = kwargs.get("device")
    goes_to = None if wanted is None else torch.device(wanted).type
    _check_devices(func, args, tensors, own)
    _check_waiting(func, args, own, goes_to)
    if wanted is not None:
        plain_kwargs["device"] = torch.device("cpu")
    if func in CELLS:
        found = CELLS[func](*plain_args, **plain_kwargs)
    elif torch.Tag.nondeterministic_seeded in func.tags:
        found = _drawn(func, plain_args, plain_kwargs)
    else:
        found = func(*plain_args, **plain_kwargs)
    if goes_to == "cpu" or (not own and goes_to != NAME):
        return found
    if torch.Tag.inplace_view in func.tags and isinstance(
        args[0], PretendTensor
    ):  # transpose_: the wrapper's shape too
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)
        return args[0]
    if func is aten._to_copy.default and own and found is own[0].inner:  # the CPU's answer for the same device
        found = found.clone()
    outer = _wrapped(found, {id(tensor.inner): tensor for tensor in own})
    if func in ON_CPU and isinstance(found, tuple):
        outer = (outer[0], *found[1:])  # the sizes of the steps of a packed sequence
    return outer


@cache
def _is_composite(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def _plain(value: Any, tensors: list[Tensor]) -> Any:
    """An argument with CPU tensors in place of the device's; the tensors that it holds are added to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.inner if isinstance(value, PretendTensor) else value
    if isinstance(value, list | tuple):
        return type(value)([_plain(one, tensors) for one in value])
    return value


def _wrapped(value: Any, known: dict[int, PretendTensor]) -> Any:
    """A result with its tensors on the device: one that an argument wraps is that argument."""
    if isinstance(value, PretendTensor):
        return value
    if isinstance(value, Tensor):
        return known[id(value)] if id(value) in known else PretendTensor(value)
    return type(value)([_wrapped(one, known) for one in value]) if isinstance(value, list | tuple) else value


def _check_devices(func: Any, args: Any, tensors: list[Tensor], own: list[PretendTensor]) -> None:
    if func in CROSSING or not own:
        return
    if func in ON_CPU:
        if isinstance(args[ON_CPU[func]], PretendTensor):
            raise RuntimeError(f"{func}: 'lengths' argument should be a 1D CPU int64 tensor, but got {NAME}:0")
        return
    beside = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.ndim > 0]
    if func in INDEXING and isinstance(args[0], PretendTensor):
        beside = [tensor for tensor in beside if tensor.dtype not in INDEX_TYPES]
    if beside:
        shapes = ", ".join(f"{list(tensor.shape)} on {tensor.device.type}" for tensor in tensors)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! "
            f"({func}: {shapes})"
        )


def _check_waiting(func: Any, args: Any, own: list[PretendTensor], goes_to: str | None) -> None:
    if not own or (_Switches.refused is None and not _Switches.counters):
        return
    leaves = func is aten._to_copy.default and goes_to == "cpu"
    leaves |= func is aten.copy_.default and not isinstance(args[0], PretendTensor)
    picks = func in INDEXING and any(
        isinstance(index, PretendTensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )
    if not (func in WAITING or leaves or picks):
        return
    name = str(func).rpartition(".")[0]
    for counter in _Switches.counters:
        counter[name] += 1
    if _Switches.refused is not None and name not in _Switches.refused:
        raise HostSync(f"{func} makes the host wait for the device")


# --- the device's random state: a CPU generator of its own ---

_generator = torch.Generator()


def _drawn(func: Any, args: Any, kwargs: Any) -> Any:
    """A random operator with the device's random state.

    Raises:
        RuntimeError: a CPU generator is given.
    """
    if any(isinstance(one, torch.Generator) for one in (*args, *kwargs.values())):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(_generator.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        _generator.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)


class _DeviceModule:
    """`torch.pretend`: what torch asks of a device's module."""

    @staticmethod
    def is_available() -> bool:
        return _Switches.available

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def set_device(_: Any) -> None:
        pass

    @staticmethod
    def synchronize(_: Any = None) -> None:
        pass

    @staticmethod
    def get_device_name(_: Any = None) -> str:
        return "a pretend accelerator"

    @staticmethod
    def is_bf16_supported() -> bool:
        return True

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def manual_seed(seed: int) -> None:
        _generator.manual_seed((seed + 1) % 2**63)  # other numbers than the CPU's from the same seed

    manual_seed_all = manual_seed

    @staticmethod
    def get_rng_state(_: Any = NAME) -> Tensor:
        return _generator.get_state()

    @staticmethod
    def set_rng_state(state: Tensor, _: Any = NAME) -> None:
        _generator.set_state(state.cpu())


# --- operators that have no CPU kernel: the fused cells of recurrent layers ---


def _gru_cell(
    inputs: Tensor, hidden: Tensor, state: Tensor, input_bias: Tensor | None = None, hidden_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(h, what the backward pass needs) of h = n + z (h₋ - n), n = tanh(n_x + r n_h)."""
    a, b = (
        inputs if input_bias is None else inputs + input_bias,
        hidden if hidden_bias is None else hidden + hidden_bias,
    )
    (r_x, z_x, n_x), (r_h, z_h, n_h) = a.chunk(3, -1), b.chunk(3, -1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return n + z * (state - n), torch.cat([r, z, n, state, n_h], -1)


def _gru_cell_backward(grad: Tensor, workspace: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    r, z, n, state, n_h = workspace.chunk(5, -1)
    into_n = grad * (1 - z) * (1 - n * n)
    into_z = grad * (state - n) * z * (1 - z)
    into_r = into_n * n_h * r * (1 - r)
    inputs, hidden = torch.cat([into_r, into_z, into_n], -1), torch.cat([into_r, into_z, into_n * r], -1)
    biases = (inputs.sum(0), hidden.sum(0)) if has_bias else (None, None)
    return inputs, hidden, grad * z, *biases


def _lstm_cell(
    inputs: Tensor, hidden: Tensor, cell: Tensor, input_bias: Tensor | None = None, hidden_bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(h, c, what the backward pass needs) of c = f c₋ + i g, h = o tanh(c)."""
    total = inputs + hidden
    for bias in (input_bias, hidden_bias):
        total = total if bias is None else total + bias
    i, f, g, o = total.chunk(4, -1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    after = f * cell + i * g
    return o * torch.tanh(after), after, torch.cat([i, f, g, o], -1)


def _lstm_cell_backward(
    grad_h: Tensor | None, grad_c: Tensor | None, before: Tensor, after: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor | None, ...]:
    i, f, g, o = workspace.chunk(4, -1)
    top = torch.tanh(after)
    into_h = torch.zeros_like(after) if grad_h is None else grad_h
    into_c = into_h * o * (1 - top * top) + (0 if grad_c is None else grad_c)
    gates = torch.cat(
        [into_c * g * i * (1 - i), into_c * before * f * (1 - f), into_c * i * (1 - g * g), into_h * top * o * (1 - o)],
        -1,
    )
    return gates, into_c * f, gates.sum(0) if has_bias else None


CELLS: dict[Any, Callable[..., Any]] = {
    aten._thnn_fused_gru_cell.default: _gru_cell,
    aten._thnn_fused_gru_cell_backward.default: _gru_cell_backward,
    aten._thnn_fused_lstm_cell.default: _lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_cell_backward,
}


# --- registration ---

FACTORIES = (
    "arange", "arange.start", "arange.start_step", "linspace", "logspace", "eye", "eye.m", "randperm",
    "randperm.generator", "randint", "randint.low", "randint.generator", "randint.low_generator", "rand",
    "rand.generator", "randn", "randn.generator", "normal.float_float", "full", "zeros", "ones", "empty.memory_format",
    "empty_strided", "scalar_tensor", "tril_indices", "triu_indices", "copy_", "_to_copy",
)  # fmt: skip
CASTING = ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "conv1d", "conv2d")  # computed in autocast's dtype
_libraries: list[torch.library.Library] = []


def _register() -> None:
    global DEVICE
    backend_registration._setup_privateuseone_for_python_backend(
        rename=NAME, backend_module=_DeviceModule(), hook=_Hook()
    )
    DEVICE = torch.device(NAME, 0)
    anything, own, casting = (torch.library.Library(name, "IMPL") for name in ("_", "aten", "aten"))
    anything.fallback(lambda op, *args, **kwargs: _run(op, *args, **kwargs), "PrivateUse1")
    for name in FACTORIES:
        packet, _, overload = name.partition(".")
        own.impl(name, partial(_run, getattr(getattr(aten, packet), overload or "default")), "PrivateUse1")
    anything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in CASTING:
        casting.impl(name, partial(_autocast, getattr(aten, name).default), "AutocastPrivateUse1")
    _libraries.extend((anything, own, casting))  # a library's registrations end with it


def _autocast(func: Any, *args: Any, **kwargs: Any) -> Any:
    dtype = torch.get_autocast_dtype(NAME)

    def cast(leaf: Any) -> Any:
        wide = isinstance(leaf, Tensor) and leaf.dtype == torch.float32 and leaf.device.type == NAME
        return leaf.to(dtype) if wide else leaf

    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(keys):
        return func(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})


class _Hook(backend_registration._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return _Switches.available


_register()
