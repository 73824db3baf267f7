"""swap: another attention in any model, and the old one back, to the bit."""

import copy
import importlib
import pickle
import sys
from collections.abc import Callable
from functools import wraps
from itertools import count
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.nn.multihead import MultiHead
from regard.pipelines.load import load

swap_module = importlib.import_module("regard.interop.swap")

D, T, B = 8, 5, 2


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True), 2).eval()


def x() -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_swap_and_back() -> None:
    model = encoder()
    before, keys = model(x()), list(model.state_dict())
    done = regard.swap(model, normalizer="uniform")
    assert done.sites == ["layers.0.self_attn", "layers.1.self_attn"]
    with regard.observe(model) as seen:
        changed = model(x())
    torch.testing.assert_close(seen["layers.1.self_attn"][0].full(), torch.full((B, 2, T, T), 1 / T))
    assert float((changed - before).abs().max()) > 1e-3
    done.undo()
    assert torch.equal(model(x()), before)
    assert list(model.state_dict()) == keys
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention
    done.undo()  # twice is once


def test_an_undone_swap_is_not_entered_again() -> None:
    done = regard.swap(encoder(), normalizer="uniform")
    with done:
        assert len(done.sites) == 2
    with pytest.raises(regard.RegardError, match="this swap was undone: call swap again"), done:
        pass


def test_some_sites_with_a_learned_score() -> None:
    model = encoder()
    score = regard.Additive(D // 2, D // 2, 3)
    with regard.swap(model, score=score, sites=["layers.1.*"]) as done:
        assert done.sites == ["layers.1.self_attn"]
        model.train()(x()).sum().backward()
        assert score.v.grad is not None
        assert any(p is score.v for p in model.parameters())
    assert not any(p is score.v for p in model.parameters())


@torch.no_grad()
def test_swapping_what_is_swapped() -> None:
    model = encoder()
    before = model(x())
    with regard.swap(model, normalizer="softmax1"):
        middle = model(x())
        with regard.swap(model, score="cosine"):
            assert not torch.equal(model(x()), middle)
        assert torch.equal(model(x()), middle)
    assert torch.equal(model(x()), before)


class Calls(nn.Module):
    """An attention that calls torch's function, with a mask, causal or grouped, as given."""

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.mix = nn.Linear(D, 3 * D)
        self.settings = settings

    def forward(self, states: Tensor) -> Tensor:
        q, k, v = self.mix(states).unflatten(-1, (3, 2, -1)).unbind(-3)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v, **self.settings).transpose(1, 2).flatten(-2)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [{}, {"is_causal": True}, {"attn_mask": torch.randn(T, T), "scale": 0.3}],
    ids=["plain", "causal", "bias"],
)
def test_modules_that_call_torchs_function(settings) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Calls(**settings), nn.ReLU(), Calls(**settings))
    before, keys = model(x()), list(model.state_dict())
    with regard.swap(model, score="scaled_dot" if "scale" not in settings else regard.ScaledDot(0.3)) as done:
        assert done.sites == ["0", "2"]
        torch.testing.assert_close(model(x()), before)
    with regard.swap(model, normalizer="uniform", sites=["2"]) as done, regard.observe(model) as seen:
        changed = model(x())
        with regard.swap(model, normalizer="softmax1", sites=["2"]):
            assert not torch.equal(model(x()), changed)
        assert torch.equal(model(x()), changed)
    row = seen["2"][0].full()[0, 0, 1]
    torch.testing.assert_close(row, torch.tensor([0.5] * 2 + [0.0] * 3 if "is_causal" in settings else [0.2] * T))
    assert not torch.allclose(seen["0"][0].full()[0, 0, 1], row)
    assert torch.equal(model(x()), before)
    assert list(model.state_dict()) == keys
    assert "forward" not in model[2].__dict__


class Decorated(Calls):
    @wraps(Calls.forward)
    def forward(self, *args: Tensor) -> Tensor:
        return super().forward(*args)


@torch.no_grad()
def test_a_decorated_forward_is_looked_behind() -> None:
    model = nn.Sequential(Decorated())
    before = model(x())
    with regard.swap(model, normalizer="uniform") as done:
        assert done.sites == ["0"]
        assert not torch.equal(model(x()), before)


