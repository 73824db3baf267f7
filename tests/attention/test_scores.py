"""Every score against its equation, one pair at a time in plain Python."""

import inspect
from math import exp, nan, sqrt, tanh
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import regard
from device import in_float64, leaf
from regard.attention.masks import Mask
from regard.attention.scores import (
    Compared,
    Function,
    LocationAware,
    Product,
    Projected,
    ProjectedProduct,
    Score,
    as_score,
)  # fmt: skip
from regard.errors import ShapeError
from regard.nn.recurrent import AttentionalStep

H, T, S, D, D_Q, D_K, D_H = 2, 3, 5, 7, 11, 13, 17


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def apply(matrix: Tensor, vector: list[float]) -> list[float]:
    return [dot(row, vector) for row in matrix.tolist()]


def norm(a: list[float]) -> float:
    return sqrt(dot(a, a))


def additive(score: Score, q: list[float], k: list[float]) -> float:
    sums = zip(apply(score.query.weight, q), apply(score.key.weight, k), strict=True)
    return dot(score.v.tolist(), [tanh(a + b) for a, b in sums])


def query_adaptive(score: Score, query: list[float], key: list[float]) -> float:
    """Σ_a g_a(q) q W_a k / √d_k, g = softmax(G q)."""
    gate = [exp(g) for g in apply(score.gate.weight, query)]
    ways = [dot(query, apply(aspect, key)) for aspect in score.aspects]
    return sum(g / sum(gate) * way for g, way in zip(gate, ways, strict=True)) / sqrt(len(key))


EQUATIONS = {
    "dot": (regard.Dot, (D, D), lambda s, q, k: dot(q, k)),
    "scaled_dot": (regard.ScaledDot, (D, D), lambda s, q, k: dot(q, k) / sqrt(D)),
    "scaled_dot_scale": (lambda: regard.ScaledDot(0.3), (D, D), lambda s, q, k: 0.3 * dot(q, k)),
    "scaled_dot_zero": (lambda: regard.ScaledDot(0.0), (D, D), lambda s, q, k: 0.0),
    "scaled_dot_softcap": (
        lambda: regard.ScaledDot(softcap=0.7), (D, D), lambda s, q, k: 0.7 * tanh(dot(q, k) / sqrt(D) / 0.7),
    ),
    "cosine": (regard.Cosine, (D, D), lambda s, q, k: dot(q, k) / (norm(q) * norm(k))),
    "cosine_lecture": (
        lambda: regard.Cosine(0.5, 3.0), (D, D), lambda s, q, k: 3 * dot(q, k) / sqrt(norm(q) * norm(k)),
    ),
    "cosine_0": (lambda: regard.Cosine(0.0), (D, D), lambda s, q, k: dot(q, k)),
    "distance": (regard.Distance, (D, D), lambda s, q, k: -sum((a - b) ** 2 for a, b in zip(q, k, strict=True)) / 2),
    "distance_width": (
        lambda: regard.Distance(1.7), (D, D),
        lambda s, q, k: -sum((a - b) ** 2 for a, b in zip(q, k, strict=True)) / (2 * 1.7**2),
    ),
    "distance_learned": (
        lambda: regard.Distance(nn.Parameter(torch.tensor(0.8))), (D, D),
        lambda s, q, k: -sum((a - b) ** 2 for a, b in zip(q, k, strict=True)) / (2 * float(s.width) ** 2),
    ),
    "queryadaptive": (lambda: regard.QueryAdaptive(D_Q, D_K, 3), (D_Q, D_K), query_adaptive),
    "general": (lambda: regard.General(D_Q, D_K), (D_Q, D_K), lambda s, q, k: dot(q, apply(s.key.weight, k))),
    "additive": (lambda: regard.Additive(D_Q, D_K, D_H), (D_Q, D_K), additive),
    "concat": (
        lambda: regard.Concat(D_Q, D_K, D_H), (D_Q, D_K),
        lambda s, q, k: dot(s.v.tolist(), [tanh(x) for x in apply(s.weight, q + k)]),
    ),
}  # fmt: skip
PRODUCTS = [name for name in EQUATIONS if name.split("_")[0] in ("dot", "scaled", "cosine", "general", "queryadaptive")]
PRODUCTS.remove("scaled_dot_softcap")  # a dot product no more
every_score = pytest.mark.parametrize("name", EQUATIONS)


