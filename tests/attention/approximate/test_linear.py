"""Random features against the exponential they estimate; linear attention against its table of shares."""

import pytest
import torch
from torch import Tensor

import regard
from device import DEVICE, in_float64, leaf
from regard.attention.kernels.linear import CHUNK, linear, refusal
from regard.attention.kernels.reference import reference
from regard.attention.scores import Positive
from regard.attention.spec import make_spec

B, H, T, S, D, D_V = 2, 3, 301, 307, 5, 3


def tensors(t: int = T, s: int = S, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(B, H, n, d, dtype=dtype, generator=draw) for n, d in ((t, D), (s, D), (s, D_V))]


def test_features_estimate_the_exponential_without_bias() -> None:
    query, key, _ = (tensor / 2 for tensor in tensors(7, 11))  # of longer vectors the estimate has a longer tail
    scores = torch.exp(query @ key.mT * D**-0.5)
    errors = []
    for features in (64, 4096):
        score = regard.RandomFeatures(D, features, seed=1)
        estimate = score(query, key)
        # the row's factor is free: compare shares
        errors.append(
            float((estimate / estimate.sum(-1, keepdim=True) - scores / scores.sum(-1, keepdim=True)).abs().mean())
        )
    assert errors[1] < 0.25 * errors[0]
    assert errors[1] < 0.005


def test_features_are_normal_and_orthogonal_in_blocks() -> None:
    weight = regard.RandomFeatures(7, 700).weight
    block = weight[:7] / weight[:7].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(block @ block.T, torch.eye(7), atol=1e-5, rtol=0)
    assert abs(float(weight.square().sum(-1).mean()) - 7) < 0.5


def test_the_seed_decides_and_torchs_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    first = regard.RandomFeatures(D, 8, seed=5)
    assert torch.equal(torch.rand(1), want)
    assert torch.equal(first.weight, regard.RandomFeatures(D, 8, seed=5).weight)
    before = first.weight.clone()
    first.redraw(6)
    assert not torch.equal(first.weight, before)
    with pytest.raises(regard.ShapeError, match="RandomFeatures: features must be at least 1; got 0"):
        regard.RandomFeatures(D, 0)


def test_elu_features_are_katharopoulos_s() -> None:
    query, key, _ = tensors(7, 11)
    phi = [torch.where(x > 0, x + 1, x.exp()) for x in (query, key)]
    torch.testing.assert_close(regard.EluFeatures()(query, key), phi[0] @ phi[1].mT)


MASKS = {
    "none": None,
    "causal": regard.causal(),
    "causal_0": regard.causal(0),
    "causal_-200": regard.causal(-200),
    "causal_50": regard.causal(50),
    "padding": regard.padding(torch.tensor([S, 200])),
    "both": regard.causal() & regard.padding(torch.tensor([0, 200])),
    "three": regard.prefix(250) & (regard.causal() & regard.padding(torch.tensor([S, 200]))),
    "not_prefix": ~regard.prefix(20),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("score", [regard.RandomFeatures(D, 16).double(), regard.EluFeatures()])
def test_sums_equal_the_table(name: str, score: Positive) -> None:
    inputs = [tensor.requires_grad_() for tensor in tensors()]
    spec = make_spec(score, regard.Share(), MASKS[name], None)
    assert refusal(*inputs, spec) is None
    got, want = linear(*inputs, spec), reference(*inputs, spec, 0)
    torch.testing.assert_close(got, want)
    upstream = torch.randn_like(want[0])
    torch.testing.assert_close(*(torch.autograd.grad(o[0], inputs, upstream) for o in (got, want)))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"score": "dot"}, "the score Dot is not a product of positive features"),
        ({"normalizer": "softmax"}, "the normalizer Softmax is not Share"),
        ({"bias": torch.zeros(S)}, "there is a bias"),
        ({"dropout": 0.1}, "dropout needs the weights one by one"),
        ({"mask": regard.window(3)}, "the mask is neither causal nor the same for every query"),
        ({"mask": regard.causal() | regard.prefix(3)}, "the mask is neither causal nor the same for every query"),
    ],
)
def test_refusals(more: dict, reason: str) -> None:
    asked = {"score": regard.EluFeatures(), "normalizer": regard.Share()} | more
    with pytest.raises(regard.KernelError, match=f"kernel 'linear' cannot do this: {reason}"):
        regard.attend(*tensors(), **asked, kernel="linear")
    if "score" not in more and "normalizer" not in more:
        want = regard.attend(*tensors(), **asked, kernel="reference") if "dropout" not in more else None
        got = regard.attend(*tensors(), **asked)
        if want is not None:
            torch.testing.assert_close(got, want)


