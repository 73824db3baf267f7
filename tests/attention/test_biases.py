"""Biases: added to scores before masking."""

import inspect

import pytest
import torch

import regard
from device import DEVICE, in_float64, leaf
from regard.attention.biases import Added, Bias, Both, Diagonals, as_bias

SHAPE = (2, 3, 5, 7)


@pytest.mark.parametrize("shape", [SHAPE, (3, 5, 7), (5, 7), (3, 1, 7), (3, 5, 1), (7,), ()])
def test_a_tile_is_that_part_of_the_whole(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    rows, columns = torch.tensor([4, 0, 2]), torch.tensor([6, 1])
    tile = as_bias(tensor).tile(rows, columns, SHAPE)
    want = tensor.expand(SHAPE)[..., rows, :][..., columns]
    torch.testing.assert_close(tile.expand(want.shape), want, rtol=0, atol=0)


def diagonals_by_hand(values: torch.Tensor) -> torch.Tensor:
    """b_ij = d[j - i + T - 1], cell by cell."""
    t, s = SHAPE[-2:]
    table = torch.zeros(SHAPE)
    for i in range(t):
        for j in range(s):
            table[..., i, j] = values[..., j - i + t - 1]
    return table


@pytest.mark.parametrize("batch", [(), (3,), (2, 1), (2, 3)])
@pytest.mark.parametrize(("rows", "columns"), [([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]), ([4, 0], [6, 1, 3])])
def test_diagonals_depend_on_the_distance_alone(batch: tuple[int, ...], rows: list[int], columns: list[int]) -> None:
    values = torch.randn(*batch, 11)
    tile = Diagonals(values).tile(torch.tensor(rows), torch.tensor(columns), SHAPE)
    want = diagonals_by_hand(values)[..., rows, :][..., columns]
    assert torch.equal(tile.expand(want.shape), want)


def test_both_are_added() -> None:
    values, row = torch.randn(3, 11), torch.randn(7)
    rows, columns = torch.tensor([4, 0, 2]), torch.tensor([6, 1])
    both = Diagonals(values) + (Added(row) + Added(torch.tensor(0.5)))
    assert isinstance(both, Both)
    want = (diagonals_by_hand(values) + (row + 0.5))[..., rows, :][..., columns]
    torch.testing.assert_close(both.tile(rows, columns, SHAPE).expand(want.shape), want, rtol=0, atol=0)


def test_nothing_added_is_the_bias_itself() -> None:
    bias = Added(torch.zeros(7))
    assert bias + None is bias


@pytest.mark.parametrize("normalizer", ["softmax", "uniform"])
def test_attend_adds_every_kind_of_bias(normalizer: str) -> None:
    query, key, values, row = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(3, 11), torch.randn(7)
    got = regard.attend(query, key, key, bias=Diagonals(values) + Added(row), normalizer=normalizer)
    weights = (query @ key.mT / 2 + diagonals_by_hand(values) + row).softmax(-1)
    if normalizer == "uniform":
        weights = torch.full_like(weights, 1 / 7)
    torch.testing.assert_close(got, weights @ key)


LEARNED = {
    "added": lambda learned: Added(learned[:7]),
    "diagonals": Diagonals,
    "left": lambda learned: Added(learned[:7]) + Diagonals(learned.new_zeros(11)),
    "right": lambda learned: Added(learned.new_zeros(7)) + (Added(learned.new_zeros(7)) + Diagonals(learned)),
}


@in_float64
@pytest.mark.parametrize("name", LEARNED)
def test_attend_gives_a_learned_bias_its_gradient(name: str) -> None:
    query, key = (leaf(torch.randn(n, 3, dtype=torch.float64)) for n in (5, 7))
    learned = leaf(torch.randn(11, dtype=torch.float64))
    assert LEARNED[name](learned).is_learned()
    assert not LEARNED[name](learned.detach()).is_learned()
    assert torch.autograd.gradcheck(
        lambda q, k, b: regard.attend(q, k, k, bias=LEARNED[name](b)), (query, key, learned), fast_mode=True
    )
    if DEVICE.type == "cpu":  # elsewhere torch's kernel keeps the sums that a learned bias's gradient needs
        assert regard.plan(query, key, key, bias=LEARNED[name](learned)).kernel == "fused"


def test_a_bias_of_ones_own_is_not_learned_unless_it_says_so() -> None:
    assert not Bias().is_learned()


def test_gradients_reach_the_tensor() -> None:
    tensor = torch.zeros(3, 1, 7, requires_grad=True)
    as_bias(tensor).tile(torch.arange(5), torch.arange(7), SHAPE).sum().backward()
    torch.testing.assert_close(tensor.grad, torch.full((3, 1, 7), 5.0))


def test_as_bias_keeps_a_bias() -> None:
    bias = Added(torch.zeros(7))
    assert isinstance(bias, Bias)
    assert as_bias(bias) is bias


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_only_float_tensors_are_biases(dtype: torch.dtype) -> None:
    with pytest.raises(regard.ChoiceError, match=f"bias must be a float tensor; got {dtype}: .* goes to mask="):
        as_bias(torch.ones(5, 7, dtype=dtype))


def test_other_things_are_no_biases() -> None:
    with pytest.raises(regard.ChoiceError, match="bias must be a regard bias or a float tensor; got str"):
        inspect.unwrap(as_bias)("alibi")


def test_a_bias_must_broadcast() -> None:
    with pytest.raises(regard.ShapeError, match=r"bias has shape \[2, 5, 7\] and the scores have \[2, 3, 5, 7\]"):
        as_bias(torch.zeros(2, 5, 7)).tile(torch.arange(5), torch.arange(7), SHAPE)


def test_a_part_of_a_learned_bias_is_learned() -> None:
    for learned in (False, True):
        bias = torch.zeros(2, 3, 5, 7, requires_grad=learned)
        seen = regard.attention_map(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), bias=bias).select(0)
        assert seen.source.spec.bias.is_learned() is learned
        assert seen.full().requires_grad is learned


