"""Patches against brute force by plain hooks, batched against one by one, and a circuit that was planted."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.text import Text
from torch import Tensor, nn
from torch.nn import functional as F

import observation_models
import regard
from random_outputs import translator
from regard.analysis import reuse
from regard.analysis.deferred import Deferred, Stale
from regard.analysis.parts import Cell
from regard.errors import ChoiceError, ConfigError, RegardError, ShapeError
from regard.models.recurrent import Recurrent, RecurrentConfig
from regard.models.transformer import Transformer, TransformerConfig

V, N, D, H = 13, 5, 12, 3
WHAT = ("head", "query", "key", "value", "weights")


@pytest.fixture(autouse=True)
def small_modules_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "LEAST", 1)


class Attention(nn.Module):
    """Attention whose every part can be replaced by hand: `given[part] = (head, position, tensor)`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.given: dict[str, tuple[int, int | None, Tensor]] = {}
        self.found: dict[str, Tensor] = {}
        self.by_hand = False

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (H, -1)).transpose(1, 2) for part in self.inner(x).chunk(3, -1))
        if not self.by_hand:
            heads = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            query, key, value = (self.put(*one) for one in (("query", query), ("key", key), ("value", value)))
            scores = query @ key.mT / query.shape[-1] ** 0.5
            hidden = torch.ones(scores.shape[-2:]).triu(1).bool()
            weights = self.put("weights", scores.masked_fill(hidden, -torch.inf).softmax(-1))
            heads = self.put("head", weights @ value)
        return self.outer(heads.transpose(1, 2).flatten(-2))

    def put(self, name: str, part: Tensor) -> Tensor:
        self.found[name] = part.detach()
        if name not in self.given:
            return part
        head, position, clean = self.given[name]
        where = slice(None) if position is None else position
        part = part.clone()
        part[:, head, where] = clean[:, head, where]
        return part


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm, self.inner = Attention(), nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + F.gelu(self.inner(x))


class Tiny(nn.Module):
    """A decoder of two blocks; `linear` has one attention and nothing that is not linear behind it."""

    def __init__(self, linear: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, D)
        self.blocks = nn.ModuleList([Attention()] if linear else [Block(), Block()])
        self.out = nn.Linear(D, V)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def ids(*other: int) -> dict[str, Tensor]:
    row = torch.arange(2, 2 + N)[None].clone()
    if other:
        row[0, other[0]] = other[1]
    return {"ids": row}


def metric(logits: Tensor) -> Tensor:
    return logits[0, -1, 3] - logits[0, -1, 4]


def brute_force(model: Tiny, what: str, head: int, layer: int, position: int | None) -> float:
    attentions = [one for one in model.modules() if isinstance(one, Attention)]
    for one in attentions:
        one.by_hand = True
    with torch.no_grad():
        model(**ids())
        attentions[layer].given = {what: (head, position, attentions[layer].found[what])}
        value = float(metric(model(**ids(2, 9))))
    for one in attentions:
        one.by_hand, one.given = False, {}
    return value


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("what", WHAT)
def test_equals_brute_force(what: str, by_position: bool) -> None:
    model = Tiny()
    found = regard.patch(model, ids(), ids(2, 9), metric, what, by_position=by_position)
    assert found.sites == ["blocks.0.attention", "blocks.1.attention"]
    places = range(N) if by_position else [None]
    wanted = torch.tensor(
        [[[brute_force(model, what, h, layer, at) for at in places] for h in range(H)] for layer in range(2)],
        dtype=torch.float64,
    )
    torch.testing.assert_close(found.table, wanted if by_position else wanted[..., 0])
    assert found.clean == pytest.approx(float(metric(model(**ids())).detach()))
    assert found.corrupted == pytest.approx(float(metric(model(**ids(2, 9))).detach()))
    assert found.forwards < found.table.numel()


