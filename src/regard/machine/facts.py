"""`examine`: everything a report about this machine says, as typed data."""

import os
import platform
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from regard import __version__
from regard.device import AUTO, CPU, find_device
from regard.machine.devices import Device, devices, instructions
from regard.machine.extras import Extra, Package, extras, required
from regard.machine.redaction import reason, redact

# what changes torch's numbers, speed or memory without a line of code
VARIABLES = {
    "OMP_NUM_THREADS": "threads inside an operator",
    "MKL_NUM_THREADS": "threads of MKL",
    "OMP_PROC_BIND": "threads bound to cores",
    "OMP_PLACES": "cores that threads are bound to",
    "OMP_WAIT_POLICY": "whether idle threads spin",
    "KMP_AFFINITY": "cores that threads are bound to",
    "KMP_BLOCKTIME": "how long idle threads spin",
    "GOMP_CPU_AFFINITY": "cores that threads are bound to",
    "ATEN_CPU_CAPABILITY": "instruction set of torch's kernels",
    "ONEDNN_MAX_CPU_ISA": "instruction set of oneDNN",
    "DNNL_MAX_CPU_ISA": "instruction set of oneDNN",
    "ONEDNN_DEFAULT_FPMATH_MODE": "precision of oneDNN's float32 products",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "TF32 in matrix products",
    "NVIDIA_TF32_OVERRIDE": "TF32 everywhere",
    "CUBLAS_WORKSPACE_CONFIG": "deterministic cuBLAS",
    "CUDA_VISIBLE_DEVICES": "devices that torch sees",
    "HIP_VISIBLE_DEVICES": "devices that torch sees",
    "ROCR_VISIBLE_DEVICES": "devices that torch sees",
    "CUDA_DEVICE_ORDER": "numbers of the devices",
    "CUDA_LAUNCH_BLOCKING": "every kernel is waited for",
    "PYTORCH_ALLOC_CONF": "the memory allocator of accelerators",
    "PYTORCH_CUDA_ALLOC_CONF": "the memory allocator of CUDA",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "no cache of CUDA memory",
    "PYTORCH_ENABLE_MPS_FALLBACK": "operators missing on MPS run on the CPU",
    "PYTORCH_MPS_HIGH_WATERMARK_RATIO": "memory limit of MPS",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "backends of others, loaded with torch",
    "TORCH_COMPILE_DISABLE": "torch.compile does nothing",
    "TORCHDYNAMO_DISABLE": "torch.compile does nothing",
    "TORCHINDUCTOR_FREEZING": "weights are constants when compiling",
    "TORCHINDUCTOR_MAX_AUTOTUNE": "kernels are chosen by trial when compiling",
    "CXX": "the C++ compiler",
    "LD_PRELOAD": "libraries before all others, such as allocators",
    "MALLOC_ARENA_MAX": "glibc's memory allocator",
}


@dataclass(frozen=True)
class Software:
    """Versions, and what torch was built with."""

    regard: str
    python: str
    torch: str
    build: str
    """The accelerator that torch was built for: "CPU", "CUDA 12.6", "ROCm 6.3", "MPS", "XPU"."""
    libraries: tuple[str, ...]
    """Libraries inside torch: OpenMP, MKL, oneDNN, cuDNN."""
    system: str
    float32_matmul: str
    """torch.get_float32_matmul_precision()."""


@dataclass(frozen=True)
class Processor:
    """The CPU, and how much of it this process may use."""

    name: str
    architecture: str
    capability: str
    """The instruction set that torch's own kernels use."""
    instructions: tuple[str, ...]
    cores: int | None
    """Logical cores of the machine."""
    usable_cores: int | None
    """Logical cores that the process may run on (affinity)."""
    quota: float | None
    """Cores' worth of time that a container grants; None without a limit."""


@dataclass(frozen=True)
class Threads:
    """torch's threads in this process."""

    intra_op: int
    inter_op: int


@dataclass(frozen=True)
class MemorySizes:
    """The machine's memory in bytes; None where the system does not say."""

    total: int | None
    available: int | None
    limit: int | None
    """What a container grants; None without a limit."""


