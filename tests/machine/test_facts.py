"""The facts agree with torch, the operating system and the environment; what fails is a note."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch

from regard import __version__
from regard.machine import facts
from regard.machine.facts import VARIABLES, Threads, Variable, build, examine


def test_the_facts_are_those_of_this_process() -> None:
    found = examine(measure=False)
    assert (found.software.regard, found.software.torch) == (__version__, str(torch.__version__))
    assert found.threads == Threads(torch.get_num_threads(), torch.get_num_interop_threads())
    assert found.processor.capability == torch.backends.cpu.get_cpu_capability()
    assert found.processor.cores == os.cpu_count()
    assert found.devices[0].word == "cpu"
    assert found.software.float32_matmul == torch.get_float32_matmul_precision()
    json.dumps(found.as_json())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_usable_cores_follow_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7})
    assert examine(measure=False).processor.usable_cores == 3


def test_nothing_of_the_process_is_changed() -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision(),
            torch.backends.quantized.engine, torch.get_rng_state().tolist(), dict(os.environ), list(warnings.filters),
        )  # fmt: skip

    before = state()
    examine()
    assert state() == before


@pytest.mark.parametrize(
    ("versions", "name"),
    [
        ({"cuda": "12.6", "hip": None}, "CUDA 12.6"),
        ({"cuda": None, "hip": "6.3"}, "ROCm 6.3"),
        ({"cuda": None, "hip": None, "xpu": "2025"}, "XPU"),
    ],
)
def test_the_build(versions: dict[str, str | None], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for which, value in versions.items():
        monkeypatch.setattr(torch.version, which, value, raising=False)
    assert build() == name


@pytest.mark.parametrize(("built", "name"), [(True, "MPS"), (False, "CPU")])
def test_a_build_without_a_version(built: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for which in ("cuda", "hip", "xpu"):
        monkeypatch.setattr(torch.version, which, None, raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
    assert build() == name


def test_auto_is_the_accelerator_that_torch_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    assert examine(measure=False).auto == "cuda"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert examine(measure=False).auto == "cpu"

    def fail(check_available: bool) -> None:
        raise RuntimeError("driver too old")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", fail)
    found = examine(measure=False)
    assert (found.auto, found.notes) == ("cpu", ("no accelerator could be asked for: driver too old",))


def test_warnings_of_torch_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> bool:
        warnings.warn("CUDA initialization:\n  the driver is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", warn)
    assert examine(measure=False).notes == ("CUDA initialization: the driver is too old",)


def test_variables_that_change_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert examine(measure=False).variables == ()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2\x1b[0m")
    monkeypatch.setenv("LD_PRELOAD", "/home/ada/lib/libjemalloc.so:/opt/libx.so")
    monkeypatch.setenv("MY_TOKEN", "secret")
    assert examine(measure=False).variables == (
        Variable("ONEDNN_MAX_CPU_ISA", "AVX2\\x1b[0m", VARIABLES["ONEDNN_MAX_CPU_ISA"]),
        Variable("LD_PRELOAD", "libjemalloc.so libx.so", VARIABLES["LD_PRELOAD"]),
    )


@pytest.mark.parametrize(
    ("files", "quota", "available", "limit", "name"),
    [
        (
            {
                "/sys/fs/cgroup/cpu.max": "150000 100000\n", "/sys/fs/cgroup/memory.max": "2147483648\n",
                "/proc/meminfo": "MemTotal: 7 kB\nMemAvailable:  3 kB\n",
                "/proc/cpuinfo": "x: y\nmodel name\t: AMD EPYC\n",
            },
            1.5, 3072, 2**31, "AMD EPYC",
        ),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n", "/sys/fs/cgroup/memory.max": "max\n"}, None, None, None, "arm"),
    ],
)  # fmt: skip
def test_limits_of_a_container(files, quota, available, limit, name, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_text", lambda path: files.get(path, ""))
    monkeypatch.setattr(facts.platform, "processor", lambda: "arm")
    found = examine(measure=False)
    assert (found.processor.quota, found.memory.available, found.memory.limit) == (quota, available, limit)
    assert found.processor.name == name


def test_a_system_file_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert facts._text(str(tmp_path / "missing")) == ""


def test_memory_that_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", fail)
    assert examine(measure=False).memory.total is None
    monkeypatch.setattr(facts.sys, "platform", "win32")
    assert facts._total_memory() is None
