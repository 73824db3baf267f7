"""The devices that torch finds: memory, precisions, the kernels of attention, and whether code can be compiled."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend

from regard.machine.redaction import reason, redact
from regard.machine.speed import speeds

KERNELS = {
    SDPBackend.MATH: "math", SDPBackend.FLASH_ATTENTION: "flash", SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
    SDPBackend.CUDNN_ATTENTION: "cuDNN", SDPBackend.OVERRIDEABLE: "of the backend",
}  # fmt: skip


@dataclass(frozen=True)
class Precision:
    """A number format of matrix products on a device."""

    name: str
    supported: bool | None
    """Whether torch computes in it there; None where that is not known."""
    native: bool | None
    """Whether the device has instructions for it; where it has none, torch emulates it."""
    why: str
    speed: dict[int, float] | None = None
    """Rows of the product → how many times as fast as float32, measured; None where it was not measured."""
    not_measured: str | None = None
    """Why it was not measured."""


@dataclass(frozen=True)
class AttentionKernel:
    """The kernel that torch's scaled_dot_product_attention takes for [1, 8, 128, 64]."""

    precision: str
    mask: str
    """ "none", "causal", or "table": a bool tensor."""
    kernel: str
    """ "flash", "memory-efficient", "cuDNN", "math", or "unknown: …"."""


@dataclass(frozen=True)
class Compiler:
    """What torch.compile, and with it FlexAttention, needs on a device."""

    needs: str
    found: str | None


@dataclass(frozen=True)
class Device:
    """A device, under the word that names it in regard."""

    word: str
    name: str
    memory: int | None
    """Bytes of its own."""
    capability: str | None
    """Compute capability of CUDA ("8.0"), architecture of ROCm; the instruction set torch uses on a CPU."""
    precisions: tuple[Precision, ...]
    attention: tuple[AttentionKernel, ...]
    compiler: Compiler


def devices(cpu_name: str, measure: bool = True) -> tuple[list[Device], list[str]]:
    """The CPU and every accelerator, and a sentence for each that could not be examined.

    Args:
        cpu_name: the processor's name.
        measure: whether to measure precisions, about half a second on a CPU.
    """
    found, notes = [_cpu(cpu_name)], []
    for kind, examine in (("cuda", _cuda), ("mps", _mps), ("xpu", _xpu)):
        try:
            found += examine()
        except Exception as error:  # a driver that fails belongs in the report
            notes.append(f"{kind} could not be examined: {reason(error)}")
    return [measured(device) for device in found] if measure else found, notes


def measured(device: Device) -> Device:
    """A device with the measured speed of every precision that it supports."""
    wanted = tuple(p.name for p in device.precisions if p.supported)
    speed = speeds(torch.device(device.word), wanted)
    precisions = []
    for precision in device.precisions:
        match speed.get(precision.name):
            case dict() as ratios:
                precision = replace(precision, speed=ratios)
            case str() as why:
                precision = replace(precision, not_measured=why)
        precisions.append(precision)
    return replace(device, precisions=tuple(precisions))


def fastest(device: Device) -> dict[int, tuple[str, float]]:
    """For each measured number of rows the fastest precision, and its speed relative to float32."""
    best: dict[int, tuple[str, float]] = {}
    for precision in device.precisions:
        for rows, ratio in (precision.speed or {}).items():
            if rows not in best or ratio > best[rows][1]:
                best[rows] = precision.name, ratio
    return best


def instructions() -> tuple[str, ...]:
    """The vector and matrix instructions of the processor, of those that matter to torch's kernels."""
    known = torch.cpu.get_capabilities()
    there = [name for name, value in known.items() if value is True]
    if known.get("architecture") == "x86_64":
        there = [name for name in there if name.startswith(("avx2", "fma3", "avx512_", "avx_vnni", "avx10", "amx_"))]
    return tuple(sorted(there))


# --- one kind of device each ------------------------------------------------------------------------------------------


def _cpu(name: str) -> Device:
    there = instructions()
    onednn = torch.backends.mkldnn.is_available()
    precisions = [
        Precision("float32", True, True, "other speeds are relative to this one"),
        _half("bfloat16", onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()), "bf16", there),
        _half("float16", onednn and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported()), "fp16", there),
        Precision("tf32", False, False, "a format of CUDA devices"),
    ]
    engine = str(torch.backends.quantized.engine)
    integers = [one for one in there if "vnni" in one or "int8" in one or one in ("i8mm", "dot", "dotprod")]
    why = f"8-bit dot products ({', '.join(integers)})" if integers else "no 8-bit dot products: wider integers instead"
    precisions.append(Precision("int8", engine != "none", bool(integers), f"quantized linear, engine {engine}; {why}"))
    capability = torch.backends.cpu.get_cpu_capability()
    return Device("cpu", redact(name), None, capability, tuple(precisions), attention("cpu"), compiler("cpu"))


def _half(name: str, onednn: bool, mark: str, there: tuple[str, ...]) -> Precision:
    """A precision of 16 bits on a CPU: oneDNN also takes bfloat16 on processors that have no instructions for it."""
    own = [one for one in there if mark in one]
    if not onednn:
        why = "no kernels of oneDNN for it on this processor: emulated"
    elif own:
        why = f"oneDNN computes in it ({', '.join(own)})"
    else:
        why = "oneDNN computes in float32 and rounds: no instructions for it"
    return Precision(name, True, onednn and bool(own), why)


def _cuda() -> list[Device]:
    if not torch.cuda.is_available():
        return []
    return [_cuda_device(index) for index in range(torch.cuda.device_count())]


