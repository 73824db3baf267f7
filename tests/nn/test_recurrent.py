"""The recurrent encoder against torch's own on unpadded single sentences; the attentional step by its equations."""

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.attention.scores import LocationAware, Score
from regard.nn.recurrent import AttentionalStep, RecurrentEncoder

S, E, W = 7, 5, 3
CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


def made(cell: str, direction: str, layers: int = 2, dropout: float = 0.0) -> RecurrentEncoder:
    torch.manual_seed(0)
    return RecurrentEncoder(cell, E, W, layers, direction, dropout).double()


def alone(encoder: RecurrentEncoder, cell: str, direction: str, x: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """torch's layer on one unpadded sentence `[n, e]`: states and the last layer's final state."""
    other = CELLS[cell](E, W, layers, batch_first=True, bidirectional=direction == "both").double()
    other.load_state_dict(encoder.rnn.state_dict())
    states, final = other((x.flip(0) if direction == "backward" else x)[None])
    final = final[0] if cell == "lstm" else final
    summary = torch.cat([final[-2, 0], final[-1, 0]]) if direction == "both" else final[-1, 0]
    return states[0].flip(0) if direction == "backward" else states[0], summary


every_reader = pytest.mark.parametrize(
    ("cell", "direction"), [(c, d) for c in CELLS for d in ("both", "forward", "backward")]
)
ALLOWED = torch.tensor(
    [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0, 1], [0, 0, 0, 1, 0, 0, 0]]
).bool()


@every_reader
@pytest.mark.parametrize("layers", [1, 2])
def test_every_sentence_is_read_as_if_alone_and_unpadded(cell: str, direction: str, layers: int) -> None:
    encoder = made(cell, direction, layers)
    x = torch.randn(len(ALLOWED), S, E, dtype=torch.float64)
    states, summary = encoder(x, ALLOWED)
    assert states.shape == (len(ALLOWED), S, encoder.output_width)
    for n, allowed in enumerate(ALLOWED):
        want_states, want_summary = alone(encoder, cell, direction, x[n, allowed], layers)
        torch.testing.assert_close(states[n, allowed], want_states)
        torch.testing.assert_close(summary[n], want_summary)
        assert not states[n, ~allowed].any()


@every_reader
def test_what_stands_in_the_padding_is_never_read(cell: str, direction: str) -> None:
    encoder = made(cell, direction)
    x = torch.randn(len(ALLOWED), S, E, dtype=torch.float64)
    torch.testing.assert_close(encoder(x, ALLOWED), encoder(x.masked_fill(~ALLOWED[..., None], 1e3), ALLOWED))


@every_reader
def test_an_empty_sentence_is_all_zeros(cell: str, direction: str) -> None:
    encoder, x = made(cell, direction), torch.randn(2, S, E, dtype=torch.float64)
    allowed = torch.stack([torch.zeros(S), torch.ones(S)]).bool()
    states, summary = encoder(x, allowed)
    assert not states[0].any()
    assert not summary[0].any()
    torch.testing.assert_close(states[1], alone(encoder, cell, direction, x[1], 2)[0])


def test_dropout_lies_between_layers_only() -> None:
    assert made("gru", "both", 1, 0.5).rnn.dropout == 0
    assert made("gru", "both", 2, 0.5).rnn.dropout == 0.5


N, K, D, M = 2, 3, 11, 13
CHOICES = [
    ("previous", "current"),
    ("previous", "previous"),
    ("previous", "none"),
    ("new", "previous"),
    ("new", "none"),
]


def step_of(cell: str, asks: str, feed: str) -> AttentionalStep:
    torch.manual_seed(0)
    score = regard.Additive(D, M, 5)
    return AttentionalStep(cell, E, D, M, score=score, asks=asks, feed=feed).double()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("asks", "feed"), CHOICES)
def test_one_step_follows_its_equations(cell: str, asks: str, feed: str) -> None:
    step = step_of(cell, asks, feed)
    y, s, inner, c = (torch.randn(N, K, w, dtype=torch.float64) for w in (E, D, D, M))
    look = lambda state: state.sum(-1, keepdim=True) * torch.ones(M, dtype=torch.float64)  # noqa: E731
    got = step(y, s, inner, c, look)
    for n in range(N):
        for k in range(K):
            found = look(s[n, k])
            fed = {"current": found, "previous": c[n, k], "none": torch.zeros(0, dtype=torch.float64)}[feed]
            x = torch.cat([y[n, k], fed])[None]
            if cell == "gru":
                new, new_inner = step.cell(x, s[n, k][None]), inner[n, k]
            else:
                new, new_inner = step.cell(x, (s[n, k][None], inner[n, k][None]))
            context = found if asks == "previous" else look(new[0])
            torch.testing.assert_close([t[n, k] for t in got], [new.view(-1), new_inner.view(-1), context])


