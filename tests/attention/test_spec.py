"""A spec: what one attention does, as data."""

import dataclasses
import inspect
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard.attention.biases import Added, Diagonals
from regard.attention.masks import Allow, Spans
from regard.attention.normalizers import Normalizer, Softmax, Uniform
from regard.attention.operator import compute
from regard.attention.scores import Score
from regard.attention.spec import Spec, make_spec
from regard.attention.tiles import TileGrid

SHAPE = (2, 5, 7)


def test_make_spec_turns_what_a_person_writes_into_parts() -> None:
    mask, bias = torch.ones(7, dtype=torch.bool), torch.zeros(7)
    spec = make_spec("cosine", "uniform", mask, bias, 0.25)
    assert isinstance(spec.score, regard.Cosine)
    assert isinstance(spec.normalizer, Uniform)
    assert isinstance(spec.mask, Allow)
    assert isinstance(spec.bias, Added)
    assert (spec.mask.tensor is mask, spec.bias.tensor is bias, spec.dropout) == (True, True, 0.25)


def test_a_spec_cannot_be_changed() -> None:
    spec = make_spec("dot", "softmax", None, None)
    assert (spec.mask, spec.bias, spec.dropout) == (None, None, 0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.dropout = 0.5


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [3, 1]])
@pytest.mark.parametrize("biased", [False, True])
def test_scores_of_some_rows(rows: list[int], biased: bool) -> None:
    query, key, bias = torch.randn(2, 5, 3), torch.randn(2, 7, 3), torch.randn(5, 7, dtype=torch.float64)
    spec = make_spec("dot", "softmax", None, bias if biased else None)
    got = spec.scores(query[:, rows], key, torch.tensor(rows), SHAPE)
    want = (query @ key.mT + (bias if biased else 0)).float()
    torch.testing.assert_close(got, want[:, rows])


def test_allowed_rows() -> None:
    rows = torch.tensor([3, 1])
    spec = make_spec("dot", "softmax", regard.causal(0), None)
    cpu = torch.device("cpu")
    assert spec.allowed(rows, SHAPE, cpu).tolist() == [
        [True] * 4 + [False] * 3,
        [True] * 2 + [False] * 5,
    ]
    assert Spec(spec.score, spec.normalizer).allowed(rows, SHAPE, cpu).tolist() == [[True] * 7]


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 7.0])
def test_dropout_is_a_probability(dropout: float) -> None:
    with pytest.raises(regard.ShapeError, match=rf"dropout must be a probability in \[0, 1\); got {dropout}"):
        make_spec("dot", "softmax", None, None, dropout)


def test_a_dropout_of_several_numbers_is_refused() -> None:
    with pytest.raises(regard.ShapeError, match="dropout must be a probability"):
        inspect.unwrap(make_spec)("dot", "softmax", None, None, torch.tensor([0.1, 0.2]))


class OwnScore(Score):
    """q · k, handed on by a function that spoils it."""

    def __init__(self, spoil: Any) -> None:
        super().__init__()
        self.spoil = spoil

    def compare(self, query: Tensor, key: Tensor) -> Any:
        return self.spoil(query @ key.mT)

    def forward(self, query: Tensor, key: Tensor) -> Any:  # the base's checks its result in tests
        return self.compare(query, key)


class OwnNormalizer(Normalizer):
    """Softmax, handed on by a function that spoils it."""

    def __init__(self, spoil: Any) -> None:
        super().__init__()
        self.spoil = spoil

    def forward(self, scores: Tensor, allowed: Tensor) -> Any:
        return self.spoil(scores.softmax(-1), scores.logsumexp(-1))


