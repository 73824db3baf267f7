"""A planned decoder is the model's own: the same logits, the same maps, whatever the search does with its states."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.models.build import build
from regard.models.planned import PlannedDecoder, PlannedEncoder, PlannedState, Plans, encoder_refusal, refusal
from regard.models.planned_recurrent import PlannedRecurrent
from regard.models.recurrent import Recurrent, RecurrentConfig
from regard.models.seq2seq import Memory
from regard.models.transformer import Transformer, TransformerConfig
from regard.nn.dropout import Dropout
from regard.pipelines.load import load
from regard.pipelines.translator import Translator

V = 41
CONFIGS = {
    "plain": {},
    "after": {"norm": "after"},
    "rms, gated": {"normalization": "rms", "gated": True, "activation": "silu", "ffn_biases": False},
    "halves, gelu": {"positions": "sinusoidal_halves", "activation": "gelu", "scaled": False},
    "learned": {"positions": "learned", "length": 9, "first_position": 2, "embedding_norm": True},
    "rotary": {"positions": "rotary", "key_heads": 2, "head_norm": True, "activation": "gelu_tanh"},
    "half rotary": {"positions": "rotary", "rotary_width": 4, "biases": ("query", "value")},
    "alibi": {"positions": "alibi", "key_heads": 1},
    "relative": {"positions": "relative", "buckets": 8, "max_distance": 6, "scaled_output": True},
    "none": {"positions": "none", "biases": (), "output_bias": False, "tied": False},
    "window": {"window": 3, "score": "dot"},
    "window in one layer": {"window": 4, "window_layers": (1,), "positions": "alibi"},
    "wide heads": {"head_width": 12, "cross_score": "dot"},
}


def make(**changes: object) -> Transformer:
    torch.manual_seed(3)
    sizes = {"width": 32, "encoder_layers": 1, "decoder_layers": 2, "heads": 4, "ffn_width": 24}
    model = build(V, TransformerConfig(kind="transformer", **{**sizes, **changes})).eval()
    for name, part in model.named_parameters():
        if "norm" in name or "bias" in name:  # not the zeros and ones of a fresh model
            torch.nn.init.normal_(part, 0.5, 0.3)
    assert isinstance(model, Transformer)
    return model


def memory(model: Transformer | Recurrent, padded: bool = True) -> Memory:
    source = torch.randint(4, V, (3, 6), generator=torch.Generator().manual_seed(1))
    allowed = torch.ones(3, 6, dtype=torch.bool)
    if padded:
        allowed[1, 4:] = allowed[2, 2:] = False
    return model.encode(source, allowed)


def go(takes: list[tuple[object, object]], steps: int = 14, record: bool = True, keeps: bool = True) -> list[Tensor]:
    """Step all (stepper, memory) along the same random search; the greatest difference of logits from the first's."""
    states = [stepper.start(memory, record=record) for stepper, memory in takes]
    dice = torch.Generator().manual_seed(7)
    token, differences = torch.ones(3, 1, dtype=torch.long), []
    for t in range(steps):
        found = [stepper.step(token, state) for (stepper, _), state in zip(takes, states, strict=True)]
        differences.append(max(float((one.logits - found[0].logits).abs().max()) for one in found))
        states = [one.state for one in found]
        beams = 1 if t < 2 else 3
        parents = torch.randint(0, token.shape[1], (len(token), beams), generator=dice)
        if keeps and t in (6, 9):  # a sentence has ended: first two of three stay, then one of two
            kept = torch.tensor([0, 2]) if t == 6 else torch.tensor([1])
            states, parents = [state.keep(kept) for state in states], parents[kept]
        states = [state.select(parents) for state in states]
        token = torch.randint(4, V, parents.shape, generator=dice)
    assert max(differences) < 1e-4, differences
    if record:
        one, other = ([stepper.maps(state) for (stepper, _), state in zip(takes, states, strict=True)])[:2]
        assert one.keys() == other.keys()
        for site in one:
            torch.testing.assert_close(one[site].full(), other[site].full(), atol=1e-5, rtol=1e-4)
    return states


@pytest.mark.sampled(4)
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_planned_decoder_steps_as_the_model_does(name: str, padded: bool) -> None:
    model = make(**CONFIGS[name])
    assert not refusal(model)
    there = memory(model, padded)
    go([(model, there), (PlannedDecoder(model), there)])


