"""Switches of the whole process: denormals, the allocator, threads, TF32, signals.

Only entry points call these functions (`regard.experiment`, the servers, the command line); importing regard and
calling `attend` never change the process.
"""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h


@contextmanager
def tuned() -> Iterator[None]:
    """Settings for training on a CPU: denormals flushed to zero, and freed memory kept for the next step."""
    torch.set_flush_denormal(True)
    _keep_freed_memory()
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _keep_freed_memory() -> None:
    """Make glibc return no block below 1 GiB to the kernel: page faults cost a fifth of a training step."""
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


@contextmanager
def stop_on_signal(*signals: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Turn the first signal (SIGINT and SIGTERM by default) into a flag, returned as a function.

    The second signal raises KeyboardInterrupt at once. In any other thread than the main one the flag stays False,
    because Python delivers signals to the main thread only.
    """
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received.is_set
        return

    def receive(*_: object) -> None:
        if received.is_set():
            raise KeyboardInterrupt
        received.set()

    previous = {number: signal.signal(number, receive) for number in signals or (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
