"""What holds for every encoder–decoder (DESIGN section 4): tested on every setting of both kinds, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard.attention.watch import watching
from regard.decoding.search import Hypothesis, SearchConfig, search
from regard.models.build import build
from regard.models.recurrent import RecurrentConfig
from regard.models.seq2seq import Memory, Seq2Seq, Step
from regard.models.transformer import TransformerConfig
from regard.nn.state import State

pytestmark = pytest.mark.sampled(4)  # `make test-slow` has every case

BOS, EOS, V = 1, 2, 17
B, T, S = 3, 5, 7

SMALL_R = {"kind": "recurrent", "width": 10, "embedding": 7, "score_width": 5}
SMALL_T = {
    "kind": "transformer",
    "width": 12,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "heads": 6,
    "ffn_width": 13,
    "length": 29,
}
RECURRENT: dict[str, dict[str, Any]] = {
    "default": {},
    "lstm": {"cell": "lstm"},
    "layers": {"encoder_layers": 2},
    "forward": {"direction": "forward"},
    "backward": {"direction": "backward", "cell": "lstm"},
    "concat": {"score": "concat"},
    "location": {"score": "location", "location_reach": 2},
    "location_new": {"score": "location", "location_reach": 1, "asks": "new", "feed": "previous", "gate": True},
    "general": {"score": "general"},
    "dot": {"score": "dot"},
    "scaled_dot": {"score": "scaled_dot"},
    "cosine": {"score": "cosine"},
    "distance": {"score": "distance"},
    "none": {"score": "none"},
    "none_previous": {"score": "none", "feed": "previous", "cell": "lstm"},
    "none_new": {"score": "none", "asks": "new", "feed": "none"},
    "uniform": {"normalizer": "uniform"},
    "feed_previous": {"feed": "previous"},
    "feed_none": {"feed": "none"},
    "luong": {"asks": "new", "feed": "previous", "score": "general", "cell": "lstm"},
    "luong_none": {"asks": "new", "feed": "none", "score": "dot"},
    "zeros": {"start": "zeros"},
    "zeros_lstm": {"start": "zeros", "cell": "lstm"},
}
TRANSFORMER: dict[str, dict[str, Any]] = {
    "default": {},
    "grouped": {"key_heads": 3},
    "one_key_head": {"key_heads": 1},
    "after": {"norm": "after"},
    "learned": {"positions": "learned"},
    "no_positions": {"positions": "none"},
    "untied": {"tied": False},
    "cosine": {"score": "cosine"},
    "dot": {"score": "dot"},
    "uniform": {"normalizer": "uniform"},
    "gelu": {"activation": "gelu"},
    "dropouts": {"attention_dropout": 0.3, "dropout": 0.4},
    "convolution": {"context": "convolution"},
    "no_reach": {"context": "convolution", "context_reach": 0},
    "running_mean": {"context": "running_mean", "norm": "after"},
    "recurrence": {"context": "recurrence", "key_heads": 2},
    "conformer": {"convolution": 2},
    "conformer_after": {"convolution": 1, "norm": "after", "context": "convolution"},
}
CONFIGS = {f"recurrent-{name}": RecurrentConfig(**SMALL_R | more) for name, more in RECURRENT.items()}
CONFIGS |= {f"transformer-{name}": TransformerConfig(**SMALL_T | more) for name, more in TRANSFORMER.items()}
every_setting = pytest.mark.parametrize("name", CONFIGS)
SOME = ["recurrent-default", "recurrent-luong", "recurrent-distance", "transformer-default", "transformer-grouped"]
some_settings = pytest.mark.parametrize("name", [*SOME, "transformer-after"])


def made(name: str, dtype: torch.dtype = torch.float64) -> Seq2Seq:
    """A model whose parameters are large enough for its outputs to differ from place to place."""
    torch.manual_seed(0)
    model = build(V, CONFIGS[name]).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def data() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    source, target = torch.randint(3, V, (B, S), generator=draw), torch.randint(3, V, (B, T), generator=draw)
    target[:, 0] = BOS
    return source, target, torch.arange(S) < torch.tensor([7, 3, 5])[:, None]


@torch.no_grad()
def found(model: Seq2Seq, source: Tensor, allowed: Tensor | None, limits: list[int], record=False, **config):
    state = model.start(model.encode(source, allowed), record)
    return search(model.step, state, limits, SearchConfig(**config), BOS, EOS)


# --- invariants ---------------------------------------------------------------------------------------------------


@every_setting
@pytest.mark.parametrize("record", [False, True])
@torch.no_grad()
def test_teacher_forced_forward_equals_repeated_step(name: str, record: bool) -> None:
    model, (source, target, allowed) = made(name), data()
    whole = model(source, target, allowed)
    assert whole.shape == (B, T, V)
    state, steps = model.start(model.encode(source, allowed), record), []
    for t in range(T):
        step = model.step(target[:, t : t + 1], state)
        assert isinstance(step, Step)
        steps.append(step.logits[:, 0])
        state = step.state
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    assert state.step == T


@every_setting
@torch.no_grad()
def test_several_hypotheses_are_stepped_as_if_alone(name: str) -> None:
    model, (source, _, allowed) = made(name), data()
    paths = torch.randint(3, V, (B, 4, T), generator=torch.Generator().manual_seed(1))
    state = model.start(model.encode(source, allowed)).select(torch.zeros(B, 4, dtype=torch.long))
    for t in range(T):
        logits, state = model.step(paths[:, :, t], state)
    for k in range(4):
        torch.testing.assert_close(logits[:, k], model(source, paths[:, k], allowed)[:, -1])


@every_setting
@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit(name: str) -> None:
    model, (source, target, allowed) = made(name), data()
    changed = target.clone()
    changed[:, 3] = (target[:, 3] + 1 - 3) % (V - 3) + 3
    before, after = model(source, target, allowed), model(source, changed, allowed)
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=0, atol=0)
    assert not torch.allclose(after[:, 3], before[:, 3])


@every_setting
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(name: str) -> None:
    model, (source, target, _) = made(name), data()
    want = model(source, target)
    pad = torch.randint(3, V, (B, 4))
    real, none = torch.ones(B, S, dtype=torch.bool), torch.zeros(B, 4, dtype=torch.bool)
    for parts, allowed in (((source, pad), (real, none)), ((pad, source), (none, real))):
        torch.testing.assert_close(model(torch.cat(parts, 1), target, torch.cat(allowed, 1)), want)
    both = torch.cat([pad, source, pad], 1)
    torch.testing.assert_close(model(both, target, torch.cat([none, real, none], 1)), want)


@every_setting
@torch.no_grad()
def test_batch_mates_change_nothing(name: str) -> None:
    model, (source, target, allowed) = made(name), data()
    together = model(source, target, allowed)
    for n in range(B):
        alone = model(source[n : n + 1, allowed[n]], target[n : n + 1])
        torch.testing.assert_close(alone[0], together[n])


@every_setting
@torch.no_grad()
def test_an_empty_source_gives_finite_logits(name: str) -> None:
    model, (source, target, _) = made(name), data()
    allowed = torch.ones(B, S, dtype=torch.bool)
    allowed[1] = False
    logits = model(source, target, allowed)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[[0, 2]], model(source[[0, 2]], target[[0, 2]]))


@every_setting
def test_every_parameter_learns_unless_it_cannot_matter(name: str) -> None:
    model, (source, target, allowed) = made(name), data()
    model(source, target, allowed).square().sum().backward()
    idle = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    config = model.config
    if isinstance(config, TransformerConfig):
        # a softmax does not feel what is added to all scores of a row, and uniform weights feel no score
        asked = ("query.", "key.", "around_cross.norm.") if config.normalizer == "uniform" else ("key.bias",)
        idle = {n for n in idle if not any(word in n for word in asked)}
    elif config.normalizer == "uniform":
        idle = {n for n in idle if ".cross.score." not in n}
    assert idle == set()


# --- search -------------------------------------------------------------------------------------------------------


@every_setting
@torch.no_grad()
def test_a_beam_of_one_equals_greedy(name: str) -> None:
    model, (source, _, allowed) = made(name), data()
    limits = [4, 7, 5]
    best = found(model, source, allowed, limits, beam=1)
    for n in range(B):
        said = [BOS]
        while len(said) - 1 < limits[n] and said[-1] != EOS:
            logits = model(source[n : n + 1, allowed[n]], torch.tensor([said]))
            said.append(int(logits[0, -1].argmax()))
        assert [h.tokens for h in best[n]] == [said[1:]]


def teacher_forced(model: Seq2Seq, source: Tensor, tokens: list[int]) -> tuple[float, Any]:
    """log p of an output and its maps, by feeding it token by token to one unpadded sentence."""
    state, total = model.start(model.encode(source[None]), record=True), 0.0
    for before, token in zip([BOS, *tokens], tokens, strict=False):
        logits, state = model.step(torch.tensor([[before]]), state)
        total += float(logits[0, 0].log_softmax(-1)[token])
    return total, model.maps(state)


def hypotheses(name: str, **config) -> tuple[Seq2Seq, list[tuple[Tensor, Hypothesis]]]:
    model, (source, _, allowed) = made(name), data()
    results = found(model, source, allowed, [4, 7, 5], **config)
    return model, [(source[n, allowed[n]], h) for n, hs in enumerate(results) for h in hs]


@every_setting
@torch.no_grad()
def test_log_prob_is_the_teacher_forced_one(name: str) -> None:
    model, pairs = hypotheses(name, beam=4, n_best=4)
    assert len(pairs) == 3 * 4
    for source, hypothesis in pairs:
        target = torch.tensor([[BOS, *hypothesis.tokens[:-1]]])
        log_p = model(source[None], target).log_softmax(-1)[0]
        assert hypothesis.log_prob == pytest.approx(float(sum(log_p[range(len(target[0])), hypothesis.tokens])))


@every_setting
@torch.no_grad()
def test_attention_follows_its_hypothesis_through_the_beam(name: str) -> None:
    model, pairs = hypotheses(name, record=True, beam=4, n_best=2)
    for source, hypothesis in pairs:
        carried = model.maps(hypothesis.state)
        log_prob, wanted = teacher_forced(model, source, hypothesis.tokens)
        assert hypothesis.log_prob == pytest.approx(log_prob, abs=1e-9)
        assert list(carried) == list(wanted)
        for site, seen in carried.items():
            got, want = seen.full()[0, 0], wanted[site].full()[0, 0]
            rows = len(hypothesis.tokens)
            assert got.shape[-2] == want.shape[-2] == rows
            keys = want.shape[-1]  # what lies beyond is the padding of the batch
            torch.testing.assert_close(got[..., :keys], want, rtol=0, atol=1e-5)
            assert not got[..., keys:].any()
            torch.testing.assert_close(got.sum(-1), torch.ones_like(got[..., 0]))


@some_settings
def test_recording_changes_no_bit(name: str) -> None:
    _, plain = hypotheses(name, beam=4, n_best=4)
    model, recorded = hypotheses(name, record=True, beam=4, n_best=4)
    for (_, a), (_, b) in zip(plain, recorded, strict=True):
        assert (a.tokens, a.score, a.log_prob) == (b.tokens, b.score, b.log_prob)
        assert model.maps(a.state) == {}


@some_settings
def test_limits_and_batch_mates_in_search(name: str) -> None:
    model, (source, _, allowed) = made(name), data()
    limits = [4, 7, 5]
    together = found(model, source, allowed, limits, beam=3, n_best=3)
    for n in range(B):
        alone = found(model, source[n : n + 1, allowed[n]], None, limits[n : n + 1], beam=3, n_best=3)[0]
        assert [h.tokens for h in together[n]] == [h.tokens for h in alone]
        assert [h.log_prob for h in together[n]] == pytest.approx([h.log_prob for h in alone])
        assert all(len(h.tokens) <= limits[n] for h in alone)


@some_settings
@torch.no_grad()
def test_the_maps_say_what_the_watcher_sees(name: str) -> None:
    """The queries kept in the state are those that attention was really asked with."""
    model, (source, target, allowed) = made(name), data()
    state = model.start(model.encode(source, allowed), record=True)
    calls: list[Any] = []
    with watching(calls.append):
        for t in range(T):
            state = model.step(target[:, t : t + 1], state).state
    maps = model.maps(state)
    assert len(calls) == T * len(maps)
    for place, seen in enumerate(maps.values()):
        for t in range(T):
            call = calls[t * len(maps) + place]
            asked = regard.AttentionMap.from_spec(call.query, call.key, call.spec).full()
            got = seen.full()[:, 0, :, t]  # [B, heads, S]
            torch.testing.assert_close(asked.reshape(B, got.shape[1], -1), got[..., : asked.shape[-1]])


# --- the interface ------------------------------------------------------------------------------------------------


@every_setting
@torch.no_grad()
def test_forward_is_project_of_hidden(name: str) -> None:
    model, (source, target, allowed) = made(name), data()
    memory = model.encode(source, allowed)
    assert isinstance(memory, Memory)
    assert memory.states.shape[:2] == (B, S)
    assert torch.equal(memory.allowed, allowed)
    hidden = model.hidden(memory, target)
    weight, bias = model.readout()
    assert weight.shape == (V, hidden.shape[-1])
    torch.testing.assert_close(model(source, target, allowed), hidden @ weight.T + bias)
    torch.testing.assert_close(model.project(hidden), hidden @ weight.T + bias)


@every_setting
@torch.no_grad()
def test_without_a_mask_everything_is_real(name: str) -> None:
    model, (source, target, _) = made(name), data()
    memory = model.encode(source)
    assert memory.allowed.all()
    torch.testing.assert_close(model(source, target), model(source, target, torch.ones(B, S, dtype=torch.bool)))


def parts(state: State) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(tensors of the sentences, tensors of the hypotheses)."""
    of_sentence: list[torch.Tensor] = []
    of_hypothesis: list[torch.Tensor] = []
    state.map(lambda t: of_sentence.append(t) or t, lambda t: of_hypothesis.append(t) or t)
    return of_sentence, of_hypothesis


