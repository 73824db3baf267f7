"""Devices: this CPU, and CUDA, ROCm, MPS and XPU machines that torch's functions pretend."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from regard.machine import devices as module
from regard.machine import speed
from regard.machine.devices import (
    AttentionKernel,
    Compiler,
    Device,
    Precision,
    attention,
    compiler,
    devices,
    fastest,
    instructions,
)

GIB = 2**30


def only(kind: str, found: list[Device]) -> list[Device]:
    return [device for device in found if device.word.partition(":")[0] == kind]


def precisions(device: Device) -> dict[str, Precision]:
    return {precision.name: precision for precision in device.precisions}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch):
    """Make torch speak of CUDA devices: names, GiB, compute capabilities."""

    def pretend(*cards: tuple[str, int, int, int]) -> None:
        made = [SimpleNamespace(name=n, total_memory=g * GIB, major=a, minor=b) for n, g, a, b in cards]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(made))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: made[index])
        monkeypatch.setattr(torch.version, "cuda", "12.6")
        monkeypatch.setattr(torch.version, "hip", None)

    return pretend


def test_the_cpu() -> None:
    found, notes = devices("a processor", measure=False)
    cpu = found[0]
    assert (cpu.word, cpu.name, cpu.capability) == ("cpu", "a processor", torch.backends.cpu.get_cpu_capability())
    assert [precision.name for precision in cpu.precisions] == ["float32", "bfloat16", "float16", "tf32", "int8"]
    assert precisions(cpu)["tf32"].supported is False
    assert all(precision.speed is None for precision in cpu.precisions)
    assert notes == []


def test_measured_precisions_have_a_speed_for_the_same_rows() -> None:
    cpu = module.measured(devices("x", measure=False)[0][0])
    there = precisions(cpu)
    assert there["float32"].speed == dict.fromkeys(speed.ROWS["cpu"], 1.0)
    assert all(set(there[name].speed or {}) == set(speed.ROWS["cpu"]) for name in ("bfloat16", "float16", "int8"))
    assert there["tf32"].speed is None


@pytest.mark.parametrize(
    ("onednn", "there", "native", "why"),
    [
        (True, ("avx512_bf16", "avx512_vnni"), True, "oneDNN computes in it (avx512_bf16)"),
        (True, ("avx512_f",), False, "oneDNN computes in float32 and rounds: no instructions for it"),
        (False, (), False, "no kernels of oneDNN for it on this processor: emulated"),
    ],
)
def test_why_a_half_precision_is_fast_or_not(onednn: bool, there: tuple[str, ...], native: bool, why: str) -> None:
    assert module._half("bfloat16", onednn, "bf16", there) == Precision("bfloat16", True, native, why)


def test_instructions_of_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities",
        lambda: {"architecture": "x86_64", "avx2": True, "amx_bf16": True, "sse2": True, "avx512_f": False, "l2": 1},
    )  # fmt: skip
    assert instructions() == ("amx_bf16", "avx2")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64", "sve": True, "dot": True})
    assert instructions() == ("dot", "sve")


def test_a_machine_with_two_cuda_devices(cuda) -> None:
    cuda(("NVIDIA A100\x1b[31m", 80, 8, 0), ("Tesla T4", 16, 7, 5))
    found, notes = devices("x", measure=False)
    new, old = only("cuda", found)
    assert (new.word, new.name, new.memory, new.capability) == ("cuda:0", "NVIDIA A100\\x1b[31m", 80 * GIB, "8.0")
    assert (old.word, old.name, old.memory, old.capability) == ("cuda:1", "Tesla T4", 16 * GIB, "7.5")
    native = [{name: p.native for name, p in precisions(card).items()} for card in (new, old)]
    assert native[0] == {"float32": True, "bfloat16": True, "float16": True, "tf32": True, "int8": True}
    assert native[1] == {"float32": True, "bfloat16": False, "float16": True, "tf32": False, "int8": True}
    assert [precisions(card)["tf32"].supported for card in (new, old)] == [True, False]
    assert precisions(old)["bfloat16"].why == "tensor cores for it from compute capability 8.0, this device has 7.5"
    assert notes == []


def test_what_cannot_be_measured_says_why(cuda) -> None:
    """This torch has no CUDA: the pretended device takes no tensor."""
    if torch.backends.cuda.is_built():
        pytest.skip("this torch has CUDA")
    cuda(("NVIDIA A100", 80, 8, 0))
    (card,) = only("cuda", devices("x")[0])
    assert precisions(card)["float32"].not_measured == "Torch not compiled with CUDA enabled"
    assert precisions(card)["tf32"].not_measured == "Torch not compiled with CUDA enabled"
    assert {one.kernel for one in card.attention} == {"unknown: Torch not compiled with CUDA enabled"}
    assert fastest(card) == {}


def test_measured_ratios_of_a_cuda_device(cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(("NVIDIA A100", 80, 8, 0))
    times = {"float32": 8.0, "bfloat16": 1.0, "float16": 2.0, "tf32": 4.0, "int8": 0.5}
    monkeypatch.setattr(speed, "seconds", lambda device, name, rows, width: times[name])
    card = module.measured(module._cuda()[0])
    few, many = speed.ROWS["gpu"]
    assert precisions(card)["bfloat16"].speed == {few: 8.0, many: 8.0}
    assert fastest(card) == {few: ("int8", 16.0), many: ("int8", 16.0)}


def test_kernels_of_attention_are_those_that_torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(*tensors, is_causal: bool) -> int:
        asked.append((tensors[0].dtype, tensors[3] is not None, is_causal))
        return {torch.float32: 2, torch.bfloat16: 3}[tensors[0].dtype]

    monkeypatch.setattr(torch, "_fused_sdp_choice", choose)
    found = attention("cpu")
    assert found[0] == AttentionKernel("float32", "none", "memory-efficient")
    assert found[-1] == AttentionKernel("bfloat16", "table", "cuDNN")
    assert asked[:3] == [(torch.float32, False, False), (torch.float32, False, True), (torch.float32, True, False)]


def test_a_rocm_device(cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(("AMD Instinct", 64, 9, 0))
    card = torch.cuda.get_device_properties(0)
    card.gcnArchName = "gfx90a"
    monkeypatch.setattr(torch.version, "hip", "6.3")
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    (found,) = module._cuda()
    assert found.capability == "gfx90a"
    assert precisions(found)["bfloat16"].native is True
    assert precisions(found)["tf32"].supported is None


def test_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (major, minor) <= (13, 3))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 11 * GIB)
    (found,) = module._mps()
    assert (found.word, found.memory, precisions(found)["bfloat16"].supported) == ("mps", 11 * GIB, False)
    assert found.compiler == Compiler("the Metal compiler of macOS", "with macOS")


def test_an_intel_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="Arc", total_memory=7 * GIB, has_fp16=True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda: True)
    (found,) = module._xpu()
    assert (found.word, found.name, found.memory, precisions(found)["float16"].supported) == (
        "xpu:0",
        "Arc",
        7 * GIB,
        True,
    )


def test_a_driver_that_fails_is_a_note(cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("driver too old\nstack")

    cuda(("NVIDIA A100", 80, 8, 0))
    monkeypatch.setattr(torch.cuda, "device_count", fail)
    found, notes = devices("x", measure=False)
    assert [device.word for device in found] == ["cpu"]
    assert notes == ["cuda could not be examined: driver too old"]


def test_the_compiler_for_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    tool = tmp_path / "my-c++"
    tool.write_text("#!/bin/sh\necho 13.2.0\n")
    tool.chmod(0o755)
    monkeypatch.setenv("CXX", str(tool))
    assert compiler("cpu") == Compiler("a C++ compiler", "my-c++ 13.2.0")
    tool.write_text("#!/bin/sh\nexit 3\n")
    assert compiler("cpu").found == "my-c++"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler("cpu").found is None


@pytest.mark.parametrize(("spec", "found"), [(None, None), (object(), "triton is installed")])
def test_the_compiler_for_cuda(spec: object, found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: spec)
    assert compiler("cuda") == Compiler("Triton", found)