def test_attend_is_attention_with_keys_projected_once() -> None:
    step = step_of("gru", "previous", "current")
    query, memory = torch.randn(N, K, D, dtype=torch.float64), torch.randn(N, S, M, dtype=torch.float64)
    mask = regard.padding(torch.tensor([4, 7]))
    got = step.attend(query, step.keys(memory), memory, mask)
    torch.testing.assert_close(got, regard.attend(query, memory, memory, score=step.score, mask=mask))


class Onward(Score):
    """-|j - place i - 1|, where place i is where the last look was: it goes on by one, whatever the states say."""

    follows = True

    def project_key(self, key: Tensor) -> Tensor:
        return torch.arange(key.shape[-2], dtype=key.dtype)[:, None].expand(*key.shape[:-1], 1)

    def compare(self, query: Tensor, key: Tensor) -> Tensor:
        looked = query[..., D:]
        place = (looked * torch.arange(looked.shape[-1], dtype=looked.dtype)).sum(-1, keepdim=True)
        return -50 * (key.transpose(-2, -1) - place - 1).abs()


def contexts_of(step: AttentionalStep, memory: Tensor, allowed: Tensor, times: int) -> list[Tensor]:
    """The contexts of as many steps, the weights behind each."""
    key, context = step.keys(memory), step.first_context(memory, allowed)
    state, found = torch.zeros(len(memory), 1, D, dtype=memory.dtype), []
    for _ in range(times):
        query = step.query(state, context)
        context = step.attend(query, key, memory, regard.padding(allowed.sum(-1)))
        found.append(context)
    return found


def test_a_score_of_one_s_own_may_follow_the_last_look() -> None:
    step = AttentionalStep("gru", E, D, M, score=Onward()).double()
    memory = torch.randn(N, S, M, dtype=torch.float64)
    found = contexts_of(
        step, memory, torch.ones(N, S, dtype=torch.bool), 3
    )  # the first look is from the middle, place 3
    for at, context in zip((4, 5, 6), found, strict=True):
        torch.testing.assert_close(context[:, 0, :M], memory[:, at])


def test_what_stands_behind_the_mask_never_reaches_a_location_aware_look() -> None:
    torch.manual_seed(0)
    step = AttentionalStep("gru", E, D, M, score=LocationAware(D, M, 5, reach=2), gate=True).double()
    allowed = torch.arange(S) < torch.tensor([4, S])[:, None]
    memory = torch.randn(N, S, M, dtype=torch.float64)
    want = contexts_of(step, memory, allowed, 3)
    poisoned = memory.clone()
    poisoned[0, 4:] = float("nan")
    got = contexts_of(step, poisoned, allowed, 3)
    torch.testing.assert_close(torch.cat(got), torch.cat(want))


def test_without_a_score_the_memory_is_remembered_as_it_is() -> None:
    memory = torch.randn(N, S, M)
    assert AttentionalStep("gru", E, D, M, score=None).keys(memory) is memory


def test_the_new_state_cannot_be_fed_its_own_context() -> None:
    with pytest.raises(regard.ConfigError, match=r'feed = "current" needs asks = "previous": .* does not exist yet'):
        step_of("gru", "new", "current")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cell": "gur"}, "unknown cell 'gur': expected one of 'gru', 'lstm'"),
        ({"asks": "nw"}, "unknown asks 'nw': expected one of 'new', 'previous'"),
        ({"feed": "curent"}, "unknown feed 'curent': expected one of 'current', "),
    ],
)
def test_unknown_choices_of_a_step(more: dict, message: str) -> None:
    settings = {"cell": "gru", "asks": "previous", "feed": "current"} | more
    with pytest.raises(regard.ChoiceError, match=message):
        step_of(**settings)


def test_unknown_choices_of_an_encoder() -> None:
    with pytest.raises(regard.ChoiceError, match="unknown cell 'lstn': expected one of 'lstm', 'gru'"):
        RecurrentEncoder("lstn", E, W)
    with pytest.raises(regard.ChoiceError, match="unknown direction 'bth': expected one of 'both', "):
        RecurrentEncoder("gru", E, W, direction="bth")


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:.torch.jit.script. is deprecated")  # torch's
@pytest.mark.parametrize("direction", ["both", "forward", "backward"])
@pytest.mark.parametrize("cell", CELLS)
def test_encoder_within_transforms(cell: str, direction: str) -> None:
    encoder = made(cell, direction)
    x, along = torch.randn(2, 3, 2, S, E, dtype=torch.float64)
    allowed = torch.arange(S) < torch.tensor([[S], [4]])

    def states(x: Tensor) -> Tensor:
        return encoder(x, allowed)[0]

    want = torch.stack([states(one) for one in x])
    torch.testing.assert_close(torch.func.vmap(states)(x), want)
    step = 1e-6
    slope = (states(x[0] + step * along[0]) - states(x[0] - step * along[0])) / (2 * step)
    torch.testing.assert_close(torch.func.jvp(states, (x[0],), (along[0],))[1], slope, rtol=1e-5, atol=1e-7)
    forward = torch.autograd.forward_ad
    with forward.dual_level():
        found = forward.unpack_dual(states(forward.make_dual(x[0], along[0]))).tangent
    torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-7)
