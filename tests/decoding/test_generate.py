"""One way from a state to hypotheses: search and draws, constraints around the step, maps of what comes out."""

import pytest
import torch

from regard.decoding.constraints import Constraint, Ruled, innermost
from regard.decoding.ctc import CTC
from regard.decoding.generate import generate, maps_of, stream
from regard.decoding.lexicon import Lexicon, spelling_table
from regard.decoding.sample import SampleConfig
from regard.decoding.search import SearchConfig
from regard.models.build import build
from regard.models.planned import PlannedDecoder
from regard.models.transformer import TransformerConfig
from regard.pretrained.rules import GenerationRules

VOCABULARY, BOS, EOS, PAD = 13, 1, 2, 0
LENGTHS = [5, 3]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(7)
    config = TransformerConfig(
        kind="transformer", width=12, heads=3, ffn_width=10, encoder_layers=1, decoder_layers=2, ctc_head=True
    )
    return build(VOCABULARY, config).eval()


def started(model, record: bool = False):
    source = torch.randint(3, VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(3))
    allowed = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    memory = model.encode(source, allowed)
    return memory, model.start(memory, record=record)


def outputs(model, how, ends=(EOS,), record=False, **settings):
    _, state = started(model, record)
    with torch.inference_mode():
        return generate(model, state, [[BOS], [BOS]], [7, 4], how, ends, **settings)


def test_greedy_draws_are_greedy_search(model) -> None:
    searched = outputs(model, SearchConfig(1, 0.0))
    drawn = outputs(model, SampleConfig(temperature=0.0))
    for (a,), (b,) in zip(searched, drawn, strict=True):
        assert a.tokens == b.tokens
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-5)


def test_every_end_ends_a_text(model) -> None:
    plain = outputs(model, SearchConfig(1, 0.0), ends=())
    cut = plain[0][0].tokens[1]
    for how in (SearchConfig(1, 0.0), SampleConfig(temperature=0.0)):
        (found,), _ = outputs(model, how, ends=(EOS, cut))
        place = next(n for n, token in enumerate(plain[0][0].tokens) if token in (EOS, cut))
        assert found.tokens == plain[0][0].tokens[: place + 1]


BEFORE, LIMITS = [[BOS], [BOS]], [7, 4]


@pytest.mark.parametrize("how", [SearchConfig(3, 0.6, 3), SampleConfig(seed=1), SampleConfig(temperature=0.0)])
@pytest.mark.parametrize(
    "rules",
    [
        GenerationRules(suppressed=tuple(range(3, 9))),
        GenerationRules(suppressed_first=tuple(range(2, 10))),
        GenerationRules(forced_first=5, suppressed_first=tuple(range(6, 13))),
        GenerationRules(forced_last=4),
        GenerationRules(bad_words=((3,), (9, 9), (BOS, 11), (12, 12, 10))),
    ],
)
def test_rules_hold_in_every_output(model, how, rules: GenerationRules) -> None:
    found = outputs(model, how, ends=(), constraints=[Ruled(rules, BEFORE, LIMITS)])
    for limit, hypotheses in zip(LIMITS, found, strict=True):
        for one in hypotheses:
            tokens = one.tokens
            assert not set(tokens) & set(rules.suppressed)
            first = 0 if rules.forced_first is None else 1
            assert tokens[first] not in rules.suppressed_first
            assert rules.forced_first in (None, tokens[0])
            assert len(tokens) == limit
            assert rules.forced_last in (None, tokens[-1])
            said = [BOS, *tokens]
            for word in rules.bad_words:
                assert all(tuple(said[n : n + len(word)]) != word for n in range(len(said)))