class Mixing(nn.Module):
    """Looks like a feed-forward, and adds each position's predecessor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x.roll(1, dims=1)


@pytest.mark.parametrize("mixing", [False, True])
def test_only_positions_that_differ_are_computed(mixing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny()
    if mixing:
        model.blocks[0].inner = Mixing().double()
    alone = regard.patch(model, ids(), ids(2, 9), metric, batch=1)
    sizes: list[int] = []
    linear = nn.functional.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: (sizes.append(x[..., 0].numel()), linear(x, *rest))[1])
    shared = regard.patch(model, ids(), ids(2, 9), metric)
    torch.testing.assert_close(shared.table, alone.table)
    # of each cell's row the positions from the changed one on, 2 to 4; after the shift position 0 as well, and some
    # that a product of another size rounds otherwise; all would be 3 · 5
    least = 3 * (4 if mixing else 3)
    assert {least, least + 1, least + 2} & {*sizes}
    assert 7 in sizes  # of every row the last position, which alone the metric reads
    assert all("forward" not in vars(one) for one in model.modules())


class Centred(nn.Module):
    """Looks like a feed-forward, and takes the mean over positions, or over the rows of a batch."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.inner, self.axis = nn.Linear(D, D), axis

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - x.mean(self.axis, keepdim=True)) + self.inner(x)


@pytest.mark.parametrize("axis", [0, 1])
def test_equal_positions_do_not_hide_that_a_module_mixes_them(axis: int) -> None:
    """A module is tried on an input of its own: on equal positions, or rows, a mean over them changes nothing."""

    def tried(module: nn.Module, width: int = D, dtype: torch.dtype = torch.float64) -> tuple[int, torch.dtype] | None:
        given = torch.Size([1, 700, width]), dtype, torch.device("cpu")
        return reuse._output_of_positions(module.to(dtype), module.forward, *given)

    assert tried(Centred(axis)) is None
    assert tried(nn.ReLU(inplace=True)) is None
    assert tried(nn.Linear(D, 7)) == (7, torch.float64)
    assert tried(nn.Sequential(nn.Linear(D, 7))) == (7, torch.float64)
    assert tried(nn.Identity(), 100, torch.float16) == (100, torch.float16)


class Batched(nn.Module):
    """Looks like a feed-forward, and takes the mean over the rows of a batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - 0.5 * x.mean(0, keepdim=True))


class Shifted(Batched):
    """Every row takes from the one before it; the first is as it is by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.cat([x[:1], x[1:] + 0.1 * (x[1:] - x[:-1])]))


@pytest.mark.parametrize("kind", [Batched, Shifted])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_module_that_mixes_the_rows_of_a_batch_is_refused(kind: type[Batched], layer: int) -> None:
    model = Tiny()
    model.blocks[layer].inner = kind(model.blocks[layer].inner)
    refused(RegardError, "a module of it mixes the rows; set batch=1", model, ids(), ids(2, 9), metric)
    found = regard.patch(model, ids(), ids(2, 9), metric, batch=1)
    wanted = [[brute_force(model, "head", h, layer, None) for h in range(H)] for layer in range(2)]
    torch.testing.assert_close(found.table, torch.tensor(wanted, dtype=torch.float64))


