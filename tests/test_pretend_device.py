"""The pretend device refuses what CUDA refuses, and computes the same numbers as the CPU."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pretend_device
from pretend_device import HostSync, no_sync, present, syncs

D = "pretend"


def test_tensors_of_two_devices_do_not_meet() -> None:
    own, other = torch.ones(3, device=D), torch.ones(3)
    for meet in (
        lambda: own + other,
        lambda: torch.cat([own, other]),
        lambda: own.masked_fill(other > 0, 0.0),
        lambda: other[torch.tensor([0], device=D)],
        lambda: own.gather(0, torch.tensor([0])),
        lambda: nn.functional.embedding(torch.tensor([0]), torch.ones(2, 3, device=D)),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            meet()
    assert (own + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0]  # no axes
    assert own[torch.tensor([0, 2])].tolist() == [1.0, 1.0]  # indices
    own[torch.tensor([True, False, False])] = 5.0
    assert own.tolist() == [5.0, 1.0, 1.0]


def test_cpu_generators_and_numpy_are_refused() -> None:
    own = torch.ones(3, device=D)
    with pytest.raises(RuntimeError, match="generator"):
        torch.multinomial(own, 1, generator=torch.Generator())
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        own.numpy()
    with pytest.raises(RuntimeError, match="lengths"):
        pack_padded_sequence(torch.ones(2, 5, 3, device=D), torch.tensor([5, 3], device=D), batch_first=True)


def test_the_random_state_is_the_devices_own() -> None:
    module = torch.get_device_module(D)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, state = torch.rand(4, device=D), module.get_rng_state()
    second = nn.functional.dropout(torch.ones(40, device=D))
    module.set_rng_state(state)
    assert torch.equal(second, nn.functional.dropout(torch.ones(40, device=D)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(4, device=D))
    assert not torch.equal(first.cpu(), torch.rand(4))


def test_waiting_is_refused_and_counted() -> None:
    own = torch.ones(3, device=D)
    waits = [lambda: bool(own.sum()), own.tolist, own.cpu, own.nonzero, lambda: own[own > 0], lambda: own.equal(own)]
    with syncs() as found:
        for wait in waits:
            wait()
    assert found.total() == len(waits)
    with no_sync():
        (own + 1).sum()
        for wait in waits:
            with pytest.raises(HostSync):
                wait()
        with no_sync("aten.nonzero"):
            own.nonzero()


def test_the_device_is_reported_only_where_it_is_present() -> None:
    assert not torch.accelerator.is_available()
    with present() as device:
        assert torch.accelerator.is_available()
        assert device == torch.accelerator.current_accelerator(check_available=True) or device.type == D


@pytest.mark.parametrize("fused", [False, True])
def test_training_is_that_of_the_cpu(fused: bool) -> None:
    torch.manual_seed(0)
    here = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Linear(3, 4))
    here[3].weight = here[0].weight  # tied
    there = copy.deepcopy(here).to(D)
    assert there[3].weight is there[0].weight
    losses = []
    for model, device in ((here, "cpu"), (there, D)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        x = torch.linspace(0, 1, 15).reshape(5, 3).to(device)
        for _ in range(4):
            optimizer.zero_grad(set_to_none=True)
            loss = model(x).square().sum()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
    assert losses[:4] == pytest.approx(losses[4:], rel=1e-5)
    assert {p.device.type for p in copy.deepcopy(there).parameters()} == {D}


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_layers_are_those_of_the_cpu(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    here = kind(3, 5, batch_first=True, bidirectional=True)
    there = copy.deepcopy(here).to(D)
    x = torch.randn(2, 7, 3)
    found = []
    for layer, given in ((here, x), (there, x.to(D))):
        packed = pack_padded_sequence(given, torch.tensor([7, 4]), batch_first=True)
        padded = pad_packed_sequence(layer(packed)[0], batch_first=True)[0]
        (padded.square().sum() + layer(given)[0].sum()).backward()
        found.append([padded, *(p.grad for p in layer.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs.cpu())


def test_autocast_computes_in_bfloat16() -> None:
    layer = nn.Linear(3, 2).to(D)
    with torch.autocast(D, torch.bfloat16):
        found = layer(torch.ones(4, 3, device=D))
    assert found.dtype == torch.bfloat16
    assert not torch.is_autocast_enabled(D)
    found.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_the_name_is_registered_once() -> None:
    assert torch._C._get_privateuse1_backend_name() == pretend_device.NAME