@pytest.mark.parametrize("kernel", ["reference", "blockwise"])
@pytest.mark.parametrize("kind", ["none", "one key", "long", "twice as many keys", "meta"])
def test_a_class_of_ones_own_that_gives_no_scores_is_refused(kernel: str, kind: str) -> None:
    spoil = {
        "none": lambda scores: None,
        "one key": lambda scores: scores[..., :1],
        "long": lambda scores: scores.long(),
        "twice as many keys": lambda scores: torch.cat([scores, scores], -1),
        "meta": lambda scores: scores.to("meta"),
    }[kind]
    query, key = torch.randn(2, 5, 3), torch.randn(2, 7, 3)
    with pytest.raises(regard.ShapeError, match=r"OwnScore gave .* it must give floating-point numbers \["):
        regard.attend(query, key, key, score=OwnScore(spoil), kernel=kernel)
    with pytest.raises(regard.ShapeError, match="OwnScore gave"):
        regard.attention_map(query, key, score=OwnScore(spoil)).full()
    same = regard.attend(query, key, key, score=OwnScore(lambda scores: scores[:1] * 0), kernel=kernel)  # broadcast
    torch.testing.assert_close(same, key.mean(1, keepdim=True).expand_as(same))


@pytest.mark.parametrize("kernel", ["reference", "blockwise"])
@pytest.mark.parametrize("kind", ["none", "weights alone", "one key", "long", "a number for each key"])
def test_a_class_of_ones_own_that_gives_no_weights_is_refused(kernel: str, kind: str) -> None:
    spoil = {
        "none": lambda weights, numbers: None,
        "weights alone": lambda weights, numbers: weights,
        "one key": lambda weights, numbers: (weights[..., :1], numbers),
        "long": lambda weights, numbers: (weights.long(), numbers),
        "a number for each key": lambda weights, numbers: (weights, weights),
    }[kind]
    query, key = torch.randn(2, 5, 3), torch.randn(2, 7, 3)  # a batch of 2 could be taken for two tensors
    with pytest.raises(regard.ShapeError, match=r"OwnNormalizer gave .*: a normalizer gives floating-point weights"):
        regard.attend(query, key, key, normalizer=OwnNormalizer(spoil), kernel=kernel)
    with pytest.raises(regard.ShapeError, match="OwnNormalizer gave"):
        regard.attention_map(query, key, normalizer=OwnNormalizer(spoil)).full()