def _cuda_device(index: int) -> Device:
    word = f"cuda:{index}"
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        capability = redact(getattr(properties, "gcnArchName", "unknown"))
        with torch.cuda.device(index):
            half = bool(torch.cuda.is_bf16_supported(including_emulation=False))
        precisions = [
            Precision("float32", True, True, "other speeds are relative to this one"),
            Precision("bfloat16", True, half, "as torch.cuda.is_bf16_supported says"),
            Precision("float16", True, True, "every ROCm device has it"),
            Precision("tf32", None, None, "not examined on ROCm"),
            Precision("int8", None, None, "not examined on ROCm"),
        ]
    else:
        major, minor = int(properties.major), int(properties.minor)
        capability = f"{major}.{minor}"
        precisions = _cuda_precisions(major, minor)
    memory = int(properties.total_memory)
    return Device(
        word, redact(properties.name), memory, capability, tuple(precisions), attention(word), compiler("cuda")
    )


def _cuda_precisions(major: int, minor: int) -> list[Precision]:
    """What a compute capability means: tensor cores came with 7.0 (float16), 7.5 (int8) and 8.0 (bfloat16, TF32)."""
    this = f"this device has {major}.{minor}"

    def at_least(first: tuple[int, int]) -> tuple[bool, str]:
        there = (major, minor) >= first
        return there, f"tensor cores for it from compute capability {first[0]}.{first[1]}, {this}"

    wide, half, tf32, integer = at_least((8, 0)), at_least((7, 0)), at_least((8, 0)), at_least((7, 5))
    now = torch.backends.cuda.matmul.fp32_precision
    return [
        Precision("float32", True, True, "other speeds are relative to this one"),
        Precision("bfloat16", True, *wide),
        Precision("float16", True, *half),
        Precision("tf32", tf32[0], tf32[0], f"{tf32[1]}; torch.backends.cuda.matmul.fp32_precision is {now!r}"),
        Precision("int8", integer[0], *integer),
    ]  # fmt: skip


def _mps() -> list[Device]:
    if not torch.backends.mps.is_available():
        return []
    precisions = (
        Precision("float32", True, True, "other speeds are relative to this one"),
        Precision("bfloat16", bool(torch.backends.mps.is_macos_or_newer(14, 0)), None, "from macOS 14 on"),
        Precision("float16", True, True, "every Apple GPU has it"),
        Precision("tf32", False, False, "a format of CUDA devices"),
        Precision("int8", None, None, "not examined on MPS"),
    )
    memory = int(torch.mps.recommended_max_memory())
    return [Device("mps", "Apple GPU", memory, None, precisions, attention("mps"), compiler("mps"))]


def _xpu() -> list[Device]:
    if not torch.xpu.is_available():
        return []
    found = []
    for index in range(torch.xpu.device_count()):
        properties = torch.xpu.get_device_properties(index)
        precisions = (
            Precision("float32", True, True, "other speeds are relative to this one"),
            Precision("bfloat16", bool(torch.xpu.is_bf16_supported()), None, "as torch.xpu.is_bf16_supported says"),
            Precision("float16", bool(properties.has_fp16), None, "as the device's properties say"),
            Precision("tf32", None, None, "not examined on XPU"),
            Precision("int8", None, None, "not examined on XPU"),
        )
        word, name, memory = f"xpu:{index}", redact(properties.name), int(properties.total_memory)
        found.append(Device(word, name, memory, None, precisions, attention(word), compiler("xpu")))
    return found


# --- attention and compilation ----------------------------------------------------------------------------------------


def attention(word: str) -> tuple[AttentionKernel, ...]:
    """The kernel that torch would take on a device, asked of torch for tensors that are there."""
    found = []
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        for mask in ("none", "causal", "table"):
            try:
                kernel = chosen_kernel(torch.device(word), dtype, mask)
            except Exception as error:
                kernel = f"unknown: {reason(error)}"
            found.append(AttentionKernel(precision, mask, kernel))
    return tuple(found)


def chosen_kernel(device: torch.device, dtype: torch.dtype, mask: str) -> str:
    """What torch's dispatcher of scaled_dot_product_attention answers, without a gradient."""
    x = torch.zeros(1, 8, 128, 64, dtype=dtype, device=device)
    table = torch.ones(1, 1, 128, 128, dtype=torch.bool, device=device) if mask == "table" else None
    choice = torch._fused_sdp_choice(x, x, x, table, is_causal=mask == "causal")
    return KERNELS.get(SDPBackend(choice), "unknown")


def compiler(kind: str) -> Compiler:
    """The compiler that torch.compile uses for a kind of device."""
    if kind == "cpu":
        return Compiler("a C++ compiler", _cpp_compiler())
    if kind == "mps":
        return Compiler("the Metal compiler of macOS", "with macOS")
    module = find_spec("triton")
    return Compiler("Triton", None if module is None else "triton is installed")


def _cpp_compiler() -> str | None:
    usual = {"win32": ("cl",), "darwin": ("clang++", "g++")}.get(sys.platform, ("g++", "clang++"))
    for name in (os.environ.get("CXX"), *usual):
        if name and (path := shutil.which(name)):
            return redact(f"{Path(name).name} {_version(path)}".strip())
    return None


def _version(path: str) -> str:
    try:
        answer = subprocess.run([path, "-dumpfullversion", "-dumpversion"], capture_output=True, timeout=2, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.decode("ascii", "replace").strip().partition("\n")[0]
