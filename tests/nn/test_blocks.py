"""The Transformer's blocks against torch's own layers with the same weights."""

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.nn.blocks import ConformerLayer, ConvolutionModule, DecoderLayer, EncoderLayer, FeedForward, Residual
from regard.nn.multihead import MultiHead

B, T, S, WIDTH, HEADS, INNER = 2, 5, 7, 12, 3, 19


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(shape[1]))


def copy_attention(ours: MultiHead, other: nn.MultiheadAttention) -> None:
    layers = (ours.query, ours.key, ours.value)
    other.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
    other.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
    other.out_proj.load_state_dict(ours.output.state_dict())


def residual(norm: str, dropout: float = 0.1) -> Residual:
    return Residual(nn.LayerNorm(WIDTH), norm, dropout)


def randomize(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.double().eval()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["before", "after"])
@torch.no_grad()
def test_encoder_layer_is_torchs(activation: str, norm: str) -> None:
    ours = randomize(
        EncoderLayer(MultiHead(WIDTH, HEADS), FeedForward(WIDTH, INNER, activation), residual(norm), residual(norm))
    )
    other = nn.TransformerEncoderLayer(
        WIDTH, HEADS, INNER, 0.0, activation, batch_first=True, norm_first=norm == "before"
    ).double()
    copy_attention(ours.self, other.self_attn)
    parts = [(other.linear1, ours.feed_forward.inner), (other.linear2, ours.feed_forward.outer)]
    parts += [(other.norm1, ours.around_self.norm), (other.norm2, ours.around_feed_forward.norm)]
    for theirs, mine in parts:
        theirs.load_state_dict(mine.state_dict())
    x, lengths = draw(B, T, WIDTH), torch.tensor([5, 3])
    want = other(x, src_key_padding_mask=torch.arange(T) >= lengths[:, None])  # train mode: not the fast path
    torch.testing.assert_close(ours(x, regard.padding(lengths)), want)


@pytest.mark.parametrize("norm", ["before", "after"])
@torch.no_grad()
def test_decoder_layer_is_torchs(norm: str) -> None:
    attention = MultiHead(WIDTH, HEADS), MultiHead(WIDTH, HEADS)
    ours = randomize(
        DecoderLayer(*attention, FeedForward(WIDTH, INNER), residual(norm), residual(norm), residual(norm))
    )
    other = nn.TransformerDecoderLayer(WIDTH, HEADS, INNER, 0.0, batch_first=True, norm_first=norm == "before").double()
    copy_attention(ours.self, other.self_attn)
    copy_attention(ours.cross, other.multihead_attn)
    parts = [(other.linear1, ours.feed_forward.inner), (other.linear2, ours.feed_forward.outer)]
    arounds = (ours.around_self, ours.around_cross, ours.around_feed_forward)
    parts += zip((other.norm1, other.norm2, other.norm3), (around.norm for around in arounds), strict=True)
    for theirs, mine in parts:
        theirs.load_state_dict(mine.state_dict())
    x, memory, lengths = draw(B, T, WIDTH), draw(B, S, WIDTH), torch.tensor([7, 4])
    want = other(
        x, memory, tgt_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
        memory_key_padding_mask=torch.arange(S) >= lengths[:, None],
    )  # fmt: skip
    torch.testing.assert_close(ours(x, memory, regard.padding(lengths)), want)


def test_feed_forward_is_position_wise() -> None:
    layer = randomize(FeedForward(WIDTH, INNER))
    x = draw(B, T, WIDTH)
    want = torch.relu(x @ layer.inner.weight.T + layer.inner.bias) @ layer.outer.weight.T + layer.outer.bias
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer(x[:, 1:2]), want[:, 1:2])


@pytest.mark.parametrize("norm", ["before", "after"])
def test_residual(norm: str) -> None:
    around, x = residual(norm, 0.0).double(), draw(B, T, WIDTH)
    normed = lambda y: nn.functional.layer_norm(y, (WIDTH,))  # noqa: E731
    want = x + normed(x).sin() if norm == "before" else normed(x + x.sin())
    torch.testing.assert_close(around(x, torch.sin), want)


def test_a_residual_drops_the_part_and_never_the_path() -> None:
    torch.manual_seed(0)
    around, x = residual("before", 0.5), torch.ones(B, T, WIDTH)
    assert set((around(x, torch.ones_like) - x).unique().tolist()) == {0.0, 2.0}


def test_unknown_choices() -> None:
    with pytest.raises(regard.ChoiceError, match="unknown norm 'befor': expected one of 'before', 'after'"):
        residual("befor")
    with pytest.raises(regard.ChoiceError, match="unknown activation 'rleu': expected one of 'relu', 'silu', 'gelu'"):
        FeedForward(WIDTH, INNER, "rleu")


def norm_of(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return scaled * layer.weight + layer.bias


@torch.no_grad()
def test_conformer_layer_is_its_equations() -> None:
    """Gulati et al. 2020: section 2.4, and figure 2 state by state in a plain loop."""
    halves = FeedForward(WIDTH, INNER, "silu"), FeedForward(WIDTH, INNER, "silu")
    layer = ConformerLayer(
        MultiHead(WIDTH, HEADS), ConvolutionModule(WIDTH, 1), halves, tuple(residual("before") for _ in range(4)),
        nn.LayerNorm(WIDTH),
    )  # fmt: skip
    x, mix = draw(B, T, WIDTH), randomize(layer).convolution
    allowed = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()

    y = x + halves[0](norm_of(layer.around_first.norm, x)) / 2
    mask = regard.padding(torch.tensor([5, 3]))
    y = y + layer.self(norm_of(layer.around_self.norm, y), mask=mask)
    left, right = mix.inner(norm_of(layer.around_convolution.norm, y)).chunk(2, -1)
    inside, kernel = left * torch.sigmoid(right) * allowed[..., None], mix.depthwise.weight[:, 0]  # [d, 3]
    mixed = torch.zeros_like(x)
    for t in range(T):
        near = [o for o in (-1, 0, 1) if 0 <= t + o < T]
        mixed[:, t] = mix.depthwise.bias + sum(inside[:, t + o] * kernel[:, 1 + o] for o in near)
    y = y + mix.outer(nn.functional.silu(norm_of(mix.norm, mixed)))
    y = y + halves[1](norm_of(layer.around_feed_forward.norm, y)) / 2
    expected = norm_of(layer.norm, y)

    got = layer(x, mask, allowed)
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1, :3], expected[1, :3])
    torch.testing.assert_close(got[1:, :3], layer(x[1:, :3], None))


def test_a_convolution_of_nothing() -> None:
    assert ConvolutionModule(4, 1)(torch.randn(2, 0, 4)).shape == (2, 0, 4)
