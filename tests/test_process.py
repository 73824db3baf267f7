"""Switches of the process: set where they are asked for, and put back."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regard.process import cuda_float32, tuned, use_threads


def test_denormals_are_zero_while_tuned() -> None:
    tiny = torch.tensor([1e-40])
    with tuned():
        assert float((tiny * 1.0)[0]) == 0
    assert float((tiny * 1.0)[0]) > 0


def test_denormals_stay_flushed_where_they_were() -> None:
    tiny = torch.tensor([1e-40])
    torch.set_flush_denormal(True)
    try:
        with tuned():
            pass
        assert float((tiny * 1.0)[0]) == 0
    finally:
        torch.set_flush_denormal(False)


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    use_threads(before)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_on_cuda_is_put_back(tf32: bool) -> None:
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [backend.fp32_precision for backend in backends]
    with cuda_float32(tf32):
        assert {backend.fp32_precision for backend in backends} == {"tf32" if tf32 else "ieee"}
    assert [backend.fp32_precision for backend in backends] == before


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MEMORY = """
import ctypes, re
from pathlib import Path
from regard.process import keep_freed_memory

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))

before = status("VmRSS")
keep_freed_memory()
taken = status("VmRSS") - before
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(64 << 20)))
ctypes.memset(block, 1, 64 << 20)
used = status("VmRSS")
libc.free(block)
huge = int(re.search(r"AnonHugePages:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text()).group(1))
print(taken, used - before, status("VmRSS") - before, huge)
"""


NONE = not HUGE.exists() or "[never]" in HUGE.read_text() or "THP_enabled:\t0" in Path("/proc/self/status").read_text()


@pytest.mark.skipif(NONE, reason="the kernel gives no huge pages")
def test_freed_memory_is_kept_and_lies_in_huge_pages() -> None:
    out = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout
    taken, used, kept, huge = (int(one) / 1024 for one in out.split())  # MiB
    assert taken < 32  # of 4 GiB, at most a huge page or two at either end of each GiB, before it is used
    assert 64 <= used < 128
    assert kept >= 64  # freed, and not returned
    assert huge >= 2  # the kernel may have no huge page left for some of it


def test_a_server_may_open_as_many_files_as_the_hard_limit_permits():
    resource = pytest.importorskip("resource")
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))\n"
        "from regard.process import allow_open_files as allow\n"
        "print(allow(100), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "print(allow(250), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "print(allow(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["100", "200", "250", "250", "300", "300"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (now, most)


def test_what_is_loaded_is_left_out_of_garbage_collection() -> None:
    code = (
        "import gc, torch\n"
        "from regard.process import leave_out_what_is_loaded as leave\n"
        "leave(); frozen = gc.get_freeze_count(); leave()\n"
        "print(frozen, gc.get_freeze_count(), len(gc.get_objects()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    frozen, again, left = map(int, out.split())
    assert frozen == again > 10_000  # once
    assert left < 0.05 * frozen
