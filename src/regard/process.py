"""Switches of the whole process: denormals, the allocator, threads, TF32.

Only entry points call these functions (`regard.experiment`, the servers, the command line); importing regard and
calling `attend` never change the process.
"""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from regard.errors import ConfigError

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h


_training = threading.Lock()


@contextmanager
def one_training() -> Iterator[None]:
    """A block that no other thread is in: all threads draw from one generator, so that two trainings in one process
    would change each other's weights.

    Raises:
        ConfigError: another thread is in it.
    """
    if not _training.acquire(blocking=False):
        raise ConfigError(
            "another training runs in this process, and both would draw from its one generator of random numbers: "
            "wait for its end, or train in a process of its own"
        )
    try:
        yield
    finally:
        _training.release()


@contextmanager
def tuned() -> Iterator[None]:
    """Flush denormals to zero while a model is trained on a CPU; put back what was set before."""
    before = _flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _flushes_denormals() -> bool:
    """Whether this thread's arithmetic flushes denormals to zero; torch has no question for it."""
    return not (torch.tensor([2.0**-1070], dtype=torch.float64) * 0.5).item()


def keep_freed_memory() -> None:
    """Make glibc return no block below 1 GiB to the kernel: page faults cost a fifth of a training step.

    For a process that trains or translates a file and ends: glibc cannot be asked for the settings before.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


@contextmanager
def cuda_float32(tf32: bool) -> Iterator[None]:
    """Compute float32 products on CUDA in TF32 (10 bits of mantissa), or exactly; put back what was set before.

    By torch's defaults matrix products are exact, and convolutions and recurrent layers are not.
    """
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def use_threads(count: int) -> None:
    """Run torch's operators on `count` threads from now on."""
    torch.set_num_threads(count)
