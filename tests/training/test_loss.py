"""The chunked cross-entropy against torch's own, against dense targets, and against finite differences."""

from math import log

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax, nll_loss

from regard.errors import ChoiceError
from regard.training import loss as module
from regard.training.loss import FLAVOURS, Smoothing, cross_entropy, smoothing

N, H, V, PAD = 37, 5, 11, 0


def example(n=N, dtype=torch.float64, requires_grad=True):
    generator = torch.Generator().manual_seed(n)
    hidden, weight, bias = (torch.randn(*s, generator=generator, dtype=dtype) for s in ((n, H), (V, H), (V,)))
    target = torch.randint(1, V, (n,), generator=generator)
    return [t.requires_grad_(requires_grad) for t in (hidden, weight, bias)], target


def dense_target(flavour, epsilon, target):
    """The table in the module's docstring, written out."""
    on_true, on_other, on_pad = {
        "torch": (1 - epsilon + epsilon / V, epsilon / V, epsilon / V),
        "mxnet": (1 - epsilon + epsilon / V, epsilon / V, epsilon / V),
        "fairseq": (1 - epsilon, epsilon / (V - 1), epsilon / (V - 1)),
        "joeynmt": (1 - epsilon, epsilon / (V - 2), 0.0),
    }[flavour]
    q = torch.full((len(target), V), on_other, dtype=torch.float64)
    q[:, PAD] = on_pad
    q[torch.arange(len(target)), target] = on_true
    return q


@pytest.fixture(params=[(512 * V, 64), (8 * V, 3), (1, 1)], ids=lambda sizes: f"chunk {sizes[0] // V}")
def chunk(request, monkeypatch):
    for name, size in zip(("LOGITS", "BLOCK"), request.param, strict=True):
        monkeypatch.setattr(module, name, size)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own forward derivatives call it
@pytest.mark.parametrize("r_drop", [0.0, 0.7])
def test_second_derivatives(r_drop):
    """Of a gradient penalty, against the formula that a transform follows."""
    (hidden, weight, bias), target = example(n=6)
    smooth = smoothing("torch", 0.1, V, PAD)
    target = target[:3].repeat(2) if r_drop else target

    def loss(hidden):
        return cross_entropy(hidden, weight.detach(), bias.detach(), target, smooth, r_drop=r_drop)[0] ** 2

    found = torch.autograd.functional.hessian(loss, hidden.detach())
    torch.testing.assert_close(found, torch.func.hessian(loss)(hidden.detach()))
    assert found.abs().sum() > 1
    whole = cross_entropy(hidden, weight, bias, target, smooth, r_drop=r_drop)[0]
    gradients = torch.autograd.grad(whole, (hidden, weight, bias), create_graph=True)
    assert all(one.requires_grad for one in gradients)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own forward derivatives call it
