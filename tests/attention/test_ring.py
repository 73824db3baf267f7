"""Attention across processes is one process's attention, on 2, 3 and, in the slow tests, 4 gloo processes."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import regard
import ring_cases
from regard.attention.ring import operator
from regard.attention.ring.shards import Card, Layout, Ring
from regard.distributed import ring_attend, ring_map, shard, sum_gradients, unshard
from ring_cases import BIASES, MASKS, MERGED, NORMALIZERS, SCORES
from ring_processes import Processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ring")


@pytest.fixture(scope="module", params=[2, 3], ids=["2 processes", "3 processes"])
def ring(request: pytest.FixtureRequest, folder: Path) -> Iterator[Processes]:
    processes = Processes(request.param, folder)
    yield processes
    processes.stop()


@pytest.fixture(scope="module")
def four(folder: Path) -> Iterator[Processes]:
    processes = Processes(4, folder)
    yield processes
    processes.stop()


@pytest.fixture
def one(tmp_path: Path) -> Iterator[None]:
    """A ring of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


CASES: dict[str, list[dict[str, Any]]] = {
    "causal": [{"mask": "causal"}, {"mask": "causal", "t": 7, "s": 17}, {"mask": "causal", "t": 17, "s": 7}],
    "cross": [{"t": 11, "s": 17}, {"t": 17, "s": 5}],
    "padded": [{"mask": "padding", "t": 11, "s": 17}, {"mask": "both_padded", "normalizer": "sink"}],
    "windowed": [{"mask": "window"}, {"mask": "window", "small": True, "t": 23, "s": 23}],
    "learned bias": [
        {"bias_name": "relative", "mask": "causal"},
        {"bias_name": "relative", "normalizer": "sigmoid", "small": True},
        {"bias_name": "tensor", "score": "additive"},
        {"bias_name": "computed", "mask": "spread", "score": "callable"},
    ],
    "sink": [
        {"normalizer": "sink", "mask": "causal"},
        {"normalizer": "sink", "mask": "nothing"},
        {"normalizer": "softmax1", "bias_name": "alibi", "mask": "prefix_lm"},
    ],
    "other normalisers that merge": [
        {"normalizer": "sigmoid", "mask": "causal"},
        {"normalizer": "share", "score": "elu", "mask": "tensor"},
        {"normalizer": "uniform", "mask": "documents"},
    ],
    "whole rows": [
        {"normalizer": "sparsemax", "mask": "causal", "bias_name": "relative"},
        {"normalizer": "entmax15", "score": "general", "mask": "window"},
        {"normalizer": "hard", "mask": "blocks"},
        {"normalizer": "callable", "key_heads": 2},
        {"exchange": "gather", "mask": "causal", "bias_name": "alibi"},
    ],
    "scores with parameters": [
        {"score": "general", "key_heads": 2, "mask": "causal"},
        {"score": "additive", "key_heads": 1, "mask": "causal", "small": True},
        {"score": "distance"},
    ],
    "dropout": [
        {"dropout": 0.3, "mask": "causal"},
        {"dropout": 0.3, "normalizer": "sink", "small": True},
        {"dropout": 0.3, "normalizer": "entmax15"},
    ],
    "non-finite keys that are masked": [
        {"poison": True, "mask": "causal"},
        {"poison": True, "mask": "causal", "normalizer": "sink", "score": "additive"},
        {"poison": True, "mask": "window", "normalizer": "sparsemax"},
    ],
    "balanced": [
        {"balanced": True, "mask": "causal", "bias_name": "relative"},
        {"balanced": True, "mask": "both_padded", "t": 11, "s": 23, "normalizer": "sink", "key_heads": 2},
        {"balanced": True, "mask": "causal", "normalizer": "sparsemax", "dropout": 0.3},
        {"balanced": True, "mask": "window", "score": "additive", "dropout": 0.3, "small": True},
        {"balanced": True, "mask": "causal", "t": 2, "s": 2},
    ],
    "hardly any positions": [
        {"t": 0, "s": 3, "bias_name": "tensor"},
        {"t": 3, "s": 0, "bias_name": "tensor"},
        {"t": 1, "s": 1},
        {"t": 2, "s": 1, "mask": "causal"},
        {"t": 1, "s": 5, "score": "callable"},
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_it_equals_one_process(ring: Processes, name: str) -> None:
    ring.run("all_equal_one_process", CASES[name])


def test_shards_may_have_any_lengths(ring: Processes) -> None:
    lengths = {2: ([13, 0], [4, 13]), 3: ([2, 0, 11], [0, 16, 1])}[ring.count]
    cases = [
        {"t": 13, "s": 17, "queries": lengths[0], "keys": lengths[1], "mask": mask, "normalizer": normalizer}
        for mask, normalizer in [("causal", "softmax"), ("padding", "sink"), ("causal", "sparsemax")]
    ]
    ring.run("all_equal_one_process", cases)


@pytest.mark.parametrize(
    ("mask", "bias_name", "normalizer", "key_heads"),
    [("causal", "relative", "softmax", 4), ("padding", "none", "sparsemax", 2), ("window", "tensor", "sink", 4)],
)
def test_a_map_answers_for_its_own_rows(
    ring: Processes, mask: str, bias_name: str, normalizer: str, key_heads: int
) -> None:
    ring.run("map_answers_for_own_rows", mask, bias_name, normalizer, key_heads)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("map_has_gradients", ()),
        ("shards_are_joined_again", ()),
        ("refuses_together", ()),
        ("gathers_what_cannot_travel", ()),
        ("has_no_second_derivative", ("ring",)),
        ("has_no_second_derivative", ("gather",)),
        ("computes_only_what_is_seen", ()),
        ("half_precision_is_no_worse", ("ring",)),
        ("half_precision_is_no_worse", ("gather",)),
        ("works_within_a_group", ()),
        ("trains_as_one_process", ()),
        # own queries, keys and values; two visiting shards, keys and values; the output, and a tile's: 9 are enough
        ("memory_falls", (6000, 9.5, 18.5)),
    ],
)
def test_across_processes(ring: Processes, name: str, arguments: tuple[object, ...]) -> None:
    ring.run(name, *arguments)