def test_a_module_whose_forward_was_replaced_gets_it_back() -> None:
    model = Calls()
    own = model.forward
    model.forward = own
    with regard.swap(model, score=regard.Additive(D // 2, D // 2, 3)):
        model(x()).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        assert len(list(model.parameters())) == 5
    assert model.forward is own
    assert len(list(model.parameters())) == 2


def test_our_own_models(tiny_run) -> None:
    model = load(tiny_run)
    if model.bundle.model_config.kind == "recurrent":
        with pytest.raises(regard.ChoiceError, match="there is no attention to replace"):
            regard.swap(model, normalizer="uniform")
        return
    before = model("le chat noir").log_prob
    with regard.swap(model, normalizer="uniform") as done:
        assert len(done.sites) == 5
        assert model("le chat noir").log_prob != before
    assert model("le chat noir").log_prob == before


def test_refusals_leave_the_model_alone() -> None:
    with pytest.raises(regard.ChoiceError, match="there is no attention to replace: swap knows"):
        regard.swap(nn.Linear(2, 2), score="dot")
    with pytest.raises(regard.ChoiceError, match="unknown score 'dott'"):
        regard.swap(encoder(), score="dott")
    with pytest.raises(regard.ChoiceError, match=r"the model has no module 'layer.0': did you mean 'layers.0'"):
        regard.swap(encoder(), score="dot", sites=["layer.0"])


def test_a_score_for_another_width_is_refused() -> None:
    model = encoder()
    with (
        regard.swap(model, score=regard.Additive(3, 3, 3)),
        pytest.raises(
            regard.ShapeError, match=r"query has width 4 .* query_dim is 3: make the score for the width of one"
        ),
    ):
        model(x())


def test_swaps_at_one_site_are_undone_in_their_order() -> None:
    model = encoder()
    before, parts = model(x()), [name for name, _ in model.named_modules()]
    first = regard.swap(model, normalizer="uniform")
    second = regard.swap(model, score=regard.Additive(4, 4, 3), sites=["layers.1.self_attn"])
    with pytest.raises(regard.RegardError, match=r"a later swap still stands at 'layers\.1\.self_attn': undo that one"):
        first.undo()
    second.undo()
    first.undo()
    assert torch.equal(model(x()), before)
    assert [name for name, _ in model.named_modules()] == parts


def test_half_of_a_swap_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model, changed = encoder(), []

    def interrupted(part: nn.Module, *_: object) -> None:
        changed.append(part)
        if len(changed) == 2:
            raise KeyboardInterrupt
        real(part, *_)

    real = swap_module._swap_torch
    monkeypatch.setattr(swap_module, "_swap_torch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        regard.swap(model, normalizer="uniform")
    assert [type(layer.self_attn) for layer in model.layers] == [nn.MultiheadAttention] * 2


@pytest.mark.parametrize("make", [encoder, Calls, lambda: MultiHead(D, 2)])
def test_an_interrupt_at_any_line_of_a_swap_leaves_the_model(make: Callable[[], nn.Module]) -> None:
    model = make()
    state = {name: (type(part), {*vars(part)}, {*part._modules}) for name, part in model.named_modules()}
    lines = 0

    def interrupt(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != swap_module.__file__:
            return None
        name = frame.f_code.co_name
        if name == "_replace" and frame.f_back is not None:
            name = frame.f_back.f_code.co_name
        if event == "line" and name in ("_swap_torch", "_swap_own", "_swap_calls", "_store"):
            lines -= 1
            if not lines:
                raise KeyboardInterrupt
        return interrupt

    for at in count(1):
        lines, before = at, sys.gettrace()
        sys.settrace(interrupt)
        try:
            done = regard.swap(model, normalizer="uniform")
        except KeyboardInterrupt:
            assert {n: (type(part), {*vars(part)}, {*part._modules}) for n, part in model.named_modules()} == state, at
        else:
            done.undo()
            break
        finally:
            sys.settrace(before)
    assert at > 5


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_swap_is_not_copied(how: Any) -> None:
    with regard.swap(encoder(), normalizer="uniform") as done, pytest.raises(regard.RegardError, match="not copied"):
        how(done)


@torch.no_grad()
def test_two_swaps_at_different_sites_of_one_model_of_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes)).eval()
    own, ids = model.config._attn_implementation, torch.tensor([[1, 5, 9, 7]])
    before = model(ids).logits

    def swapped(layer: int) -> Any:
        return regard.swap(model, normalizer="sparsemax", sites=[f"model.layers.{layer}.self_attn"])

    with swapped(1):
        second = model(ids).logits
    first, other = swapped(0), swapped(1)
    first.undo()
    assert torch.equal(model(ids).logits, second)
    assert not torch.equal(second, before)
    other.undo()
    assert model.config._attn_implementation == own
    assert torch.equal(model(ids).logits, before)


class Parent(Calls):
    """Attends, and has a part that attends, and one that is torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.child, self.other = Calls(), nn.MultiheadAttention(D, 2, batch_first=True)

    def forward(self, states: Tensor) -> Tensor:
        q, k, v = self.mix(states).unflatten(-1, (3, 2, -1)).unbind(-3)
        mine = nn.functional.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT.flatten(-2)
        return torch.stack([mine, self.child(states), self.other(states, states, states)[0]])


def test_a_swap_at_one_site_leaves_those_within_it() -> None:
    model, states = Parent().eval(), torch.randn(2, 5, D)
    before = model(states)
    for sites, changed in ((["."], [True, False, False]), (["child"], [False, True, False]), (["*"], [True] * 3)):
        with regard.swap(model, normalizer="uniform", sites=sites) as done:
            after = model(states)
        assert len(done.sites) == 0  # undone
        assert [not torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)] == changed
    assert torch.equal(model(states), before)


def helper(dropout: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return dropout(nn.functional.scaled_dot_product_attention(q, k, v))


class Helped(Calls):
    """Attends in a function whose first argument is another module."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.0)

    def forward(self, states: Tensor) -> Tensor:
        q, k, v = self.mix(states).unflatten(-1, (3, 2, -1)).unbind(-3)
        if self.training:
            return nn.functional.scaled_dot_product_attention(q.mT, k.mT, v.mT)
        return helper(self.drop, q.mT, k.mT, v.mT)


def test_a_swap_acts_where_a_function_takes_a_module() -> None:
    model, states = Helped().eval(), torch.randn(2, 5, D)
    before = model(states)
    with regard.swap(model, normalizer="uniform"):
        assert not torch.allclose(model(states), before, atol=1e-6)
