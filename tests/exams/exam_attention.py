"""`attend` and its layers in a graph: compiled whole and exported.

Run by `tests/test_exams.py` in a process of its own, because run-time type checks have no place in a graph.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard

B, H, T, S, D = 2, 4, 7, 11, 8
draw = torch.Generator().manual_seed(0)
QUERY, KEY, VALUE = (torch.randn(B, H, n, D, generator=draw) for n in (T, S, S))
IDS = torch.tensor([[0, 0, 1, 1, 2, 2, -1]] * B), torch.tensor([[0] * 4 + [1] * 3 + [2] * 3 + [-1]] * B)
HOLES = torch.rand(B, 1, T, S, generator=draw) > 0.4

MASKS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "causal": regard.causal,
    "causal from the first": lambda: regard.causal(0),
    "causal by sentence": lambda: regard.causal(torch.tensor([1, 2])),
    "window": lambda: regard.window(2),
    "padding": lambda: regard.padding(torch.tensor([S, 5])),
    "padding of both": lambda: regard.padding(torch.tensor([S, 5]), torch.tensor([T, 3])),
    "documents": lambda: regard.documents(*IDS),
    "prefix": lambda: regard.prefix(3),
    "blocks": lambda: regard.blocks(torch.tensor([[1, 0, 1], [0, 1, 0]]).bool(), 4),
    "bool": lambda: HOLES,
    "causal and padding": lambda: regard.causal() & regard.padding(torch.tensor([S, 5])),
    "causal or prefix": lambda: regard.causal() | regard.prefix(3),
    "not window": lambda: ~regard.window(1),
}
RELATIVE = regard.RelativeBias(H)
nn.init.normal_(RELATIVE.weight, generator=draw)
NUMBERS = torch.linspace(-1, 1, T * S).view(T, S)
BIASES: dict[str, Callable[[], Any]] = {
    "none": lambda: None, "alibi": lambda: regard.alibi(H), "relative": lambda: RELATIVE, "tensor": lambda: NUMBERS,
}  # fmt: skip
NORMALIZERS: dict[str, Callable[[], Any]] = {
    "softmax": lambda: "softmax", "sparsemax": lambda: "sparsemax", "entmax15": lambda: "entmax15",
    "sigmoid": lambda: "sigmoid", "softmax1": lambda: "softmax1", "uniform": lambda: "uniform",
    "entmax": lambda: regard.Entmax(1.3), "sink": lambda: regard.Sink(torch.tensor([0.1, 0.2, 0.3, 0.4])),
    "hard": regard.Hard,
}  # fmt: skip
SCORES: dict[str, Callable[[], Any]] = {
    "cosine": lambda: "cosine", "distance": lambda: regard.Distance(2.0), "general": lambda: regard.General(D, D),
    "additive": lambda: regard.Additive(D, D, 5), "concat": lambda: regard.Concat(D, D, 5),
    "aspects": lambda: regard.QueryAdaptive(D, D, 3),
    "callable": lambda: lambda q, k: (q @ k.transpose(-2, -1)).sin(),
}  # fmt: skip

SLOW = pytest.mark.slow
ALL = list(product(MASKS, BIASES, NORMALIZERS))
FEW = {("causal", "relative", "softmax"), ("causal and padding", "relative", "entmax15"), ("window", "none", "softmax")}
CELLS = [pytest.param(*cell, marks=[] if cell in FEW else SLOW, id="-".join(cell)) for cell in ALL]
STATIC = {"causal by sentence", "padding of both", "documents", "blocks", "bool"}  # tensors of these T and S


class Attend(nn.Module):
    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return regard.attend(query, key, value, **self.how)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def whole(function: Any) -> Any:
    """The function as one graph, differentiated ahead of time."""
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def cell(mask: str, bias: str, normalizer: str) -> dict[str, Any]:
    return {"mask": MASKS[mask](), "bias": BIASES[bias](), "normalizer": NORMALIZERS[normalizer]()}


@pytest.mark.parametrize(("mask", "bias", "normalizer"), CELLS)
def test_compiled_whole_it_is_the_reference_and_so_are_its_gradients(mask: str, bias: str, normalizer: str) -> None:
    how = cell(mask, bias, normalizer)
    outputs, gradients = [], []
    for function in (Attend(**how, kernel="reference"), whole(Attend(**how))):
        inputs = [t.clone().requires_grad_() for t in (QUERY, KEY, VALUE)]
        outputs.append(function(*inputs))
        found = torch.autograd.grad(outputs[-1].sin().sum(), inputs, allow_unused=True)  # "uniform" reads no score
        gradients.append([torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True)])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mask", "bias", "normalizer"), CELLS)
def test_exported_it_serves_other_lengths(mask: str, bias: str, normalizer: str) -> None:
    how = cell(mask, bias, normalizer)
    module, inputs = Attend(**how), (QUERY, KEY, VALUE)
    fixed = torch.export.export(module, inputs).module()
    torch.testing.assert_close(fixed(*inputs), Attend(**how, kernel="reference")(*inputs))
    if mask in STATIC or bias == "tensor":
        return
    t, s = torch.export.Dim("T", min=3, max=64), torch.export.Dim("S", min=3, max=64)
    lengths = torch.export.export(module, inputs, dynamic_shapes=({2: t}, {2: s}, {2: s})).module()
    for inputs in ((QUERY, KEY, VALUE), (QUERY[:, :, :5], *(torch.cat([part, part], 2) for part in (KEY, VALUE)))):
        torch.testing.assert_close(lengths(*inputs), Attend(**how, kernel="reference")(*inputs))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "additive" else SLOW) for name in SCORES])
def test_every_score_in_a_graph(name: str) -> None:
    how = {"score": SCORES[name](), "mask": regard.causal()}
    want = Attend(**how, kernel="reference")(QUERY, KEY, VALUE)
    torch.testing.assert_close(whole(Attend(**how))(QUERY, KEY, VALUE), want)
    exported = torch.export.export(Attend(**how), (QUERY, KEY, VALUE)).module()
    torch.testing.assert_close(exported(QUERY, KEY, VALUE), want)


@pytest.mark.parametrize(
    "made",
    [
        lambda: {"mask": regard.causal() & regard.padding(torch.tensor([S, 5])), "bias": regard.alibi(H)},
        lambda: {"mask": regard.window(2) | regard.prefix(1), "normalizer": regard.Entmax(1.5)},
        lambda: {"mask": regard.documents(*IDS), "normalizer": regard.Sink(0.3), "score": regard.ScaledDot(0.2)},
        lambda: {"mask": regard.allow(HOLES), "normalizer": regard.Hard(), "score": "cosine"},
    ],
)
def test_masks_and_biases_may_be_made_inside(made: Callable[[], dict[str, Any]]) -> None:
    inside = whole(lambda *inputs: regard.attend(*inputs, **made()))
    torch.testing.assert_close(inside(QUERY, KEY, VALUE), Attend(**made(), kernel="reference")(QUERY, KEY, VALUE))


@pytest.mark.parametrize("normalizer", ["softmax", pytest.param("sparsemax", marks=SLOW)])
@pytest.mark.parametrize(
    "mask", ["causal and padding", *(pytest.param(m, marks=SLOW) for m in ("causal", "padding", "window"))]
)
@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("bad", [torch.nan, pytest.param(torch.inf, marks=SLOW)])
def test_poison_stays_where_it_may_be_seen(bad: float, part: int, mask: str, normalizer: str) -> None:
    """Output and gradients of every query that may not attend to a bad key are the reference's; the others are NaN."""
    how = cell(mask, "none", normalizer)
    clean = [t.clone() for t in (QUERY, KEY, VALUE)]
    poisoned = [t.clone() for t in clean]
    poisoned[part][1, 2, 4, 3] = bad
    shape = (B, H, T, S)
    allowed = how["mask"].full(shape, torch.device("cpu")).expand(shape)
    reached = torch.zeros(B, H, T, dtype=torch.bool)
    reached[1, 2] = allowed[1, 2, :, 4] if part else torch.arange(T) == 4
    reached &= allowed.any(-1)
    assert 0 < reached.sum() < reached.numel()
    found = []
    for inputs, function in ((clean, Attend(**how, kernel="reference")), (poisoned, whole(Attend(**how)))):
        leaves = [t.clone().requires_grad_() for t in inputs]
        output = function(*leaves)
        found.append((output, torch.autograd.grad(output[~reached].sin().sum(), leaves)))
    torch.testing.assert_close(found[1][0][~reached], found[0][0][~reached])
    assert found[1][0][reached].isnan().all()
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"mask": regard.causal()}])
def test_dropout_in_a_graph_drops_its_share_and_follows_the_seed(how: dict[str, Any]) -> None:
    one = torch.eye(S).expand(B, H, S, S)  # the output is the weights
    compiled = whole(Attend(**how, dropout=0.5, normalizer="uniform"))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(compiled(QUERY, KEY, one))
    weights = regard.attention_map(QUERY, KEY, normalizer="uniform", **how).full()
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    kept = drawn[0][weights > 0] > 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(drawn[0][drawn[0] > 0], 2 * weights[drawn[0] > 0])


