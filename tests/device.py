"""The device that the equality grid and the gradchecks of attention run on: REGARD_TEST_DEVICE, the CPU by default.

    REGARD_TEST_DEVICE=cuda make test

Tensors are drawn on the CPU and moved, so every device computes with the same numbers.
"""

import os

import pytest
import torch
from torch import Tensor

DEVICE = torch.device(os.environ.get("REGARD_TEST_DEVICE", "cpu"))
HAS_FLOAT64 = DEVICE.type != "mps"
# for tests whose tolerance needs float64, such as gradcheck
in_float64 = pytest.mark.skipif(not HAS_FLOAT64, reason=f"{DEVICE} has no float64")
# for tests of torch.func: a tensor of the pretend device is a wrapper, which no transform goes into
of_torch = pytest.mark.skipif(DEVICE.type == "pretend", reason="torch.func does not transform the pretend device")


def leaf(tensor: Tensor) -> Tensor:
    """A tensor on the test's device that collects a gradient."""
    return tensor.detach().to(DEVICE).requires_grad_()