def made(name: str) -> tuple[Score, Tensor, Tensor]:
    torch.manual_seed(0)
    make, (d_q, d_k), _ = EQUATIONS[name]
    score = make().double().requires_grad_(False)
    return score, torch.randn(H, T, d_q, dtype=torch.float64), torch.randn(H, S, d_k, dtype=torch.float64)


@every_score
def test_equals_its_equation_pair_by_pair(name: str) -> None:
    score, query, key = made(name)
    want = torch.zeros(H, T, S, dtype=torch.float64)
    for h in range(H):
        for i in range(T):
            for j in range(S):
                want[h, i, j] = EQUATIONS[name][2](score, query[h, i].tolist(), key[h, j].tolist())
    torch.testing.assert_close(score(query, key), want)


@every_score
def test_keys_may_be_projected_once(name: str) -> None:
    score, query, key = made(name)
    projected = score.projected()
    assert isinstance(projected, ProjectedProduct if isinstance(score, Product) else Projected)
    torch.testing.assert_close(projected(query, score.project_key(key)), score(query, key))


@every_score
def test_the_comparison_alone_takes_what_was_projected(name: str) -> None:
    score, query, key = made(name)
    got = Compared(score)(score.project_query(query), score.project_key(key))
    assert torch.equal(got, score(query, key))


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_the_dot_of_its_two_sides(name: str) -> None:
    score, query, key = made(name)
    q, k = score.as_dot(query, key)
    torch.testing.assert_close(q @ k.mT, score(query, key))
    q, k = score.projected().as_dot(query, score.project_key(key))
    torch.testing.assert_close(q @ k.mT, score(query, key))


@pytest.mark.parametrize("softcap", [0.3, 2.0, 50.0])
@pytest.mark.parametrize("scale", [None, 1.9])
@pytest.mark.parametrize("projected", [False, True])
def test_attend_and_its_map_under_a_soft_cap(softcap: float, scale: float | None, projected: bool) -> None:
    score, query, key = regard.ScaledDot(scale, softcap), *made("dot")[1:]
    value = torch.randn(H, S, D_H, dtype=torch.float64)
    mask, bias = torch.ones(T, S, dtype=torch.bool).tril(2), torch.linspace(-1, 1, S, dtype=torch.float64)
    want = torch.zeros(H, T, S, dtype=torch.float64)
    for h in range(H):
        for i in range(T):
            scores = [
                softcap * tanh(dot(query[h, i].tolist(), key[h, j].tolist()) * (scale or 1 / sqrt(D)) / softcap)
                + float(bias[j])
                for j in range(S)
            ]
            total = sum(exp(e) for e, a in zip(scores, mask[i].tolist(), strict=True) if a)
            for j in range(S):
                want[h, i, j] = exp(scores[j]) / total if mask[i, j] else 0
    spec = {"score": score.projected() if projected else score, "mask": mask, "bias": bias}
    torch.testing.assert_close(regard.attention_map(query, key, **spec).full(), want)
    for kernel in ("auto", "reference"):
        torch.testing.assert_close(regard.attend(query, key, value, kernel=kernel, **spec), want @ value)
    assert regard.plan(query, key, value, **spec).kernel == "reference"
    with pytest.raises(regard.KernelError, match="the score is soft-capped, which torch's kernel cannot do"):
        regard.attend(query, key, value, kernel="fused", **spec)


@in_float64
def test_gradcheck_under_a_soft_cap() -> None:
    query, key, value = (leaf(torch.randn(2, n, 3, dtype=torch.float64)) for n in (T, S, S))
    score = regard.ScaledDot(softcap=0.7)
    assert torch.autograd.gradcheck(lambda q, k: score(q, k), (query, key))
    assert torch.autograd.gradcheck(lambda q, k, v: regard.attend(q, k, v, score=score), (query, key, value))
    assert torch.autograd.gradcheck(lambda q, k: regard.attention_map(q, k, score=score).full(), (query, key))


@pytest.mark.parametrize("softcap", [0.0, -1.5, nan])
def test_a_soft_cap_is_positive(softcap: float) -> None:
    with pytest.raises(regard.ShapeError, match=f"softcap must be a positive number; got {softcap}"):
        regard.ScaledDot(softcap=softcap)


