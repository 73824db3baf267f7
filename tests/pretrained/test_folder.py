"""A folder of unknown origin: what its files say is compared before anything is allocated."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import regard
from adversary.folders import PRETRAINED, gguf_fields, gguf_file, gguf_tensors, make
from regard.errors import BundleError
from regard.models.build import build, build_shapes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make("llama", tmp_path / "llama")


def settings(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_hidden_layers": 10**12}, "num_hidden_layers = 1000000000000 cannot be read: expected a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 cannot be read: the files have 21 weights"),
        ({"num_hidden_layers": 3}, "no weight layers.2.self_attn.q_proj.weight"),
        ({"hidden_size": 10**7}, r"embed_tokens.weight has shape \[97, 8\], and config.json makes it \[97, 10000000\]"),
        ({"vocab_size": 10**9}, r"embed_tokens.weight has shape \[97, 8\], and config.json makes it \[1000000000, 8\]"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0 cannot be read: expected a whole number from 1"),
        ({"num_attention_heads": True}, "num_attention_heads = True cannot be read: expected a whole number from 1"),
        ({"intermediate_size": "many"}, "describes no model: decoder.ffn_width|ffn_width: Input should be"),
        ({"layer_types": 5}, "layer_types = 5 cannot be read: expected a list of names"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_scaling = .* only rope_type 'default' is known",
        ),
        ({"rope_scaling": []}, "rope_scaling = .* cannot be read: expected an object"),
        ({"rope_theta": 5.0}, r"rope_theta = 5.0 cannot be read: rope_parameters and rope_scaling say otherwise"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] cannot be read"),
        ({"a\nregard: b": "\x1b[2J"}, r"unknown settings 'a\\nregard: b' = '\\x1b\[2J'"),
    ],
)
def test_settings_that_are_refused(folder: Path, changed: dict[str, Any], message: str) -> None:
    settings(folder, **changed)
    with pytest.raises(BundleError, match=message) as caught:
        regard.load(folder)
    assert str(caught.value).isprintable()


def test_the_old_and_the_new_key_of_the_base_may_agree(folder: Path) -> None:
    settings(folder, rope_theta=10000.0)
    assert regard.load(folder).bundle.model_config.rotary_base == 10000.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda one: one.to(torch.int32), "is of kind I32; expected F16, BF16, F32, F64"),
        (lambda one: one > 0, "is of kind BOOL"),
        (lambda one: one.to(torch.complex64), "is of kind C64"),
        (lambda one: one * float("nan"), "has numbers that are infinite or NaN"),
        (lambda one: one.double() * 1e300, "has numbers that are infinite or NaN"),
        (lambda one: one[:1].clone(), r"has shape \[1, 8\], and config.json makes it \[97, 8\]"),
    ],
)
def test_weights_that_are_refused(folder: Path, changed: Any, message: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = changed(tensors["lm_head.weight"])
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BundleError, match=message):
        regard.load(folder)


def test_a_bert_without_kinds_of_tokens(tmp_path: Path) -> None:
    folder = make("bert", tmp_path / "bert")
    for kinds in (0, False):
        settings(folder, type_vocab_size=kinds)
        with pytest.raises(BundleError, match=f"type_vocab_size = {kinds} cannot be read: expected a whole number"):
            regard.load(folder)


def test_a_weight_with_the_prefix_and_without_it(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"norm.weight": torch.ones(8)}, folder / "model.safetensors")
    with pytest.raises(BundleError, match=r"two weights are norm\.weight"):
        regard.load(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "..", "", "a\nb"])
def test_an_index_names_files_beside_it(tmp_path: Path, name: str) -> None:
    folder = make("shards", tmp_path / "shards")
    (folder / "part-0.safetensors").rename(tmp_path / "outside.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("part-0.safetensors", json.dumps(name)[1:-1]))
    with pytest.raises(BundleError, match="expected files beside it, by their names alone"):
        regard.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_pipes_are_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(BundleError, match=f"{name}: expected a regular file; got a pipe"):
        regard.load(folder)


def test_special_tokens_beyond_the_vocabulary_are_left_out(folder: Path) -> None:
    settings(folder, pad_token_id=10**9, bos_token_id=-1, eos_token_id=97)
    found = regard.load(folder).tokenizer
    assert (found.pad, found.bos, found.eos) == (0, 1, None)


def test_loading_leaves_random_numbers_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    regard.load(folder)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", PRETRAINED)
def test_shapes_are_those_of_the_model(kind: str) -> None:
    config = PRETRAINED[kind]
    found, expected = build_shapes(7, config, 1000, "x").state_dict(), build(7, config).state_dict()
    assert {name: (one.shape, one.dtype) for name, one in found.items()} == {
        name: (one.shape, one.dtype) for name, one in expected.items()
    }
    assert all(one.is_meta for one in found.values())


def test_building_stops_when_there_are_more_parameters_than_weights() -> None:
    config = PRETRAINED["gpt2"].model_copy(update={"layers": 10**9})
    with pytest.raises(BundleError, match="x: its settings make a model of more weights than the 50 that are stored"):
        build_shapes(7, config, 50, "x")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"llama.attention.head_count_kv": ("[<I", [1, 1])},
            r"llama.attention.head_count_kv = \[1, 1\] cannot be read",
        ),
        ({"llama.block_count": ("<Q", 2**40)}, "llama.block_count = 1099511627776 cannot be read"),
        ({"llama.rope.freq_base": ("<f", float("inf"))}, "expected finite settings; got inf"),
        ({"tokenizer.ggml.merges": ("[s", ["one"])}, "the merges do not fit the tokens: expected pairs"),
        ({"tokenizer.ggml.tokens": ("[s", ["a"] * 22)}, "a token stands there twice"),
        ({"tokenizer.ggml.tokens": ("s", "a")}, "tokenizer.ggml.tokens = 'a' cannot be read: expected a list of texts"),
    ],
)
def test_settings_of_a_gguf_that_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    pytest.importorskip("gguf")
    path = gguf_file(tmp_path / "a.gguf", gguf_fields() | changed, gguf_tensors())
    with pytest.raises(BundleError, match=message):
        regard.load(path)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (lambda name, sizes, start: ([2**33], 0, start), r"has axes of \[8589934592\]"),
        (lambda name, sizes, start: ([8] * 5, 0, start), "has 5 axes"),
        (lambda name, sizes, start: (sizes, 99, start), "is of an unknown kind, 99"),
        (lambda name, sizes, start: (sizes, 0, 2**40), "lies beyond the end of the file"),
        (lambda name, sizes, start: (sizes, 26, start), "is of kind I32"),
    ],
)
def test_tensors_of_a_gguf_that_are_refused(tmp_path: Path, about: Any, message: str) -> None:
    pytest.importorskip("gguf")
    path = gguf_file(tmp_path / "a.gguf", gguf_fields(), gguf_tensors(), about=about)
    with pytest.raises(BundleError, match=message):
        regard.load(path)


def test_a_setting_that_stands_twice_in_a_gguf(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = gguf_file(tmp_path / "a.gguf", gguf_fields(), gguf_tensors(), twice="llama.block_count")
    with pytest.raises(BundleError, match=r"the setting llama\.block_count stands there twice"):
        regard.load(path)