class InPlace(nn.Module):
    """A block that adds to its input in place after a layer has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        read = self.inner(x)
        x += 1
        return read * x


@pytest.mark.parametrize("layer", [0, 1])
def test_what_is_changed_in_place_is_not_read_late(layer: int) -> None:
    model = Tiny()
    model.blocks[layer].inner = InPlace().double()
    found = regard.patch(model, ids(), ids(2, 9), metric)
    wanted = [[brute_force(model, "head", h, layer, None) for h in range(H)] for layer in range(2)]
    torch.testing.assert_close(found.table, torch.tensor(wanted, dtype=torch.float64))


class Padded(Tiny):
    """Keys 0 and 1 are padding, whose states are not finite; queries there see nothing."""

    def forward(self, ids: Tensor) -> Tensor:
        real = (ids > 1).double()[..., None]
        x = self.embedding(ids).masked_fill(real == 0, torch.nan)
        for block in self.blocks:
            heads = block.attention.inner(block.norm(x)).unflatten(-1, (3, H, -1)).unbind(2)
            query, key, value = (one.transpose(1, 2) for one in heads)
            key, value = (one.masked_fill(real[:, None] == 0, 0) for one in (key, value))
            mask = real[:, None, None, :, 0].bool() & torch.ones(N, N).tril().bool()
            out = F.scaled_dot_product_attention(query, key, value, mask)
            x = x + block.attention.outer(out.transpose(1, 2).flatten(-2))
            x = x + F.gelu(block.inner(x))
        return self.out(x)


@pytest.mark.parametrize("what", [*WHAT, "state"])
def test_dead_rows_and_nan_behind_a_mask(what: str) -> None:
    model = Padded()
    clean, corrupted = torch.tensor([[0, 1, 4, 5, 6]]), torch.tensor([[0, 1, 9, 5, 6]])
    given: Any = model, {"ids": clean}, {"ids": corrupted}, metric, what
    found = regard.patch(*given, by_position=what != "weights")
    alone = regard.patch(*given, by_position=what != "weights", batch=1)
    assert found.table[..., 2:].isfinite().all()
    assert float((found.table - found.corrupted).nan_to_num().abs().max()) > 1e-3
    torch.testing.assert_close(found.table, alone.table, equal_nan=True)


def test_cells_that_are_equal_in_both_runs_are_not_run() -> None:
    """In a causal model those are all positions before the changed token, in its first layer those after it too."""
    model = Tiny()
    found = regard.patch(model, ids(), ids(3, 9), metric, "key", by_position=True, batch=1)
    assert (found.table[:, :, :3] == found.corrupted).all()
    assert found.forwards == 1 + H + 2 * H  # the corrupted run, then one key of the first layer and two of the second


@pytest.mark.parametrize(
    "read",
    [
        lambda out: out[0, -1, 3], lambda out: out[:, -2:, 1].sum(), lambda out: out[..., 4].mean(),
        lambda out: out.log_softmax(-1)[0, -1, 2], lambda out: out[0].argmax(-1)[-1], lambda out: out[0, [1, 3]].sum(),
        lambda out: (out * 2 + 1).tanh()[0, 2, 2], lambda out: out.float()[0, -1].max(), lambda out: out[0, 1::2].sum(),
        lambda out: torch.stack([out[0, n, n] for n in range(N)]).sum(),
    ],
)  # fmt: skip
def test_any_metric_reads_what_it_would_read_of_the_whole(read: Callable[[Tensor], Tensor]) -> None:
    model = Tiny()
    found = regard.patch(model, ids(), ids(2, 9), read)
    whole = regard.patch(model, ids(), ids(2, 9), lambda out: read(out + torch.zeros(1, N, V)), batch=1)
    torch.testing.assert_close(found.table, whole.table)
    torch.testing.assert_close(found.corrupted, float(read(model(**ids(2, 9)).detach())))


def test_a_deferred_tensor_is_the_tensor() -> None:
    dense, other = torch.randn(3, N, 7), torch.randn(1, N, 7)
    reads: list[int] = []

    def make() -> Deferred:
        return Deferred((3, N, 7), dense.dtype, [dense], lambda x: (reads.append(x.shape[1]), x * 2)[1])

    for index in [0, (0, 1), (slice(1), -1), (..., 3), (1, ..., 2), (slice(None), slice(1, 3)), (slice(None),), ...]:
        assert torch.equal(torch.as_tensor(make()[index]) + 0, (dense * 2)[index])
    with pytest.raises(IndexError):
        make()[0, N]
    reads.clear()
    total = make() + other
    assert not reads
    assert torch.equal(total[1:][0, -1], dense[1, -1] * 2 + other[0, -1])
    assert reads == [1]
    assert torch.equal(torch.relu(total), torch.relu(dense * 2 + other))
    source = dense.clone()
    late = Deferred((3, N, 7), dense.dtype, [source], lambda x: x)
    source += 1
    with pytest.raises(Stale, match="changed in place"):
        late.whole()


def test_states_equal_brute_force_by_hooks() -> None:
    model = Tiny()
    found = regard.patch(model, ids(), ids(2, 9), metric, "state")
    assert found.sites == ["blocks.0", "blocks.1"]
    assert found.table.shape == (2, 1, N)
    for layer, block in enumerate(model.blocks):
        kept: list[Tensor] = []
        hook = block.register_forward_hook(lambda _, args, out, kept=kept: kept.append(out.detach()))
        model(**ids())
        hook.remove()
        for at in range(N):

            def put(_: nn.Module, __: Any, out: Tensor, at: int = at, kept: list[Tensor] = kept) -> Tensor:
                out = out.clone()
                out[:, at] = kept[0][:, at]
                return out

            hook = block.register_forward_hook(put)
            wanted = float(metric(model(**ids(2, 9))).detach())
            hook.remove()
            assert float(found.table[layer, 0, at]) == pytest.approx(wanted)
    assert float(found.table[1, 0, -1]) == pytest.approx(found.clean)  # all that is behind it is the output


def transformers_model(name: str) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], Callable[[Any], Any]]:
    clean = {key: one[:1] for key, one in observation_models.inputs(name, padded=False).items()}
    corrupted = {key: one.clone() for key, one in clean.items()}
    corrupted["input_ids"][0, 4] = 7
    return observation_models.make(name, "sdpa"), clean, corrupted, lambda out: out.last_hidden_state[0, -1, :3].sum()


def torch_model() -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], Callable[[Any], Any]]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    clean = torch.randn(1, N, D)
    return model, {"src": clean}, {"src": clean + torch.eye(N, D)}, lambda out: out[0, -1, 0]


def our_model(settings: dict[str, Any]) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], Callable[[Any], Any]]:
    torch.manual_seed(0)
    recurrent = settings["kind"] == "recurrent"
    model: nn.Module = (
        Recurrent(V, RecurrentConfig(**settings)) if recurrent else Transformer(V, TransformerConfig(**settings))
    ).eval()
    source, target = torch.arange(3, 3 + N)[None], torch.arange(1, 4)[None]
    other = source.clone()
    other[0, 1] = 12
    return (
        model, {"source": source, "target": target}, {"source": other, "target": target}, lambda out: out[0, -1, 3]
    )  # fmt: skip


SMALL = {"width": 16, "heads": 4, "ffn_width": 16, "encoder_layers": 1, "decoder_layers": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "GPT2": lambda: transformers_model("GPT2"),
    "Llama": lambda: transformers_model("Llama"),  # grouped heads
    "Bart": lambda: transformers_model("Bart"),
    "torch": torch_model,
    "transformer": lambda: our_model({"kind": "transformer"} | SMALL),
    "recurrent": lambda: our_model({"kind": "recurrent", "width": 16, "embedding": 8, "score_width": 8}),
    "luong": lambda: our_model(
        {"kind": "recurrent", "width": 16, "embedding": 8, "score": "general", "asks": "new", "feed": "previous"}
    ),
}


QUICK = {
    ("GPT2", "head"), ("Llama", "key"), ("torch", "value"), ("transformer", "state"), ("recurrent", "query"),
    ("luong", "state"), ("recurrent", "weights"),
}  # fmt: skip
GRID = [
    pytest.param(name, what, marks=() if (name, what) in QUICK else pytest.mark.slow)
    for name in MODELS
    for what in (*WHAT, "state")
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "what"), GRID)
def test_batched_equals_one_by_one_and_a_patch_of_itself_changes_nothing(name: str, what: str) -> None:
    model, clean, corrupted, measure = MODELS[name]()
    by_position = what == "state" or (what not in ("weights", "head") and name not in ("Llama", "Bart"))
    before = measure(model(**corrupted)).detach()
    found = regard.patch(model, clean, corrupted, measure, what, by_position=by_position)
    alone = regard.patch(model, clean, corrupted, measure, what, by_position=by_position, batch=1)
    torch.testing.assert_close(found.table, alone.table, rtol=0, atol=2e-6, equal_nan=True)
    assert float((found.table - found.corrupted).nan_to_num().abs().max()) > 0
    same = regard.patch(model, corrupted, corrupted, measure, what, by_position=by_position)
    torch.testing.assert_close(
        same.table.nan_to_num(same.corrupted), torch.full_like(same.table, same.corrupted), rtol=0, atol=2e-6
    )
    assert torch.equal(measure(model(**corrupted)).detach(), before)


def test_several_rows_of_inputs() -> None:
    model = Tiny()
    clean, corrupted = (torch.cat([one["ids"]] * 2) for one in (ids(), ids(2, 9)))
    clean[1, 0] = corrupted[1, 0] = 11
    found = regard.patch(model, {"ids": clean}, {"ids": corrupted}, lambda out: out[:, -1, 3].sum(), "key")
    halves = [
        regard.patch(model, {"ids": a[None]}, {"ids": b[None]}, lambda out: out[0, -1, 3], "key").table
        for a, b in zip(clean, corrupted, strict=True)
    ]
    torch.testing.assert_close(found.table, halves[0] + halves[1])


class Planted(nn.Module):
    """Copies the first token to the last place through head 1 of its second attention; nothing else reads it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Module(), nn.Module()])
        for one in self.layers:
            one.attention = Planted.Heads()

    class Heads(nn.Module):
        def forward(self, states: Tensor, planted: bool) -> Tensor:
            heads = states[:, None].expand(-1, H, -1, -1)
            query, key = torch.zeros_like(heads), torch.zeros_like(heads)
            if planted:
                query[:, 1], key[:, 1, 0] = 30.0, 30.0
            value = heads.clone()
            value[:, [h for h in range(H) if h != 1 or not planted]] *= 0
            return F.scaled_dot_product_attention(query, key, value).sum(1)

    def forward(self, states: Tensor) -> Tensor:
        for n, one in enumerate(self.layers):
            states = states + one.attention(states, n == 1)
        return states