def test_concat_is_additive_with_its_weight_written_as_one() -> None:
    concat, query, key = made("concat")
    split = regard.Additive(D_Q, D_K, D_H).double().requires_grad_(False)
    split.query.weight.copy_(concat.weight[:, :D_Q])
    split.key.weight.copy_(concat.weight[:, D_Q:])
    split.v.copy_(concat.v)
    torch.testing.assert_close(split(query, key), concat(query, key))


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("side", [0, 1])
def test_the_cosine_of_a_zero_vector_is_zero_with_a_finite_gradient(power: float, side: int) -> None:
    inputs = [torch.randn(n, D, dtype=torch.float64) for n in (T, S)]
    inputs[side][1] = 0
    inputs = [tensor.requires_grad_() for tensor in inputs]
    scores = regard.Cosine(power)(*inputs)
    assert not scores.select(side, 1).any()
    for gradient in torch.autograd.grad(scores.square().sum(), inputs):
        assert gradient.isfinite().all()


def test_cosine_is_torchs() -> None:
    _, query, key = made("cosine")
    want = torch.cosine_similarity(query[:, :, None], key[:, None], dim=-1)
    torch.testing.assert_close(regard.Cosine()(query, key), want)


def test_distance_is_torchs() -> None:
    _, query, key = made("distance")
    torch.testing.assert_close(regard.Distance(2.0)(query, key), -torch.cdist(query, key).square() / 8)


@every_score
def test_one_set_of_parameters_serves_every_head_and_broadcasts(name: str) -> None:
    score, query, key = made(name)
    got = score(query, key[:1])
    torch.testing.assert_close(got, torch.stack([score(q, key[0]) for q in query]))


