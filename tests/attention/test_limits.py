"""At the limits of the equation: no width, infinite scores, names that stand for objects, torch.func."""

import pytest
import torch
from torch import inf, nan

import regard
from regard.attention.normalizers import NAMED as NORMALIZERS
from regard.attention.operator import KERNELS

SCORES = {
    "dot": lambda: "dot",
    "scaled_dot": lambda: "scaled_dot",
    "cosine": lambda: "cosine",
    "distance": regard.Distance,
    "general": lambda: regard.General(0, 0),
    "additive": lambda: regard.Additive(0, 0, 3),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
def test_queries_of_width_0_have_equal_scores(score: str, kernel: str) -> None:
    q, k, v = torch.randn(2, 3, 0), torch.randn(2, 4, 0), torch.randn(2, 4, 5)
    made = SCORES[score]()
    try:
        output = regard.attend(q, k, v, score=made, kernel=kernel)
    except regard.KernelError:
        return
    torch.testing.assert_close(output, v.mean(1, keepdim=True).expand(2, 3, 5))
    torch.testing.assert_close(regard.attention_map(q, k, score=made).full(), torch.full((2, 3, 4), 0.25))


@pytest.mark.parametrize("name", [name for name in NORMALIZERS if name != "uniform"])
@pytest.mark.parametrize("kernel", ["auto", "reference", "blockwise"])
@pytest.mark.parametrize("score", [inf, nan])
def test_an_infinite_score_makes_its_row_nan_and_no_other(name: str, kernel: str, score: float) -> None:
    q, k, v = (torch.randn(2, 5, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.zeros(5, 5, dtype=torch.float64)
    bias[2, 1] = score
    output = regard.attend(q, k, v, normalizer=name, bias=bias, kernel=kernel)
    weights = regard.attention_map(q, k, normalizer=name, bias=bias).full()
    for found in (output, weights):
        assert found[:, 2].isnan().all(), name
        assert found[:, [0, 1, 3, 4]].isfinite().all()
    hidden = torch.ones(5, 5, dtype=torch.bool)
    hidden[2, 1] = False
    assert regard.attend(q, k, v, normalizer=name, bias=bias, mask=hidden, kernel=kernel).isfinite().all()


@pytest.mark.parametrize("name", [*(name for name in NORMALIZERS if name != "uniform"), "share"])
@pytest.mark.parametrize("score", [inf, nan])
def test_a_tile_of_such_a_row_is_nan_before_and_after_the_statistics(name: str, score: float) -> None:
    q, k = (torch.rand(5, 4, dtype=torch.float64) for _ in range(2))
    bias = torch.zeros(5, 5, dtype=torch.float64)
    bias[2, 1] = score
    chosen = regard.Share() if name == "share" else name
    seen = regard.attention_map(q, k, score="dot", normalizer=chosen, bias=bias)
    for _ in range(2):
        assert seen.tile([2], slice(None)).isnan().all()
        assert seen.tile([0, 1, 3, 4], slice(None)).isfinite().all()
        assert seen.full()[2].isnan().all()
        seen.argmax()


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_name_is_no_object_that_somewhere_else_can_change(name: str) -> None:
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    before = regard.attend(q, k, v, normalizer=name)
    with torch.device("meta"):
        layer = regard.nn.MultiheadAttention(8, 2, normalizer=name)
    layer.to_empty(device="cpu")
    layer.to("meta").half()
    for module in layer.modules():
        for buffer in module.buffers(recurse=False):
            buffer.data = torch.full_like(buffer, 3.0, device="cpu")
    assert torch.equal(regard.attend(q, k, v, normalizer=name), before)
    model = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    if name not in ("uniform",):
        with regard.swap(model, normalizer=name):
            model.to("meta")
    assert torch.equal(regard.attend(q, k, v, normalizer=name), before)


def test_named_objects_hold_no_tensor() -> None:
    from regard.attention import normalizers, scores

    for shared in (*normalizers.SHARED.values(), *scores.SHARED.values()):
        assert not list(shared.parameters())
        assert not list(shared.buffers())


@pytest.mark.parametrize(
    "asked",
    [
        lambda seen: seen.entropy(), lambda seen: seen.received(), lambda seen: seen.argmax(),
        lambda seen: seen.top(2)[0],
        lambda seen: seen.pool(2, 2), lambda seen: seen.summary().entropy, lambda seen: seen.sample()[1],
    ],
)  # fmt: skip
def test_statistics_under_vmap_are_refused_in_one_sentence(asked) -> None:
    q, k = torch.randn(3, 4, 6), torch.randn(3, 5, 6)
    with pytest.raises(regard.RegardError, match=r"which a torch\.func transform, a graph or the meta device hides"):
        torch.func.vmap(lambda q, k: asked(regard.attention_map(q, k)))(q, k)
    full = torch.func.vmap(lambda q, k: regard.attention_map(q, k).full())(q, k)
    torch.testing.assert_close(full, regard.attention_map(q, k).full())