def test_a_planted_circuit_is_found() -> None:
    model, clean = Planted(), torch.zeros(1, N, 4)
    clean[0, 0, 0] = 1.0
    found = regard.patch(model, {"states": clean}, {"states": clean * -1}, lambda out: out[0, -1, 0])
    assert found.top(1)[0][0] == Cell("layers.1.attention", 1)
    expected = torch.zeros(2, H, dtype=torch.float64)
    expected[1, 1] = 1.0
    torch.testing.assert_close(found.restored, expected)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("what", [*WHAT, "state"])
def test_attribution_is_exact_where_all_behind_the_heads_is_linear(what: str, by_position: bool) -> None:
    model = Tiny(linear=True)
    patched = regard.patch(model, ids(), ids(2, 9), metric, what, by_position=by_position)
    found = regard.attribute_patches(model, ids(), ids(2, 9), metric, what, by_position=by_position)
    torch.testing.assert_close(found.table, patched.table)
    assert found.error is not None
    assert found.error < 1e-12
    assert len(found.checks) == min(3, found.table.numel())
    assert (found.clean, found.corrupted) == (patched.clean, pytest.approx(patched.corrupted))


def test_the_error_of_an_attribution_is_reported() -> None:
    model = Tiny()
    found = regard.attribute_patches(model, ids(), ids(2, 9), metric, check=4)
    patched = regard.patch(model, ids(), ids(2, 9), metric)
    assert [one.cell for one in found.checks] == [cell for cell, _ in found.top(4)]
    wanted = max(
        abs(one.attributed - float(patched.table[int(one.cell.site[7]), one.cell.head])) for one in found.checks
    )
    assert found.error == pytest.approx(wanted)
    assert found.error is not None
    assert found.error > 1e-6
    assert f"is within {found.error:.3g} of the patch" in found.sentence
    none = regard.attribute_patches(model, ids(), ids(2, 9), metric, check=0)
    assert none.error is None
    assert "check=3" in none.sentence


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ["GPT2", "recurrent", "transformer"])
@pytest.mark.parametrize("what", ["head", "key", "state"])
def test_small_changes_are_attributed(name: str, what: str) -> None:
    """Between inputs that hardly differ everything is linear: the two tables agree."""
    model, clean, _, measure = MODELS[name]()
    model.double()
    tokens, weight = next(iter(clean)), next(model.parameters())
    if name != "GPT2":
        weight = next(one for path, one in model.named_parameters() if path.endswith("embedding.weight"))
    other = {key: one.clone() for key, one in clean.items()}
    other[tokens][0, 1] = V - 1
    with torch.no_grad():
        weight[V - 1] = weight[int(clean[tokens][0, 1])] + 1e-5 * torch.randn(weight.shape[1])
    patched = regard.patch(model, clean, other, measure, what, by_position=name == "recurrent")
    found = regard.attribute_patches(model, clean, other, measure, what, by_position=name == "recurrent")
    size = float((patched.table - patched.corrupted).nan_to_num().abs().max())
    assert size > 1e-9
    torch.testing.assert_close(found.table, patched.table, rtol=0, atol=1e-2 * size, equal_nan=True)