def test_every_block_of_the_page_runs(ring: Processes) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text("utf-8")
    shown = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "init_process_group" in block]
    assert len(shown) >= 2
    for block in shown:
        ring.run("runs", block)


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize("name", CASES)
def test_one_process_is_a_ring_too(name: str) -> None:
    assert ring_cases.all_equal_one_process(CASES[name]) is None


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("map_answers_for_own_rows", ("causal", "relative", "softmax")),
        ("map_has_gradients", ()),
        ("shards_are_joined_again", ()),
        ("refuses_together", ()),
        ("gathers_what_cannot_travel", ()),
        ("has_no_second_derivative", ("ring",)),
        ("has_no_second_derivative", ("gather",)),
        ("computes_only_what_is_seen", ()),
        ("trains_as_one_process", ()),
    ],
)
def test_alone(name: str, arguments: tuple[object, ...]) -> None:
    assert getattr(ring_cases, name)(*arguments) is None


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"refusal": "no"}, "process 1 has refused its shard: no"),
        ({"shapes": {"key": (2, 5, 4)}}, r"key has shape \[2, 5, 4\] on process 1 and \[2, 5, 3\] on process 0"),
        ({"shapes": {"key": (5, 3)}}, r"key has shape \[5, 3\] on process 1"),
        ({"dtypes": {"key": torch.float64}}, r"key is torch\.float64 on process 1 and torch\.float32 on process 0"),
        ({"asked": "else"}, "process 1 asks for else and process 0 for : give all processes the same arguments"),
        ({"wanted": {"key": True}}, "key needs a gradient on process 1 and none on process 0"),
    ],
)
def test_what_processes_compare(monkeypatch: pytest.MonkeyPatch, other: dict[str, Any], sentence: str) -> None:
    monkeypatch.setattr(Ring, "collect", lambda self, card: [card, replace(card, **other)])
    with pytest.raises(regard.RegardError, match=sentence):
        Layout.of(Ring(None, 0, 2), {"key": torch.zeros(2, 5, 3)}, None)


