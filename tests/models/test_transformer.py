"""The Transformer encoder–decoder against torch.nn.Transformer with the same weights."""

from math import sqrt

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import regard
from regard.attention.watch import Call, watching
from regard.models.build import build
from regard.models.stack import fewer_layers
from regard.models.transformer import Transformer, TransformerConfig
from regard.nn.embedding import sinusoidal
from regard.nn.multihead import MultiHead

V, B, S, T, WIDTH, HEADS, INNER = 17, 2, 7, 5, 12, 3, 19
SMALL = {
    "kind": "transformer", "width": WIDTH, "encoder_layers": 2, "decoder_layers": 3, "heads": HEADS,
    "ffn_width": INNER, "length": 11,
}  # fmt: skip


def made(**more) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(V, TransformerConfig(**SMALL | more)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def copy_attention(ours: MultiHead, other: nn.MultiheadAttention) -> None:
    layers = (ours.query, ours.key, ours.value)
    other.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
    other.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
    other.out_proj.load_state_dict(ours.output.state_dict())


def copy_layer(ours: nn.Module, other: nn.Module) -> None:
    copy_attention(ours.self, other.self_attn)
    arounds = [ours.around_self, ours.around_feed_forward]
    if hasattr(ours, "cross"):
        copy_attention(ours.cross, other.multihead_attn)
        arounds.insert(1, ours.around_cross)
    for number, around in enumerate(arounds, 1):
        getattr(other, f"norm{number}").load_state_dict(around.norm.state_dict())
    other.linear1.load_state_dict(ours.feed_forward.inner.state_dict())
    other.linear2.load_state_dict(ours.feed_forward.outer.state_dict())


def torchs(model: Transformer) -> nn.Transformer:
    before = model.config.norm == "before"
    other = nn.Transformer(
        WIDTH, HEADS, 2, 3, INNER, 0.0, model.config.activation, batch_first=True, norm_first=before
    ).double()  # fmt: skip
    for ours, theirs in ((model.encoder, other.encoder), (model.decoder, other.decoder)):
        for mine, layer in zip(ours.layers, theirs.layers, strict=True):
            copy_layer(mine, layer)
        theirs.norm = type(ours.norm)(WIDTH).double()
        theirs.norm.load_state_dict(ours.norm.state_dict())
    return other  # in training mode with no dropout: not torch's fast path


@pytest.mark.filterwarnings("ignore:.*nested_tensor.*")
@pytest.mark.parametrize("norm", ["before", "after"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_equals_torchs_transformer(norm: str, activation: str, tied: bool) -> None:
    model = made(norm=norm, activation=activation, tied=tied)
    source, target = torch.randint(3, V, (B, S)), torch.randint(3, V, (B, T))
    allowed = torch.arange(S) < torch.tensor([7, 4])[:, None]

    def embed(tokens: Tensor) -> Tensor:
        return model.embedding.weight[tokens] * sqrt(WIDTH) + sinusoidal(tokens.shape[1], WIDTH)

    hidden = torchs(model)(
        embed(source), embed(target), tgt_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
        src_key_padding_mask=~allowed, memory_key_padding_mask=~allowed,
    )  # fmt: skip
    weight = model.embedding.weight if tied else model.decoder.output
    torch.testing.assert_close(model(source, target, allowed), hidden @ weight.T + model.decoder.bias)


@torch.no_grad()
def test_without_positions_the_order_of_the_source_does_not_matter() -> None:
    source, target = torch.randint(3, V, (B, S)), torch.randint(3, V, (B, T))
    for positions, same in (("none", True), ("sinusoidal", False), ("learned", False)):
        model = made(positions=positions)
        assert torch.allclose(model(source, target), model(source.flip(1), target)) == same


@torch.no_grad()
def test_a_source_longer_than_the_learned_places() -> None:
    model = made(positions="learned")
    assert model(torch.randint(3, V, (B, 13)), torch.randint(3, V, (B, 13))).isfinite().all()


def test_sites_are_named_by_their_paths_in_order() -> None:
    model = made()
    state = model.start(model.encode(torch.randint(3, V, (B, S))), record=True)
    assert model.maps(state) == {}
    for _ in range(2):
        state = model.step(torch.ones(B, 1, dtype=torch.long), state).state
    maps = model.maps(state)
    assert list(maps) == [f"decoder.layers.{n}.{kind}" for n in range(3) for kind in ("self", "cross")]
    for site, seen in maps.items():
        assert isinstance(model.get_submodule(site), MultiHead)
        assert seen.shape == (B, 1, HEADS, 2, 2 if site.endswith("self") else S)


@torch.no_grad()
def test_maps_of_self_attention_do_not_look_ahead() -> None:
    model = made()
    state = model.start(model.encode(torch.randint(3, V, (B, S))), record=True)
    for _ in range(4):
        state = model.step(torch.full((B, 1), 5), state).state
    full = model.maps(state)["decoder.layers.1.self"].full()
    assert not full.triu(1).any()
    torch.testing.assert_close(full.sum(-1), torch.ones_like(full[..., 0]))


def test_tied_weights_are_one_parameter() -> None:
    model = made()
    assert model.readout()[0] is model.embedding.weight
    tied, untied = (sum(p.numel() for p in made(tied=t).parameters()) for t in (True, False))
    assert untied - tied == V * WIDTH


def test_grouped_heads_keep_a_smaller_cache() -> None:
    model = Transformer(V, TransformerConfig(**SMALL | {"heads": 6, "key_heads": 2}))
    state = model.start(model.encode(torch.randint(3, V, (B, S))))
    assert state.blocks[0].cross_attention.key.shape == (B, 1, 2, S, 2)
    assert state.blocks[0].self_attention.cache.key.shape == (B, 1, 2, 0, 2)
    state = model.step(torch.ones(B, 1, dtype=torch.long), state).state
    assert state.blocks[0].self_attention.cache.value.shape == (B, 1, 2, 1, 2)


@pytest.mark.parametrize(("context", "both"), [("convolution", True), ("running_mean", False), ("recurrence", True)])
def test_only_queries_of_the_encoder_look_ahead(context: str, both: bool) -> None:
    model = made(context=context, context_reach=3)
    assert {layer.self.context.looks_ahead for layer in model.encoder.layers} == {both}
    for layer in model.decoder.layers:
        assert not layer.self.context.looks_ahead
        assert not layer.cross.context.looks_ahead
    if context == "convolution":
        reach = [(part.left, part.right) for part in (model.encoder.layers[0].self.context, layer.cross.context)]
        assert reach == [(3, 3), (3, 0)]


def test_the_config_refuses_what_it_does_not_know() -> None:
    for wrong in (
        {"widht": 3},
        {"norm": "pre"},
        {"heads": 0},
        {"dropout": 1.0},
        {"positions": "rotray"},
        {"context": "convolutoin"},
    ):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            TransformerConfig(**SMALL | wrong)
    with pytest.raises(regard.ShapeError, match=r"heads must divide the width .* got width 12, heads 5"):
        made(heads=5)


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
def test_the_guided_head_is_found_by_owner(layers: int) -> None:
    """Head 0 of the last cross-attention but one, whatever else was recorded and in whatever order."""
    model, other = made(decoder_layers=layers), made(decoder_layers=layers)
    source, target, calls = torch.randint(3, V, (B, S)), torch.randint(3, V, (B, 4)), list[Call]()
    with watching(calls.append):
        other(source, target)
        model(source, target)
    with regard.observe(model) as seen:
        model(source, target)
    want = seen[f"decoder.layers.{max(0, layers - 2)}.cross"][0].full()[:, 0]
    assert torch.equal(model.guided(calls), want)
    assert torch.equal(model.guided(calls[::-1]), want)


def test_fewer_layers_are_the_first_the_last_and_evenly_spaced_ones():
    deep, shallow = (
        build(
            11, TransformerConfig(kind="transformer", width=6, heads=2, ffn_width=7, encoder_layers=e, decoder_layers=d)
        )
        for e, d in ((4, 5), (2, 3))
    )
    weights = deep.state_dict()
    shallow.load_state_dict(fewer_layers(weights, shallow.state_dict()))
    for stack, origins in (("encoder", (0, 3)), ("decoder", (0, 2, 4))):
        for own, origin in enumerate(origins):
            found = getattr(shallow, stack).layers[own].self.query.weight
            assert torch.equal(found, weights[f"{stack}.layers.{origin}.self.query.weight"])
    assert torch.equal(shallow.decoder.bias, deep.decoder.bias)
    assert fewer_layers(weights, weights).keys() == weights.keys()
    one = fewer_layers(weights, ["encoder.layers.0.self.query.weight"])
    assert torch.equal(one["encoder.layers.0.self.query.weight"], weights["encoder.layers.0.self.query.weight"])
