"""Measures: by hand on small maps, and heads that were made to play a role."""

from math import comb, log, log2

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.analysis import measures
from regard.analysis.measures import among, beside, importance, rare, roles
from regard.attention.maps.map import AttentionMap

H, N = 3, 5


def a_map(weights: Tensor) -> AttentionMap:
    return AttentionMap.from_weights(weights)


DIAGONAL, EVEN = torch.eye(N), torch.full((N, N), 1 / N)
BACK = torch.eye(N).roll(1, 0)  # every query looks at the previous key, the first at the last


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


def corpus(n: int) -> list[tuple[dict[str, AttentionMap], list[str]]]:
    """Sentences in which head 0 looks back, head 1 at the separator, and head 2 anywhere."""
    draw = torch.Generator().manual_seed(0)
    sentences = []
    for _ in range(n):
        at_stop = torch.zeros(N, N)
        at_stop[:, -1] = 1.0
        weights = torch.stack([BACK, at_stop])
        weights = torch.cat([0.9 * weights + 0.1 * EVEN, torch.rand(1, N, N, generator=draw)])
        sentences.append(({"layer": a_map(weights)}, ["a", "b", "a", "c", "."]))
    return sentences


def test_roles_are_found_and_tested() -> None:
    found = roles(corpus(40))
    assert {(role.head, role.role) for role in found} == {(0, "previous"), (1, "separator")}
    previous = next(role for role in found if role.role == "previous")
    assert previous.sentences == 40
    assert previous.share == pytest.approx(0.9 + 0.1 / N)
    assert previous.chance == pytest.approx(1 / N)
    assert previous.p == pytest.approx(3 * 5 / 2**40)  # 3 heads × 5 roles


def test_a_role_has_an_interval() -> None:
    previous = next(role for role in roles(corpus(40)) if role.role == "previous")
    assert previous.interval == pytest.approx((previous.share, previous.share))  # the same in every sentence
    low, high = measures.bootstrap([0.0, 1.0] * 50)
    assert low == pytest.approx(0.4, abs=0.03)
    assert high == pytest.approx(0.6, abs=0.03)
    assert measures.bootstrap([0.0, 1.0] * 50) == (low, high)


def test_a_few_sentences_prove_nothing() -> None:
    assert roles(corpus(3)) == []


def test_sieves() -> None:
    assert torch.equal(beside(-1)(3, 3, []), torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0]]).bool())
    assert torch.equal(beside(0)(1, 3, []), torch.tensor([[0, 0, 1]]).bool())
    tokens = ["the", "cat", "the"]
    assert among(str.isupper)(2, 3, ["A", "b", "C"]).tolist() == [[True, False, True]] * 2
    assert rare({"the": 9, "cat": 2})(2, 3, tokens).tolist() == [[False, True, False]] * 2
    only = roles(corpus(40), {"rare": rare({"a": 9, "b": 9, "c": 9, ".": 1})})
    assert [(role.head, role.role) for role in only] == [(1, "rare")]


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


def test_the_sign_test() -> None:
    pairs = [(1.0, 0.0)] * 7 + [(0.0, 1.0)] * 2 + [(0.5, 0.5)]
    assert measures._sign_test(pairs) == pytest.approx(sum(comb(9, k) for k in (7, 8, 9)) / 2**9)
    assert measures._sign_test([]) == 1


def test_on_a_real_model() -> None:
    model = regard.load("fr-en")
    sentences = ["Je suis fatigué.", "Le chat dort.", "Où est la gare ?", "Elle lit un livre."]
    with regard.observe(model, sites=["encoder.*"]) as seen:
        model(sentences)
    names = [one.key_tokens for one in seen["encoder.layers.0.self"]]
    found = [({site: maps[i] for site, maps in seen.items()}, names[i]) for i in range(len(sentences))]
    assert isinstance(roles(found, level=1.0), list)
    assert measures.similarity(found[0][0]["encoder.layers.0.self"]).shape == (4, 4)