def test_texts_of_a_translator(tmp_path: Path) -> None:
    model = regard.load("fr-en")
    clean, corrupted = "le chat noir dort .", "le chat blanc dort ."
    black = model.tokenizer.encode("black")[0]
    found = regard.patch(model, clean, corrupted, lambda out: out[0, 1, black], "state")
    assert found.clean > found.corrupted
    assert found.sites[0] == "encoder.layers.0"
    assert found.tokens["encoder.layers.0"][2] == "▁noir"
    assert int(found.table[0, 0].argmax()) == 2  # the word that was changed
    assert 0.3 < float(found.restored[0, 0, 2]) < 1.1
    found.plot(tmp_path / "states.png")
    assert (tmp_path / "states.png").stat().st_size > 1000
    with pytest.raises(ShapeError, match=r"source has shape \[1, 7\] .*: a patch is applied at the same position"):
        regard.patch(model, clean, "le chat", lambda out: out[0, -1, 0])


@pytest.mark.parametrize("by_position", [False, True])
def test_the_figure(tmp_path: Path, by_position: bool) -> None:
    found = regard.patch(Tiny(), ids(), ids(2, 9), metric, by_position=by_position)
    figure = found.plot(tmp_path / "heads.svg")
    assert len(figure.axes) == (3 if by_position else 2)  # with the scale
    drawn = " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())
    assert f"metric: {found.corrupted:.3g} corrupted, {found.clean:.3g} clean" in drawn
    assert (tmp_path / "heads.svg").exists()
    if not by_position:
        with pytest.raises(ShapeError, match="got 1 names, and the table has no positions"):
            found.plot(tokens=["a"])
    else:
        names = [f"word{n}" for n in range(found.table.shape[2])]
        assert {*names} < {text.get_text() for text in found.plot(tokens=names).findobj(Text)}
        with pytest.raises(ShapeError, match=f"got 1 names, and the table has {len(names)} positions"):
            found.plot(tokens=["a"])


