"""The checks at the public doors (their wording is tested through attend) and the helpers on axes."""

import subprocess
import sys

import pytest
import torch

import regard
from regard.shapes import batch_shape, broadcast_to_scores, check, check_widths, share_heads


def empty(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [
        ((5, 3), (7, 3), (7, 2)),
        ((2, 5, 3), (1, 7, 3), (2, 7, 2)),
        ((1, 5, 3), (2, 7, 3), (2, 7, 2)),
        ((2, 6, 5, 3), (2, 3, 7, 3), (2, 3, 7, 2)),
        ((2, 6, 5, 3), (2, 1, 7, 3), (2, 3, 7, 2)),
        ((11, 2, 6, 5, 3), (11, 1, 2, 7, 3), (1, 2, 2, 7, 2)),
        ((5, 3), (7, 13), (7, 2)),  # widths are the score's business
    ],
)
def test_check_lets_pass_what_fits(query, key, value) -> None:
    check(empty(*query), empty(*key), empty(*value))
    check(empty(*query), empty(*key))


def test_three_axes_have_no_heads_to_group() -> None:
    with pytest.raises(regard.ShapeError, match="query has size 6 on batch axis -3 and key has 3: batch axes must"):
        check(empty(6, 5, 3), empty(3, 7, 3))


def test_check_names_the_dtype() -> None:
    with pytest.raises(regard.ShapeError, match=r"key must be a floating-point tensor; got torch.int64: embed token"):
        check(empty(5, 3), torch.zeros(7, 3, dtype=torch.long))


def test_check_widths() -> None:
    check_widths(empty(5, 3), empty(7, 3))
    with pytest.raises(regard.ShapeError, match="query has width 3 on axis -1 and key has 11"):
        check_widths(empty(5, 3), empty(7, 11))


@pytest.mark.parametrize(
    ("query", "key", "want"),
    [((5, 3), (7, 3), ()), ((2, 1, 5, 3), (1, 3, 7, 3), (2, 3)), ((2, 6, 5, 3), (2, 6, 7, 3), (2, 6))],
)
def test_batch_shape(query, key, want: tuple[int, ...]) -> None:
    assert batch_shape(empty(*query), empty(*key)) == want


@pytest.mark.parametrize(
    ("shape", "want"), [((7,), (5, 7)), ((3, 1, 7), (3, 5, 7)), ((), (5, 7)), ((2, 1, 5, 1), (2, 1, 5, 7))]
)
def test_broadcast_to_scores_fills_the_last_two_axes_only(shape: tuple[int, ...], want: tuple[int, ...]) -> None:
    assert broadcast_to_scores(empty(*shape), (2, 3, 5, 7), "mask").shape == want


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 5, 7), (1, 2, 3, 5, 7), (11, 2, 3, 5, 7)])
def test_broadcast_to_scores_refuses_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(regard.ShapeError, match=r"bias must broadcast from the right to .* with unsqueeze"):
        broadcast_to_scores(empty(*shape), (2, 3, 5, 7), "bias")


def test_share_heads_gives_query_head_h_the_key_head_h_over_group() -> None:
    query, key = empty(2, 6, 5, 3), torch.arange(2.0)[None, :, None, None].expand(2, 2, 7, 3)
    assert share_heads(query, key)[0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("query", "key"), [((6, 5, 3), (6, 7, 3)), ((2, 6, 5, 3), (2, 1, 7, 3)), ((2, 1, 5, 3), (2, 3, 7, 3))]
)
def test_share_heads_leaves_what_broadcasts(query, key) -> None:
    tensor = empty(*key)
    assert share_heads(empty(*query), tensor) is tensor


NO_TENSORS = """
import torch, regard

x, calls = torch.ones(2, 3), [
    ("query: expected a tensor; got None", lambda: regard.attend(None, x, x)),
    ("key: expected a tensor; got a list", lambda: regard.attend(x, [[1.0]], x)),
    ("value: expected a tensor; got None", lambda: regard.attend(x, x, None)),
    ("key: expected a tensor; got a str", lambda: regard.attention_map(x, "x")),
    ("value: expected a tensor; got a float", lambda: regard.plan(x, x, 0.5)),
    ("score: Dot is a class: make an object, Dot(…)", lambda: regard.attend(x, x, x, score=regard.Dot)),
    ("normalizer: Sink is a class: make an object, Sink(…)", lambda: regard.attend(x, x, x, normalizer=regard.Sink)),
    ("padding: lengths: expected a tensor; got a list", lambda: regard.padding([1, 2])),
    ("blocks: layout: expected a tensor; got a list", lambda: regard.blocks([[True]], 2)),
]
for sentence, call in calls:
    try:
        call()
    except ValueError as error:
        assert str(error) == sentence, str(error)
    else:
        raise AssertionError(sentence)
"""


def test_what_is_no_tensor_is_named_without_the_tests_type_checks() -> None:
    subprocess.run([sys.executable, "-c", NO_TENSORS], check=True)


def test_tensors_on_two_devices_are_named():
    x, elsewhere = torch.ones(2, 3), torch.ones(2, 3, device="meta")
    for call in (lambda: regard.attend(elsewhere, x, x), lambda: regard.attention_map(elsewhere, x)):
        with pytest.raises(regard.ShapeError, match=r"^key is on cpu and query on meta: move one of them"):
            call()
    assert regard.attend(elsewhere, elsewhere, elsewhere).device.type == "meta"