@pytest.mark.parametrize("name", ["plain", "rotary", "wide heads", "recurrent"])
@torch.no_grad()
def test_the_last_step_says_what_it_attends_to(name: str) -> None:
    """`attended` is the last row of the map, of a plan as of the model, where a batch has shrunk too."""
    recurrent = name == "recurrent"
    model: Transformer | Recurrent = make_recurrent() if recurrent else make(**CONFIGS[name])
    site, heads = ("decoder.cross", [0]) if recurrent else ("decoder.layers.1.cross", [1, 3])
    plan = PlannedRecurrent(model) if isinstance(model, Recurrent) else PlannedDecoder(model)
    states = [stepper.start(memory(model), record=not stepper.attends_unrecorded) for stepper in (model, plan)]
    for tokens in (torch.ones(3, 1, dtype=torch.long), torch.tensor([[5, 6], [7, 8], [9, 5]]), torch.tensor([[4, 7]])):
        if len(tokens) == 1:
            states = [state.keep(torch.tensor([1])) for state in states]
        states = [state.select(torch.zeros_like(tokens)) for state in states]
        states = [one.step(tokens, state).state for one, state in zip((model, plan), states, strict=True)]
        row = model.maps(states[0])[site].full()[:, :, heads, -1].mean(2)
        for one, state in zip((model, plan), states, strict=True):
            torch.testing.assert_close(one.attended(state, site, heads), row, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_nothing_is_recorded_unless_asked_and_buffers_grow() -> None:
    model = make()
    there = memory(model)
    _, state = go([(model, there), (PlannedDecoder(model), there)], steps=80, record=False, keeps=False)
    assert isinstance(state, PlannedState)
    assert not state.recorded
    assert state.step == 80


@torch.no_grad()
def test_a_state_can_be_continued_twice() -> None:
    """The second continuation finds its cells taken, and copies what came before."""
    model = make()
    planned = PlannedDecoder(model)
    _, state = planned.step(torch.ones(3, 1, dtype=torch.long), planned.start(memory(model)))
    ways = [torch.full((3, 1), n) for n in (5, 9)]
    first = [planned.step(token, state) for token in ways]
    again = [planned.step(token, state).logits for token in ways]
    assert all(torch.equal(one.logits, other) for one, other in zip(first, again, strict=True))
    later = [planned.step(ways[0], one.state).logits for one in first]
    own = planned.step(ways[0], planned.step(ways[1], planned.step(torch.ones(3, 1, dtype=torch.long),
                       planned.start(memory(model))).state).state).logits  # fmt: skip
    assert torch.equal(later[1], own)
    assert not torch.equal(later[0], own)


@torch.no_grad()
def test_one_hypothesis_has_its_own_maps() -> None:
    model = make()
    there, planned = memory(model), PlannedDecoder(model)
    theirs, ours = go([(model, there), (planned, there)], keeps=False)
    for n, k in ((0, 2), (2, 1)):
        for site, whole in model.maps(theirs.one(n, k)).items():
            torch.testing.assert_close(planned.maps(ours.one(n, k))[site].full(), whole.full(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["plain", "rotary", "relative", "window in one layer"])
@torch.no_grad()
def test_hypotheses_of_one_length_are_made_one_state(name: str) -> None:
    """Their maps, after the buffers were copied for some of the sentences, are those of each alone."""
    model = make(**CONFIGS[name])
    there, planned = memory(model), PlannedDecoder(model)
    theirs, ours = go([(model, there), (planned, there)])
    alone = [ours.one(0, k) for k in (2, 0, 0)]
    assert len({one.companions() for one in alone}) == 1
    assert planned.step(torch.ones(1, 3, dtype=torch.long), ours).state.companions() != ours.companions()
    for site, whole in planned.maps(alone[0].together(alone)).items():
        assert whole.shape[0] == len(alone)
        for row, k in enumerate((2, 0, 0)):
            own = model.maps(theirs.one(0, k))[site].full()[0]
            torch.testing.assert_close(whole.select(row).full(), own, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_sentence_that_is_kept_twice_has_both_its_maps() -> None:
    model = make()
    there, planned = memory(model), PlannedDecoder(model)
    states = [one.start(there, record=True) for one in (model, planned)]
    tokens = (torch.ones(3, 1, dtype=torch.long), torch.tensor([[5], [6]]), torch.tensor([[7], [8]]))
    for token in tokens:
        if len(token) < 3 and states[1].count == 3:
            states = [state.keep(torch.tensor([2, 2])) for state in states]
        states = [one.step(token, state).state for one, state in zip((model, planned), states, strict=True)]
    assert states[1].sources
    for site, whole in model.maps(states[0]).items():
        torch.testing.assert_close(planned.maps(states[1])[site].full(), whole.full(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
@torch.no_grad()
def test_other_precisions_are_near_and_batch_mates_do_not_matter(precision: str) -> None:
    model = make(encoder_layers=2)
    source = torch.randint(4, V, (3, 6))
    allowed = torch.ones(3, 6, dtype=torch.bool)
    encoder, decoder = PlannedEncoder(model, precision), PlannedDecoder(model, precision)
    token = torch.randint(4, V, (3, 1))

    def logits(rows: slice) -> Tensor:
        state = decoder.start(encoder.encode(source[rows], allowed[rows]))
        _, state = decoder.step(torch.ones_like(token[rows]), state)
        return decoder.step(token[rows], state).logits

    state = model.start(model.encode(source, allowed))
    _, state = model.step(torch.ones_like(token), state)
    exact = model.step(token, state).logits
    whole = logits(slice(None))
    assert 0 < float((whole - exact).abs().max()) < 0.1 * float(exact.std() + 1)
    if precision == "int8":  # whole numbers: what differs is the order of the attention's sums
        for n in range(3):
            torch.testing.assert_close(logits(slice(n, n + 1))[0], whole[n], atol=1e-5, rtol=1e-5)


RECURRENT = {
    "bahdanau": {},
    "luong": {"asks": "new", "feed": "previous", "score": "general"},
    "lstm, dot": {"cell": "lstm", "asks": "new", "feed": "none", "score": "dot", "start": "zeros"},
    "concat": {"cell": "lstm", "score": "concat", "direction": "forward"},
    "cosine": {"score": "cosine", "encoder_layers": 2},
    "distance": {"score": "distance", "feed": "previous"},
    "no attention": {"score": "none"},
}


def make_recurrent(**changes: object) -> Recurrent:
    torch.manual_seed(3)
    sizes = {"width": 24, "embedding": 16, "score_width": 12}
    model = build(V, RecurrentConfig(kind="recurrent", **{**sizes, **changes})).eval()
    assert isinstance(model, Recurrent)
    return model


@pytest.mark.parametrize("name", RECURRENT)
@torch.no_grad()
def test_a_planned_recurrent_decoder_steps_as_the_model_does(name: str) -> None:
    model = make_recurrent(**RECURRENT[name])
    assert not refusal(model)
    there = memory(model)
    go([(model, there), (PlannedRecurrent(model), there)])
    for precision in ("int8", "bfloat16"):
        state = PlannedRecurrent(model, precision).start(there)
        token = torch.randint(4, V, (3, 1))
        found = PlannedRecurrent(model, precision).step(token, state).logits
        exact = model.step(token, model.start(there)).logits
        assert 0 < float((found - exact).abs().max()) < 0.2


def test_recurrent_decoders_that_are_not_planned_say_why() -> None:
    assert "gate" in refusal(make_recurrent(gate=True))
    assert "gate, follows" in refusal(make_recurrent(score="location"))
    assert "normalized" in refusal(make_recurrent(normalizer="uniform"))


def test_what_cannot_be_planned_says_why() -> None:
    model = make()
    assert "hooks" in refusal(_hooked(make()))
    assert "in training" in refusal(model.train())
    assert "only encoder-decoders" in refusal(torch.nn.Linear(2, 2))
    assert "another score" in refusal(make(score="additive"))
    assert "another score" in refusal(make(normalizer="sparsemax"))
    assert "context" in refusal(make(context="running_mean"))
    assert "float32 on a CPU" in refusal(make().double())
    other = make()
    other.decoder.layers[0].self.query = torch.nn.Sequential(other.decoder.layers[0].self.query)
    assert "not linear" in refusal(other)
    other = make()
    other.decoder.layers[1].around_self.norm = Dropout(0.0)
    assert "norm" in refusal(other)
    for place in ("feed_forward", "around_self", "around_feed_forward"):
        other = make()
        getattr(other.decoder.layers[1], place).dropout = torch.nn.Hardtanh(-0.01, 0.01)
        assert "in the place of a dropout" in refusal(other)
    other = make()
    other.decoder.layers[0].feed_forward.inner = torch.nn.Sequential(other.decoder.layers[0].feed_forward.inner)
    assert "feed-forward layer" in refusal(other)
    other = make()
    other.decoder.layers[1].feed_forward.inner = Lora(32, 24)
    assert "a module is a Lora" in refusal(other)
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert "modules of all kinds have hooks" in refusal(make())
    hook.remove()
    assert not refusal(make())
    other = make()
    other.dropout = torch.nn.Sequential(other.dropout, torch.nn.Tanh())
    assert "in the place of a dropout" in refusal(other)
    other = make()
    other.encoder.layers[0].feed_forward.outer = torch.nn.Sequential(other.encoder.layers[0].feed_forward.outer)
    assert "encoder is not linear" in encoder_refusal(other)
    recurrent = build(V, RecurrentConfig(kind="recurrent")).eval()
    recurrent.decoder.dropout = torch.nn.Tanh()
    assert "in the place of a dropout" in refusal(recurrent)
    assert not encoder_refusal(make())
    assert "layer of the encoder" in encoder_refusal(make(convolution=2))
    assert "something else" in encoder_refusal(make(ctc_head=True))


class Lora(torch.nn.Linear):
    """A layer of a user's, whose forward is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0


def test_a_layer_of_ones_own_is_called_in_a_translation(translator: Translator) -> None:
    if isinstance(translator.model, Recurrent):
        return  # whose layers of numbers are others
    plain = translator("le chat", beam=1)
    layer = translator.model.decoder.layers[0].feed_forward
    own = Lora(layer.inner.in_features, layer.inner.out_features, layer.inner.bias is not None)
    own.load_state_dict(layer.inner.state_dict())
    layer.inner = own
    assert translator("le chat", beam=1).log_prob != plain.log_prob


def test_an_observed_model_is_searched_by_its_plan(translator: Translator) -> None:
    seen: list[str] = []
    with regard.observe(translator.model):
        seen.append(refusal(translator.model))
    assert seen == [""]


def _hooked(model: Transformer) -> Transformer:
    model.decoder.layers[0].self.register_forward_hook(lambda *_: None)
    return model


def test_a_plan_follows_the_parameters() -> None:
    model, plans = make(), Plans()
    first = plans.of(model)[1]
    assert plans.of(model)[1] is first
    assert plans.of(model)[0] is model  # in float32 the encoder is the model's own
    with torch.no_grad():
        model.decoder.layers[0].self.query.weight.mul_(2)
    second = plans.of(model)[1]
    assert second is not first
    model.decoder.layers[0].self.query.weight = torch.nn.Parameter(torch.zeros(32, 32))
    assert plans.of(model)[1] is not second
    assert plans.of(model.train()) == (model, model)
    assert isinstance(Plans("int8").of(model.eval())[0], PlannedEncoder)


@pytest.fixture
def translator(tiny_run) -> Translator:
    return load(tiny_run)


TEXTS = ["le chat noir dort", "Le chien rouge mange.", "", "la maison", "le cheval blanc " * 8]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("beam", [1, 3])
def test_a_translator_gives_what_it_gives_without_a_plan(translator: Translator, beam: int) -> None:
    planned = translator(TEXTS, beam=beam, n_best=min(2, beam))
    unrecorded = translator(TEXTS, beam=beam, record=False)
    translator.searched = lambda: (translator.model, translator.model)
    for ours, short, theirs in zip(planned, unrecorded, translator(TEXTS, beam=beam, n_best=min(2, beam)), strict=True):
        assert ours.tokens == theirs.tokens == short.tokens
        assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-4)
        assert [one.tokens for one in ours.alternatives] == [one.tokens for one in theirs.alternatives]
        assert ours.attention.keys() == theirs.attention.keys()
        for site, whole in theirs.attention.items():
            torch.testing.assert_close(ours.attention[site].full(), whole.full(), atol=1e-5, rtol=1e-4)
        assert not short.attention


def test_interventions_reach_a_translator_that_has_been_planned(translator: Translator) -> None:
    plain = translator(TEXTS[0])
    sites = [site for site in plain.attention if site.endswith("cross")]
    with regard.intervene(translator, sites[0], torch.zeros_like):
        changed = translator(TEXTS[0])
    assert changed.log_prob != plain.log_prob
    assert translator(TEXTS[0]).log_prob == plain.log_prob
    with regard.observe(translator) as seen:
        again = translator(TEXTS[0])
    assert again.tokens == plain.tokens
    torch.testing.assert_close(seen[sites[0]][0].full(), plain.attention[sites[0]].full())
    assert any(site.startswith("encoder") for site in seen) == isinstance(translator.model, Transformer)


def test_a_model_that_was_loaded_in_inference_mode(tiny_run) -> None:
    with torch.inference_mode():
        found = load(tiny_run)
        inside = found(TEXTS[0])
    assert found(TEXTS[0]).tokens == inside.tokens


@torch.no_grad()
def test_a_plan_of_a_model_that_has_changed_is_made_anew() -> None:
    def written(model: Any) -> None:
        for layer in model.decoder.layers:
            layer.self.query.weight.data.mul_(0)  # counts no version

    def in_inference(model: Any) -> None:
        with torch.inference_mode():
            model.decoder.layers[0].cross.key.weight.mul_(0)

    def replaced(model: Any) -> None:
        for layer in model.decoder.layers:
            layer.feed_forward.activation = torch.nn.Identity()

    def epsilon(model: Any) -> None:
        for layer in model.decoder.layers:
            layer.around_self.norm.eps = 10.0

    for change in (written, in_inference, replaced, epsilon):
        model, plans = make(), Plans()
        before = plans.of(model)
        assert plans.of(model) == before
        change(model)
        assert plans.of(model)[1] is not before[1], change.__name__
    model = make()
    model.decoder.layers[0].cross.attend = model.decoder.layers[0].cross.attend
    assert "a method of its own" in refusal(model)


def test_a_recurrent_model_with_an_embedding_of_ones_own_is_not_planned() -> None:
    model = regard.load("fr-en-rnn")
    want = model("le chat noir").text
    model.model.decoder.embedding = nn.Sequential(model.model.decoder.embedding)
    assert model("le chat noir").text == want


def test_an_output_layer_of_ones_own_is_what_a_recurrent_model_gives() -> None:
    model = regard.load("fr-en-rnn")
    want = model("le chat noir")

    class Same(nn.Linear):
        called = 0

        def forward(self, hidden: Tensor) -> Tensor:
            Same.called += 1
            return super().forward(hidden)

    own = Same(*reversed(model.model.decoder.output.weight.shape))
    own.load_state_dict(model.model.decoder.output.state_dict())
    model.model.decoder.output = own
    found = model("le chat noir")
    assert found.text == want.text
    assert found.log_prob == pytest.approx(want.log_prob, abs=1e-4)
    assert Same.called


def test_a_forward_set_on_the_output_layer_of_a_recurrent_model_is_called() -> None:
    model = regard.load("fr-en-rnn")
    want = model("le chat noir")
    output = model.model.decoder.output
    plain, called = output.forward, []
    output.forward = lambda hidden: called.append(1) or plain(hidden)
    assert model("le chat noir").text == want.text
    assert called


def test_hooks_of_a_gradient_leave_a_search_planned() -> None:
    model = regard.load("fr-en-rnn")
    called: list[int] = []
    model.model.decoder.output.register_full_backward_hook(lambda *_: called.append(1))
    model.model.eval()
    with torch.no_grad():
        assert refusal(model.model) == ""
    assert model("le chat noir").trace.steps
    model.model(*(torch.tensor([[5, 6, 7]]) for _ in range(2))).sum().backward()
    assert called


def test_the_loss_of_an_output_layer_with_hooks_is_not_that_of_its_weights() -> None:
    model = regard.load("fr-en-rnn").model
    hook = model.decoder.output.register_forward_hook(lambda module, given, logits: logits * 3)
    with pytest.raises(regard.ConfigError, match="a layer of its own, or has hooks"):
        model.readout()
    hook.remove()
    assert len(model.readout()) == 2