@pytest.mark.parametrize(("heads", "want"), [
    (1, [2**-8]), (2, [2**-4, 2**-8]), (4, [2**-2, 2**-4, 2**-6, 2**-8]),
    (3, [2**-4, 2**-8, 2**-2]), (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
])  # fmt: skip
@pytest.mark.parametrize("offset", [None, 1])
def test_alibi_falls_with_the_distance(heads: int, want: list[float], offset: int | None) -> None:
    shape = (2, heads, 5, 7)
    rows, columns = torch.tensor([4, 0, 2]), torch.tensor([6, 1])
    tile = regard.alibi(heads, offset).tile(rows, columns, shape).expand(2, heads, 3, 2)
    start = 2 if offset is None else offset
    for h, slope in enumerate(want):
        for a, i in enumerate(rows.tolist()):
            for b, j in enumerate(columns.tolist()):
                assert float(tile[1, h, a, b]) == pytest.approx(-slope * abs(j - i - start))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (8, 20), (4, 9)])
def test_buckets_are_t5s(bidirectional: bool, buckets: int, most: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-300, 301)
    want = T5Attention._relative_position_bucket(distance, bidirectional, buckets, most)
    assert torch.equal(regard.RelativeBias(2, buckets, most, bidirectional).bucket(distance), want)


def test_a_relative_bias_is_learned_and_lasts_in_a_map() -> None:
    torch.manual_seed(0)
    bias = regard.RelativeBias(3, 8, 20)
    torch.nn.init.normal_(bias.weight)
    query, key = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(2, 3, 7, 4)
    regard.attend(query, key, key, bias=bias).square().sum().backward()
    assert bias.weight.grad.abs().sum() > 0
    seen = regard.attention_map(query, key, bias=bias)
    rows, columns = torch.arange(5), torch.arange(7)
    table = torch.stack([bias.weight[bias.bucket(columns - i - 2)].T for i in range(5)], 1)
    torch.testing.assert_close(bias.tile(rows, columns, (2, 3, 5, 7)), table)
    scores = query @ key.mT / 2 + table
    torch.testing.assert_close(seen.full(), scores.softmax(-1))

    class Layer(torch.nn.Module):
        def forward(self, added: Bias) -> torch.Tensor:
            return regard.attend(query, key, key, bias=added)

    with regard.observe(layer := Layer()) as watched:
        layer(bias)
        layer(bias + as_bias(torch.zeros(7, requires_grad=True)))
    before = watched["."][0].full().clone()
    with torch.no_grad():
        bias.weight.add_(torch.randn(8, 3))
    for one in watched["."]:
        torch.testing.assert_close(one.full(), before)


def test_frozen_biases_stay_as_they_are() -> None:
    rows, columns = torch.arange(5), torch.arange(7)
    fixed = regard.alibi(3)
    assert fixed.frozen() is fixed
    for learned in (Diagonals(torch.randn(11, requires_grad=True)), Added(torch.randn(5, 7, requires_grad=True))):
        before = learned.tile(rows, columns, SHAPE).detach().clone()
        frozen = learned.frozen()
        with torch.no_grad():
            next(t for t in vars(learned).values()).add_(1)
        assert torch.equal(frozen.tile(rows, columns, SHAPE), before)
        assert not frozen.is_learned()
        assert frozen.frozen() is frozen


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regard.alibi(4, torch.tensor([1.5])), "offset must be of whole numbers; got torch.float32"),
        (lambda: regard.alibi(0), "alibi: expected from 1 to 65,536 heads; got 0"),
        (lambda: regard.alibi(10**30), "alibi: expected from 1 to 65,536 heads; got 1000"),
        (lambda: regard.RelativeBias(2, 30), "RelativeBias needs buckets that divide by 4"),
        (lambda: regard.RelativeBias(2, 32, 8), "a max_distance above 8; got 32 buckets and max_distance 8"),
        (lambda: regard.alibi(4).tile(torch.arange(5), torch.arange(7), SHAPE), r"alibi has 4 heads and the scores"),
        (lambda: regard.RelativeBias(4).tile(torch.arange(5), torch.arange(7), (5, 7)), "RelativeBias has 4 heads"),
    ],
)
def test_position_biases_refuse(make, message: str) -> None:
    with pytest.raises(regard.ShapeError, match=message):
        make()


@pytest.mark.parametrize(
    "bias", [regard.alibi(3, 1), regard.RelativeBias(3, 8, 20), regard.alibi(3) + as_bias(torch.randn(7))]
)
def test_position_biases_are_saved_in_small(bias, tmp_path) -> None:
    query, key = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4)
    seen = regard.attention_map(query, key, bias=bias)
    seen.save(tmp_path / "map")
    torch.testing.assert_close(regard.AttentionMap.load(tmp_path / "map").full(), seen.full())


def test_a_tensor_is_added_to_a_bias() -> None:
    query, table = torch.randn(2, 5, 4), torch.randn(5, 5)
    both = regard.attend(query, query, query, bias=regard.alibi(2) + table)
    plain = regard.alibi(2).full((2, 5, 5), torch.device("cpu")) + table
    torch.testing.assert_close(both, regard.attend(query, query, query, bias=plain))
