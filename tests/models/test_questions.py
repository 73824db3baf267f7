"""Models that answer questions about pictures: their attentions are found by the module that made them."""

from typing import Any

import pytest
import torch

import regard
from regard.attention.watch import Call, watching
from regard.models.build import build
from regard.models.questions import QuestionsConfig, StackedAttentionConfig

PATCHES = {"kind": "patches", "size": 6, "patch": 2, "width": 8}
KINDS: dict[str, Any] = {
    "stacked": StackedAttentionConfig(
        kind="stacked", source_encoder=PATCHES, embedding=5, score_width=7, hops=3, answers=4
    ),
    "questions": QuestionsConfig(
        kind="questions", source_encoder=PATCHES, width=8, heads=2, ffn_width=11, layers=2, answers=4
    ),
}
SITES = {
    "stacked": ["scores.0", "scores.1", "scores.2"],
    "questions": ["decoder.layers.0.cross", "decoder.layers.1.cross"],
}
QUESTION, REAL = torch.tensor([[4, 5, 6], [7, 8, 0]]), torch.tensor([[True] * 3, [True, True, False]])


def made(kind: str) -> Any:
    torch.manual_seed(0)
    return build(13, KINDS[kind]).eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_found_by_owner_whatever_else_attended_and_in_whatever_order(kind: str) -> None:
    model, other, calls = made(kind), made(kind), list[Call]()
    pictures = torch.rand(2, 3, 6, 6)
    _, want, positions = model.looking(pictures, QUESTION, REAL)
    assert list(want) == SITES[kind]
    assert positions.shape == (2, 9, 2)
    with watching(calls.append):
        other(pictures, QUESTION, REAL)  # another model's attentions
        model(pictures, QUESTION, REAL)
        regard.attend(*torch.randn(3, 1, 4, 5))  # an attention of no module
    got = model.maps(calls[::-1])
    assert set(got) == set(want)
    for site, expected in want.items():
        assert torch.equal(got[site].full(), expected.full())
        torch.testing.assert_close(expected.full().sum(-1), torch.ones(expected.shape[:-1]))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_observed_and_returned_sites_are_the_same(kind: str) -> None:
    model, pictures = made(kind), torch.rand(2, 3, 6, 6)
    with regard.observe(model) as seen:
        model(pictures, QUESTION, REAL)
    assert [site for site in seen if not site.endswith(".self")] == SITES[kind]
