"""regard.nn.MultiheadAttention beside torch's."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.attention.normalizers import Softmax

D, H, T, S, B = 12, 3, 5, 7, 2
VARIANTS: list[dict[str, Any]] = [
    {}, {"batch_first": True}, {"bias": False}, {"kdim": 6, "vdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True},
]  # fmt: skip


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def pair(**settings: Any) -> tuple[nn.MultiheadAttention, regard.nn.MultiheadAttention]:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(D, H, **settings)
    ours = regard.nn.MultiheadAttention(D, H, **settings)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(batch_first: bool = False, kdim: int = D, vdim: int = D, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
    tensors = draw(B, T, D), draw(B, S, kdim), draw(B, S, vdim)
    return tensors if batch_first else tuple(t.transpose(0, 1) for t in tensors)  # type: ignore[return-value]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize("average", [True, False])
def test_it_computes_what_torch_computes(settings: dict[str, Any], average: bool) -> None:
    theirs, ours = pair(**settings)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    given = inputs(**settings)
    want = theirs(*given, average_attn_weights=average)
    got = ours(*given, average_attn_weights=average)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    assert ours(*given, need_weights=False)[1] is None
    torch.testing.assert_close(ours(*given, need_weights=False)[0], want[0], atol=1e-6, rtol=1e-6)


MASKS = {
    "bool": torch.ones(T, S).triu(3).bool(),
    "float": torch.linspace(-3, 2, T * S).view(T, S),
    "per head": (torch.rand(B * H, T, S, generator=torch.Generator().manual_seed(1)) < 0.3).index_fill(
        2, torch.tensor([0]), False
    ),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padded", [False, True])
def test_torchs_masks_mean_what_they_mean_there(mask: str, padded: bool) -> None:
    theirs, ours = pair(batch_first=True)
    attn = MASKS[mask]
    padding: Tensor | None = None
    if padded:
        padding = torch.arange(S) >= torch.tensor([[S], [S - 2]])
        padding = padding if attn.dtype == torch.bool else torch.zeros(B, S).masked_fill(padding, -torch.inf)
    given = inputs(batch_first=True)
    more = {"attn_mask": attn, "key_padding_mask": padding, "average_attn_weights": False}
    torch.testing.assert_close(ours(*given, **more), theirs(*given, **more), atol=1e-6, rtol=1e-6)


def test_without_a_batch() -> None:
    theirs, ours = pair()
    q, k = draw(T, D), draw(S, D)
    padding = torch.tensor([False] * 5 + [True] * 2)
    more = {"key_padding_mask": padding, "average_attn_weights": False}
    torch.testing.assert_close(ours(q, k, k, **more), theirs(q, k, k, **more), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("per_head", [False, True])
def test_a_float_mask_without_a_batch(per_head: bool) -> None:
    theirs, ours = pair()
    q, k = draw(T, D), draw(S, D)
    mask = draw(H, T, S) if per_head else draw(T, S)
    for padding in (None, torch.tensor([0.0] * 5 + [-torch.inf] * 2)):
        more = {"attn_mask": mask, "key_padding_mask": padding, "average_attn_weights": False}
        torch.testing.assert_close(ours(q, k, k, **more), theirs(q, k, k, **more), atol=1e-6, rtol=1e-6)


def test_is_causal_needs_its_mask() -> None:
    _, ours = pair()
    with pytest.raises(regard.ConfigError, match="is_causal says that attn_mask is causal: give it too"):
        ours(draw(T, D), draw(T, D), draw(T, D), is_causal=True)


def test_a_query_that_may_look_nowhere_gets_nothing() -> None:
    _, ours = pair(bias=False)
    q, k = draw(T, D), draw(S, D)
    output, weights = ours(q, k, k, attn_mask=torch.ones(T, S).bool())
    assert not output.any()
    assert not weights.any()


def test_score_normalizer_mask_and_bias_are_chosen() -> None:
    torch.manual_seed(0)
    score = regard.Additive(D // H, D // H, 4)
    ours = regard.nn.MultiheadAttention(
        D, H, batch_first=True, score=score, normalizer="softmax1", mask=regard.causal(0), score_bias=draw(T, S)
    )
    q, k, v = inputs(batch_first=True)
    output, weights = ours(q, k, v, attn_mask=MASKS["float"], average_attn_weights=False)
    parts = [
        (x @ w.T + b).unflatten(-1, (H, -1)).transpose(1, 2)
        for x, w, b in zip((q, k, v), ours.in_proj_weight.chunk(3), ours.in_proj_bias.chunk(3), strict=True)
    ]
    scores = score(parts[0], parts[1]) + draw(T, S) + MASKS["float"]
    e = scores.exp() * torch.ones(T, S).tril()
    want = e / (1 + e.sum(-1, keepdim=True))
    torch.testing.assert_close(weights, want, atol=1e-6, rtol=1e-5)
    heads = (want @ parts[2]).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(output, ours.out_proj(heads), atol=1e-6, rtol=1e-5)
    output.sum().backward()
    assert score.v.grad is not None


def test_torchs_encoder_layer_asks_it_also_in_inference() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True).eval()
    x = draw(B, T, D)
    with torch.no_grad():
        before = layer(x)
        ours = copy.deepcopy(layer)
        ours.self_attn = regard.nn.MultiheadAttention(D, 2, batch_first=True)
        ours.self_attn.load_state_dict(layer.self_attn.state_dict())
        torch.testing.assert_close(ours(x), before, atol=1e-6, rtol=1e-6)
        ours.self_attn.choose(normalizer="uniform")
        assert float((ours(x) - before).abs().max()) > 1e-3


def test_dropout_falls_on_weights_and_the_map_is_before_it() -> None:
    torch.manual_seed(0)
    ours = regard.nn.MultiheadAttention(D, H, dropout=0.5, batch_first=True)
    given = inputs(batch_first=True)
    first, weights = ours(*given)
    second, again = ours(*given)
    assert not torch.equal(first, second)
    assert torch.equal(weights, again)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, T))
    ours.eval()
    assert torch.equal(ours(*given)[0], ours(*given)[0])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(regard.ChoiceError, match="unknown score 'scaled_dott'"):
        regard.nn.MultiheadAttention(D, H, score="scaled_dott")
    with pytest.raises(AttributeError, match="has no attribute 'MultiHeadAttention'"):
        regard.nn.MultiHeadAttention  # noqa: B018


@pytest.mark.parametrize("way", ["hook", "forward"])
def test_weights_are_those_of_the_output_where_a_normalizer_has_hooks(way: str) -> None:
    torch.manual_seed(0)
    layer = regard.nn.MultiheadAttention(16, 2, batch_first=True).eval()
    layer.choose(normalizer=Softmax(), mask=regard.causal())
    plain = layer.normalizer.forward

    def even(scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        weights, numbers = plain(scores, allowed)
        return torch.full_like(weights, 0.2), numbers

    if way == "hook":
        layer.normalizer.register_forward_hook(lambda module, given, found: (torch.full_like(found[0], 0.2), found[1]))
    else:
        layer.normalizer.forward = even
    x = torch.randn(1, 5, 16)
    with regard.observe(layer) as seen:
        _, weights = layer(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(weights, seen["."][0].full())
    assert not weights.triu(1).any()