def test_a_figure_says_what_was_not_patched_and_how_far_off_it_is() -> None:
    found = regard.attribute_patches(Tiny(), ids(), ids(2, 9), metric)
    drawn = " ".join(" ".join(text.get_text() for text in found.plot().findobj(Text)).split())
    assert "Clean head in the corrupted run: an estimate" in drawn
    assert f"error of the largest cells: {found.error:.3g}" in drawn


def refused(error: type[Exception], match: str, *arguments: Any, **more: Any) -> None:
    with pytest.raises(error, match=match):
        regard.patch(*arguments, **more)


class ByHand(Tiny):
    """The same with attention that no function of torch computes as a whole."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.attention.by_hand = True


def test_attention_by_hand_is_named_with_the_way_out() -> None:
    model = ByHand()
    message = r"'blocks\.\d\.attention' \(Attention\) among them.*: call regard\.attend or torch's scaled_dot_product"
    for what in WHAT:
        refused(RegardError, message, model, ids(), ids(2, 9), metric, what)
    with pytest.raises(RegardError, match=message):
        regard.attribute_patches(model, ids(), ids(2, 9), metric)
    with pytest.raises(RegardError, match=message):
        regard.ablations(model, [ids(), ids(2, 9)], metric)
    refused(
        RegardError,
        r"no head was seen at 'blocks\.0\.inner': regard\.observe",
        Tiny(),
        ids(),
        ids(),
        metric,
        sites=["blocks.0.inner"],
    )


def test_attention_by_hand_beside_what_is_seen_is_told_once() -> None:
    model = Tiny()
    hidden, shown = (block.attention for block in model.blocks)
    hidden.by_hand = True
    message = (
        r"^'blocks\.0\.attention' \(Attention\) computes attention by hand .*: the result is of the other sites; call"
    )
    for find in (regard.patch, regard.attribute_patches):
        with pytest.warns(UserWarning, match=message) as told:
            found = find(model, ids(), ids(2, 9), metric)
        assert len(told) == 1
        assert found.sites == ["blocks.1.attention"]
        shown.by_hand = True
        assert found.clean == pytest.approx(float(metric(model(**ids())).detach()))
        shown.by_hand = False
    with pytest.warns(UserWarning, match=message) as told:
        regard.ablations(model, [ids(), ids(2, 9)], metric)
    assert len(told) == 1
    regard.patch(model, ids(), ids(2, 9), metric, sites=["blocks.1.*"])  # what is asked for is seen: no word


def test_what_is_refused() -> None:
    model = Tiny()
    refused(ChoiceError, "unknown part 'heads': expected one of 'head'", model, ids(), ids(), metric, "heads")
    refused(ChoiceError, "no module 'blocks.7'", model, ids(), ids(), metric, sites=["blocks.7"])
    refused(ConfigError, "must both be texts", model, ids(), "le chat", metric)
    refused(
        ConfigError, "missing a required argument: 'ids'; got tokens", model, ids(), {"tokens": ids()["ids"]}, metric
    )
    pair = {"source": ids()["ids"], "target": ids()["ids"]}
    more = pair | {"source_allowed": ids()["ids"] > 0}
    refused(ConfigError, "clean has the arguments", translator().model, pair, more, metric)
    refused(ChoiceError, "batch = 0", model, ids(), ids(), metric, batch=0)
    refused(ShapeError, "have no tensor", model, {"ids": [[1, 2]]}, {"ids": [[1, 2]]}, metric)
    attention = nn.MultiheadAttention(D, 2).eval()
    x = torch.randn(N, 1, D)
    given = {"query": x, "key": x, "value": x}
    refused(
        ShapeError,
        r"the inputs have 5 rows: give inputs whose first axis",
        attention,
        given,
        given,
        lambda o: o[0].sum(),
    )
    with pytest.raises(ConfigError, match="the metric has no gradient"):
        regard.attribute_patches(model, ids(), ids(2, 9), lambda out: float(metric(out).detach()))
    for find in (regard.patch, regard.attribute_patches):
        with pytest.raises(ConfigError, match=r"^the metric gave a tensor of shape \[1, 5, 13\]: expected one number"):
            find(model, ids(), ids(2, 9), lambda out: out)
    refused(ConfigError, "the metric gave a NoneType", model, ids(), ids(2, 9), lambda out: None)
    two = [ids(), ids(2, 9)]
    with pytest.raises(ConfigError, match=r"^the metric gave a tensor of shape \[13\]"):
        regard.ablations(model, two, lambda out: out[0, -1])


def parts_of(model: nn.Module, part: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad(), regard.intervene(model, "blocks.0.attention", change, part):
        return model(**ids())


@pytest.mark.parametrize("part", ["query", "key", "value", "output", "weights"])
def test_intervene_changes_any_part(part: str) -> None:
    model = Tiny()
    with torch.no_grad():
        before = model(**ids())
    torch.testing.assert_close(parts_of(model, part, lambda same: same), before)
    shapes: list[Sequence[int]] = []
    changed = parts_of(model, part, lambda old: (shapes.append(old.shape), old * 2)[1])
    assert shapes == [(1, H, N, N if part == "weights" else D // H)]
    assert float((changed - before).abs().max()) > 1e-3
    with pytest.raises(ShapeError, match="keep the shape"):
        parts_of(model, part, lambda old: old[..., :1])
    with pytest.raises(ChoiceError, match="unknown part"):
        regard.intervene(model, "*", lambda old: old, "values")


class Overwriting(Tiny):
    """Changes the output layer's input before its output is read."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        x = x * 1.5
        logits = self.out(x)
        x.mul_(3)
        return logits