def test_plan_takes_it_where_there_is_enough_to_do() -> None:
    asked = {"score": regard.EluFeatures(), "normalizer": regard.Share()}
    assert regard.plan(*tensors(), **asked).kernel == "linear"
    small = regard.plan(*tensors(5, 7), **asked)
    assert small.kernel == "reference"
    assert small.refused["linear"] == "5 queries and 7 keys are too few for sums over features"
    step = regard.plan(*(torch.empty(64, n, 64) for n in (1, 1024, 1024)), **asked)  # a table of a row is less work
    assert step.refused["linear"] == "1 queries and 1,024 keys are too few for sums over features"
    for mask, kernel in ((None, "linear"), (regard.causal(), "reference")):  # a chunk's own triangle is a table too
        assert regard.plan(*torch.empty(3, 8, 200, 64), mask=mask, **asked).kernel == kernel


class Noted(regard.EluFeatures):
    """Remembers how many features it has made at once."""

    def project_query(self, query: Tensor) -> Tensor:
        self.most = max(getattr(self, "most", 0), query.shape[-2])
        return super().project_query(query)

    def project_key(self, key: Tensor) -> Tensor:
        self.most = max(getattr(self, "most", 0), key.shape[-2])
        return super().project_key(key)


@pytest.mark.parametrize("name", MASKS)
def test_features_are_made_chunk_by_chunk(name: str) -> None:
    score = Noted()
    with torch.no_grad():
        linear(*tensors(), make_spec(score, regard.Share(), MASKS[name], None))
    assert score.most == CHUNK


def test_plan_counts_the_features_where_a_gradient_needs_them() -> None:
    asked = {"score": regard.RandomFeatures(D, 64), "normalizer": regard.Share()}
    inputs = tensors(dtype=torch.float32)
    sums = (2 * 64 + T) * (D_V + 1) + 3 * CHUNK * 64
    assert regard.plan(*inputs, **asked).extra_bytes == 4 * B * H * sums
    inputs[0].requires_grad_()
    assert regard.plan(*inputs, **asked).extra_bytes == 4 * B * H * (sums + 2 * (T + S) * 64)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 7, dtype=torch.bool), regard.causal(), regard.prefix(3)])
def test_no_query_and_no_key(mask: object) -> None:
    for t, s in ((0, 7), (7, 0)):
        if s or not isinstance(mask, Tensor):
            got = regard.attend(
                *tensors(t, s), score=regard.EluFeatures(), normalizer=regard.Share(), mask=mask, kernel="linear"
            )
            assert torch.equal(got, torch.zeros(B, H, t, D_V, dtype=torch.float64))


@pytest.mark.parametrize("mask", ["causal_0", "both"])
@pytest.mark.parametrize("where", [1, 2])
def test_poison_reaches_nobody_who_may_not_look(mask: str, where: int) -> None:
    clean = tensors()
    poisoned = [tensor.clone() for tensor in clean]
    poisoned[where][1, :, 250] = torch.nan
    got, want = (
        regard.attend(*x, score=regard.EluFeatures(), normalizer=regard.Share(), mask=MASKS[mask], kernel="linear")
        for x in (poisoned, clean)
    )
    looks = MASKS[mask].full((B, H, T, S), got.device).expand(B, H, T, S)[..., 250].clone()
    looks[0] = False
    torch.testing.assert_close(got[~looks], want[~looks])
    assert got[looks].isnan().any(-1).all()


@in_float64
def test_second_derivatives() -> None:
    inputs = [leaf(tensor[:1, :1]) for tensor in tensors(3, 4)]
    more = {
        "score": regard.RandomFeatures(D, 4).to(DEVICE, torch.float64),
        "normalizer": regard.Share(),
        "mask": regard.causal(),
    }
    attend = lambda *x: regard.attend(*x, **more, kernel="linear")  # noqa: E731
    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, inputs, fast_mode=True)


def test_its_map_is_what_it_applies() -> None:
    query, key, value = tensors()
    more = {"score": regard.RandomFeatures(D, 16), "normalizer": regard.Share(), "mask": regard.causal()}
    seen = regard.attention_map(query, key, **more)
    seen.entropy()  # the row numbers are known from here on
    weights = torch.cat([seen.tile(slice(i, i + 50), slice(None)) for i in range(0, T, 50)], -2)
    torch.testing.assert_close(weights @ value, regard.attend(query, key, value, **more, kernel="linear"))
    torch.testing.assert_close(seen.received(), weights.sum(-2))


def test_what_was_observed_stays_when_features_are_drawn_anew() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = regard.RandomFeatures(8, 16)

        def forward(self, x: Tensor) -> Tensor:
            return regard.attend(x, x, x, score=self.score, normalizer=regard.Share())

    layer, x = Layer(), torch.randn(1, 30, 8)
    with regard.observe(layer) as seen:
        output = layer(x)
    layer.score.redraw(1)
    torch.testing.assert_close(seen["."][0].full() @ x, output)
    assert not torch.allclose(layer(x), output)


def test_it_is_observed() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return regard.attend(x, x, x, score=regard.EluFeatures(), normalizer=regard.Share(), mask=regard.causal())

    x = torch.randn(1, 300, 8)
    with regard.observe(Layer()) as seen:
        output = seen._tracker.model(x)
    torch.testing.assert_close(seen["."][0].full() @ x, output, atol=1e-5, rtol=1e-5)
