"""Devices: the words that name them, and what a run keeps of one.

    "cpu" | "cuda" | "cuda:1" | "mps" | "auto"

"auto" is the accelerator that torch finds, or the CPU. Nothing else in regard chooses a device: a tensor is made on the
device of the tensors that it meets, a pipeline moves its inputs to its model, and the training loop moves its batches.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from regard.errors import ConfigError, unknown

AUTO, CPU = "auto", "cpu"
NAMED = ("cuda", "mps", "xpu")  # accelerators that torch has modules for
TITLES = {"cuda": "CUDA", "mps": "MPS", "xpu": "XPU"}


def check_device(word: str) -> str:
    """A word that names a device, whether this machine has it or not.

    Raises:
        ChoiceError: an unknown word; the message begins with the nearest one.
    """
    kind, colon, index = word.partition(":")
    numbered = kind not in (AUTO, CPU) and re.fullmatch(r"\d{1,2}", index)
    if kind not in _kinds() or (colon and not numbered):
        raise unknown("device", word, [*_kinds(), "cuda:0"])
    return word


def find_device(word: "str | torch.device") -> torch.device:
    """The device that a word names.

    Args:
        word: "cpu", "cuda", "cuda:1", "mps", or "auto": the accelerator that torch finds, or the CPU.

    Raises:
        ChoiceError: an unknown word.
        ConfigError: this machine or this build of torch does not have the device.
    """
    word = check_device(str(word))
    if word == AUTO:
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device(CPU) if found is None else torch.device(found.type)
    device = torch.device(word)
    if device.type == CPU:
        return device
    module = torch.get_device_module(device.type)
    if not module.is_available():
        raise ConfigError(f"device {word!r}: {_missing(device.type)}")
    count = int(module.device_count())
    if device.index is not None and device.index >= count:
        last = f"{device.type}:{count - 1}"
        raise ConfigError(f"device {word!r}: the last one here is {last!r}: use that, or {AUTO!r}")
    return device


def device_of(module: Any) -> torch.device:
    """The device of a module's parameters; the CPU for what has none."""
    parameters = getattr(module, "parameters", tuple)
    first = next(iter(parameters()), None)
    return first.device if isinstance(first, Tensor) else torch.device(CPU)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that a run on a device draws from: the CPU's, and its own, under its type."""
    states = {CPU: torch.get_rng_state()}
    if device.type != CPU:
        module = torch.get_device_module(device.type)
        own = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
        states[device.type] = own.cpu()
    return states


def restore_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Set the states that `random_states` returned; those of another type of device are left out."""
    torch.set_rng_state(states[CPU])
    if device.type != CPU and device.type in states:
        module = torch.get_device_module(device.type)
        state = states[device.type]
        module.set_rng_state(state) if device.type == "mps" else module.set_rng_state(state, device)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that `random_states` keeps; `torch.manual_seed` would seed those of all devices."""
    torch.default_generator.manual_seed(seed)
    if device.type != CPU:
        module = torch.get_device_module(device.type)
        with module.device(device) if device.index is not None and hasattr(module, "device") else nullcontext():
            module.manual_seed(seed)


@contextmanager
def random_numbers_kept(device: torch.device | None = None) -> Iterator[None]:
    """Put the states of torch's random generators back when the block ends: the CPU's, and that of a device."""
    where = torch.device(CPU) if device is None else device
    before = random_states(where)
    try:
        yield
    finally:
        restore_random_states(before, where)


def _kinds() -> list[str]:
    """Known words without an index: torch's own, and that of a backend registered with torch."""
    other = torch._C._get_privateuse1_backend_name()
    return [AUTO, CPU, *NAMED, *([] if other == "privateuseone" else [other])]


def _missing(kind: str) -> str:
    """Why a kind of device cannot be used here, and what to do."""
    title = TITLES.get(kind, kind)
    instead = f"use device={CPU!r} or {AUTO!r}"
    if _is_built(kind):
        return f"torch {torch.__version__} finds no {title} device here; {instead}"
    return f"this torch has no {title} (torch {torch.__version__}); {instead}, or install torch with {title}"


def _is_built(kind: str) -> bool:
    """Whether this build of torch can drive a kind of device."""
    match kind:
        case "cuda":
            return torch.version.cuda is not None or torch.version.hip is not None
        case "mps":
            return torch.backends.mps.is_built()
        case "xpu":
            return getattr(torch.version, "xpu", None) is not None
    return True