@every_score
def test_learned_scores_work_in_the_precision_of_their_inputs(name: str) -> None:
    score, query, key = made(name)
    want = score.float()(query.float(), key.float())
    torch.testing.assert_close(score(query, key), want.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(score.bfloat16()(query, key), want.double(), rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("score", "names"),
    [
        (regard.General(5, 7), {"key.weight": (5, 7)}),
        (regard.Additive(5, 7, 3), {"query.weight": (3, 5), "key.weight": (3, 7), "v": (3,)}),
        (regard.Concat(5, 7, 3), {"weight": (3, 12), "v": (3,)}),
        (regard.Dot(), {}),
        (regard.ScaledDot(), {}),
        (regard.Cosine(), {}),
        (regard.Distance(), {}),
    ],
)
def test_parameters(score: Score, names: dict) -> None:
    assert isinstance(score, nn.Module)
    assert {name: tuple(p.shape) for name, p in score.named_parameters()} == names


@pytest.mark.parametrize("name", ["dot", "scaled_dot", "cosine", "distance"])
def test_widths_must_be_equal(name: str) -> None:
    score = EQUATIONS[name][0]()
    message = "query has width 3 on axis -1 and key has 5: this score needs equal widths; General, Additive and Concat"
    with pytest.raises(regard.ShapeError, match=message):
        score(torch.randn(2, 3), torch.randn(7, 5))


def test_as_score() -> None:
    assert isinstance(as_score("dot"), regard.Dot)
    assert isinstance(as_score("scaled_dot"), regard.ScaledDot)
    assert isinstance(as_score("cosine"), regard.Cosine)
    score = regard.Distance()
    assert as_score(score) is score
    function = as_score(lambda q, k: q @ k.mT + 1)
    assert isinstance(function, Function)
    query, key = torch.randn(T, D), torch.randn(S, D)
    torch.testing.assert_close(function(query, key), query @ key.mT + 1)


@pytest.mark.parametrize(("given", "first"), [("dott", "dot"), ("scaled dot", "scaled_dot"), ("Cosine", "cosine")])
def test_an_unknown_score(given: str, first: str) -> None:
    with pytest.raises(regard.ChoiceError, match=f"unknown score '{given}': expected one of '{first}', .*Additive"):
        as_score(given)


def test_a_number_is_no_score() -> None:
    with pytest.raises(regard.ChoiceError, match="unknown score 5: expected one of"):
        inspect.unwrap(as_score)(5)


@in_float64
def test_gradients_of_what_a_callable_captures() -> None:
    factor = leaf(torch.tensor(2.0, dtype=torch.float64))
    query, key, value = (torch.randn(2, n, 3, dtype=torch.float64).to(factor.device) for n in (T, S, S))
    assert torch.autograd.gradcheck(
        lambda f: regard.attend(query, key, value, score=lambda q, k: f * (q @ k.mT)), (factor,)
    )


def test_a_learned_width_has_a_gradient_and_lasts_in_a_saved_map(tmp_path) -> None:
    score = regard.Distance(nn.Parameter(torch.tensor(0.8)))
    query, key = torch.randn(T, D), torch.randn(S, D)
    score(query, key).sum().backward()
    assert score.width.grad is not None
    seen = regard.attention_map(query, key, score=score)
    seen.save(tmp_path / "map")
    torch.testing.assert_close(regard.AttentionMap.load(tmp_path / "map").full(), seen.full().detach())


def test_a_soft_cap_that_is_learned_gets_its_gradient(tmp_path) -> None:
    query, key = torch.randn(T, D), torch.randn(S, D)
    cap = torch.nn.Parameter(torch.tensor(0.7))
    score = regard.ScaledDot(softcap=cap)
    assert [*score.parameters()] == [cap]
    regard.attend(query, key, key, score=score).square().sum().backward()
    want = torch.autograd.functional.jacobian(
        lambda c: (
            regard.attend(query, key, key, score=lambda q, k: c * torch.tanh(q @ k.mT / sqrt(D) / c)).square().sum()
        ),
        torch.tensor(0.7),
    )
    torch.testing.assert_close(cap.grad, want)
    seen = regard.attention_map(query, key, score=score)
    seen.save(tmp_path / "map")
    torch.testing.assert_close(regard.AttentionMap.load(tmp_path / "map").full(), seen.full().detach())
    for wrong in (torch.tensor([0.7, 0.2]), torch.tensor(-1.0)):
        with pytest.raises(regard.ShapeError, match="softcap must be a positive number"):
            regard.ScaledDot(softcap=wrong)


def test_query_adaptive_needs_an_aspect() -> None:
    with pytest.raises(regard.ShapeError, match="QueryAdaptive: aspects must be at least 1; got 0"):
        regard.QueryAdaptive(D, D, 0)


def test_a_function_that_is_no_table_of_scores_is_refused() -> None:
    query, key = torch.randn(2, 3, 5), torch.randn(2, 7, 5)
    with pytest.raises(regard.ShapeError, match=r"the score function gave \[2, 3\] for queries \[2, 3, 5\] and keys"):
        regard.attend(query, key, key, score=lambda q, k: q.sum(-1))


def test_a_distance_of_far_vectors_keeps_its_digits() -> None:
    query, key = torch.randn(3, 5) + 3000, torch.randn(7, 5) + 3000
    want = -(query.double()[:, None] - key.double()).square().sum(-1) / 2
    torch.testing.assert_close(regard.Distance()(query, key).double(), want, rtol=1e-5, atol=1e-5)
    near = regard.Distance(torch.nn.Parameter(torch.tensor(0.5)))(query - 3000, key - 3000)
    torch.testing.assert_close(near.double(), want * 4, rtol=1e-3, atol=5e-3)


def test_a_location_aware_score_is_its_equation_for_any_tile_of_the_keys() -> None:
    torch.manual_seed(0)
    score = LocationAware(D_Q, D_K, D_H, filters=3, reach=2).double()
    state, key = torch.randn(H, T, D_Q).double(), torch.randn(H, S, D_K).double()
    looked = torch.rand(H, T, S).double()
    query, F, U = torch.cat([state, looked], -1), score.filters.weight[:, 0].tolist(), score.location.weight
    got = score(query, key)
    for h in range(H):
        for t in range(T):
            a = [0.0, 0.0, *looked[h, t].tolist(), 0.0, 0.0]
            for s in range(S):
                found = [dot(row, a[s : s + 5]) for row in F]
                sums = zip(
                    apply(score.content.query.weight, state[h, t].tolist()),
                    apply(score.content.key.weight, key[h, s].tolist()), apply(U, found), strict=True,
                )  # fmt: skip
                expected = dot(score.content.v.tolist(), [tanh(sum(parts)) for parts in sums])
                assert got[h, t, s].item() == pytest.approx(expected, rel=1e-12)
    tile = torch.tensor([4, 1])
    projected = score.project_key(key)[..., tile, :]
    torch.testing.assert_close(score.projected()(query, projected), got[..., tile])
    torch.testing.assert_close(regard.attend(query, key, key, score=score), torch.softmax(got, -1) @ key)


@pytest.mark.parametrize("kernel", ["auto", "blockwise"])
@pytest.mark.parametrize(
    "score",
    [regard.Additive(3, 5, 2), regard.Concat(3, 5, 2), regard.General(3, 5), regard.QueryAdaptive(3, 5, 2)],
    ids=lambda one: type(one).__name__,
)
def test_a_score_made_for_other_widths_says_so(score, kernel):
    query, key = torch.rand(7, 3), torch.rand(11, 5)
    assert regard.attend(query, key, key, score=score, kernel=kernel).shape == (7, 5)
    with pytest.raises(regard.ShapeError, match=r"query has width 5 on axis -1 and the score's query_dim is 3"):
        regard.attend(key, key, key, score=score, kernel=kernel)
    with pytest.raises(regard.ShapeError, match=r"key has width 3 on axis -1 and the score's key_dim is 5"):
        regard.attend(query, query, query, score=score, kernel=kernel)


def test_numbers_for_other_heads_are_refused() -> None:
    query = torch.randn(2, 4, 5, 8)
    other, own = torch.rand(3, 1, 1), torch.rand(4, 1, 1) + 0.5
    for score, name in (
        (regard.ScaledDot(other), "ScaledDot: scale"),
        (regard.Cosine(scale=other), "Cosine: scale"),
        (regard.Cosine(power=other), "Cosine: power"),
    ):
        with pytest.raises(
            regard.ShapeError, match=rf"{name} has shape \[3, 1, 1\], and the vectors have \[2, 4, 5, 8\]"
        ):
            regard.attend(query, query, query, score=score)
    with pytest.raises(regard.ShapeError, match="Distance needs a finite width above 0"):
        regard.Distance(torch.nn.Parameter(own))
    found = regard.attend(query, query, query, score=regard.ScaledDot(own))
    torch.testing.assert_close(found, ((query * own) @ query.mT).softmax(-1) @ query)


def test_a_product_may_have_a_second_base_with_arguments() -> None:
    class Learned(Score):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.project = torch.nn.Linear(width, width)

    class Fast(Product, Learned):
        pass

    class Slow(Learned, Product):
        pass

    for kind in (Fast, Slow):
        assert kind(8).softcap is None
        assert len([*kind(8).parameters()]) == 2


def test_results_that_are_not_dense_are_refused() -> None:
    query = torch.randn(2, 3, 5)
    with pytest.raises(regard.ShapeError, match="the score function gave a tensor of layout sparse_coo"):
        regard.attend(query, query, query, score=lambda q, k: (q @ k.mT).to_sparse())
    with pytest.raises(regard.ShapeError, match="the normalizer's function gave a tensor of layout sparse_coo"):
        regard.attend(query, query, query, normalizer=lambda scores, _: scores.softmax(-1).to_sparse())


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("size", [1e-23, 1e20])
def test_the_cosine_of_very_short_and_very_long_vectors(power: float, size: float) -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])
    score = regard.Cosine(power)
    found = score(vectors * size, vectors)
    wanted = score(vectors.double() * size, vectors.double()).float()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


