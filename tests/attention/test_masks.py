"""Masks against plain loops over queries and keys. True means may look, everywhere."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regard
from regard.attention.masks import Allow, Causal, Mask, Spans, as_mask, is_causal
from regard.errors import ShapeError

B, H, T, S = 2, 3, 5, 7
SHAPE = (B, H, T, S)
CPU = torch.device("cpu")


def whole(mask: Mask, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return mask.full(shape, CPU).expand(shape)


def loop(rule, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """rule(batch place, query, key) for every cell."""
    table = torch.zeros(shape, dtype=torch.bool)
    for place in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        table[tuple(place)] = rule(tuple(place[:-2]), *place[-2:])
    return table


@pytest.mark.parametrize(("t", "s"), [(5, 7), (7, 5), (5, 5), (1, 7)])
def test_causal_aligns_the_last_query_with_the_last_key(t: int, s: int) -> None:
    shape = (B, t, s)
    want = loop(lambda _, i, j: j <= i + s - t, shape)
    assert torch.equal(whole(regard.causal(), shape), want)
    assert want[:, -1].all()


@pytest.mark.parametrize("offset", [-3, 0, 1, 11])
def test_causal_with_an_offset(offset: int) -> None:
    want = loop(lambda _, i, j: j <= i + offset)
    assert torch.equal(whole(regard.causal(offset)), want)
    assert torch.equal(whole(regard.causal(torch.tensor(offset))), want)


def test_causal_with_an_offset_for_each_sentence() -> None:
    offsets = [-2, 3]
    want = loop(lambda batch, i, j: j <= i + offsets[batch[0]])
    assert torch.equal(whole(regard.causal(torch.tensor(offsets))), want)


def test_causal_with_an_offset_for_each_sentence_and_head() -> None:
    offsets = torch.tensor([[0, 1, -1], [4, -5, 2]])
    want = loop(lambda batch, i, j: j <= i + int(offsets[batch]))
    assert torch.equal(whole(regard.causal(offsets)), want)


@pytest.mark.parametrize(
    ("offset", "shape", "triangle"),
    [
        (None, (5, 5), True), (None, (5, 7), False), (0, (5, 7), True), (1, (5, 5), False), (2, (5, 7), False),
        (torch.tensor(0), (5, 5), False),
    ],
)  # fmt: skip
def test_causal_knows_torchs_triangle(offset, shape: tuple[int, int], triangle: bool) -> None:
    assert Causal(offset).is_triangle(shape) == triangle
    if triangle:
        assert torch.equal(whole(Causal(offset), shape), torch.ones(shape, dtype=torch.bool).tril())


def test_padding_is_repeated_over_the_heads() -> None:
    lengths = [3, 0]
    want = loop(lambda batch, _, j: j < lengths[batch[0]])
    assert torch.equal(whole(regard.padding(torch.tensor(lengths))), want)


def test_padding_of_queries() -> None:
    lengths, queries = [3, 9], [4, 2]
    want = loop(lambda batch, i, j: j < lengths[batch[0]] and i < queries[batch[0]])
    assert torch.equal(whole(regard.padding(torch.tensor(lengths), torch.tensor(queries))), want)


def test_padding_may_be_aligned_with_more_axes_or_shared() -> None:
    lengths = torch.tensor([[1, 2, 3], [4, 5, 6]])
    want = loop(lambda batch, _, j: j < int(lengths[batch]))
    assert torch.equal(whole(regard.padding(lengths)), want)
    assert torch.equal(whole(regard.padding(torch.tensor([4]))), loop(lambda _, __, j: j < 4))
    assert torch.equal(whole(regard.padding(torch.tensor(4)), (T, S)), loop(lambda _, __, j: j < 4, (T, S)))


@pytest.mark.parametrize("n", [0, 1, 4, 7, 11])
def test_prefix(n: int) -> None:
    assert torch.equal(whole(regard.prefix(n)), loop(lambda _, __, j: j < n))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ((), ()), ((T,), (T,)), ((1,), (T,)), ((T,), ()), ((H, T), (H, 1)), ((B, 1, T), (B, 1, T)), ((B, H, 1), (T,)),
        ((B, H, T), (B, H, T)),
    ],
)  # fmt: skip
def test_spans(start: tuple[int, ...], end: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    first, last = (torch.randint(-1, S + 2, shape, generator=draw) for shape in (start, end))
    a, b = first.expand(B, H, T), last.expand(B, H, T)
    want = loop(lambda batch, i, j: int(a[(*batch, i)]) <= j < int(b[(*batch, i)]))
    assert torch.equal(whole(Spans(first, last)), want)
    rows, columns = torch.tensor([3, 0]), torch.tensor([6, 1, 2])
    tile = Spans(first, last).tile(rows, columns, SHAPE)
    assert torch.equal(tile.expand(B, H, 2, 3), want[..., rows, :][..., columns])


@pytest.mark.parametrize("shape", [SHAPE, (H, T, S), (T, S), (B, 1, T, S), (B, H, 1, S), (H, T, 1), (S,), (1,), ()])
def test_allow_broadcasts_from_the_right(shape: tuple[int, ...]) -> None:
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.equal(whole(regard.allow(tensor)), tensor.expand(SHAPE))


PARTS = {
    "causal": (regard.causal(), lambda b, i, j: j <= i + S - T),
    "causal_-1": (regard.causal(-1), lambda b, i, j: j <= i - 1),
    "causal_batch": (regard.causal(torch.tensor([2, -1])), lambda b, i, j: j <= i + [2, -1][b[0]]),
    "padding": (regard.padding(torch.tensor([6, 2])), lambda b, i, j: j < [6, 2][b[0]]),
    "padding_both": (
        regard.padding(torch.tensor([6, 2]), torch.tensor([1, 4])),
        lambda b, i, j: j < [6, 2][b[0]] and i < [1, 4][b[0]],
    ),
    "prefix": (regard.prefix(3), lambda b, i, j: j < 3),
    "tensor": (regard.allow(torch.arange(S) % 3 != 1), lambda b, i, j: j % 3 != 1),
    "spans": (Spans(torch.arange(T), torch.tensor([[[7]], [[3]]])), lambda b, i, j: i <= j < [7, 3][b[0]]),
}


def formulas(depth: int = 3):
    """Random formulas of masks, with the rule that each stands for."""
    leaf = st.sampled_from(list(PARTS.values()))

    def grow(part):
        both = st.tuples(part, part)
        return st.one_of(
            both.map(lambda p: (p[0][0] & p[1][0], lambda b, i, j: p[0][1](b, i, j) and p[1][1](b, i, j))),
            both.map(lambda p: (p[0][0] | p[1][0], lambda b, i, j: p[0][1](b, i, j) or p[1][1](b, i, j))),
            part.map(lambda p: (~p[0], lambda b, i, j: not p[1](b, i, j))),
        )

    return st.recursive(leaf, grow, max_leaves=depth)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(formulas())
def test_formulas_of_masks_equal_the_same_formula_of_their_rules(formula) -> None:
    mask, rule = formula
    assert torch.equal(whole(mask), loop(rule))


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    formulas(),
    st.lists(st.integers(0, T - 1), min_size=1, max_size=3),
    st.lists(st.integers(0, S - 1), min_size=1, max_size=4),
)
def test_a_tile_is_that_part_of_the_whole(formula, rows: list[int], columns: list[int]) -> None:
    mask = formula[0]
    tile = mask.tile(torch.tensor(rows), torch.tensor(columns), SHAPE)
    want = whole(mask)[..., rows, :][..., columns]
    assert torch.equal(tile.expand(want.shape), want)


def test_operators_take_plain_tensors() -> None:
    tensor = torch.arange(S) % 2 == 0
    assert torch.equal(whole(regard.prefix(3) & tensor), loop(lambda _, __, j: j < 3 and j % 2 == 0))
    assert torch.equal(whole(regard.prefix(3) | tensor), loop(lambda _, __, j: j < 3 or j % 2 == 0))


def test_as_mask_keeps_a_mask_and_wraps_a_tensor() -> None:
    mask = regard.causal()
    assert as_mask(mask) is mask
    assert isinstance(as_mask(torch.ones(3, dtype=torch.bool)), Allow)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_only_bool_tensors_are_masks(dtype: torch.dtype) -> None:
    message = rf"mask must be bool \(True = may attend\); got {dtype}: .* go to bias=, .* with .bool\(\)"
    for make in (as_mask, regard.allow, lambda tensor: regard.causal() & tensor):
        with pytest.raises(regard.ChoiceError, match=message):
            make(torch.ones(T, S, dtype=dtype))


def test_other_things_are_no_masks() -> None:
    with pytest.raises(regard.ChoiceError, match="mask must be a regard mask or a bool tensor; got str"):
        inspect.unwrap(as_mask)("causal")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_padding_takes_whole_numbers(dtype: torch.dtype) -> None:
    good, bad = torch.ones(B, dtype=torch.long), torch.ones(B, dtype=dtype)
    with pytest.raises(regard.ShapeError, match=f"padding lengths must be whole numbers; got {dtype}"):
        regard.padding(bad)
    with pytest.raises(regard.ShapeError, match=f"padding query_lengths must be whole numbers; got {dtype}"):
        regard.padding(good, bad)


def test_a_prefix_is_not_negative() -> None:
    with pytest.raises(regard.ShapeError, match="prefix needs a number of keys of at least 0; got -1"):
        regard.prefix(-1)


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        (regard.padding(torch.ones(5, dtype=torch.long)), "padding lengths have"),
        (regard.padding(torch.tensor(2), torch.ones(5, dtype=torch.long)), "padding query_lengths have"),
        (regard.causal(torch.ones(5, dtype=torch.long)), "offset have"),
    ],
)
def test_numbers_must_fit_the_leading_batch_axes(mask: Mask, name: str) -> None:
    message = rf"{name} shape \[5\] and the batch axes are \[2, 3\]: they are aligned with the leading"
    with pytest.raises(regard.ShapeError, match=message):
        whole(mask)
    with pytest.raises(regard.ShapeError, match=r"shape \[5\] and the batch axes are \[\]"):
        whole(mask, (T, S))


def test_a_tensor_that_does_not_broadcast_is_refused() -> None:
    with pytest.raises(regard.ShapeError, match=r"mask has shape \[2, 5, 7\] and the scores have \[2, 3, 5, 7\]"):
        whole(regard.allow(torch.ones(B, T, S, dtype=torch.bool)))


@pytest.mark.parametrize(("left", "right"), [(1, None), (0, 0), (2, 1), (0, 3), (-1, 2), (9, None)])
@pytest.mark.parametrize("offset", [None, 0, -2])
def test_window_has_both_its_ends(left: int, right: int | None, offset: int | None) -> None:
    start = S - T if offset is None else offset
    want = loop(lambda _, i, j: -left <= j - (i + start) <= (left if right is None else right))
    assert torch.equal(whole(regard.window(left, right, offset)), want)


def test_window_with_an_offset_for_each_sentence() -> None:
    offsets = [-2, 3]
    want = loop(lambda batch, i, j: abs(j - i - offsets[batch[0]]) <= 1)
    assert torch.equal(whole(regard.window(1, offset=torch.tensor(offsets))), want)


def test_documents_see_their_own() -> None:
    asking, asked = torch.tensor([[0, 0, 1, -1, 2], [3, 3, 3, 3, 3]]), torch.tensor([[0, 1, 1, -1, 2, 2, 0], [3] * 7])
    want = loop(lambda batch, i, j: asking[batch[0], i] == asked[batch[0], j] >= 0)
    assert torch.equal(whole(regard.documents(asking, asked)), want)
    square = (B, H, T, T)
    same = loop(lambda batch, i, j: asking[batch[0], i] == asking[batch[0], j] >= 0, square)
    assert torch.equal(whole(regard.documents(asking), square), same)
    alone = loop(lambda _, i, j: asking[0, i] == asking[0, j] >= 0, square)
    assert torch.equal(whole(regard.documents(asking[0]), square), alone)
    heads = loop(lambda batch, i, j: asking[batch[0], i] == asked[batch[0], j] >= 0, (B, 1, T, S))
    assert torch.equal(whole(regard.documents(asking[:, None], asked[:, None]), (B, 1, T, S)), heads)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 11])
@pytest.mark.parametrize("batch", [(), (H,), (B, 1)])
def test_blocks_follow_their_layout(size: int, batch: tuple[int, ...]) -> None:
    layout = torch.rand(*batch, -(-T // size), -(-S // size), generator=torch.Generator().manual_seed(size)) < 0.5
    spread = layout.expand(B, H, *layout.shape[-2:])
    want = loop(lambda place, i, j: spread[(*place, i // size, j // size)])
    assert torch.equal(whole(regard.blocks(layout, size)), want)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda: regard.window(1, -2), r"window needs -left ≤ right; got left 1 and right -2"),
        (lambda: regard.documents(torch.zeros(B, T)), "documents query_ids must be whole numbers; got torch.float32"),
        (lambda: regard.documents(torch.zeros(B, T).long()), r"documents key_ids have shape \[2, 5\] .*give 7"),
        (lambda: regard.documents(torch.zeros(4, T).long(), torch.zeros(4, S).long()), "documents query_ids have"),
        (lambda: regard.blocks(torch.ones(2, 2), 3), "blocks needs a bool layout of at least 2 axes"),
        (lambda: regard.blocks(torch.ones(2, 2).bool(), 0), "blocks needs a size of at least 1; got 0"),
        (lambda: regard.blocks(torch.ones(2, 2).bool(), 3), r"blocks of 3 need a layout \[..., 2, 3\] for scores"),
        (lambda: regard.blocks(torch.ones(4, 2, 3).bool(), 3), r"blocks layout has shape \[4, 1, 1\]"),
    ],
)  # fmt: skip
def test_the_new_masks_refuse(mask, message: str) -> None:
    with pytest.raises(regard.ShapeError, match=message):
        inspect.unwrap(whole)(mask())


@pytest.mark.parametrize(
    ("mask", "known"),
    [
        (regard.causal(), True),
        (regard.causal() & regard.window(3), True),
        (regard.window(3) & regard.causal(), True),
        (regard.causal(2), False),
        (regard.causal() | regard.prefix(2), False),
        (regard.window(3), False),
    ],
)
def test_a_mask_is_known_to_be_causal(mask: Mask, known: bool) -> None:
    assert is_causal(mask) is known


@pytest.mark.parametrize("value", [float("nan"), 0.5, "2"])
@pytest.mark.parametrize("make", ["prefix", "causal", "window", "blocks"])
def test_a_position_is_an_integer(make: str, value: Any) -> None:
    layout = (torch.ones(1, 1, dtype=torch.bool),) if make == "blocks" else ()
    function = inspect.unwrap(getattr(regard, make))  # the tests' checks of types come first otherwise
    with pytest.raises(
        regard.ShapeError, match=r"(prefix: n|offset|window: left|blocks: size) must be an integer; got"
    ):
        function(*layout, value)
    assert isinstance(function(*layout, np.int64(2)), Mask)


def test_a_layout_of_other_blocks_is_refused_wherever_it_is_asked() -> None:
    x = torch.randn(1, 2048, 4)
    for kernel in ("reference", "auto", "blockwise"):
        with pytest.raises(ShapeError, match=r"blocks of 64 need a layout \[\.\.\., 32, 32\]"):
            regard.attend(x, x, x, normalizer="sparsemax", mask=regard.blocks(torch.eye(64).bool(), 64), kernel=kernel)


def test_a_tensor_and_a_mask_are_one_mask_in_either_order() -> None:
    table = torch.rand(5, 7) > 0.3
    assert torch.equal(whole(table & regard.causal()), whole(regard.causal() & table))
    assert torch.equal(whole(table | regard.causal()), whole(regard.causal() | table))


def test_numbers_beyond_all_places_are_refused() -> None:
    for make in (
        lambda: regard.window(10**30), lambda: regard.causal(offset=10**30), lambda: regard.prefix(10**30),
        lambda: regard.causal(offset=torch.tensor([float("nan")])), lambda: regard.alibi(2, offset=10**30),
    ):  # fmt: skip
        with pytest.raises(ShapeError, match="number"):
            make()
    ids = torch.tensor([[0, 0, 1, 1, 2]], dtype=torch.uint32)
    shape = (1, 5, 5)
    assert torch.equal(whole(regard.documents(ids), shape), whole(regard.documents(ids.long()), shape))
