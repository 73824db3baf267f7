"""Context in the query: every part against plain loops over single states, alone and inside attention."""

import inspect
from collections.abc import Callable

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

import regard
from regard.errors import ShapeError
from regard.nn import Context, Convolution, Mixed, MultiHead, Recurrence, RunningMean
from regard.nn.blocks import DecoderLayer, EncoderLayer, FeedForward, Residual

T, D, HEADS = 7, 6, 3
ALLOWED = torch.tensor(
    [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0]]
).bool()
BACK: dict[str, Callable[[], Context]] = {
    "convolution": lambda: Convolution(D, 2),
    "depthwise": lambda: Convolution(D, 4, groups=D),
    "grouped": lambda: Convolution(D, 1, groups=2),
    "itself": lambda: Convolution(D, 0),
    "running_mean": RunningMean,
    "recurrence": lambda: Recurrence(D),
    "mixed_mean": lambda: Mixed(D, RunningMean()),
    "mixed_recurrence": lambda: Mixed(D, Recurrence(D)),
    "mixed_twice": lambda: Mixed(D, Mixed(D, Convolution(D, 1))),
}
AHEAD: dict[str, Callable[[], Context]] = {
    "centred": lambda: Convolution(D, 2, 2),
    "next": lambda: Convolution(D, 0, 1, groups=3),
    "longer_than_the_text": lambda: Convolution(D, 11, 9),
    "backward": lambda: Recurrence(D, "backward"),
    "both": lambda: Recurrence(D, "both"),
    "mixed_both": lambda: Mixed(D, Recurrence(D, "both")),
}
looking_back = pytest.mark.parametrize("name", BACK)
looking_ahead = pytest.mark.parametrize("name", AHEAD)
every_part = pytest.mark.parametrize("name", BACK | AHEAD)


def made(name: str) -> Context:
    torch.manual_seed(0)
    part = (BACK | AHEAD)[name]().double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return part


def attention(context: Context | None = None, **more) -> MultiHead:
    torch.manual_seed(1)
    return MultiHead(D, HEADS, context=context, **more).double().eval()


def residual() -> Residual:
    return Residual(nn.LayerNorm(D), "before", 0.0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(shape[-1]))


# --- the witness: one text, one state at a time -------------------------------------------------------------------


def convolved(part: Convolution, x: Tensor, real: list[int]) -> Tensor:
    weight, out = part.convolution.weight, torch.zeros_like(x)
    size = D // part.convolution.groups
    for i in real:
        for j in real:
            if not 0 <= j - i + part.left <= part.left + part.right:
                continue
            for c in range(D):
                first = c // size * size
                out[i, c] += sum(weight[c, k, j - i + part.left] * x[j, first + k] for k in range(size))
    return out


def averaged(x: Tensor, real: list[int]) -> Tensor:
    out = torch.zeros_like(x)
    for i in real:
        before = [x[j] for j in real if j <= i]
        out[i] = sum(before) / len(before)
    return out


