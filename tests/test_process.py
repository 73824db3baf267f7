"""Switches of the process: set where they are asked for, and put back."""

import signal
import threading

import pytest
import torch

from regard.process import cuda_float32, stop_on_signal, tuned, use_threads


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_flag_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signal() as stopped:
        assert not stopped()
        signal.raise_signal(number)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_other_threads_have_no_signals() -> None:
    seen = []

    def work() -> None:
        with stop_on_signal() as stopped:
            seen.append(stopped())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_denormals_are_zero_while_tuned() -> None:
    tiny = torch.tensor([1e-40])
    with tuned():
        assert float((tiny * 1.0)[0]) == 0
    assert float((tiny * 1.0)[0]) > 0


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