class Rectified(regard.Dot):
    """A product that is compared in a way of its own."""

    def compare(self, query: Tensor, key: Tensor) -> Tensor:
        return super().compare(query, key).relu()


def test_a_product_that_is_compared_in_its_own_way_is_no_plain_product() -> None:
    query, key = torch.randn(2, 5, 4), torch.randn(2, 6, 4)
    score = Rectified()
    found = regard.attend(query, key, key, score=score)
    torch.testing.assert_close(found, regard.attend(query, key, key, score=score, kernel="reference"))
    assert regard.plan(query, key, key, score=score).kernel != "fused"
    seen = regard.attention_map(query, key, score=score)
    torch.testing.assert_close(seen.received(), seen.full().sum(-2))
    torch.testing.assert_close(seen.frozen().full(), seen.full())


def test_random_features_of_another_width_are_refused() -> None:
    with pytest.raises(ShapeError, match="RandomFeatures has width 8 and was given vectors of width 4"):
        regard.RandomFeatures(8)(torch.randn(2, 4), torch.randn(3, 4))


class Tripled(regard.ScaledDot):
    """A product whose `forward` does more than compare projections."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return 3 * super().forward(query, key)


class TripledGeneral(regard.General):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return 3 * super().forward(query, key)


@pytest.mark.parametrize("score", [Tripled(), TripledGeneral(4, 4)])
def test_a_forward_of_ones_own_is_what_every_kernel_and_map_computes(score: Score, tmp_path: Path) -> None:
    query, key = torch.randn(2, 5, 4), torch.randn(2, 6, 4)
    want = torch.softmax(score(query, key), -1)
    for kernel in ("auto", "reference", "blockwise"):
        torch.testing.assert_close(regard.attend(query, key, key, score=score, kernel=kernel), want @ key)
    seen = regard.attention_map(query, key, score=score)
    for one in (seen, seen.frozen()):
        torch.testing.assert_close(one.full(), want)
    seen.save(tmp_path / "map.safetensors")
    torch.testing.assert_close(regard.AttentionMap.load(tmp_path / "map.safetensors").full(), want)


class Halved(regard.Additive):
    def compare(self, query: Tensor, key: Tensor) -> Tensor:
        return super().compare(query, key) / 2


class Nearer(regard.Distance):
    def compare(self, query: Tensor, key: Tensor) -> Tensor:
        return super().compare(query, key) * 2


@pytest.mark.parametrize("score", [Rectified(), Halved(4, 4, 4), Nearer()])
def test_a_comparison_of_ones_own_is_saved_as_its_weights(score: Score, tmp_path: Path) -> None:
    seen = regard.attention_map(torch.randn(2, 5, 4), torch.randn(2, 6, 4), score=score)
    seen.save(tmp_path / "map.safetensors")
    torch.testing.assert_close(regard.AttentionMap.load(tmp_path / "map.safetensors").full(), seen.full().detach())


class Doubled(nn.Linear):
    """A layer of one's own in the place of a projection, as LoRA is."""

    def forward(self, vectors: Tensor) -> Tensor:
        return 2 * super().forward(vectors)


