"""Every kernel: who asks to see changes no bit, and what else is in the batch changes nothing (DESIGN section 3)."""

from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard.attention.operator import KERNELS as TABLE
from regard.attention.spec import make_spec
from regard.attention.watch import watching

B, H, T, D = 3, 2, 13, 8
KERNELS = list(TABLE)


def choices(kernel: str) -> dict[str, Any]:
    """What the kernel is made for."""
    torch.manual_seed(0)
    return {
        "windowed": {"mask": regard.window(3, 1)},
        "additive": {"score": regard.Additive(D, D, 5)},
        "linear": {"score": regard.EluFeatures(), "normalizer": regard.Share(), "mask": regard.causal()},
        "blockwise": {"score": regard.Distance(), "normalizer": "sparsemax"},
    }.get(kernel, {})  # fmt: skip


def tensors(length: int = T) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(B, H, length, D, generator=draw) for _ in range(3)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernel_takes_what_it_is_tested_on(kernel: str) -> None:
    given = choices(kernel)
    spec = make_spec(given.get("score", "scaled_dot"), given.get("normalizer", "softmax"), given.get("mask"), None)
    assert TABLE[kernel].refusal(*tensors(), spec) is None


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("trains", [False, True])
def test_asking_to_see_changes_no_bit(kernel: str, trains: bool) -> None:
    found = []
    for watched in (False, True):
        given = choices(kernel)
        inputs = [tensor.requires_grad_(trains) for tensor in tensors()]
        seen: list[Any] = []
        if watched:
            with watching(seen.append):
                output = regard.attend(*inputs, kernel=kernel, **given)
            assert len(seen) == 1
        else:
            output = regard.attend(*inputs, kernel=kernel, **given)
        gradients = torch.autograd.grad(output.square().sum(), inputs) if trains else ()
        found.append((output, *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_batch_mates_change_nothing(kernel: str) -> None:
    given = choices(kernel)
    query, key, value = (tensor.double() for tensor in tensors())
    if isinstance(given.get("score"), torch.nn.Module):
        given["score"].double()
    together = regard.attend(query, key, value, kernel=kernel, **given)
    for n in range(B):
        alone = regard.attend(*(t[n : n + 1] for t in (query, key, value)), kernel=kernel, **given)
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_padding_changes_nothing(kernel: str) -> None:
    given = choices(kernel)
    query, key, value = (tensor.double() for tensor in tensors())
    if isinstance(given.get("score"), torch.nn.Module):
        given["score"].double()
    lengths = torch.tensor([5, T, 9])
    own = given.pop("mask", None)
    if own is not None and kernel == "windowed":
        own = regard.window(3, 1, offset=0)
    if own is not None and kernel == "linear":
        own = regard.causal(0)
    mask = regard.padding(lengths) if own is None else own & regard.padding(lengths)
    together = regard.attend(query, key, value, mask=mask, kernel=kernel, **given)
    for n, length in enumerate(lengths.tolist()):
        parts = query[n : n + 1, :, :length], key[n : n + 1, :, :length], value[n : n + 1, :, :length]
        alone = regard.attend(*parts, mask=own, kernel=kernel if own is not None else "auto", **given)
        torch.testing.assert_close(together[n : n + 1, :, :length], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_sizes_that_do_not_fit_are_refused_by_name(kernel: str) -> None:
    query, key, value = tensors()
    with pytest.raises(regard.ShapeError, match="key has 13 positions on axis -2 and value has 12"):
        regard.attend(query, key, value[:, :, 1:], kernel=kernel, **choices(kernel))
    with pytest.raises(regard.ShapeError, match="query has size 3 on batch axis -4 and key has 2"):
        regard.attend(query, key[1:], value[1:], kernel=kernel, **choices(kernel))
