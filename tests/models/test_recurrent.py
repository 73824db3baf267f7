"""The recurrent encoder–decoder against its equations, one step at a time on one sentence."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import regard
from regard.models.recurrent import SITE, Recurrent, RecurrentConfig, make_score

V, S, T = 11, 5, 3
SMALL = {"kind": "recurrent", "width": 6, "embedding": 7, "score_width": 5}


def made(**more) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(V, RecurrentConfig(**SMALL | more)).double().eval()


@torch.no_grad()
def test_bahdanaus_equations_by_hand() -> None:
    """c_t = look(s_{t-1}), s_t = f(s_{t-1}, [y_{t-1}; c_t]), o_t = W [s_t; c_t] + b, s_0 = tanh(W_s · summary)."""
    model, source, target = made(), torch.tensor([4, 9, 3, 7, 5]), torch.tensor([1, 8, 6])
    decoder, embed = model.decoder, model.decoder.embedding.weight
    reader = nn.GRU(7, 3, bidirectional=True, batch_first=True).double()
    reader.load_state_dict(model.encoder.rnn.state_dict())
    states, final = reader(embed[source][None])
    states, summary = states[0], final[:, 0].flatten()
    s = torch.tanh(decoder.start.weight @ summary + decoder.start.bias)
    score, want = decoder.cross.score, []
    for y in target:
        energies = [
            score.v @ torch.tanh(score.query.weight @ s + score.key.weight @ states[j]) for j in range(S)
        ]  # fmt: skip
        c = torch.stack(energies).softmax(0) @ states
        s = decoder.cross.cell(torch.cat([embed[y], c])[None], s[None])[0]
        want.append(decoder.output.weight @ torch.cat([s, c]) + decoder.output.bias)
    torch.testing.assert_close(model(source[None], target[None])[0], torch.stack(want))


@torch.no_grad()
def test_luongs_equations_by_hand() -> None:
    """s_t = f(s_{t-1}, [y_{t-1}; c_{t-1}]), c_t = look(s_t) with c_0 = 0 and s_0 = 0, for an LSTM."""
    model = made(cell="lstm", asks="new", feed="previous", score="general", start="zeros")
    source, target = torch.tensor([4, 9, 3, 7, 5]), torch.tensor([1, 8, 6])
    decoder, embed = model.decoder, model.decoder.embedding.weight
    states = model.encode(source[None]).states[0]
    s, inner, c = torch.zeros(1, 6).double(), torch.zeros(1, 6).double(), torch.zeros(6).double()
    want = []
    for y in target:
        s, inner = decoder.cross.cell(torch.cat([embed[y], c])[None], (s, inner))
        energies = torch.stack([s[0] @ decoder.cross.score.key.weight @ states[j] for j in range(S)])
        c = energies.softmax(0) @ states
        want.append(decoder.output.weight @ torch.cat([s[0], c]) + decoder.output.bias)
    torch.testing.assert_close(model(source[None], target[None])[0], torch.stack(want))


@torch.no_grad()
def test_without_attention_the_context_is_the_summary_throughout() -> None:
    model = made(score="none")
    source, target = torch.randint(3, V, (2, S)), torch.randint(3, V, (2, T))
    memory = model.encode(source)
    moved = model.encode(source.flip(0)).states  # other states, same summary: nothing may change
    other = type(memory)(moved, memory.allowed, memory.summary)
    torch.testing.assert_close(model.hidden(other, target), model.hidden(memory, target))
    torch.testing.assert_close(model.hidden(memory, target)[..., 6:], memory.summary[:, None].expand(2, T, 6))


@pytest.mark.parametrize("record", [False, True])
def test_without_attention_there_is_no_map(record: bool) -> None:
    model = made(score="none")
    state = model.start(model.encode(torch.randint(3, V, (2, S))), record)
    state = model.step(torch.ones(2, 1, dtype=torch.long), state).state
    assert model.maps(state) == {}


def test_the_only_site_is_named_by_its_path() -> None:
    model = made()
    state = model.start(model.encode(torch.randint(3, V, (2, S))), record=True)
    assert model.maps(state) == {}  # nothing asked yet
    maps = model.maps(model.step(torch.ones(2, 1, dtype=torch.long), state).state)
    assert {site: tuple(seen.shape) for site, seen in maps.items()} == {SITE: (2, 1, 1, 1, S)}
    assert model.get_submodule(SITE).score is not None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("additive", regard.Additive), ("concat", regard.Concat), ("general", regard.General), ("dot", regard.Dot),
        ("scaled_dot", regard.ScaledDot), ("cosine", regard.Cosine), ("distance", regard.Distance),
    ],
)  # fmt: skip
def test_make_score(name: str, kind: type) -> None:
    assert type(make_score(RecurrentConfig(**SMALL | {"score": name}), 6)) is kind


def test_make_score_none() -> None:
    assert make_score(RecurrentConfig(**SMALL | {"score": "none"}), 6) is None


@pytest.mark.parametrize(("direction", "width"), [("both", 3), ("forward", 6), ("backward", 6)])
def test_both_directions_share_the_width(direction: str, width: int) -> None:
    model = made(direction=direction)
    assert (model.encoder.rnn.hidden_size, model.encoder.output_width) == (width, 6)


def test_embeddings_are_shared_by_source_and_target() -> None:
    assert sum(p.shape == (V, 7) for p in made().parameters()) == 1


def test_the_config_refuses_what_it_does_not_know() -> None:
    for wrong in ({"widht": 3}, {"score": "additve"}, {"width": 0}, {"dropout": 1.0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            RecurrentConfig(**SMALL | wrong)
    with pytest.raises(ValidationError, match="frozen"):
        RecurrentConfig(**SMALL).width = 7
    with pytest.raises(regard.ConfigError, match='feed = "current" needs asks = "previous"'):
        made(asks="new")
