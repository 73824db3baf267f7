"""A .gguf file: transformers reads the same one, and says what is in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import regard
from regard.pretrained.folder import load_pretrained

gguf = pytest.importorskip("gguf")
V, WIDTH, HEADS, KEYS, INNER, LAYERS = 96, 64, 4, 2, 96, 2
NAMES = [chr(0x100 + n) for n in range(V - 3)]  # GPT-2's spelling of bytes begins there


def write(
    path: Path, change: dict[str, Any] | None = None, tied: bool = True, extra: str | None = None,
    merges: list[str] | None = None, without: str = "", heads: int = HEADS, kinds: Sequence[int] = (),
    adds_bos: bool = False, begin: str = "<begin>",
) -> None:  # fmt: skip
    """A Llama with random weights, some of them quantized, as llama.cpp's converter writes it."""
    draw = torch.Generator().manual_seed(0)
    file = gguf.GGUFWriter(str(path), "llama")
    file.add_context_length(64)
    sizes = {
        "block_count": LAYERS, "embedding_length": WIDTH, "feed_forward_length": INNER, "head_count": heads,
    }  # fmt: skip
    for name, size in sizes.items():
        if name != without:
            getattr(file, f"add_{name}")(size)
    file.add_head_count_kv(KEYS)
    file.add_rope_freq_base(500.0)
    file.add_layer_norm_rms_eps(1e-3)
    file.add_vocab_size(V)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list(["<end>", *NAMES, NAMES[0] + NAMES[1], begin])
    file.add_token_types(list(kinds) or [3, *[1] * (V - 2), 3])
    if adds_bos:
        file.add_add_bos_token(True)
    file.add_token_merges([f"{NAMES[0]} {NAMES[1]}"] if merges is None else merges)
    file.add_bos_token_id(V - 1)
    file.add_eos_token_id(0)
    for name, value in (change or {}).items():
        file.add_uint32(name, value)

    def add(name: str, *shape: int, kind: str = "F32") -> None:
        weight: Tensor = torch.randn(*shape, generator=draw) * 0.3
        quantised = getattr(gguf.GGMLQuantizationType, kind)
        file.add_tensor(name, gguf.quantize(weight.numpy(), quantised), raw_dtype=quantised)

    add("token_embd.weight", V, WIDTH, kind="Q8_0")
    for n in range(LAYERS):
        own = f"blk.{n}."
        add(own + "attn_norm.weight", WIDTH)
        add(own + "attn_q.weight", WIDTH, WIDTH, kind="Q4_1")
        add(own + "attn_k.weight", WIDTH // HEADS * KEYS, WIDTH, kind="F16")
        add(own + "attn_v.weight", WIDTH // HEADS * KEYS, WIDTH)
        add(own + "attn_output.weight", WIDTH, WIDTH)
        add(own + "ffn_norm.weight", WIDTH)
        add(own + "ffn_gate.weight", INNER, WIDTH)
        add(own + "ffn_up.weight", INNER, WIDTH)
        add(own + "ffn_down.weight", WIDTH, INNER)
    add("output_norm.weight", WIDTH)
    if not tied:
        add("output.weight", V, WIDTH)
    if extra:
        add(extra, 3, 32)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_same(tied: bool, tmp_path: Path) -> None:
    write(tmp_path / "small.gguf", tied=tied)
    found = load_pretrained(tmp_path / "small.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf", dtype=torch.float32)
    ids = torch.randint(0, V, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.model(ids), theirs.eval()(ids).logits, rtol=1e-4, atol=1e-4)
    assert found.ids == {"bos": V - 1, "eos": 0}
    model = regard.load(tmp_path / "small.gguf")
    assert model("".join(NAMES[:1]), length=3, seed=1).ids


@pytest.mark.parametrize(
    ("change", "extra", "message"),
    [
        ({"llama.expert_count": 4}, None, "llama.expert_count = 4 is not known: regard loads nothing"),
        ({"llama.attention.key_length": 8}, None, "llama.attention.key_length = 8 and a head is 16 wide"),
        ({}, "blk.0.ffn_gate_exps.weight", "a Llama has no weight blk.0.ffn_gate_exps.weight"),
    ],
)
def test_what_is_not_known_is_refused(change: dict[str, int], extra: str | None, message: str, tmp_path: Path) -> None:
    write(tmp_path / "small.gguf", change, extra=extra)
    with pytest.raises(regard.BundleError, match=message):
        regard.load(tmp_path / "small.gguf")


@pytest.mark.parametrize("merges", [[f"{NAMES[0]} nowhere"], ["onepiece"], [f"{NAMES[1]} {NAMES[0]}"]])
def test_merges_that_do_not_fit_the_tokens_are_refused(merges: list[str], tmp_path: Path) -> None:
    write(tmp_path / "small.gguf", merges=merges)
    with pytest.raises(regard.BundleError, match=r"small\.gguf: its tokenizer cannot be read: the merges do not fit"):
        regard.load(tmp_path / "small.gguf")


@pytest.mark.parametrize("missing", ["embedding_length", "head_count", "block_count", "feed_forward_length"])
def test_a_missing_setting_is_named(missing: str, tmp_path: Path) -> None:
    write(tmp_path / "small.gguf", without=missing)
    with pytest.raises(regard.BundleError, match=rf"no llama\..*{missing}: it is needed to build the model"):
        regard.load(tmp_path / "small.gguf")


def test_sizes_that_do_not_fit_the_weights_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "small.gguf", heads=2 * WIDTH + 1)
    with pytest.raises(regard.BundleError, match=r"small\.gguf"):
        regard.load(tmp_path / "small.gguf")


def test_the_end_of_a_turn_ends_a_text_too(tmp_path: Path) -> None:
    write(tmp_path / "small.gguf", {"tokenizer.ggml.eot_token_id": 4})
    found = load_pretrained(tmp_path / "small.gguf")
    assert (found.rules.ends, found.ids["eos"]) == ((0, 4), 0)


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUFF" * 9)
    with pytest.raises(regard.BundleError, match=r"not a \.gguf file, or damaged"):
        regard.load(tmp_path / "a.gguf")
    with pytest.raises(regard.BundleError, match=r"b\.gguf: no such file"):
        regard.load(str(tmp_path / "b.gguf"))
    file = gguf.GGUFWriter(str(tmp_path / "c.gguf"), "gemma")
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.close()
    with pytest.raises(regard.BundleError, match="its architecture is 'gemma'; only 'llama' can be read"):
        regard.load(tmp_path / "c.gguf")


def test_tokens_of_users_and_the_first_token_are_read(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", kinds=[3, 4, *[1] * (V - 3), 3], adds_bos=True)
    model = regard.load(str(tmp_path / "m.gguf"))
    assert model.tokenizer.encode(NAMES[0]) == [1]
    assert model(NAMES[0], length=1).source_ids[0] == V - 1


@pytest.mark.parametrize("begin", ["x:y", "a b", "$A"])
def test_the_first_token_may_have_any_name(tmp_path: Path, begin: str) -> None:
    write(tmp_path / "m.gguf", adds_bos=True, begin=begin)
    model = regard.load(str(tmp_path / "m.gguf"))
    assert list(model(NAMES[0], length=1).source_ids) == [V - 1, *model.tokenizer.encode(NAMES[0])]
