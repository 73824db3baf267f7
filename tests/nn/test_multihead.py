"""MultiHead against torch.nn.MultiheadAttention with the same weights."""

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.errors import ChoiceError, ShapeError
from regard.nn.context import Convolution
from regard.nn.multihead import MultiHead

B, T, S, WIDTH, HEADS = 2, 5, 7, 12, 3


def theirs(ours: MultiHead, key_width: int = WIDTH, value_width: int = WIDTH) -> nn.MultiheadAttention:
    other = nn.MultiheadAttention(WIDTH, HEADS, kdim=key_width, vdim=value_width, batch_first=True).double()
    layers = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        if other.in_proj_weight is not None:
            other.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        else:
            for name, layer in zip(("q", "k", "v"), layers, strict=True):
                getattr(other, f"{name}_proj_weight").copy_(layer.weight)
        other.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        other.out_proj.weight.copy_(ours.output.weight)
        other.out_proj.bias.copy_(ours.output.bias)
    return other.eval()


def made(**more) -> MultiHead:
    torch.manual_seed(0)
    layer = MultiHead(WIDTH, HEADS, **more).double().eval()
    for part in (layer.query, layer.key, layer.value, layer.output):
        nn.init.normal_(part.bias)
    return layer


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(shape[-1]))


@pytest.mark.parametrize("mask", [None, "causal", "padding"])
def test_self_attention_is_torchs(mask: str | None) -> None:
    layer, x = made(), draw(B, T, WIDTH)
    lengths = torch.tensor([T, 2])
    hidden = {"key_padding_mask": torch.arange(T) >= lengths[:, None]} if mask == "padding" else {}
    if mask == "causal":
        hidden = {"attn_mask": torch.ones(T, T, dtype=torch.bool).triu(1)}
    ours = {None: None, "causal": regard.causal(), "padding": regard.padding(lengths)}[mask]
    want = theirs(layer)(x, x, x, need_weights=False, **hidden)[0]
    torch.testing.assert_close(layer(x, mask=ours), want)


@pytest.mark.parametrize(("key_width", "value_width"), [(12, 12), (17, 17), (17, 19)])
def test_cross_attention_is_torchs(key_width: int, value_width: int) -> None:
    layer = made(key_width=key_width, value_width=value_width)
    x, memory, values = draw(B, T, WIDTH), draw(B, S, key_width), draw(B, S, value_width)
    want = theirs(layer, key_width, value_width)(x, memory, values)[0]
    torch.testing.assert_close(layer(x, memory, values), want)
    if key_width == value_width:
        torch.testing.assert_close(layer(x, memory), theirs(layer, key_width, value_width)(x, memory, memory)[0])


@pytest.mark.parametrize("key_heads", [1, 2, 3, 6])
def test_grouped_heads_of_states_without_a_batch(key_heads: int) -> None:
    layer, x = MultiHead(WIDTH, 6, key_heads=key_heads), torch.randn(5, WIDTH)
    torch.testing.assert_close(layer(x), layer(x[None])[0])
    with regard.observe(layer) as seen:
        layer(x)
    assert seen["."][0].shape == (6, 5, 5)


@pytest.mark.parametrize("key_heads", [1, 2, 3])
def test_grouped_heads_share_keys_and_values(key_heads: int) -> None:
    torch.manual_seed(0)
    layer, full = MultiHead(WIDTH, 6, key_heads=key_heads).double(), MultiHead(WIDTH, 6).double()
    group, width = 6 // key_heads, 2
    full.load_state_dict({n: p for n, p in layer.state_dict().items() if n.split(".")[0] in ("query", "output")}, False)
    with torch.no_grad():
        for name in ("key", "value"):
            for kind in ("weight", "bias"):
                small = getattr(getattr(layer, name), kind)
                pieces = [small[width * (h // group) :][:width] for h in range(6)]
                getattr(getattr(full, name), kind).copy_(torch.cat(pieces))
    x, memory = draw(B, T, WIDTH), draw(B, S, WIDTH)
    torch.testing.assert_close(layer(x, memory), full(x, memory))


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_any_batch_axes(batch: tuple[int, ...]) -> None:
    layer, x = made(), draw(*batch, T, WIDTH)
    want = torch.stack([layer(row) for row in x.reshape(-1, T, WIDTH)]).reshape(x.shape)
    torch.testing.assert_close(layer(x), want)


def test_queries_keys_values_and_attend_are_forward_in_parts() -> None:
    layer, x, memory = made(), draw(B, T, WIDTH), draw(B, S, WIDTH)
    query, (key, value) = layer.queries(x), layer.keys_values(memory)
    assert query.shape == (B, HEADS, T, WIDTH // HEADS)
    assert key.shape == value.shape == (B, HEADS, S, WIDTH // HEADS)
    torch.testing.assert_close(layer.attend(query, key, value, None), layer(x, memory))


@pytest.mark.parametrize("score", ["dot", "cosine", regard.Distance(), regard.Additive(4, 4, 7).double()])
@pytest.mark.parametrize("normalizer", ["softmax", "uniform"])
def test_takes_any_score_and_normalizer(score, normalizer: str) -> None:
    layer, x = made(score=score, normalizer=normalizer), draw(B, T, WIDTH)
    query, (key, value) = layer.queries(x), layer.keys_values(x)
    seen = regard.attention_map(query, key, score=score, normalizer=normalizer).full() @ value
    want = layer.output(torch.cat(seen.unbind(1), -1))
    torch.testing.assert_close(layer(x), want)


def test_dropout_in_training_only() -> None:
    layer, x = made(dropout=0.5), draw(B, T, WIDTH)
    torch.testing.assert_close(layer(x), theirs(layer)(x, x, x)[0])
    assert not torch.allclose(layer.train()(x), layer.eval()(x))


def test_fresh_weights_are_xavier_and_fresh_biases_zero() -> None:
    layer = MultiHead(WIDTH, HEADS, key_width=17)
    assert layer.key.weight.abs().max() <= (6 / (17 + WIDTH)) ** 0.5
    assert not any(p.any() for name, p in layer.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(("width", "heads", "key_heads"), [(12, 5, None), (12, 3, 2)])
def test_heads_must_divide(width: int, heads: int, key_heads: int | None) -> None:
    message = f"heads must divide .* got width {width}, heads {heads}, key_heads {key_heads or heads}"
    with pytest.raises(regard.ShapeError, match=message):
        MultiHead(width, heads, key_heads=key_heads)


def test_sizes_and_names_that_there_are_not_are_refused() -> None:
    for wrong in ({"head_width": 0}, {"head_width": -1}, {"key_width": -1}, {"value_width": 0}):
        with pytest.raises(ShapeError, match=rf"MultiHead takes at least 1 .*{next(iter(wrong))}|{next(iter(wrong))}"):
            MultiHead(8, 2, **wrong)
    with pytest.raises(ShapeError, match="dropout is a share of the weights"):
        MultiHead(8, 2, dropout=3.0)
    with pytest.raises(ChoiceError, match="querry"):
        MultiHead(8, 2, biases=["querry"])


def test_a_window_that_ends_at_the_query_is_causal() -> None:
    ahead = MultiHead(8, 2, context=Convolution(8, 1, 1))
    x = torch.randn(1, 5, 8)
    for mask in (regard.causal(), regard.window(4, 0), regard.window(4, 0) & torch.ones(5, 5, dtype=torch.bool)):
        with pytest.raises(ChoiceError, match="looks ahead"):
            ahead(x, mask=mask)
    ahead(x, mask=regard.window(4, 1))