def test_rules_change_nothing_else(model) -> None:
    """Scores are those of the model where no rule applies; a forced token costs nothing."""
    plain = outputs(model, SearchConfig(1, 0.0))
    same = outputs(model, SearchConfig(1, 0.0), constraints=[Ruled(GenerationRules(), BEFORE, LIMITS)])
    for (a,), (b,) in zip(plain, same, strict=True):
        assert a.tokens == b.tokens
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-6)
    rules = GenerationRules(forced_first=plain[0][0].tokens[0])
    (forced,), _ = outputs(model, SearchConfig(1, 0.0), constraints=[Ruled(rules, BEFORE, LIMITS)])
    assert forced.tokens == plain[0][0].tokens
    assert forced.log_prob > plain[0][0].log_prob


def test_constraints_meet_the_protocol_and_nest(model) -> None:
    memory, state = started(model, record=True)
    log_p = model.ctc_head(memory.states).log_softmax(-1)
    ctc = CTC(log_p, memory.allowed, 0.3, PAD, BOS, EOS)
    words = Lexicon(spelling_table([[5, 6], [7]], 4, EOS, VOCABULARY), BOS)
    assert all(isinstance(one, Constraint) for one in (ctc, words, Ruled(GenerationRules(), BEFORE, LIMITS)))
    with torch.inference_mode():
        found = generate(model, state, [[BOS], [BOS]], [6, 6], SearchConfig(4, 0.0, 2), [EOS], constraints=[ctc, words])
    for hypotheses in found:
        for one in hypotheses:
            assert set(one.tokens) <= {4, 5, 6, 7, EOS}
            assert innermost(one.state) is one.state  # the decoder's own
            assert all(seen.shape[-2] == len(one.tokens) for seen in maps_of(model, one).values())


@pytest.mark.parametrize("how", [SearchConfig(3, 0.6), SampleConfig(seed=2)])
def test_maps_are_those_of_a_forward_on_the_output(model, how) -> None:
    found = outputs(model, how, record=True)
    memory, _ = started(model)
    from regard.attention.maps.map import AttentionMap
    from regard.attention.watch import Call, calls_by_site, watching

    for n, (best,) in enumerate(found):
        calls: list[Call] = []
        with torch.inference_mode(), watching(calls.append):
            own = type(memory)(memory.states[n : n + 1], memory.allowed[n : n + 1])
            model.hidden(own, torch.tensor([[BOS, *best.tokens[:-1]]]))
        true = calls_by_site(model, calls)
        for site, seen in maps_of(model, best).items():
            (call,) = true[site]
            whole = AttentionMap.from_spec(call.query, call.key, call.spec).full()[0]
            torch.testing.assert_close(seen.full(), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("how", [SearchConfig(3, 0.6, 2), SampleConfig(seed=2)])
def test_maps_of_a_plan_are_the_models_made_when_asked_for_and_stay(model, how) -> None:
    with torch.inference_mode():
        planned = PlannedDecoder(model)
        memory, _ = started(model)
        expected = [maps_of(model, one) for some in outputs(model, how, record=True) for one in some]
        found = generate(planned, planned.start(memory, record=True), [[BOS], [BOS]], LIMITS, how, [EOS])
    lazy = [maps_of(planned, one) for some in found for one in some]
    assert len(lazy) == len(expected) >= 2
    before = [parameter.detach().clone() for parameter in model.parameters()]
    try:
        with torch.no_grad():  # what was seen stays as it was, before it is looked at
            for parameter in model.parameters():
                parameter.zero_()
        for ours, theirs in zip(lazy, expected, strict=True):
            assert list(ours) == list(theirs)
            for site in theirs:
                torch.testing.assert_close(ours[site].full(), theirs[site].full(), atol=1e-5, rtol=1e-4)
    finally:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), before, strict=True):
                parameter.copy_(value)


def test_a_stream_is_the_same_draws(model) -> None:
    _, state = started(model)
    config = SampleConfig(seed=9)
    with torch.inference_mode():
        ((whole,), _) = generate(model, state, [[BOS], [BOS]], [6, 6], config, [EOS])
        _, state = started(model)
        known = list(stream(model, state.keep(torch.tensor([0])), [BOS], 6, config, [EOS]))
    assert known == [whole.tokens[: n + 1] for n in range(len(whole.tokens))]
