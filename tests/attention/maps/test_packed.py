"""What a page is given of a map: the smaller of vectors and weights, statistics of long ones, every row's mask."""

import re

import pytest
import torch

import regard
from regard.attention.maps.map import AttentionMap
from regard.attention.maps.packed import pack_map
from regard.attention.maps.page import Draft, page_of_map, page_of_maps


def test_short_maps_keep_queries_and_keys() -> None:
    seen = regard.attention_map(torch.randn(2, 3, 4), torch.randn(2, 5, 4), mask=regard.causal(), bias=torch.randn(5))
    note, parts = pack_map(seen)
    assert (note["heads"], note["queries"], note["keys"], note["score"]) == (2, 3, 5, "dot")
    assert parts["mask.end"].shape[-1] == 3
    assert parts["bias"].shape[-2:] == (3, 5)
    assert {part.dtype for name, part in parts.items() if "mask" not in name} == {torch.float32}


def test_many_wide_vectors_are_more_than_their_weights() -> None:
    seen = regard.attention_map(torch.randn(8, 40, 128), torch.randn(8, 40, 128))
    note, parts = pack_map(seen)
    assert set(parts) == {"weights"}
    torch.testing.assert_close(parts["weights"].float(), seen.full(), atol=5e-4, rtol=0)
    assert "score" not in note


def test_a_score_of_ones_own_is_packed_as_weights() -> None:
    def own(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query[..., :, None, :] - key[..., None, :, :]).abs().sum(-1)

    seen = regard.attention_map(torch.randn(3, 4), torch.randn(5, 4), score=own)
    _, parts = pack_map(seen)
    torch.testing.assert_close(parts["weights"], seen.full())


def test_long_maps_bring_statistics() -> None:
    seen = regard.attention_map(torch.randn(1, 300, 4), torch.randn(1, 300, 4), mask=regard.causal())
    _, parts = pack_map(seen)
    torch.testing.assert_close(parts["received"], seen.received())
    torch.testing.assert_close(parts["entropy"].float(), seen.entropy(), atol=5e-3, rtol=0)
    torch.testing.assert_close(parts["numbers"], torch.logsumexp(_scores(seen), -1))
    assert parts["pool"].shape == (1, 300, 300)


def _scores(seen: AttentionMap) -> torch.Tensor:
    query, key = (seen.source.query, seen.source.key)
    return (query @ key.mT / 2).masked_fill(torch.ones(300, 300).triu(1).bool(), -torch.inf)


@pytest.mark.parametrize(("task", "most"), [("translate", 2_000_000), ("maps", 6_000_000)])
def test_a_page_leaves_out_the_values_that_it_has_no_room_for(task: str, most: int) -> None:
    def one(width: int) -> AttentionMap:
        return regard.attention_map(torch.randn(4, 8), torch.randn(4, 8)).with_value(torch.randn(4, width))

    draft = Draft("two", task=task)
    wide = (most - 8000) // 8  # half precision, of four keys
    chosen = {"site": "b", "heads": [0], "why": ""}
    draft.add_run("", {"a": one(wide), "b": one(wide), "c": one(50), "d": one(wide)}, {}, chosen=chosen)
    page = draft.page()
    assert {info["site"]: info["values"] for info in page.document["runs"][0]["maps"]} == {
        "a": False, "b": True, "c": True, "d": False,
    }  # fmt: skip
    assert page.tensors["0.1.value"].dtype == torch.float16
    assert page.tensors["0.2.value"].dtype == torch.float32
    assert sum(part.nbytes for part in page.tensors.values()) <= most
    assert "0.0.value" not in page.tensors


def test_values_beyond_half_precision_stay_single() -> None:
    large = 1e5 * torch.randn(4, 2**15)
    _, parts = pack_map(regard.attention_map(torch.randn(4, 8), torch.randn(4, 8)).with_value(large))
    assert torch.equal(parts["value"], large)


def test_every_entry_of_a_batch_is_a_run() -> None:
    page = page_of_map(AttentionMap.from_weights(torch.rand(2, 3, 4, 4, 5).softmax(-1)))
    assert [run["label"] for run in page.document["runs"]][:3] == ["input 1, 1", "input 1, 2", "input 1, 3"]
    assert len(page.document["runs"]) == 6


def test_tokens_of_a_map_are_sequences_of_its_run() -> None:
    one = AttentionMap.from_weights(torch.rand(2, 2), query_tokens=["a", "b"], key_tokens=["c", "d"])
    other = AttentionMap.from_weights(torch.rand(2, 2), query_tokens=["a", "b"])
    (run,) = page_of_maps({"x": one, "y": other}, "two").document["runs"]
    assert run["sequences"][run["maps"][0]["columns"]] == ["c", "d"]
    assert run["maps"][0]["rows"] == run["maps"][1]["rows"]
    assert run["maps"][1]["columns"] is None


def test_the_still_picture_names_its_tokens() -> None:
    page = page_of_map(AttentionMap.from_weights(torch.eye(2), query_tokens=["<a>", "b"], key_tokens=["c", "d"]))
    assert "&lt;a&gt;" in page.still
    fills = re.findall(r'<rect x="[^>]*fill="(#[0-9a-f]+)"', page.still)
    assert fills[0] == fills[3] != fills[1] == fills[2]  # a weight of 1, and one of 0
    assert sum(bytes.fromhex(fills[0][1:])) < sum(bytes.fromhex(fills[1][1:]))  # darker


@pytest.mark.parametrize("size", [49, 300])
def test_larger_maps_have_no_still_picture(size: int) -> None:
    assert page_of_map(AttentionMap.from_weights(torch.rand(2, size))).still == ""
