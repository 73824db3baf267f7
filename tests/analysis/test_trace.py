"""The trace: every logit is the sum of its parts, every weight a softmax of its score, every state the right one."""

import io
import json

import pytest
import torch
from rich.console import Console

from regard.analysis.trace import Trace, TraceStep, trace
from regard.bundle import Bundle
from regard.models.build import build
from regard.models.recurrent import SITE, RecurrentConfig
from regard.models.transformer import TransformerConfig
from regard.text.tokenizer import BOS, EOS, Tokenizer, TokenizerConfig

SOURCE = "le chat noir dort"
TEXTS = [SOURCE, "the black cat sleeps", "la vache"]


def recurrent(**changes):
    usual = {"width": 16, "embedding": 8, "score_width": 6}
    return RecurrentConfig(kind="recurrent", **{**usual, **changes})


def transformer(**changes):
    usual = {"width": 16, "encoder_layers": 1, "decoder_layers": 2, "heads": 4, "ffn_width": 8}
    return TransformerConfig(kind="transformer", **{**usual, **changes})


RECURRENT = {
    "bahdanau": recurrent(),
    "luong": recurrent(score="general", asks="new", feed="previous"),
    "lstm": recurrent(cell="lstm", score="dot", asks="new", feed="none"),
    "distance": recurrent(score="distance", feed="previous"),
    "uniform": recurrent(score="concat", normalizer="uniform"),
}


def make(config, alignment=None, seed=2):
    tokenizer = Tokenizer.learn(TEXTS * 2, TokenizerConfig(kind="bpe", vocabulary=40))
    torch.manual_seed(seed)
    model = build(len(tokenizer), config).eval()
    for parameter in model.parameters():
        parameter.data *= 2  # far from uniform
    if alignment is None:
        alignment = {"site": SITE, "heads": [0]}
    return Bundle("translate", ("fr", "en"), model, config, tokenizer, {}, alignment)


def traced(bundle, output="the cat"):
    source = [*bundle.tokenizer.encode(SOURCE), EOS]
    ids = [*bundle.tokenizer.encode(output), EOS]
    chosen = bundle.alignment
    return trace(bundle, SOURCE, source, ids, chosen.get("site", ""), chosen.get("heads", [])), source, ids


def states(bundle, source, ids):
    """The state, context and logits after each step, straight from the model; the first state before any step."""
    model = bundle.model
    with torch.inference_mode():
        state = model.start(model.encode(torch.tensor([source])))
        found = [(state.hidden[0, 0], None, None)]
        for token in [BOS, *ids[:-1]]:
            logits, state = model.step(torch.tensor([[token]]), state)
            found.append((state.hidden[0, 0], state.context[0, 0], logits[0, 0]))
    return found


@pytest.mark.parametrize("name", [*RECURRENT, "none"])
def test_every_logit_is_the_sum_of_its_parts(name):
    bundle = make(recurrent(score="none") if name == "none" else RECURRENT[name])
    shown, source, ids = traced(bundle)
    for step, (state, context, logits) in zip(shown.steps, states(bundle, source, ids)[1:], strict=True):
        weight, bias = (p.detach() for p in bundle.model.readout())
        for p in step.predictions:
            (i,) = [i for i in range(len(bundle.tokenizer)) if bundle.tokenizer.tokens([i]) == [p.token]]
            assert p.logit == pytest.approx(p.from_state + p.from_context + p.bias, abs=1e-4)
            assert p.logit == pytest.approx(float(logits[i]), abs=1e-4)
            assert p.from_state == pytest.approx(float(weight[i, :16] @ state), abs=1e-4)
            assert p.from_context == pytest.approx(float(weight[i, 16:] @ context), abs=1e-4)
            assert p.bias == pytest.approx(float(bias[i]))
            assert p.probability == pytest.approx(float(logits.softmax(-1)[i]), abs=1e-5)


@pytest.mark.parametrize("name", RECURRENT)
def test_weights_are_the_softmax_of_the_scores(name):
    shown, source, _ = traced(make(RECURRENT[name]))
    for step in shown.steps:
        assert len(step.weights) == len(step.scores) == len(shown.source_tokens) == len(source)
        assert sum(step.weights) == pytest.approx(1, abs=1e-5)
        softmax = torch.tensor(step.scores).softmax(-1).tolist()
        expected = [1 / len(source)] * len(source) if name == "uniform" else softmax
        assert step.weights == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", RECURRENT)
def test_the_context_is_the_weighted_memory(name):
    bundle = make(RECURRENT[name])
    shown, source, _ = traced(bundle)
    with torch.inference_mode():
        memory = bundle.model.encode(torch.tensor([source])).states[0]
    for step in shown.steps:
        assert step.context_norm == pytest.approx(float((torch.tensor(step.weights) @ memory).norm()), abs=1e-4)


@pytest.mark.parametrize("name", RECURRENT)
def test_the_right_state_asks(name):
    bundle = make(RECURRENT[name])
    shown, source, ids = traced(bundle)
    norms = [float(state.norm()) for state, _, _ in states(bundle, source, ids)]
    before = RECURRENT[name].asks == "previous"
    assert {step.asks for step in shown.steps} == {"s_{t-1}" if before else "s_t"}
    expected = norms[:-1] if before else norms[1:]
    assert [step.state_norm for step in shown.steps] == pytest.approx(expected, abs=1e-5)


def test_a_model_that_looks_at_nothing():
    shown, _, _ = traced(make(recurrent(score="none"), alignment={}))
    for step in shown.steps:
        assert (step.asks, step.state_norm, step.scores, step.weights) == ("", 0.0, [], [])
        assert step.context_norm > 0
        assert step.predictions[0].from_context is not None
    text = lines(shown)
    assert "no attention" in text
    assert "score e" not in text