BATCH, T, S = (2, 3), 11, 13
TABLE = torch.randn(*BATCH, T, S, generator=torch.Generator().manual_seed(1))
MASKS = {
    "causal": regard.causal(),
    "causal_offsets": regard.causal(torch.tensor([0, 4])),
    "window": regard.window(2, 1),
    "padding": regard.padding(torch.tensor([5, 13]), torch.tensor([11, 4])),
    "prefix_lm": regard.prefix(4) | regard.causal(-1),
    "inverse": ~regard.window(3),
    "documents": regard.documents(torch.arange(T).expand(2, -1) // 3, torch.arange(S).expand(2, -1) // 3),
    "blocks": regard.blocks(TABLE[..., :3, :4] > 0, 4),
    "spans": Spans(torch.arange(T) // 2, torch.arange(T) // 2 + 3),
    "tensor": regard.allow(TABLE > 0),
}
BIASES = {
    "alibi": regard.alibi(3),
    "relative": regard.RelativeBias(3, 8, 6),
    "diagonals": Diagonals(TABLE.flatten()[: T + S - 1]),
    "tensor": Added(TABLE[0]),
    "both": Added(TABLE) + regard.alibi(3),
}
torch.nn.init.normal_(BIASES["relative"].weight, generator=torch.Generator().manual_seed(2))
FIRST, PART = (4, 5), (*BATCH, 6, 7)
INSIDE = (..., slice(4, 10), slice(5, 12))
CPU = torch.device("cpu")


@pytest.mark.parametrize("selected", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_a_part_of_a_mask_is_a_tile_of_the_whole(name: str, selected: bool) -> None:
    whole = MASKS[name].full((*BATCH, T, S), CPU).expand(*BATCH, T, S)[INSIDE]
    part, shape = MASKS[name].part(FIRST, (*BATCH, T, S)), PART
    if selected:
        part, whole, shape = part.select((1,), PART), whole[1], PART[1:]
    assert torch.equal(part.full(shape, CPU).expand(shape), whole)
    grid = TileGrid(torch.tensor([0, 2, 6]), torch.tensor([0, 1, 4, 7]), shape)
    coverage = part.coverage(grid)
    for (r, rows), (c, columns) in product(enumerate([(0, 2), (2, 6)]), enumerate([(0, 1), (1, 4), (4, 7)])):
        tile = whole[..., slice(*rows), slice(*columns)]
        some, full = (of.expand(*shape[:-2], *of.shape[-2:])[..., r, c] for of in (coverage.some, coverage.full))
        assert not (tile.any(-1).any(-1) & ~some).any(), "a tile that is not empty was called so"
        assert not (full & ~tile.all(-1).all(-1)).any(), "a tile that is not full was called so"
    flags = torch.arange(shape[-1]) % 3 == 0
    alive, reached = (of.expand(shape[:-1]) for of in part.seen_by(flags, shape))
    assert torch.equal(alive, whole.any(-1))
    assert torch.equal(reached, (whole & flags).any(-1))


@pytest.mark.parametrize("selected", [False, True])
@pytest.mark.parametrize("name", BIASES)
def test_a_part_of_a_bias_is_a_tile_of_the_whole(name: str, selected: bool) -> None:
    bias = BIASES[name]
    whole = bias.full((*BATCH, T, S), CPU).expand(*BATCH, T, S)[INSIDE]
    part, shape = bias.part(FIRST, (*BATCH, T, S)), PART
    assert [id(t) for t in part.tensors()] == [id(t) for t in bias.tensors()]
    if selected:
        part, whole, shape = part.select((1,), PART), whole[1], PART[1:]
    else:
        torch.testing.assert_close(part.frozen().full(shape, CPU).expand(shape), whole)
    torch.testing.assert_close(part.full(shape, CPU).expand(shape), whole)
    rows, columns = torch.tensor([3, 1]), torch.tensor([6, 0, 2])
    torch.testing.assert_close(
        part.tile(rows, columns, shape).expand(*shape[:-2], 2, 3), whole[..., rows, :][..., columns]
    )


@pytest.mark.parametrize("kernel", ["reference", "blockwise"])
def test_a_part_of_a_part_drops_the_same_weights(kernel: str) -> None:
    query, key, value = (torch.randn(*BATCH, n, 5, dtype=torch.float64) for n in (T, S, S))
    spec = make_spec("dot", "sigmoid", regard.causal(), None, 0.4)  # keys of a sigmoid do not compete
    whole = compute("reference", query, key, value, spec, 7)[0]
    parts = []
    for first in (0, 6):
        later = spec.part((2, 0), (*BATCH, T, S)).part((2, first), (*BATCH, T - 2, S))
        keys = slice(first, first + 6 if not first else S)
        parts.append(compute(kernel, query[..., 4:, :], key[..., keys, :], value[..., keys, :], later, 7)[0])
    torch.testing.assert_close(sum(parts), whole[..., 4:, :])


@pytest.mark.parametrize("kernel", ["reference", "blockwise"])
def test_keys_that_are_not_allowed_weigh_nothing_whatever_a_class_of_ones_own_does(kernel: str) -> None:
    query, key, value = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    ignores = OwnNormalizer(lambda weights, numbers: (weights, numbers))
    settings: Any = {"normalizer": ignores, "mask": regard.causal()}
    got = regard.attend(query, key, value, kernel=kernel, **settings)
    weights = (query @ key.mT).div(3**0.5).softmax(-1).tril()
    torch.testing.assert_close(got, weights @ value)
    seen = regard.attention_map(query, key, **settings)
    torch.testing.assert_close(seen.full(), weights)
    torch.testing.assert_close(seen.tile(slice(1, 3), slice(0, 4)), weights[:, 1:3, :4])


def test_a_subclass_of_softmax_with_a_forward_of_its_own_is_masked_too() -> None:
    class Mine(Softmax):
        def forward(self, scores: Tensor, allowed: Tensor) -> Any:
            return scores.softmax(-1), scores.logsumexp(-1)

    query = torch.randn(1, 5, 3)
    seen = regard.attend(query, query, torch.eye(5)[None], mask=regard.causal(), normalizer=Mine())
    assert not seen.triu(1).any()