@dataclass(frozen=True)
class Variable:
    """An environment variable that is set and changes torch's behavior."""

    name: str
    value: str
    changes: str


@dataclass(frozen=True)
class Machine:
    """This machine and its software."""

    software: Software
    processor: Processor
    threads: Threads
    memory: MemorySizes
    auto: str
    """What device="auto" means here."""
    devices: tuple[Device, ...]
    packages: tuple[Package, ...]
    """Those that regard cannot do without."""
    extras: tuple[Extra, ...]
    variables: tuple[Variable, ...]
    notes: tuple[str, ...]
    """Warnings that torch gave, and what could not be examined."""

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists, texts and numbers."""
        return asdict(self)


def examine(measure: bool = True) -> Machine:
    """The facts about this machine; nothing is sent, downloaded or changed, and no user or host is named.

    Args:
        measure: whether to measure the speed of the precisions, about half a second on a CPU.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        processor = _processor()
        found, notes = devices(processor.name, measure)
        try:
            auto = find_device(AUTO).type
        except Exception as error:  # a driver that fails belongs in the report
            auto = CPU
            notes.append(f"no accelerator could be asked for: {reason(error)}")
    said = [redact(" ".join(str(warning.message).split())) for warning in caught]
    return Machine(
        _software(), processor, Threads(torch.get_num_threads(), torch.get_num_interop_threads()), _memory(), auto,
        tuple(found), required(), extras(), tuple(_variables()), tuple(dict.fromkeys([*notes, *said])),
    )  # fmt: skip


def _software() -> Software:
    libraries = {
        "OpenMP": torch.backends.openmp.is_available(), "MKL": torch.backends.mkl.is_available(),
        "oneDNN": torch.backends.mkldnn.is_available(), _cudnn(): torch.backends.cudnn.is_available(),
    }  # fmt: skip
    python = f"{platform.python_version()} ({platform.python_implementation()})"
    system = platform.platform()
    return Software(
        __version__, python, str(torch.__version__), build(), tuple(name for name, there in libraries.items() if there),
        redact(system), torch.get_float32_matmul_precision(),
    )  # fmt: skip


def build() -> str:
    """The accelerator that this torch was built for."""
    if torch.version.hip is not None:
        return f"ROCm {torch.version.hip}"
    if torch.version.cuda is not None:
        return f"CUDA {torch.version.cuda}"
    if getattr(torch.version, "xpu", None) is not None:
        return "XPU"
    return "MPS" if torch.backends.mps.is_built() else "CPU"


def _cudnn() -> str:
    number = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return f"cuDNN {number}"


def _processor() -> Processor:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return Processor(
        redact(_processor_name()), platform.machine(), torch.backends.cpu.get_cpu_capability(), instructions(),
        os.cpu_count(), usable, _quota(),
    )  # fmt: skip


def _processor_name() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("model name", "hardware", "cpu model") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _quota() -> float | None:
    """Cores' worth of time in the container's limit (control groups, version 2)."""
    share, _, period = _text("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    return int(share) / int(period) if share.isdigit() and period.isdigit() and int(period) else None


def _memory() -> MemorySizes:
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    lines = (line.split() for line in _text("/proc/meminfo").splitlines())
    available = next((int(line[1]) * 1024 for line in lines if line[:1] == ["MemAvailable:"]), None)
    return MemorySizes(_total_memory(), available, int(limit) if limit.isdigit() else None)


def _total_memory() -> int | None:
    if sys.platform == "win32":
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _variables() -> list[Variable]:
    found = []
    for name, changes in VARIABLES.items():
        value = os.environ.get(name)
        if value is None:
            continue
        if name in ("LD_PRELOAD", "CXX"):  # names are enough, folders are private
            value = " ".join(Path(part).name for part in value.replace(":", " ").split())
        found.append(Variable(name, redact(value), changes))
    return found


def _text(path: str) -> str:
    """A file of the system; empty where there is none."""
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""