def test_tokens_in_their_order():
    bundle = make(RECURRENT["bahdanau"])
    shown, source, ids = traced(bundle)
    names = bundle.tokenizer.tokens(ids)
    assert [step.token for step in shown.steps] == names
    assert [step.previous for step in shown.steps] == ["<s>", *names[:-1]]
    assert [step.number for step in shown.steps] == list(range(1, len(ids) + 1))
    assert shown.source_tokens == bundle.tokenizer.tokens(source)
    assert (shown.source, shown.site, shown.heads) == (SOURCE, SITE, [0])


@pytest.mark.parametrize("config", [RECURRENT["bahdanau"], transformer()], ids=["recurrent", "transformer"])
def test_predictions_are_the_three_best_and_the_token_itself(config):
    alignment = {"site": "decoder.layers.1.cross", "heads": [2]} if config.kind == "transformer" else None
    shown, _, _ = traced(make(config, alignment))
    for step in shown.steps:
        found = [p.probability for p in step.predictions]
        assert found == sorted(found, reverse=True)
        tokens = [p.token for p in step.predictions]
        assert len(set(tokens)) == len(tokens) == (3 if step.token in tokens[:3] else 4)
        assert step.token in tokens


@pytest.mark.sampled(4)
@pytest.mark.parametrize("key_heads", [None, 1, 2])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("heads", [[2], [0, 3], []])
def test_a_transformer(layer, heads, key_heads):
    site = f"decoder.layers.{layer}.cross"
    bundle = make(transformer(key_heads=key_heads), {"site": site, "heads": heads})
    shown, source, ids = traced(bundle)
    chosen = heads or [0, 1, 2, 3]
    model = bundle.model
    with torch.inference_mode():
        state = model.start(model.encode(torch.tensor([source])), record=True)
        for n, token in enumerate([BOS, *ids[:-1]]):
            logits, state = model.step(torch.tensor([[token]]), state)
            step = shown.steps[n]
            weights = model.maps(state)[site].full()[0, 0, chosen, -1]
            assert step.weights == pytest.approx(weights.mean(0).tolist(), abs=1e-5)
            assert len(step.scores) == len(source)
            if len(chosen) == 1:
                assert torch.tensor(step.scores).softmax(-1).tolist() == pytest.approx(step.weights, abs=1e-5)
            assert step.predictions[0].logit == pytest.approx(float(logits.max()), abs=1e-4)
            query = state.blocks[layer].cross_attention.queries[0, 0, chosen, -1]
            assert step.state_norm == pytest.approx(float(query.norm(dim=-1).mean()), abs=1e-5)
            assert (step.asks, step.context_norm, step.predictions[0].from_state) == ("q_t", 0.0, None)
    assert "state" not in lines(shown)


def test_a_transformer_whose_site_was_not_chosen():
    shown, _, _ = traced(make(transformer(), {}))
    assert all(step.weights == [] and step.predictions for step in shown.steps)


def lines(shown):
    file = io.StringIO()
    console = Console(file=file, width=160)
    for line in shown.lines():
        console.print(line)
    return file.getvalue()


def test_lines_show_what_was_found():
    shown, _, _ = traced(make(RECURRENT["bahdanau"]))
    text = lines(shown)
    step = shown.steps[0]
    assert (
        f"step 1: <s> → {step.token}   (s_{{t-1}} is the query, |s_{{t-1}}| = {step.state_norm:.2f}; |c_t| = " in text
    )
    assert all(f"{e:.2f}" in text for e in step.scores)
    assert all(f"{a:.3f}" in text for a in step.weights)
    assert all(f"p = {p.probability:.3f}" in text for p in step.predictions)
    assert "= state" in text
    assert "+ context" in text


def by_hand(*tokens):
    step = TraceStep(1, "<s>", tokens[0], "s_t", 1.0, [0.0] * len(tokens), [1 / len(tokens)] * len(tokens), 1.0, [])
    return Trace(" ".join(tokens), list(tokens), SITE, [0], [step])


@pytest.mark.parametrize("token", ["[bold]", "[/]", "[/b]", ":cat:", "猫", "$x$"])
def test_any_token_is_shown_as_it_is(token):
    assert lines(by_hand(token, "a")).count(token) == 2


def test_as_json_is_plain_data():
    shown, _, _ = traced(make(RECURRENT["bahdanau"]))
    data = json.loads(json.dumps(shown.as_json()))
    assert data["source_tokens"] == shown.source_tokens
    assert data["steps"][0]["weights"] == shown.steps[0].weights
    assert data["steps"][1]["predictions"][0]["from_state"] == shown.steps[1].predictions[0].from_state


def test_no_output_is_no_steps(tmp_path):
    bundle = make(RECURRENT["bahdanau"])
    shown = trace(bundle, "", [], [], "", [])
    assert shown.steps == []
    assert lines(shown) == ""
    shown.plot(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").exists()


@pytest.mark.parametrize("config", [RECURRENT["bahdanau"], recurrent(score="none"), transformer()])
def test_plot(config, tmp_path):
    bundle = make(config, {"site": "decoder.layers.0.cross", "heads": [1]} if config.kind == "transformer" else None)
    shown, _, _ = traced(bundle)
    shown.plot(tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text("utf-8")
    for step in shown.steps:
        assert f"{step.number}. {step.token}".replace("<", "&lt;").replace(">", "&gt;") in text
        assert f"{step.predictions[0].probability:.2f}" in text