def recurred(part: Recurrence, x: Tensor, real: list[int]) -> Tensor:
    """The equations of Cho et al. 2014 in torch's form: r, z, n, and h = (1 - z) n + z h."""
    rnn, sides = part.reader.rnn, []
    one_way = {"forward": [("", real)], "backward": [("", real[::-1])], "both": [("", real), ("_reverse", real[::-1])]}
    for suffix, order in one_way[part.reader.direction]:
        w, u, b, c = (getattr(rnn, f"{n}_l0{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h, out = x.new_zeros(rnn.hidden_size), x.new_zeros(len(x), rnn.hidden_size)
        for i in order:
            (xr, xz, xn), (hr, hz, hn) = (w @ x[i] + b).chunk(3), (u @ h + c).chunk(3)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            h = (1 - z) * torch.tanh(xn + r * hn) + z * h
            out[i] = h
        sides.append(out)
    return torch.cat(sides, -1)


def witness(part: Context, x: Tensor, allowed: Tensor) -> Tensor:
    real = allowed.nonzero()[:, 0].tolist()
    match part:
        case Convolution():
            return convolved(part, x, real)
        case RunningMean():
            return averaged(x, real)
        case Recurrence():
            return recurred(part, x, real)
        case Mixed():
            return (x + part.gain * witness(part.part, x, allowed)) * allowed[:, None]
    raise AssertionError(part)


@every_part
@torch.no_grad()
def test_every_part_is_its_equation(name: str) -> None:
    part, x = made(name), draw(len(ALLOWED), T, D)
    want = torch.stack([witness(part, row, allowed) for row, allowed in zip(x, ALLOWED, strict=True)])
    torch.testing.assert_close(part(x, ALLOWED), want)
    torch.testing.assert_close(part(x), part(x, torch.ones_like(ALLOWED)))


@every_part
@pytest.mark.parametrize("batch", [(), (2,), (2, 5)])
@torch.no_grad()
def test_any_batch_axes(name: str, batch: tuple[int, ...]) -> None:
    part, x, allowed = made(name), draw(*batch, T, D), ALLOWED[3]
    want = torch.stack([part(row, allowed) for row in x.reshape(-1, T, D)]).reshape(x.shape)
    torch.testing.assert_close(part(x, allowed.expand(*batch, T)), want)
    torch.testing.assert_close(part(x, allowed.view(*[1] * len(batch), T)), want)


# --- padding ------------------------------------------------------------------------------------------------------


@every_part
@pytest.mark.parametrize("filling", [1e3, float("nan")])
def test_what_stands_in_the_padding_influences_nothing(name: str, filling: float) -> None:
    part, x = made(name), draw(len(ALLOWED), T, D)
    want = part(x, ALLOWED)
    filled = x.masked_fill(~ALLOWED[..., None], filling).requires_grad_()
    got = part(filled, ALLOWED)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    got.square().sum().backward()
    assert filled.grad.isfinite().all()
    assert not filled.grad[~ALLOWED].any()


@every_part
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(name: str) -> None:
    layer, x, pad = attention(made(name)), draw(2, T, D), torch.full((2, 5, D), 1e3, dtype=torch.float64)
    real, none = torch.ones(2, T, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    want = layer(x)
    for parts in ([(x, real), (pad, none)], [(pad, none), (x, real)], [(pad, none), (x, real), (pad, none)]):
        states, allowed = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        got = layer(states, mask=regard.allow(allowed[:, None, None]), allowed=allowed)
        torch.testing.assert_close(got[allowed].view_as(want), want)


@torch.no_grad()
def test_an_encoder_layer_keeps_padding_out_of_its_queries() -> None:
    layer = EncoderLayer(attention(made("both")), FeedForward(D, 11), residual(), residual()).double().eval()
    x, lengths = draw(2, T, D), torch.tensor([7, 4])
    got = layer(x, regard.padding(lengths), torch.arange(T) < lengths[:, None])
    torch.testing.assert_close(got[1, :4], layer(x[1:, :4], None)[0])


# --- what was and what comes --------------------------------------------------------------------------------------


@looking_back
@torch.no_grad()
def test_a_later_state_changes_no_earlier_query(name: str) -> None:
    layer, x = attention(made(name)), draw(2, T, D)
    changed = x.clone()
    changed[:, 4] += 1.0
    before, after = layer.queries(x), layer.queries(changed)
    torch.testing.assert_close(after[:, :, :4], before[:, :, :4], rtol=0, atol=0)
    assert not torch.allclose(after[:, :, 4], before[:, :, 4])
    out, new = layer(x, mask=regard.causal()), layer(changed, mask=regard.causal())
    torch.testing.assert_close(new[:, :4], out[:, :4], rtol=0, atol=0)


@looking_ahead
@torch.no_grad()
def test_what_is_said_to_look_ahead_does(name: str) -> None:
    part, x = made(name), draw(2, T, D)
    changed = x.clone()
    changed[:, 4] += 1.0
    assert not torch.allclose(part(changed)[:, 3], part(x)[:, 3])


@pytest.mark.parametrize("name", sorted(set(BACK) - {"itself"}))
@torch.no_grad()
def test_an_earlier_state_changes_a_later_query(name: str) -> None:
    layer, x = attention(made(name)), draw(2, T, D)
    changed = x.clone()
    changed[:, 3] += 1.0
    assert not torch.allclose(layer.queries(changed)[:, :, 4], layer.queries(x)[:, :, 4])


@looking_back
@pytest.mark.parametrize("batch", [(), (2,), (2, 5)])
@torch.no_grad()
def test_step_by_step_is_the_whole(name: str, batch: tuple[int, ...]) -> None:
    layer, x = attention(made(name)), draw(*batch, T, D)
    remembered, queries = None, []
    for state in x.unbind(-2):
        query, remembered = layer.next_query(state, remembered)
        queries.append(query)
    torch.testing.assert_close(torch.cat(queries, -2), layer.queries(x))


@looking_back
@torch.no_grad()
def test_a_step_changes_no_state_that_it_was_given(name: str) -> None:
    part, x = made(name), draw(5, D)
    before = part.start(x)
    kept = before.clone()
    first, after = part.step(x, before)
    assert torch.equal(before, kept)
    assert after.shape == before.shape
    torch.testing.assert_close(part.step(x, before)[0], first, rtol=0, atol=0)


def test_without_a_context_a_step_is_a_query_and_remembers_nothing() -> None:
    layer, x = attention(), draw(2, T, D)
    query, remembered = layer.next_query(x[:, 3], None)
    torch.testing.assert_close(query, layer.queries(x)[:, :, 3:4])
    assert remembered is None


@looking_ahead
def test_looking_ahead_is_refused_where_tokens_come_one_by_one(name: str) -> None:
    ahead, plain, inner = attention(made(name)), attention(), FeedForward(D, 11)
    kind = type(ahead.context).__name__
    rest = rf"cannot use a context that looks ahead \({kind}\): take Convolution with right=0, RunningMean, or Rec"
    for pair in ((ahead, plain), (plain, ahead)):
        with pytest.raises(regard.ChoiceError, match=f"^a decoder, which goes token by token, {rest}"):
            DecoderLayer(*pair, inner, residual(), residual(), residual())
    x = draw(2, T, D)
    with pytest.raises(regard.ChoiceError, match=f"^a query made step by step {rest}"):
        ahead.next_query(x[:, 0], None)
    for mask in (regard.causal(), regard.causal() & regard.padding(torch.tensor([7, 5]))):
        with pytest.raises(regard.ChoiceError, match=f"^attention under a causal mask {rest}"):
            ahead(x, mask=mask)
    assert ahead(x, mask=regard.causal() | regard.prefix(3)).isfinite().all()


# --- inside attention ---------------------------------------------------------------------------------------------


@every_part
@torch.no_grad()
def test_only_the_query_has_context(name: str) -> None:
    layer, plain, x = attention(made(name)), attention(), draw(2, T, D)
    plain.load_state_dict({n: p for n, p in layer.state_dict().items() if not n.startswith("context.")})
    memory = draw(2, 11, D)
    torch.testing.assert_close(layer(x, memory), plain(layer.context(x), memory))
    torch.testing.assert_close(layer(x), plain(layer.context(x), x))


@pytest.mark.parametrize("groups", [1, 2, D])
@torch.no_grad()
def test_a_fresh_convolution_passes_states_on(groups: int) -> None:
    x = draw(2, T, D)
    torch.testing.assert_close(Convolution(D, 3, 2, groups).double()(x), x)


@every_part
def test_gradients_reach_every_parameter_and_every_state_seen(name: str) -> None:
    layer, x = attention(made(name)), draw(2, T, D).requires_grad_()
    layer(x, draw(2, 11, D)).square().sum().backward()
    assert x.grad.abs().sum(-1).all()
    for parameter in layer.context.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@every_part
@torch.no_grad()
def test_the_state_dict_is_the_whole_layer(name: str) -> None:
    layer, other, x = attention(made(name)), attention((BACK | AHEAD)[name]()), draw(2, T, D)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
    assert not any(n.startswith("context") for n in attention().state_dict())


@torch.no_grad()
def test_a_mean_of_many_half_precision_states_is_rounded_once() -> None:
    part, x = RunningMean(), torch.randint(4, (521, 2), generator=torch.Generator().manual_seed(0))
    sums, want = [0, 0], []
    for count, row in enumerate(x.tolist(), 1):
        sums = [a + b for a, b in zip(sums, row, strict=True)]
        want.append([a / count for a in sums])
    half, expected = x.bfloat16(), torch.tensor(want).bfloat16()
    assert torch.equal(part(half), expected)
    state, means = part.start(half[0]), []
    for one in half:
        mean, state = part.step(one, state)
        means.append(mean)
    assert torch.equal(torch.stack(means), expected)


def test_a_part_of_your_own() -> None:
    class Previous(Context):
        """f(x)_i = x_{i-1}"""

        looks_ahead = False

        def forward(self, x, allowed=None):
            return nn.functional.pad(x, (0, 0, 1, 0))[..., :-1, :]

        def nothing_yet(self, like):
            return torch.zeros_like(like)

        def step(self, x, before):
            return before, x

    layer, x = attention(Previous()), draw(2, T, D)
    state, queries = None, []
    for one in x.unbind(1):
        query, state = layer.next_query(one, state)
        queries.append(query)
    torch.testing.assert_close(torch.cat(queries, -2), layer.queries(x))
    with pytest.raises(regard.ChoiceError, match=r"a query made step by step cannot use .* ahead \(Context\): take"):
        Context().start(x[:, 0])


def test_a_context_lets_attention_answer_what_was_asked_one_step_before() -> None:
    """Each query must look up what belongs to the token before its own: a query that knows only itself guesses."""
    tokens, draws = 7, torch.Generator().manual_seed(0)
    eye = torch.eye(tokens)

    def answered(context: Context | None) -> float:
        torch.manual_seed(0)
        layer = MultiHead(tokens, 1, key_width=tokens, value_width=tokens, context=context)
        optimizer = torch.optim.Adam(layer.parameters(), 0.05)
        for _ in range(80):
            asked, value = (torch.randint(tokens, (64, n), generator=draws) for n in (11, tokens))
            logits = layer(eye[asked], eye.expand(64, -1, -1), eye[value])[:, 1:]
            wanted = torch.gather(value, 1, asked[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float((logits.argmax(-1) == wanted).float().mean())

    assert answered(Convolution(tokens, 1)) > 0.9
    assert answered(None) < 0.5


# --- refusals -----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(regard.ShapeError, match="at least 0 states on each side; got left 2 and right -1"):
        Convolution(D, 2, -1)
    with pytest.raises(regard.ShapeError, match="groups must divide the width; got width 6 and groups 4"):
        Convolution(D, 2, groups=4)
    with pytest.raises(regard.ShapeError, match="gives each half of the width; got width 7"):
        Recurrence(7, "both")
    with pytest.raises(regard.ChoiceError, match="unknown direction 'bth': expected one of 'both', "):
        Recurrence(D, "bth")


@pytest.mark.parametrize("name", ["convolution", "recurrence", "mixed_mean"])
def test_states_of_another_width_are_refused(name: str) -> None:
    with pytest.raises(regard.ShapeError, match="the context has width 6 and the states have 5 on axis -1"):
        made(name)(draw(2, T, 5))


@every_part
@pytest.mark.parametrize("shape", [(2, 5), (3, T), (T,), (2, 1, T)])
def test_an_allowed_of_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    message = rf"allowed has shape .* and the states have \[2, {T}, {D}\]: expected \[2, {T}\]"
    with pytest.raises(regard.ShapeError, match=message):
        made(name)(draw(2, T, D), torch.ones(shape, dtype=torch.bool))


def test_the_names_of_the_room() -> None:
    assert dir(regard.nn) == sorted(dir(regard.nn))
    assert {"Context", "Convolution", "Mixed", "MultiHead", "Recurrence", "RunningMean"} <= set(dir(regard.nn))
    assert all(isinstance(getattr(regard.nn, name), type) for name in dir(regard.nn))


@pytest.mark.parametrize("shape", [(2, 0, 4), (0, 3, 4)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    for part in (Recurrence(4), Convolution(4, 1), RunningMean(), Mixed(4, Recurrence(4))):
        assert part(torch.zeros(shape)).shape == shape


def test_what_is_real_is_said_in_bools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for context in (RunningMean(), Convolution(4, 2), Recurrence(4), Mixed(4, RunningMean())):
        with pytest.raises(ShapeError, match=r"allowed must be of bools, True at real tokens; got torch\.int64"):
            inspect.unwrap(type(context).forward)(context, torch.randn(2, 5, 4), torch.ones(2, 5).long())


@pytest.mark.parametrize("shape", [(2, 1), (1, 5), (2, 5)])
def test_which_states_are_real_may_be_broadcast(shape: tuple[int, int]) -> None:
    x, allowed = torch.randn(2, 5, 4), torch.ones(shape, dtype=torch.bool)
    for context in (RunningMean(), Convolution(4, 2), Recurrence(4), Mixed(4, RunningMean())):
        torch.testing.assert_close(context(x, allowed), context(x))
