"""Switches of the process: set where they are asked for, and put back."""

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
