"""Maps on disk: what is read is what was written, and it is as small as it can exactly be."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import regard
from regard.attention.biases import Added, Both, Diagonals
from regard.attention.maps import map as map_module
from regard.attention.maps.compact import freeze
from regard.attention.maps.map import AttentionMap
from regard.attention.maps.saved import FORMAT
from regard.attention.masks import Spans
from regard.attention.normalizers import Sink
from regard.attention.spec import make_spec
from regard.storage import write_tensors

B, H, T, S, D = 2, 3, 5, 7, 11


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(B, H, n, D, dtype=dtype, generator=draw) for n in (T, S))


def learned(score: nn.Module, scale: float = 1.0) -> nn.Module:
    """Parameters that float32 cannot hold."""
    draw = torch.Generator().manual_seed(1)
    score = score.double()
    for parameter in score.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=draw) * scale
    return score


def names(path: Path) -> set[str]:
    with safe_open(str(path), framework="pt") as file:
        return set(file.keys())


def again(seen: AttentionMap, path: Path, half: bool = False) -> AttentionMap:
    seen.save(path, half)
    return AttentionMap.load(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "map.safetensors"


SCORES = {
    "dot": ("dot", {"query", "key"}),
    "scaled_dot": ("scaled_dot", {"query", "key"}),
    "softcap": (regard.ScaledDot(0.3, softcap=1.7), {"query", "key"}),
    "cosine": (regard.Cosine(0.5, 2.0), {"query", "key"}),
    "general": (learned(regard.General(D, D), 0.1), {"query", "key"}),
    "additive": (learned(regard.Additive(D, D, 3)), {"query", "key", "v"}),
    "concat": (learned(regard.Concat(D, D, 3)), {"query", "key", "v"}),
    "distance": (regard.Distance(1.7), {"query", "key"}),
    "callable": (lambda q, k: (q @ k.mT).sin(), {"weights"}),
}
NORMALIZERS = {
    "softmax": ("softmax", set()),
    "softmax1": ("softmax1", {"sink"}),
    "sink": (Sink(nn.Parameter(torch.linspace(-1, 1, H, dtype=torch.float64) / 3)), {"sink"}),
    "uniform": ("uniform", set()),
    "sparsemax": ("sparsemax", set()),
    "entmax": (regard.Entmax(1.3), set()),
    "sigmoid": ("sigmoid", set()),
    "share": (regard.Share(), {"weights"}),  # fewer than the numbers of queries and keys
    "callable": (lambda scores, allowed: scores.relu() * allowed, {"weights"}),
}
MASKS = {
    "none": (None, set()),
    "causal": (regard.causal(), {"mask.start", "mask.end"}),
    "prefix": (regard.prefix(4), {"mask.start", "mask.end"}),
    "spans": (Spans(torch.tensor(1), torch.arange(2, 2 + T)), {"mask.start", "mask.end"}),
    "padding": (regard.padding(torch.tensor([4, 0])), {"mask.start", "mask.end"}),
    "holes": (regard.allow(torch.arange(S) % 3 != 1), {"mask"}),
}
DIAGONAL = Diagonals(torch.linspace(-2, 1, T + S - 1, dtype=torch.float64))
ROW = Added(torch.linspace(-2, 1, S, dtype=torch.float64))
BIASES = {
    "none": (None, set()),
    "row": (ROW, {"bias"}),
    "diagonals": (DIAGONAL, {"bias.diagonals"}),
    "distance": (Added(DIAGONAL.tile(torch.arange(T), torch.arange(S), (T, S))), {"bias.diagonals"}),
    "both": (Both(ROW, DIAGONAL), {"bias"}),
}
SOME = {
    *product(SCORES, NORMALIZERS, ["none"], ["none"]),
    *product(["scaled_dot", "additive"], ["softmax", "sink"], MASKS, BIASES),
}


@pytest.mark.parametrize(("score", "normalizer", "mask", "bias"), sorted(SOME))
def test_the_same_map_comes_back_in_its_smallest_form(
    score: str, normalizer: str, mask: str, bias: str, path: Path
) -> None:
    chosen = SCORES[score], NORMALIZERS[normalizer], MASKS[mask], BIASES[bias]
    made = dict(zip(("score", "normalizer", "mask", "bias"), (part for part, _ in chosen), strict=True))
    seen = regard.attention_map(*inputs(), **made)
    got = again(seen, path)
    assert got.shape == seen.shape
    assert not got.full().requires_grad
    torch.testing.assert_close(got.full(), seen.full().detach(), rtol=1e-13, atol=1e-15)
    written = set().union(*(keys for _, keys in chosen))
    assert names(path) == ({"weights"} if "weights" in written else written)


@pytest.mark.parametrize("half", [False, True])
def test_features_are_written_where_they_are_fewer_than_weights(half: bool, path: Path) -> None:
    query, key = (torch.randn(H, 50, D, dtype=torch.float64) * 3 for _ in range(2))
    asked = {"score": regard.RandomFeatures(D, 16), "normalizer": regard.Share(), "mask": regard.causal()}
    seen = regard.attention_map(query, key, **asked)
    got = again(seen, path, half)  # features reach beyond float16, and are not written in it
    torch.testing.assert_close(got.full(), seen.full(), rtol=1e-13, atol=1e-15)
    assert names(path) == {"query", "key", "mask.start", "mask.end"}


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_projected_keys_come_back(name: str, path: Path) -> None:
    spec, (query, key) = make_spec(SCORES[name][0], "softmax", None, None), inputs()
    seen = regard.attention_map(query, spec.score.project_key(key), score=spec.score.projected())
    torch.testing.assert_close(again(seen, path).full(), seen.full().detach(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", SCORES)
def test_frozen_maps_come_back_and_may_be_written_again(name: str, path: Path) -> None:
    spec = make_spec(SCORES[name][0], "softmax", regard.causal(), None)
    seen = AttentionMap.from_spec(*freeze(*inputs(), spec))
    first = again(seen, path)
    written = names(path)
    torch.testing.assert_close(again(first, path).full(), seen.full().detach(), rtol=1e-13, atol=1e-15)
    assert names(path) == written


@pytest.mark.parametrize("score", ["dot", "distance"])
def test_queries_and_keys_may_be_one_tensor(score: str, path: Path) -> None:
    states = inputs()[0]
    seen = regard.attention_map(states, states, score=SCORES[score][0])
    assert torch.equal(again(seen, path).full(), seen.full())


def test_grouped_and_shared_heads_stay_few(path: Path) -> None:
    query, key = torch.randn(B, 6, T, D), torch.randn(1, 2, S, D)
    seen = regard.attention_map(query, key)
    got = again(seen, path)
    assert got.source.key.shape == key.shape
    assert torch.equal(got.full(), seen.full())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_precision_comes_back(dtype: torch.dtype, path: Path) -> None:
    for seen in (regard.attention_map(*inputs(dtype)), AttentionMap.from_weights(torch.rand(T, S).to(dtype))):
        got = again(seen, path).full()
        assert got.dtype == seen.full().dtype
        assert torch.equal(got, seen.full())


def test_half_a_character_in_a_token_is_replaced(path: Path) -> None:
    tokens = ["a\ud83d", "\ude00", "\ud83d\ude00"]  # the last one is a whole character, in two halves
    regard.AttentionMap.from_weights(torch.eye(3), query_tokens=tokens, key_tokens=["a", "b", "c"]).save(path)
    assert regard.AttentionMap.load(path).query_tokens == ["a\ufffd", "\ufffd", "\U0001f600"]


@pytest.mark.parametrize("half", [False, True])
def test_tokens_come_back(half: bool, path: Path) -> None:
    tokens = {"query_tokens": ["a", "é", "日", "", "\n"], "key_tokens": [str(j) for j in range(S)]}
    got = again(AttentionMap.from_weights(torch.rand(T, S), **tokens), path, half)
    assert (got.query_tokens, got.key_tokens) == (tokens["query_tokens"], tokens["key_tokens"])
    got = again(regard.attention_map(*inputs()), path, half)
    assert (got.query_tokens, got.key_tokens) == (None, None)


@pytest.mark.parametrize("score", ["scaled_dot", "additive", "distance", "callable"])
def test_half_is_about_a_thousandth_of_a_weight_away(score: str, path: Path) -> None:
    seen = regard.attention_map(
        *inputs(), score=SCORES[score][0], normalizer="softmax1", bias=ROW, mask=regard.causal()
    )
    got = again(seen, path, half=True)
    with safe_open(str(path), framework="pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert {kinds[name] for name in SCORES[score][1]} == {torch.float16}
    assert {kinds.get(name, torch.int32) for name in ("mask.start", "mask.end")} == {torch.int32}
    assert kinds.get("bias", torch.float64) == torch.float64
    assert got.full().dtype == torch.float64
    torch.testing.assert_close(got.full(), seen.full().detach(), rtol=0, atol=3e-3)


@pytest.mark.parametrize("mask", [regard.causal(), regard.prefix(499), regard.padding(torch.tensor([499]))])
def test_queries_and_keys_are_smaller_than_weights(mask, path: Path) -> None:
    n, d = 503, 5
    query, key = torch.randn(1, n, d), torch.randn(1, n, d)
    regard.attention_map(query, key, mask=mask).save(path)
    assert path.stat().st_size < 4 * 2 * n * d + 8 * n + 1_000
    regard.attention_map(query, key, mask=mask).save(path, half=True)
    assert path.stat().st_size < 2 * 2 * n * d + 8 * n + 1_000


def test_derived_maps_are_written_as_weights(path: Path) -> None:
    seen = regard.attention_map(*inputs()).mean_heads()
    assert torch.equal(again(seen, path).full(), seen.full())
    assert names(path) == {"weights"}


def test_a_map_with_gradients_is_written_without(path: Path) -> None:
    query, key = (tensor.requires_grad_() for tensor in inputs())
    got = again(regard.attention_map(query, key, score="dot"), path)
    assert not got.full().requires_grad
    torch.testing.assert_close(got.full(), (query @ key.mT).softmax(-1).detach())


@pytest.mark.parametrize("shape", [(0, S), (T, 0), (0, 0)])
def test_maps_of_nothing(shape: tuple[int, int], path: Path) -> None:
    query, key = (torch.randn(B, n, D) for n in shape)
    for mask in (None, regard.causal(), regard.padding(torch.tensor([1, 0]))):
        assert again(regard.attention_map(query, key, mask=mask), path).full().shape == (B, *shape)


def test_weights_that_are_too_large_are_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_module, "LARGEST", 4 * T * S - 1)
    with pytest.raises(regard.ShapeError, match=r"the whole map \[5, 7\] takes"):
        AttentionMap.from_weights(torch.rand(T, S)).save(path)
    assert list(path.parent.iterdir()) == []


def test_another_format_is_refused(path: Path) -> None:
    write_tensors(path, {"weights": torch.rand(T, S)}, {"map": json.dumps({"format": FORMAT + 1})})
    with pytest.raises(
        regard.BundleError, match="is not a saved attention map: its format is 2, and this regard reads 1"
    ):
        AttentionMap.load(path)


@pytest.mark.parametrize("note", [None, {}, {"map": "{"}, {"map": "{}"}])
def test_tensors_without_a_note_are_no_map(note, path: Path) -> None:
    write_tensors(path, {"weights": torch.rand(T, S)}, note)
    with pytest.raises(regard.BundleError, match=r"map\.safetensors is not a saved attention map: "):
        AttentionMap.load(path)


def test_vectors_beyond_half_precision_are_written_whole(tmp_path: Path) -> None:
    query, key = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    query[..., 0], key[:, 1, 0] = 0, 1e5
    seen = regard.attention_map(query, key)
    seen.save(tmp_path / "m.safetensors", half=True)
    torch.testing.assert_close(AttentionMap.load(tmp_path / "m.safetensors").full(), seen.full(), atol=2e-3, rtol=0)


def test_a_negative_width_counts_as_its_square(tmp_path: Path) -> None:
    score = regard.Distance(torch.nn.Parameter(torch.tensor(-1.5)))
    seen = regard.attention_map(torch.randn(3, 4), torch.randn(5, 4), score=score)
    seen.save(tmp_path / "m.safetensors")
    torch.testing.assert_close(AttentionMap.load(tmp_path / "m.safetensors").full(), seen.full())


def test_a_map_that_went_through_several_matrices_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    seen = regard.attention_map(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 7, 4))
    low = regard.LowRank(9, 4).attention_map(*torch.randn(2, 1, 2, 9, 8))
    for one in (seen.through(torch.rand(7, 3)).through(torch.rand(3, 2)), low.through(torch.rand(9, 3)).frozen()):
        one.save(tmp_path / "map.safetensors")
        torch.testing.assert_close(regard.AttentionMap.load(tmp_path / "map.safetensors").full(), one.full())