def test_a_map_in_a_graph() -> None:
    def weights(query: Tensor, key: Tensor) -> Tensor:
        return regard.attention_map(query, key, mask=regard.causal()).full()

    torch.testing.assert_close(whole(weights)(QUERY, KEY), weights(QUERY, KEY))


@pytest.mark.parametrize("more", [{}, {"need_weights": False}, {"average_attn_weights": False}])
@pytest.mark.parametrize("masked", [pytest.param(False, marks=SLOW), True])
def test_the_layer(more: dict[str, Any], masked: bool) -> None:
    layer = regard.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(B, T, 16)
    padding = torch.arange(T) >= torch.tensor([[T], [3]])
    how = more | ({"key_padding_mask": padding} if masked else {})

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Any:
            return self.layer(x, x, x, **how)

    want = Layer()(x)
    torch.testing.assert_close(whole(Layer())(x), want)
    torch.testing.assert_close(torch.export.export(Layer(), (x,)).module()(x), want)
    shapes = [None if part is None else part.shape for part in Layer().to("meta")(x.to("meta"))]
    assert shapes == [None if part is None else part.shape for part in want]


def test_watchers_are_asked_only_where_there_are_any() -> None:
    """A compiled model that is observed later is recorded, and runs as one graph again afterward."""
    model = regard.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    compiled, x = torch.compile(model, backend="eager"), torch.randn(B, T, 16)
    want = compiled(x, x, x)[0]
    with regard.observe(model) as seen:
        torch.testing.assert_close(compiled(x, x, x)[0], want)
    assert [one.shape for one in seen["."]] == [(B, 4, T, T)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(compiled(x, x, x)[0], want)
