"""ALTI: each layer's contributions from the model's own weights, their product by hand, and what must sum to 1."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regard
from random_outputs import BLOCKS, SOURCE, completer, recurrent, translator
from regard.analysis.alti import Mixing, _Attention, _layers
from regard.analysis.residual import record


def of_a_layer(attention, weights, keys, states, norm):
    """c_ij of one attention in a loop over queries and keys, from W_V, W_O and the weights; the residual last."""
    heads, width = attention.heads, attention.head_width
    group = heads // attention.key_heads
    rows = []
    for i, state in enumerate(states):
        terms = []
        for j in range(len(keys)):
            term = torch.zeros_like(state)
            for head in range(heads):
                part = slice(head // group * width, (head // group + 1) * width)
                bias = 0 if attention.value.bias is None else attention.value.bias[part]
                value = attention.value.weight[part] @ keys[j] + bias
                out = attention.output.weight[:, head * width : (head + 1) * width]
                term = term + weights[head, i, j] * (out @ value)
            terms.append(term)
        terms.append(state)
        whole = sum(terms) + (0 if attention.output.bias is None else attention.output.bias)
        if norm is not None:  # a norm is linear where its mean and size are those of the whole
            size = (whole.var(unbiased=False) + norm.eps).sqrt()
            terms = [(term - term.mean()) / size * norm.weight for term in terms]
            whole = norm(whole)
        near = torch.stack([whole.abs().sum() - (whole - term).abs().sum() for term in terms])
        rows.append(near)
    return torch.stack(rows)


def normalized(rows, together):
    """The shares of each row; where the residual is a key's own it is added to it before, as one term."""
    rows = rows.clamp_min(0)
    return rows / rows.sum(-1, keepdim=True) if not together else rows


@pytest.mark.parametrize("name", ["pre", "post"])
def test_the_cross_attention_of_one_layer_is_that_of_a_loop(name):
    made = translator(torch.float64, **BLOCKS[name])(SOURCE, beam=1)
    given, module = made.forward_pass(), made.translator.model
    kept = {}
    layer = module.decoder.layers[0]

    def keep(_, args, kwargs, output):
        kept["memory"], kept["added"] = (kwargs.get("key", args[1] if len(args) > 1 else None)), output

    hook = layer.cross.register_forward_hook(keep, with_kwargs=True)
    before = layer.around_cross.register_forward_pre_hook(lambda _, args: kept.update(state=args[0][0]))
    with torch.no_grad(), regard.observe(module) as seen:
        given()
        memory = module.encode(given.arguments["source"]).states[0]
    hook.remove()
    before.remove()
    weights = seen["decoder.layers.0.cross"][0].full()[0]
    norm = layer.around_cross.norm if name == "post" else None
    with torch.no_grad():
        expected = normalized(of_a_layer(layer.cross, weights, memory, kept["state"], norm), False)
        streams, _ = record(given)
        site, shares, residual = _layers(streams["decoder"])[1]
    assert site == "decoder.layers.0.cross"
    torch.testing.assert_close(shares, expected[:, :-1])
    torch.testing.assert_close(residual, expected[:, -1])


@pytest.mark.parametrize("name", ["pre", "post", "post-rms", "llama", "alibi"])
def test_rows_sum_to_one_and_a_target_is_a_row(name):
    made = completer(torch.float64, **BLOCKS[name])("le chat", length=4, seed=1)
    found = regard.flow(made.attention, "alti")
    assert found.shape == made.attention["decoder.layers.1.self"].shape[-2:]
    torch.testing.assert_close(found.sum(-1), torch.ones(len(found), dtype=found.dtype))
    assert bool((found >= 0).all())
    assert float(found[0, len(made.source_ids) :].abs().max()) == 0  # what comes later gave nothing
    for target in (0, -1):
        torch.testing.assert_close(regard.flow(made.attention, "alti", target=target), found[target])


def test_of_an_encoder_decoder_the_source_has_its_share():
    made = translator(torch.float64)(SOURCE, beam=1)
    found = regard.flow(made.attention, "alti")
    assert found.shape == (len(made.ids), len(made.source_ids))
    assert bool(((found.sum(-1) > 0) & (found.sum(-1) <= 1 + 1e-9)).all())
    given = made.forward_pass()
    inside = Mixing(record(given)[0], "encoder")(slice(None))
    (_, _, _), (_, first, _), (_, within, _), (_, second, kept) = _layers(record(given)[0]["decoder"])
    torch.testing.assert_close(found, kept[:, None] * (within @ first @ inside) + second @ inside)
    torch.testing.assert_close(inside.sum(-1), torch.ones(len(inside), dtype=inside.dtype))


@pytest.mark.parametrize("make", [translator, completer])
def test_a_target_needs_no_matrix(make, monkeypatch):
    made = make(torch.float64)(SOURCE, **({"beam": 1} if make is translator else {"length": 3, "seed": 1}))
    found = regard.flow(made.attention, "alti")
    monkeypatch.setattr(_Attention, "matrix", None)
    for target in range(len(found)):
        torch.testing.assert_close(regard.flow(made.attention, "alti", target=target), found[target])


PEAK = """
import resource, sys, torch
sys.path.insert(0, {tests!r})
import regard
from random_outputs import completer
torch.set_num_threads(1)
def row(n):
    model = completer(positions="rotary", width=32, heads=2)
    model.model.decoder.layers = model.model.decoder.layers[:1]  # each one below computes all rows
    made = model("chat " * n, length=1, seed=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = regard.flow(made.attention, "alti", target=-1)
    return found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
row(9)
found, grown = row({words})
assert abs(float(found.sum()) - 1) < 1e-3
print(len(found), grown)
"""


@pytest.mark.slow
def test_memory_of_a_target_at_sixteen_thousand_tokens():
    tests = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", PEAK.format(tests=tests, words=8000)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tokens, grown = map(float, done.stdout.split())
    assert tokens > 16000
    assert grown < 200


def test_attention_that_adds_nothing_leaves_each_position_to_itself():
    model = completer(torch.float64)
    for layer in model.model.decoder.layers:
        for parameter in layer.self.output.parameters():
            torch.nn.init.zeros_(parameter)
    made = model("le chat noir", length=3, seed=1)
    found = regard.flow(made.attention, "alti")
    torch.testing.assert_close(found, torch.eye(found.shape[1], dtype=found.dtype)[-len(found) :])


def test_maps_that_do_not_know_a_transformer_are_refused():
    made = recurrent()(SOURCE, beam=1)
    with pytest.raises(regard.ChoiceError, match=r"a Transformer's generation\.attention"):
        regard.flow(made.attention, "alti")
    one, other = (translator()(SOURCE, beam=1).attention["decoder.layers.1.cross"] for _ in range(2))
    with pytest.raises(regard.ChoiceError, match="maps of a result"):
        regard.flow([one, other], "alti")
