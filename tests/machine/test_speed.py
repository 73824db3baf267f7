"""Speeds: ratios of measured times, and a reason where there are none."""

import pytest
import torch

from regard.machine import speed
from regard.machine.speed import ROWS, seconds, speeds

CPU = torch.device("cpu")


def test_ratios_are_of_the_measured_times(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"float32": 6.0, "bfloat16": 3.0, "int8": 12.0}
    monkeypatch.setattr(speed, "seconds", lambda device, name, rows, width: times[name] * rows)
    few, many = ROWS["cpu"]
    assert speeds(CPU, ("float32", "bfloat16", "int8")) == {
        "float32": {few: 1.0, many: 1.0}, "bfloat16": {few: 2.0, many: 2.0}, "int8": {few: 0.5, many: 0.5},
    }  # fmt: skip


def test_a_failure_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device, name: str, rows: int, width: int) -> float:
        if name == "int8":
            raise RuntimeError("no kernel\nstack")
        return 1.0

    monkeypatch.setattr(speed, "seconds", fail)
    assert speeds(CPU, ("int8",))["int8"] == "no kernel"
    monkeypatch.setattr(speed, "seconds", lambda device, name, rows, width: 1 / 0 if name == "float32" else 1.0)
    assert speeds(CPU, ("bfloat16",)) == {"float32": "division by zero", "bfloat16": "float32 was not measured"}


def test_the_time_for_measurements_is_bounded() -> None:
    assert speeds(CPU, ("bfloat16",), budget=-1.0)["bfloat16"] == "the -1 s for measurements were over"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "int8"])
def test_every_precision_is_measured_on_a_cpu(precision: str) -> None:
    before = torch.get_rng_state()
    assert 0 < seconds(CPU, precision, 4, 16) < 1
    assert torch.equal(torch.get_rng_state(), before)


def test_the_quantised_linear_computes_the_product() -> None:
    exact, quantised = (speed._product(CPU, precision, 8, 64)() for precision in ("float32", "int8"))
    assert (exact - quantised).norm() < 0.05 * exact.norm()


def test_the_product_of_integers_computes_the_product() -> None:
    """What is measured on an accelerator, here on meta: shapes and types alone."""
    assert speed._product(torch.device("meta"), "int8", 32, 64)().shape == (32, 64)
    assert speed._product(torch.device("meta"), "bfloat16", 32, 64)().dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_tf32_is_set_for_its_own_measurement_alone(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device whose products are counted instead of computed."""
    matmul = torch.backends.cuda.matmul
    before, seen = matmul.fp32_precision, []
    call = lambda: seen.append(matmul.fp32_precision)  # noqa: E731
    monkeypatch.setattr(speed, "_product", lambda *given: call)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    assert seconds(torch.device("cuda"), precision, 4, 16) >= 0
    assert set(seen) == {"tf32" if precision == "tf32" else "ieee"}
    assert matmul.fp32_precision == before