@pytest.mark.parametrize(("held", "fits"), [((3, 4), True), ((4, 3), False)])
def test_the_lengths_of_balanced_shards(monkeypatch: pytest.MonkeyPatch, held: tuple[int, int], fits: bool) -> None:
    cards = [Card.of({"key": torch.zeros(n, 2)}, None) for n in held]
    monkeypatch.setattr(Ring, "collect", lambda self, card: cards)
    agree = lambda: Layout.of(Ring(None, 0, 2), {"key": torch.zeros(held[0], 2)}, None, balanced=True)  # noqa: E731
    if fits:  # runs of 2, 2, 2 and 1: the first and the last, and the two between
        assert agree().columns == [(slice(0, 2), slice(6, 7)), (slice(2, 4), slice(4, 6))]
        return
    with pytest.raises(regard.ShapeError, match=r"have \[4, 3\] positions of key, and balanced shards of 7 have \[3"):
        agree()


@pytest.mark.usefixtures("one")
def test_values_that_python_may_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator: a row that may see a NaN passes no gradient, and the others have theirs."""
    monkeypatch.setattr(operator, "are_hidden", lambda *tensors: True)
    whole = [torch.randn(1, 2, 7, 5, dtype=torch.float64) for _ in range(3)]
    clean = [part.clone().requires_grad_() for part in whole]
    expected = regard.attend(*clean, mask=regard.causal())
    expected[..., :4, :].sum().backward()
    for part in whole[1:]:
        part[..., 4, :] = torch.nan
    inputs = [part.clone().requires_grad_() for part in whole]
    output = ring_attend(*inputs, mask=regard.causal())
    assert output.isnan().any(-1)[0, 0].tolist() == [False] * 4 + [True] * 3
    output.sum().backward()
    for ours, theirs in zip(inputs, clean, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_without_processes_it_is_refused() -> None:
    x = torch.randn(1, 2, 3, 4)
    calls = [
        lambda: ring_attend(x, x, x), lambda: ring_map(x, x), lambda: shard(x), lambda: unshard(x),
        lambda: sum_gradients([x]),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(regard.RegardError, match=r"no process group: call torch\.distributed\.init_process_group"):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_every_mask_bias_and_normaliser(four: Processes, mask: str, normalizer: str) -> None:
    # a row's share of scores that are mostly negative is divided by a small sum: float32 has few digits of it
    dtypes = ("float64",) if normalizer == "share" else ("float32", "float64")
    cases = [
        {
            "dtypes": dtypes,
            "mask": mask,
            "normalizer": normalizer,
            "bias_name": bias,
            "small": small,
            "t": t,
            "s": s,
            "key_heads": heads,
        }
        for bias, (small, t, s, heads) in product(BIASES, [(False, 13, 19, 4), (True, 22, 22, 2)])
    ]
    for case in cases:
        four.run("all_equal_one_process", [case])


@pytest.mark.slow
@pytest.mark.parametrize("score", SCORES)
def test_every_score(four: Processes, score: str) -> None:
    # scores of elu features are up to 40: a float32 row number then has an error of 4e-6, and so have merged weights
    cases = [
        {
            "dtypes": ("float64",) if score == "elu" or normalizer == "share" else ("float32", "float64"),
            "score": score,
            "mask": mask,
            "normalizer": normalizer,
            "dropout": dropout,
            "small": small,
            "balanced": small,
        }
        for mask, normalizer, dropout, small in product(
            ["none", "causal", "both_padded"], [*MERGED, "entmax15"], [0.0, 0.4], [False, True]
        )
    ]
    for case in cases:
        four.run("all_equal_one_process", [case])


@pytest.mark.slow
def test_memory_of_four_processes(four: Processes) -> None:
    four.run("memory_falls", 12000, 9.5, 18.5)


def test_gradients_of_an_embedding_that_are_sparse_are_summed(one: None) -> None:
    layer = torch.nn.Embedding(5, 3, sparse=True)
    layer(torch.tensor([1, 1, 2])).sum().backward()
    sum_gradients(layer.parameters())
    assert layer.weight.grad is not None
    assert layer.weight.grad.sum(1).tolist() == [0, 6, 3, 0, 0]