@every_setting
@torch.no_grad()
def test_what_belongs_to_the_sentence_is_kept_once(name: str) -> None:
    model, (source, _, allowed) = made(name), data()
    state = model.start(model.encode(source, allowed))
    wide = state.select(torch.zeros(B, 4, dtype=torch.long))
    (of_sentence, _), (of_sentence_later, of_hypothesis_later) = parts(state), parts(wide)
    assert {t.shape[:2] for t in of_sentence_later} == {(B, 1)}
    assert {t.shape[:2] for t in of_hypothesis_later} == {(B, 4)}
    for before, after in zip(of_sentence, of_sentence_later, strict=True):
        assert before is after


@some_settings
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    model, (source, target, allowed) = made(name, dtype), data()
    logits = model(source, target, allowed)
    assert logits.dtype == dtype
    exact = model.double()(source, target, allowed)
    tolerance = 1e-3 if dtype == torch.float32 else 0.3
    torch.testing.assert_close(logits.double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


@some_settings
def test_under_autocast_it_trains(name: str) -> None:
    model, (source, target, allowed) = made(name, torch.float32).train(), data()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(source, target, allowed)
    logits.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@some_settings
def test_dropout_is_drawn_from_torchs_seed_in_training_only(name: str) -> None:
    model, (source, target, allowed) = made(name), data()
    assert torch.equal(model(source, target, allowed), model(source, target, allowed))
    model.train()
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(model(source, target, allowed))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


def test_memories_are_taken_apart_and_put_together() -> None:
    allowed = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    whole = Memory(torch.randn(3, 5, 7), allowed, torch.randn(3, 7))
    parts = [whole.one(n) for n in (1, 0)]
    assert [part.states.shape[1] for part in parts] == [2, 4]
    again = Memory.together(parts)
    assert torch.equal(again.allowed, allowed[[1, 0], :4])
    assert torch.equal(again.states[again.allowed], torch.cat([whole.states[1, :2], whole.states[0, :4]]))
    assert torch.equal(again.summary, whole.summary[[1, 0]])
    assert again.positions is None
