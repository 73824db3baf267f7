"""Measures: by hand on small maps."""

from math import log, log2

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.analysis import measures
from regard.analysis.measures import importance, share_on
from regard.attention.maps.map import AttentionMap

H, N = 3, 5


def a_map(weights: Tensor) -> AttentionMap:
    return AttentionMap.from_weights(weights)


DIAGONAL, EVEN = torch.eye(N), torch.full((N, N), 1 / N)


def test_effective_span() -> None:
    span = measures.effective_span(a_map(torch.stack([DIAGONAL, EVEN, torch.zeros(N, N)])))
    torch.testing.assert_close(span, torch.tensor([[1.0] * N, [float(N)] * N, [1.0] * N]))


def test_coverage_deviation() -> None:
    once = measures.coverage_deviation(a_map(torch.stack([DIAGONAL, EVEN])))
    torch.testing.assert_close(once, torch.zeros(2))
    only = torch.zeros(N, N)
    only[:, 2] = 1.0  # one key gets 5, four get 0
    want = -(4 * log(1 + 1) + log(1 + 16)) / N
    assert float(measures.coverage_deviation(a_map(only))) == pytest.approx(want)


def test_share_on() -> None:
    weights = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    assert float(measures.share_on(a_map(weights), [0])) == pytest.approx(0.6)
    assert float(measures.share_on(a_map(weights), [0, 2])) == pytest.approx(0.65)
    assert float(measures.share_on(a_map(torch.zeros(2, 3)), [0])) == 0
    assert float(measures.share_on(a_map(weights), [-3])) == pytest.approx(0.6)
    for key in (3, -4):
        with pytest.raises(regard.ShapeError, match=f"there is no key {key} in a map of 3 keys"):
            measures.share_on(a_map(weights), [key])


def test_mean_distance() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
    assert float(measures.mean_distance(a_map(weights))) == pytest.approx((0 + 1 + 2) / 3)
    cross = torch.tensor([[1.0, 0.0, 0.0]])  # one query of three keys stands at the last
    assert float(measures.mean_distance(a_map(cross))) == 2


def test_monotonicity() -> None:
    assert float(measures.monotonicity(a_map(DIAGONAL))) == 1
    assert float(measures.monotonicity(a_map(DIAGONAL.flip(0)))) == 0
    dead = DIAGONAL.clone()
    dead[2] = 0
    assert float(measures.monotonicity(a_map(dead))) == 1
    assert float(measures.monotonicity(a_map(torch.eye(1)))) == 0


def test_similarity() -> None:
    table = measures.similarity(a_map(torch.stack([DIAGONAL, DIAGONAL, EVEN])[None]))
    assert table.shape == (1, 3, 3)
    p, q = [1.0, 0, 0, 0, 0], [0.2] * 5
    middle = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    entropy = lambda row: -sum(x * log2(x) for x in row if x)  # noqa: E731
    want = 1 - (entropy(middle) - (entropy(p) + entropy(q)) / 2)
    torch.testing.assert_close(table[0], torch.tensor([[1.0, 1.0, want], [1.0, 1.0, want], [want, want, 1.0]]))
    with pytest.raises(regard.ShapeError, match="similarity needs heads on axis -3"):
        measures.similarity(a_map(DIAGONAL))


class TwoHeads(nn.Module):
    """Head 0 carries everything, head 1 nothing."""

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.stack([x, x * 0], 1)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)


def test_importance_is_what_the_loss_loses() -> None:
    model, x = nn.Sequential(TwoHeads()), torch.randn(2, N, 4, generator=torch.Generator().manual_seed(0))
    found = importance(model, lambda: -float(model(x).square().sum()), {"0": 2})
    assert found["0"][0] == pytest.approx(float(model(x).square().sum()), rel=1e-5)
    assert found["0"][1] == pytest.approx(0, abs=1e-5)


def test_the_alignment_error_of_every_head() -> None:
    right, wrong = torch.eye(3), torch.eye(3)[[1, 0, 2]]
    short = torch.tensor([[0.2, 0.8], [0.0, 0.0]])  # the second word looks nowhere
    seen = [a_map(torch.stack([right, wrong])), a_map(torch.stack([short, short]))]
    sure = [{(0, 0), (1, 1), (2, 2)}, {(0, 1)}]
    assert measures.alignment_error(seen, sure).tolist() == pytest.approx([0, 1 - 4 / 8])
    possible = [{(0, 1)}, set()]
    assert measures.alignment_error(seen, sure, possible).tolist() == pytest.approx([0, 1 - 5 / 8])
    flat = [one.select(1) for one in seen]
    assert float(measures.alignment_error(flat, sure)) == pytest.approx(1 - 4 / 8)


def test_on_a_real_model() -> None:
    model = regard.load("fr-en")
    sentences = ["Je suis fatigué.", "Le chat dort.", "Où est la gare ?", "Elle lit un livre."]
    with regard.observe(model, sites=["encoder.*"]) as seen:
        model(sentences)
    assert measures.similarity(seen["encoder.layers.0.self"][0]).shape == (4, 4)


def test_a_key_counts_once() -> None:
    seen = AttentionMap.from_weights(torch.full((2, 4), 0.25))
    assert float(share_on(seen, [0, 1, 1, 0, 2])) == 0.75