@pytest.mark.parametrize("make", [Tiny, Overwriting])
def test_of_an_attribution_the_output_layer_is_computed_where_the_metric_reads_it(
    make: type[Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two runs, at one position each; where a tensor is changed in place, everything is computed."""
    model, linear, positions = make(), F.linear, []
    wanted = regard.attribute_patches(model, ids(), ids(2, 9), lambda out: metric(out.sigmoid()), check=0).table

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight is model.out.weight:
            positions.append(x.shape[-2])
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", counted)
    read = lambda out: out[0, -1, 3].sigmoid() - out[0, -1, 4].sigmoid()  # noqa: E731
    torch.testing.assert_close(regard.attribute_patches(model, ids(), ids(2, 9), read, check=0).table, wanted)
    assert positions == ([1, 1] if make is Tiny else [N, N])
    assert all(one.requires_grad for one in model.parameters())


def test_an_attribution_that_fails_leaves_the_parameters_as_they_were() -> None:
    model = Tiny()
    model.out.bias.requires_grad_(False)
    with pytest.raises(ZeroDivisionError):
        regard.attribute_patches(
            model,
            ids(),
            ids(2, 9),
            lambda out: metric(out) if not out.requires_grad and not torch.is_grad_enabled() else 1 / 0,
        )
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["out.bias"]


def test_within_inference_mode_a_model_stays_as_it_was():
    with torch.inference_mode():
        made = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, batch_first=True), 1, enable_nested_tensor=False
        ).eval()
        x, y = torch.randn(2, 1, 4, 8)
    for within in (True, False):
        with (
            torch.inference_mode(within),
            pytest.raises(regard.ConfigError, match=r"needs gradients, and torch\.inference"),
        ):
            regard.attribute_patches(made, {"src": x}, {"src": y}, lambda output: output[0, -1, 0])
    assert all(one.requires_grad for one in made.parameters())


def test_attribution_of_inputs_that_were_made_within_inference_mode():
    model = Tiny()
    want = regard.attribute_patches(model, ids(), ids(2, 9), metric)
    with torch.inference_mode():
        inputs = [{name: one.clone() for name, one in some.items()} for some in (ids(), ids(2, 9))]
    found = regard.attribute_patches(model, *inputs, metric)
    assert torch.equal(found.table, want.table)