@pytest.mark.parametrize("kernel", ["auto", "reference", "blockwise"])
def test_a_projection_of_ones_own_and_its_hooks_act(kernel: str) -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    score = regard.Additive(8, 8, 6)
    own = Doubled(8, 6, bias=False)
    own.load_state_dict(score.query.state_dict())
    score.query = own
    twice = regard.Additive(8, 8, 6)
    twice.load_state_dict(score.state_dict())
    with torch.no_grad():
        twice.query.weight *= 2
    want = regard.attend(query, key, value, score=twice, kernel=kernel)
    torch.testing.assert_close(regard.attend(query, key, value, score=score, kernel=kernel), want)
    score.query.register_forward_hook(lambda *_: called.append(1))
    called: list[int] = []
    regard.attend(query, key, value, score=score, kernel=kernel)
    assert called
    half = (one.bfloat16() for one in (query, key, value))
    assert regard.attend(*half, score=score, kernel=kernel).isfinite().all()


@pytest.mark.parametrize("kernel", ["auto", "reference", "blockwise"])
def test_a_forward_set_on_a_projection_acts(kernel: str) -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    score = regard.Additive(8, 8, 6)
    twice = regard.Additive(8, 8, 6)
    twice.load_state_dict(score.state_dict())
    with torch.no_grad():
        twice.query.weight *= 2
    plain = score.query.forward
    score.query.forward = lambda vectors: 2 * plain(vectors)
    want = regard.attend(query, key, value, score=twice, kernel=kernel)
    torch.testing.assert_close(regard.attend(query, key, value, score=score, kernel=kernel), want)


@pytest.mark.parametrize("way", ["hook", "forward"])
def test_hooks_of_a_score_and_a_forward_set_on_it_act(way: str, tmp_path: Path) -> None:
    query, key = torch.randn(2, 5, 4), torch.randn(2, 6, 4)
    score = regard.ScaledDot()
    if way == "hook":
        score.register_forward_hook(lambda module, given, scores: 3 * scores)
    else:
        score.forward = lambda query, key: 3 * query @ key.mT / 2
    want = torch.softmax(3 * query @ key.mT / 2, -1)
    for kernel in ("auto", "reference", "blockwise"):
        torch.testing.assert_close(regard.attend(query, key, key, score=score, kernel=kernel), want @ key)
    seen = regard.attention_map(query, key, score=score)
    torch.testing.assert_close(seen.received(), want.sum(-2))
    seen.save(tmp_path / "map.safetensors")
    torch.testing.assert_close(regard.AttentionMap.load(tmp_path / "map.safetensors").full(), want)


