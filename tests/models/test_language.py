"""Decoder alone and encoder alone: every setting's whole pass, steps, caches and padding agree."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard.errors import ChoiceError
from regard.models.build import build
from regard.models.language import DecoderConfig, DecoderLM, EncoderConfig, MaskedLM
from regard.models.transformer import TransformerConfig

V, T = 31, 11
SMALL = {"width": 24, "heads": 4, "ffn_width": 20, "dropout": 0.0, "length": 32}
VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "llama": {
        "positions": "rotary", "normalization": "rms", "activation": "silu", "gated": True, "biases": (),
        "ffn_biases": False, "key_heads": 2, "scaled": False, "output_bias": False, "tied": False,
    },
    "gpt2": {"positions": "learned", "activation": "gelu_tanh", "scaled": False, "output_bias": False},
    "alibi": {"positions": "alibi", "key_heads": 1},
    "relative": {"positions": "relative", "score": "dot", "head_width": 5},
    "window": {"positions": "rotary", "window": 4},
    "one window": {"positions": "rotary", "window": 3, "window_layers": (1,), "head_norm": True},
    "after": {"norm": "after", "embedding_norm": True, "positions": "sinusoidal_halves"},
    "part of a head": {"positions": "rotary", "rotary_width": 4, "rotary_base": 500.0},
    "additive": {"score": "additive", "normalizer": "sparsemax"},
    "sigmoid": {"score": "general", "normalizer": "sigmoid"},
    "distance": {"score": "distance", "normalizer": "softmax1"},
    "concat": {"score": "concat", "normalizer": "entmax15"},
}  # fmt: skip
on_every_variant = pytest.mark.parametrize("variant", VARIANTS)


def language(variant: str, **more: object) -> DecoderLM:
    torch.manual_seed(0)
    model = build(V, DecoderConfig(kind="decoder", layers=2, **(SMALL | VARIANTS[variant] | more)))
    assert isinstance(model, DecoderLM)
    return randomized(model)


def randomized(model):
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def tokens(n: int = 3, length: int = T) -> Tensor:
    return torch.randint(0, V, (n, length), generator=torch.Generator().manual_seed(1))


def padded(rows: Tensor, before: int, after: int) -> tuple[Tensor, Tensor]:
    """The same rows, each moved by its number of places inside padding of its own."""
    n, length = rows.shape
    wide = torch.randint(0, V, (n, before + length + after), generator=torch.Generator().manual_seed(2))
    allowed = torch.zeros_like(wide, dtype=torch.bool)
    wide[:, before : before + length], allowed[:, before : before + length] = rows, True
    return wide, allowed


@pytest.mark.sampled(4)
@torch.no_grad()
@on_every_variant
@pytest.mark.parametrize("read", [0, 1, 6, T - 1])
def test_steps_give_what_the_whole_pass_gives(variant: str, read: int) -> None:
    model, rows = language(variant), tokens()
    want = model(rows)
    state = model.read(rows[:, :read])
    for t in range(read, T):
        logits, state = model.step(rows[:, t : t + 1], state)
        torch.testing.assert_close(logits[:, 0], want[:, t])


@torch.no_grad()
@on_every_variant
@pytest.mark.parametrize(("before", "after"), [(0, 3), (4, 0), (2, 2)])
def test_padding_on_either_side_changes_nothing(variant: str, before: int, after: int) -> None:
    model, rows = language(variant), tokens()
    wide, allowed = padded(rows, before, after)
    torch.testing.assert_close(model(wide, allowed)[:, before : before + T], model(rows))


@pytest.mark.sampled(3)
@torch.no_grad()
@on_every_variant
def test_beginnings_of_different_length_go_on_as_if_alone(variant: str) -> None:
    model = language(variant)
    rows = [tokens(1, n) for n in (2, 5, 3)]
    wide = torch.zeros(3, 5, dtype=torch.long)
    allowed = torch.zeros(3, 5, dtype=torch.bool)
    for n, row in enumerate(rows):
        wide[n, 5 - row.shape[1] :], allowed[n, 5 - row.shape[1] :] = row[0], True
    state = model.read(wide, allowed)
    more = tokens(3, 7)
    for t in range(7):
        logits, state = model.step(more[:, t : t + 1], state)
        for n, row in enumerate(rows):
            alone = model(torch.cat([row, more[n : n + 1, : t + 1]], 1))
            torch.testing.assert_close(logits[n, 0], alone[0, -1])


@torch.no_grad()
def test_a_window_keeps_no_more_than_it_needs() -> None:
    model, rows = language("window"), tokens()
    state = model.read(rows)
    for _ in range(3):
        _, state = model.step(rows[:, :1], state)
    assert {len(block.self_attention.cache) for block in state.blocks} == {3}


@torch.no_grad()
@on_every_variant
def test_recorded_maps_are_those_of_the_whole_pass(variant: str) -> None:
    model, rows = language(variant), tokens()
    with regard.observe(model) as seen:
        model(rows)
    wide, allowed = padded(rows[:, :4], 3, 0)
    state = model.read(wide, allowed, record=True)
    for t in range(4, T):
        _, state = model.step(rows[:, t : t + 1], state)
    maps = model.maps(state)
    assert set(maps) == set(seen) == {"decoder.layers.0.self", "decoder.layers.1.self"}
    for site, found in maps.items():
        torch.testing.assert_close(found.full()[:, 0, :, :, 3:], seen[site][0].full()[..., 4:, :])
        assert not found.full()[..., :3].any()


@torch.no_grad()
@on_every_variant
def test_hypotheses_are_followed(variant: str) -> None:
    model, rows = language(variant), tokens(2)
    state = model.read(rows[:, :3])
    state = state.select(torch.zeros(2, 2, dtype=torch.long))
    _, state = model.step(torch.tensor([[1, 2], [3, 4]]), state)
    logits, _ = model.step(torch.tensor([[5, 6], [7, 8]]), state.select(torch.tensor([[1, 0], [1, 1]])))
    for n, k, after in ((0, 0, [2, 5]), (0, 1, [1, 6]), (1, 0, [4, 7]), (1, 1, [4, 8])):
        whole = model(torch.cat([rows[n, :3], torch.tensor(after)])[None])
        torch.testing.assert_close(logits[n, k], whole[0, -1])


def test_a_context_reads_by_steps() -> None:
    for context in ("convolution", "running_mean", "recurrence"):
        model, rows = language("plain", context=context), tokens()
        want = model(rows)
        state = model.read(rows[:, :4])
        for t in range(4, T):
            logits, state = model.step(rows[:, t : t + 1], state)
            torch.testing.assert_close(logits[:, 0], want[:, t])
        with pytest.raises(regard.ChoiceError, match="prompts of one length"):
            model.read(*padded(rows, 1, 0))


def reader(variant: str, **more: object) -> MaskedLM:
    torch.manual_seed(0)
    model = build(V, EncoderConfig(kind="encoder", layers=2, **(SMALL | VARIANTS[variant] | more)))
    assert isinstance(model, MaskedLM)
    return randomized(model)


@torch.no_grad()
@on_every_variant
@pytest.mark.parametrize(("before", "after"), [(0, 3), (4, 0), (2, 2)])
def test_an_encoder_reads_the_same_inside_padding(variant: str, before: int, after: int) -> None:
    model, rows = reader(variant, kinds=2, pooler=True), tokens()
    wide, allowed = padded(rows, before, after)
    alone, inside = model.encode(rows), model.encode(wide, allowed)
    torch.testing.assert_close(inside.states[:, before : before + T], alone.states)
    torch.testing.assert_close(inside.summary, alone.summary)
    torch.testing.assert_close(model(wide, allowed)[:, before : before + T], model(rows))
    kinds = torch.ones_like(rows)
    assert not torch.allclose(model.encode(rows, kinds=kinds).states, alone.states)


@torch.no_grad()
@on_every_variant
def test_every_layer_is_given(variant: str) -> None:
    model, rows, found = reader(variant), tokens(), []
    states = model.encode(rows, collect=found).states
    assert len(found) == 3
    assert torch.equal(found[-1], states)
    assert all(not torch.allclose(a, b) for a, b in pairwise(found))


def test_an_encoder_without_a_head_predicts_nothing() -> None:
    with pytest.raises(regard.ChoiceError, match=r"no output layer that predicts tokens: encode\(\) gives its states"):
        reader("plain", head="none")(tokens())


@on_every_variant
def test_every_variant_trains_in_all_three_shapes(variant: str) -> None:
    both = TransformerConfig(
        kind="transformer", encoder_layers=1, decoder_layers=1, cross_score="additive", **(SMALL | VARIANTS[variant])
    )
    pair = randomized(build(V, both)).train()
    for model, given in (
        (language(variant), (tokens(),)),
        (reader(variant), (tokens(),)),
        (pair, (tokens(), tokens())),
    ):
        model(*given).log_softmax(-1)[..., 0].sum().backward()
        without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
        assert {name for name in without if "key.bias" not in name} <= {"decoder.relative.weight"} & without


@pytest.mark.sampled(3)
@torch.no_grad()
@on_every_variant
def test_an_encoder_decoder_steps_as_its_whole_pass(variant: str) -> None:
    config = TransformerConfig(kind="transformer", encoder_layers=1, decoder_layers=2, **(SMALL | VARIANTS[variant]))
    model = randomized(build(V, config))
    source, target = tokens(2, 7), tokens(2, T)
    wide, allowed = padded(source, 2, 1)
    want = model(source, target)
    torch.testing.assert_close(model(wide, target, allowed), want)
    state = model.start(model.encode(wide, allowed))
    for t in range(T):
        logits, state = model.step(target[:, t : t + 1], state)
        torch.testing.assert_close(logits[:, 0], want[:, t])


@torch.no_grad()
def test_attention_without_places_does_not_see_order() -> None:
    """Self-attention is equivariant, attention to a memory invariant (Lee et al. 2019, section 3)."""
    order = torch.randperm(T, generator=torch.Generator().manual_seed(3))
    model, rows = reader("plain", positions="none"), tokens()
    torch.testing.assert_close(model.encode(rows[:, order]).states, model.encode(rows).states[:, order])
    config = TransformerConfig(
        kind="transformer",
        encoder_layers=1,
        decoder_layers=1,
        positions="none",
        **SMALL,
    )
    pair = randomized(build(V, config))
    torch.testing.assert_close(pair(rows[:, order], rows), pair(rows, rows))


def test_a_context_does_not_read_from_one_document_into_the_next() -> None:
    settings = {"width": 16, "heads": 2, "layers": 1, "ffn_width": 16}
    tokens, documents = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1]])
    model = build(20, DecoderConfig(kind="decoder", context="running_mean", **settings))
    with pytest.raises(ChoiceError, match=r"model\.context = 'running_mean' would read from one document"):
        model.hidden(tokens, documents=documents)
    model.hidden(tokens)


@pytest.mark.parametrize("settings", [{"window": 2}, {"positions": "alibi"}, {"positions": "relative"}])
def test_prompts_whose_places_count_are_padded_on_the_left(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = {"width": 8, "heads": 2, "layers": 2, "ffn_width": 12, "dropout": 0.0}
    model = build(11, DecoderConfig(kind="decoder", **sizes, **settings)).eval()
    want, _ = model.step(torch.tensor([[7]]), model.read(torch.tensor([[5, 6]])))
    left = model.read(torch.tensor([[9, 9, 5, 6]]), torch.tensor([[False, False, True, True]]))
    torch.testing.assert_close(model.step(torch.tensor([[7]]), left)[0], want)
    with pytest.raises(regard.ShapeError, match="are padded on the left"):
        model.read(torch.tensor([[5, 6, 9, 9]]), torch.tensor([[True, True, False, False]]))
