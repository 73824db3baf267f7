"""Switches of the whole process: denormals, the allocator, garbage collection, threads, TF32.

Only entry points call these functions (`regard.experiment`, the servers, the command line); importing regard and
calling `attend` never change the process.
"""

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch

from regard.errors import ConfigError

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
_MADV_HUGEPAGE = 14  # Linux's mman.h
_HUGE = 2 << 20  # bytes of a huge page
_PIECE = (1 << 30) - (1 << 20)  # what the heap is extended by at once: below the size that it would map by itself


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


@cache
def keep_freed_memory() -> None:
    """Make glibc return no block below 1 GiB to the kernel, and take the first 4 GiB of the heap in huge pages.

    Memory that is touched for the first time costs a page fault for every 4 KiB, and memory that lies in small pages a
    look-up for each of them; together they can take more than half of a training step. Nothing is taken before it is
    used. Where the kernel gives no huge pages, or the C library is not glibc, less or nothing changes.

    For a process that computes and ends, as a command does: glibc cannot be asked for the settings before.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        return
    if not libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30):  # glibc before 2.35 takes at most this
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
    libc.malloc.restype = ctypes.c_void_p
    pieces = [libc.malloc(ctypes.c_size_t(_PIECE)) for _ in range(4)]
    for piece in filter(None, pieces):
        begin = -(-piece // _HUGE) * _HUGE
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(_PIECE - _HUGE), _MADV_HUGEPAGE)
    for piece in filter(None, reversed(pieces)):
        libc.free(ctypes.c_void_p(piece))  # to the heap, which keeps it


@cache
def leave_out_what_is_loaded() -> None:
    """Keep what is loaded by now out of garbage collection: each full one looks at 200,000 objects of torch and other
    libraries, which takes up to a sixth of the time of a fast translator.

    For a process that computes and ends, as a command does: its memory is never looked at again.
    """
    gc.freeze()


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


def allow_open_files(count: int) -> int:
    """Let this process have so many files and connections open, where its hard limit permits it.

    Returns:
        how many it may have.
    """
    if sys.platform == "win32":
        return count
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    if now == endless or now >= count:
        return count
    allowed = count if most == endless else min(count, most)
    with suppress(OSError, ValueError):  # macOS has a limit of its own below the hard one
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
        return allowed
    return now


def use_threads(count: int) -> None:
    """Run torch's operators on `count` threads from now on."""
    torch.set_num_threads(count)