class Fivefold(LocationAware):
    """A score that numbers its keys, so that it is called with all of them."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return 5 * super().forward(query, key)


@pytest.mark.parametrize("way", ["hook", "forward"])
@pytest.mark.parametrize("mask", [None, regard.window(20), regard.causal()])
def test_a_score_that_follows_with_a_forward_of_its_own_is_called_with_all_keys(way: str, mask: Mask | None) -> None:
    torch.manual_seed(0)
    t = 1100
    score = Fivefold(4, 4, 4) if way == "forward" else LocationAware(4, 4, 4)
    if way == "hook":
        score.register_forward_hook(lambda module, given, scores: 5 * scores)
    score.requires_grad_(False)
    query, key = torch.cat([torch.randn(t, 4), torch.rand(t, t).softmax(-1)], -1), torch.randn(t, 4)
    given = query[None], key[None], key[None]
    want = regard.attend(*given, score=score, mask=mask, kernel="reference")
    for kernel in ("auto", "blockwise"):
        torch.testing.assert_close(regard.attend(*given, score=score, mask=mask, kernel=kernel), want)
    seen = regard.attention_map(query[:20], key, score=score)
    row = torch.softmax(score(query[:20], key), -1)
    torch.testing.assert_close(seen.column(5), row[:, 5])
    torch.testing.assert_close(seen.tile([3], [7, 900]), row[3:4][:, [7, 900]])
    for one in (seen.frozen(), regard.attention_map(query[:20], key, score=as_score(score).projected())):
        torch.testing.assert_close(one.full(), row)
        torch.testing.assert_close(one.column(5), row[:, 5])
        torch.testing.assert_close(one.tile([3], [7, 900]), row[3:4][:, [7, 900]])


class Looked(Score):
    """A score of one's own that takes the last weights as they are, so that it needs all keys."""

    follows = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def compare(self, query: Tensor, key: Tensor) -> Tensor:
        state, looked = query.split([4, query.shape[-1] - 4], -1)
        return state @ key.mT + self.weight * looked


def test_a_score_of_ones_own_that_follows_is_given_all_keys() -> None:
    torch.manual_seed(0)
    s, score = 200, Looked().requires_grad_(False)
    query, key = torch.cat([torch.randn(1, 12000, 4), torch.rand(1, 12000, s).softmax(-1)], -1), torch.randn(1, s, 4)
    mask = regard.padding(torch.tensor([120]))
    want = regard.attend(query[:, :9], key, key, score=score, mask=mask, kernel="reference")
    for one in (score, as_score(score).projected()):
        torch.testing.assert_close(regard.attend(query, key, key, score=one, mask=mask)[:, :9], want)
    seen = regard.attention_map(query[:, :9], key, score=score)
    for one in (seen, seen.frozen()):
        seen.entropy()
        torch.testing.assert_close(one.column(5), seen.full()[..., 5])
    step = AttentionalStep("gru", 3, 4, 4, score=Looked()).eval()
    with regard.observe(step) as found, torch.no_grad():
        step.attend(query[:, :9], key, key, torch.ones(1, 1, s, dtype=torch.bool))
    assert found["."][0].column(5).shape == (1, 9)


def test_a_callable_that_follows_is_given_all_keys() -> None:
    torch.manual_seed(0)
    t, score = 1500, LocationAware(4, 4, 4).requires_grad_(False)
    query, key = torch.cat([torch.randn(1, t, 4), torch.rand(1, t, t).softmax(-1)], -1), torch.randn(1, t, 4)

    class Wrapped:  # as torch.compile gives it
        follows = True

        def __call__(self, query: Tensor, key: Tensor) -> Tensor:
            return score(query, key)

    given = {"mask": regard.window(20)}
    want = regard.attend(query, key, key, score=score, **given)
    torch.testing.assert_close(regard.attend(query, key, key, score=Wrapped(), **given), want)


def test_a_module_keeps_the_score_it_was_given() -> None:
    score = TripledGeneral(4, 4)
    layer = regard.nn.MultiheadAttention(8, 2, score=score, batch_first=True)
    assert layer.score is score
    assert "score.key.weight" in layer.state_dict()