@pytest.mark.usefixtures("chunk")
def test_forward_derivative():
    (hidden, weight, bias), target = example(requires_grad=False)
    smooth, forward = smoothing("torch", 0.1, V, PAD), torch.autograd.forward_ad
    along = torch.randn(N, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with forward.dual_level():
        found = forward.unpack_dual(
            cross_entropy(forward.make_dual(hidden, along), weight, bias, target, smooth)[0]
        ).tangent
    hidden.requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(hidden, weight, bias, target, smooth)[0], hidden)
    torch.testing.assert_close(found, (gradient * along).sum())


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("flavour", ["torch", "mxnet"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3])
def test_equals_torch(flavour, epsilon):
    (hidden, weight, bias), target = example()
    ours, nll = cross_entropy(hidden, weight, bias, target, smoothing(flavour, epsilon, V, PAD))
    logits = hidden @ weight.T + bias
    theirs = torch.nn.functional.cross_entropy(logits, target, label_smoothing=epsilon, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(nll, nll_loss(log_softmax(logits, -1), target, reduction="sum"))
    for a, b in zip(
        torch.autograd.grad(3 * ours, [hidden, weight, bias]),
        torch.autograd.grad(3 * theirs, [hidden, weight, bias]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_equals_a_dense_target(flavour, epsilon):
    (hidden, weight, bias), target = example()
    smooth = smoothing(flavour, epsilon, V, PAD)
    ours, _ = cross_entropy(hidden, weight, bias, target, smooth)
    log_p, q = log_softmax(hidden @ weight.T + bias, -1), dense_target(flavour, epsilon, target)
    dense = -(q * log_p).sum()
    torch.testing.assert_close(ours, dense)
    for a, b in zip(
        torch.autograd.grad(ours, [hidden, weight, bias], retain_graph=True),
        torch.autograd.grad(dense, [hidden, weight, bias], retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    divergence = kl_div(log_p, q, reduction="sum")
    torch.testing.assert_close(ours - N * smooth.entropy(V), divergence)


@pytest.mark.parametrize("epsilon", [0.05, 0.4])
def test_fairseq_is_fairseqs_own_formula(epsilon):
    (hidden, weight, bias), target = example()
    log_p = log_softmax(hidden @ weight.T + bias, -1)
    # fairseq/criterions/label_smoothed_cross_entropy.py, label_smoothed_nll_loss
    nll, smooth_loss = -log_p.gather(-1, target[:, None]).sum(), -log_p.sum()
    eps_i = epsilon / (V - 1)
    theirs = (1.0 - epsilon - eps_i) * nll + eps_i * smooth_loss
    ours = cross_entropy(hidden, weight, bias, target, smoothing("fairseq", epsilon, V, PAD))[0]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_targets_have_mass_one(flavour):
    smooth = smoothing(flavour, 0.3, V, 7)
    q = torch.full((V,), smooth.b, dtype=torch.float64)
    if smooth.left_out is not None:
        q[smooth.left_out] = 0
    q[4] += smooth.a
    assert q.sum().item() == pytest.approx(1)
    assert smooth.left_out == (7 if flavour == "joeynmt" else None)
    assert smooth.entropy(V) == pytest.approx(-sum(p * log(p) for p in q.tolist() if p))


def test_a_sharp_target_has_no_entropy():
    assert Smoothing(1.0, 0.0, None).entropy(V) == 0


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_gradient_against_finite_differences(flavour):
    inputs, target = example(n=9)
    smooth = smoothing(flavour, 0.2, V, PAD)
    assert torch.autograd.gradcheck(lambda *x: cross_entropy(*x, target, smooth)[0], inputs)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_parts_get_no_gradient(frozen):
    inputs, target = example(n=9)
    inputs[frozen].requires_grad_(False)
    cross_entropy(*inputs, target, smoothing("torch", 0.1, V, PAD))[0].backward()
    assert [t.grad is not None for t in inputs] == [i != frozen for i in range(3)]


def test_more_tokens_than_one_chunk(monkeypatch):
    monkeypatch.setattr(module, "LOGITS", 200 * V)
    (hidden, weight, bias), target = example(n=2 * 200 + 13)
    ours = cross_entropy(hidden, weight, bias, target, smoothing("torch", 0.1, V, PAD))[0]
    theirs = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, target, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(ours, theirs)


def test_no_logits_of_all_tokens_exist_at_once(monkeypatch):
    monkeypatch.setattr(module, "LOGITS", 4 * V)
    sizes, before = [], module._Block
    monkeypatch.setattr(module, "_Block", lambda x, *more: sizes.append(len(x)) or before(x, *more))
    inputs, target = example()
    cross_entropy(*inputs, target, smoothing("torch", 0.1, V, PAD))
    assert (max(sizes), sum(sizes)) == (4, N)


def test_no_tokens_is_no_loss():
    inputs, target = example(n=0)
    loss, nll = cross_entropy(*inputs, target, smoothing("torch", 0.1, V, PAD))
    assert (loss.item(), nll.item()) == (0, 0)
    loss.backward()
    assert all(not t.grad.any() for t in inputs)


def test_the_second_number_has_no_gradient():
    inputs, target = example()
    loss, nll = cross_entropy(*inputs, target, smoothing("torch", 0.1, V, PAD))
    assert loss.requires_grad
    assert not nll.requires_grad


def test_without_gradients_nothing_is_kept():
    inputs, target = example(requires_grad=False)
    loss, _ = cross_entropy(*inputs, target, smoothing("torch", 0.1, V, PAD))
    assert not loss.requires_grad


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_products_are_near(hidden_dtype):
    inputs, target = example(dtype=torch.float32)
    smooth = smoothing("torch", 0.1, V, PAD)
    exact = cross_entropy(*inputs, target, smooth)[0]
    expected = torch.autograd.grad(exact, inputs)
    hidden = inputs[0].detach().to(hidden_dtype).requires_grad_()
    loss, nll = cross_entropy(hidden, inputs[1], inputs[2], target, smooth, torch.bfloat16)
    assert (loss.dtype, nll.dtype) == (torch.float32, torch.float32)
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    found = torch.autograd.grad(loss, [hidden, *inputs[1:]])
    assert [g.dtype for g in found] == [hidden_dtype, torch.float32, torch.float32]
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b).norm() < 0.03 * b.norm()


def test_autocast_around_it_changes_nothing():
    inputs, target = example(dtype=torch.float32)
    smooth = smoothing("torch", 0.1, V, PAD)
    plain = cross_entropy(*inputs, target, smooth)[0]
    with torch.autocast("cpu", torch.bfloat16):
        inside = cross_entropy(*inputs, target, smooth)[0]
    assert torch.equal(plain, inside)


def test_unknown_flavour_is_refused():
    with pytest.raises(ChoiceError, match="unknown label smoothing 'farseq': expected one of 'fairseq'"):
        smoothing("farseq", 0.1, V, PAD)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("traced", [False, True])
def test_rows_that_do_not_count(flavour, traced, monkeypatch):
    """Padding is left out on the CPU, counts 0 where values are hidden, and likewise in a graph."""
    (hidden, weight, bias), target = example()
    keep = torch.arange(len(target)) % 3 > 0
    smooth, parts = smoothing(flavour, 0.1, V, PAD), [hidden, weight, bias]
    want = cross_entropy(hidden[keep], weight, bias, target[keep], smooth)
    monkeypatch.setattr(module, "are_hidden", lambda *_: True)
    monkeypatch.setattr(module, "is_traced", lambda *_: traced)
    found = cross_entropy(hidden, weight, bias, target, smooth, None, keep)
    torch.testing.assert_close(found, want)
    for one, other in zip(*(torch.autograd.grad(loss, parts) for loss, _ in (found, want)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rows", [1, 7, 130])
@pytest.mark.parametrize("where", ["here", "hidden", "traced"])
@pytest.mark.parametrize("flavour", ["torch", "joeynmt"])
def test_r_drop_is_torchs_divergence(rows, where, flavour, monkeypatch):
    """Beside cross-entropy; rows that do not count are left out, count 0 where values are hidden, and in a graph."""
    monkeypatch.setattr(module, "are_hidden", lambda *_: where != "here")
    monkeypatch.setattr(module, "is_traced", lambda *_: where == "traced")
    monkeypatch.setattr(module, "LOGITS", 2 * V * 20)  # 20 rows at a time
    monkeypatch.setattr(module, "BLOCK", 12)
    (_, weight, bias), _ = example()
    states = torch.randn(2 * rows, weight.shape[1], dtype=torch.float64, requires_grad=True)
    keep, target = (torch.rand(rows) < 0.7).repeat(2), torch.randint(1, V, (rows,)).repeat(2)
    smooth, leaves = smoothing(flavour, 0.1, V, PAD), (states, weight, bias)
    ours, nll = cross_entropy(states, weight, bias, target, smooth, None, keep, 3.0)
    plain, same = cross_entropy(states, weight, bias, target, smooth, None, keep)
    p, q = (torch.nn.functional.linear(h, weight, bias).log_softmax(-1)[keep[:rows]] for h in states.chunk(2))
    there, back = (kl_div(b, a, log_target=True, reduction="sum") for a, b in ((p, q), (q, p)))
    theirs = plain + 3.0 * (there + back) / 2
    torch.testing.assert_close((ours, nll), (theirs, same))
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_a_distribution_does_not_diverge_from_itself():
    (hidden, weight, bias), target = example(requires_grad=False)
    smooth, twice = smoothing("torch", 0.1, V, PAD), (hidden.repeat(2, 1), weight, bias, target.repeat(2))
    found = cross_entropy(*twice, smooth, None, None, 5.0)
    torch.testing.assert_close(found, cross_entropy(*twice, smooth))
    nothing = cross_entropy(hidden[:0], weight, bias, target[:0], smooth, None, None, 5.0)
    assert [float(one) for one in nothing] == [0, 0]


def test_states_of_a_frozen_encoder_may_be_inference_tensors():
    (hidden, weight, bias), target = example()
    cross_entropy(hidden, weight, bias, target, smoothing("torch", 0.1, V, PAD))[0].backward()
    expected = weight.grad.clone()
    with torch.inference_mode():
        frozen = hidden.detach().clone()
    weight.grad = None
    cross_entropy(frozen, weight, bias, target, smoothing("torch", 0.1, V, PAD))[0].backward()
    torch.testing.assert_close(weight.grad, expected)
