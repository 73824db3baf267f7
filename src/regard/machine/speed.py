"""How fast a device multiplies matrices in each precision: measured, in a fraction of a second."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from time import perf_counter

import torch
from torch import Tensor

from regard.machine.redaction import reason
from regard.process import cuda_float32

# the rows of one step of a small beam, and those of a batch; cuBLAS takes no int8 product of 16 rows or fewer
ROWS = {"cpu": (8, 256), "gpu": (32, 2048)}
WIDTH = {"cpu": 512, "gpu": 2048}
SECONDS, CALLS = 0.08, 9  # a measurement ends after both; the shortest call counts, which other programs delay least
BUDGET = 2.0  # seconds for all measurements of a device
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32}


def speeds(
    device: torch.device, precisions: tuple[str, ...], budget: float = BUDGET
) -> dict[str, dict[int, float] | str]:
    """How many times as fast as float32 the product x Wᵀ is in other precisions, x [rows, width], W [width, width].

    int8 is the quantized linear on a CPU, which quantizes x as well, and the product of int8 matrices elsewhere.

    Args:
        device: where to measure.
        precisions: of "float32", "bfloat16", "float16", "tf32" (on CUDA), "int8"; float32 is always measured.
        budget: seconds; what does not fit is not measured.

    Returns:
        for each precision {rows: ratio}, above 1 where it is faster than float32; or why it was not measured.
    """
    kind = "cpu" if device.type == "cpu" else "gpu"
    end = perf_counter() + budget
    found: dict[str, dict[int, float] | str] = {}
    base: dict[int, float] = {}
    for name in ("float32", *(one for one in precisions if one != "float32")):
        if perf_counter() > end:
            found[name] = f"the {budget:g} s for measurements were over"
            continue
        try:
            times = {rows: seconds(device, name, rows, WIDTH[kind]) for rows in ROWS[kind]}
        except Exception as error:  # whatever a driver raises: a report is wanted most where something is wrong
            found[name] = reason(error)
            continue
        base = base or (times if name == "float32" else {})
        found[name] = {rows: base[rows] / time for rows, time in times.items()} if base else "float32 was not measured"
    return found


def seconds(device: torch.device, precision: str, rows: int, width: int) -> float:
    """The shortest of several calls of a product [rows, width] × [width, width], in seconds."""
    # a product in float32 is exact here, whatever the process has set; the setting is put back
    exact = cuda_float32(tf32=precision == "tf32") if device.type == "cuda" else nullcontext()
    with warnings.catch_warnings(), torch.inference_mode(), exact:
        warnings.simplefilter("ignore")  # torch calls its quantized tensors deprecated and has no other int8 linear
        call = _product(device, precision, rows, width)
        wait = _waiting(device)
        call(), wait()
        times: list[float] = []
        start = perf_counter()
        while len(times) < CALLS or perf_counter() - start < SECONDS:
            before = perf_counter()
            call(), wait()
            times.append(perf_counter() - before)
    return min(times)


def _product(device: torch.device, precision: str, rows: int, width: int) -> Callable[[], Tensor]:
    draw = torch.Generator().manual_seed(0)  # the generator of the process is left as it is
    x = torch.randn(rows, width, generator=draw).to(device)
    weight = torch.randn(width, width, generator=draw).to(device)
    if precision == "int8" and device.type == "cpu":
        quantised = torch.quantize_per_tensor(weight, 0.04, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantised, None)
        return lambda: torch.ops.quantized.linear_dynamic(x, packed, False)
    if precision == "int8":
        small, table = ((tensor * 40).clamp(-127, 127).to(torch.int8) for tensor in (x, weight))
        return lambda: torch._int_mm(small, table.t())
    x, weight = x.to(DTYPES[precision]), weight.to(DTYPES[precision])
    return lambda: torch.nn.functional.linear(x, weight)


def _waiting(device: torch.device) -> Callable[[], None]:
    """A function that returns once the device has computed what it was given."""
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)
