"""A .gguf file (of llama.cpp) as the folder it was made from: settings, weights, tokenizer. Llamas only.

The `gguf` package dequantises the weights. The rows of query and key projections are stored in llama.cpp's order of
rotary pairs; they are reordered.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

from regard.errors import BundleError

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
}  # fmt: skip
PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
READ = {  # settings of a Llama, and their names in a config.json
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta", "vocab_size": "vocab_size",
}  # fmt: skip
SAME = ("rope.dimension_count", "attention.key_length", "attention.value_length")  # a head's width
SPLIT = {  # how a text is split before byte pairs are merged
    "gpt-2": "gpt2", "smollm": "digits", "default": "gpt2",
}  # fmt: skip


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], tokenizers.Tokenizer | None]:
    """Contents of an equivalent config.json, weights under their safetensors names, and the tokenizer.

    Raises:
        BundleError: the gguf package is missing; the file is damaged, or is of another family.
    """
    try:
        gguf = import_module("gguf")
    except ImportError as error:
        raise BundleError(f"{path}: reading it needs the gguf package: pip install 'regard[gguf]'") from error
    try:
        reader = gguf.GGUFReader(str(path))
    except (ValueError, OSError, IndexError) as error:
        raise BundleError(f"{path}: not a .gguf file, or damaged: {error}") from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise BundleError(
            f"{path}: its architecture is {fields.get('general.architecture')!r}; only 'llama' can be read"
        )
    try:
        return _read(path, gguf, reader, fields)
    except BundleError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise BundleError(f"{path}: damaged, or its parts do not fit together: {_said(error)}") from error


def _read(
    path: Path, gguf: Any, reader: Any, fields: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor], tokenizers.Tokenizer | None]:
    config = _config(path, fields)
    tensors = {}
    for tensor in reader.tensors:
        name = _name(path, tensor.name)
        # the package lists the axes from the last to the first
        weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        weight = weight.reshape(*reversed([int(n) for n in tensor.shape]))
        heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
        for part, count in heads.items():
            if f"{part}.weight" in name:
                weight = weight.unflatten(0, (config[count], -1, 2)).transpose(1, 2).flatten(0, 2)
        tensors[name] = weight.contiguous()
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    return config, tensors, _tokenizer(path, fields)


def _said(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0] if str(error) else repr(error)


def _config(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    own = {name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")}
    config: dict[str, Any] = {"model_type": "llama", "hidden_act": "silu"}
    for name, value in own.items():
        if name in READ:
            config[READ[name]] = value
        elif name not in SAME:
            raise BundleError(
                f"{path}: llama.{name} = {value!r} is not known: regard loads nothing rather than something else"
            )
    for name, ours in READ.items():
        if ours not in config and ours in (
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "intermediate_size",
        ):
            raise BundleError(f"{path}: no llama.{name}: it is needed to build the model")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    width = config["hidden_size"] // config["num_attention_heads"]
    for name in SAME:
        if own.get(name, width) != width:
            raise BundleError(f"{path}: llama.{name} = {own[name]} and a head is {width} wide: this is not known")
    config.setdefault("vocab_size", len(fields.get("tokenizer.ggml.tokens", [])))
    for name in ("bos", "eos", "padding"):
        value = fields.get(f"tokenizer.ggml.{name}_token_id")
        if value is not None:
            config[f"{'pad' if name == 'padding' else name}_token_id"] = int(value)
    turns = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))  # each ends a text
    ends = list(dict.fromkeys(int(value) for value in turns if value is not None))
    if len(ends) > 1:
        config["eos_token_id"] = ends
    return config


def _name(path: Path, name: str) -> str:
    stem, _, ending = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{ending}"
    pieces = stem.split(".")
    if len(pieces) == 3 and pieces[0] == "blk" and pieces[2] in PARTS:
        return f"model.layers.{pieces[1]}.{PARTS[pieces[2]]}.{ending}"
    raise BundleError(f"{path}: a Llama has no weight {name}")


def _tokenizer(path: Path, fields: dict[str, Any]) -> tokenizers.Tokenizer | None:
    """The byte-pair tokenizer, as GPT-2's; None where the file holds another kind."""
    kind, split = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in SPLIT:
        return None
    names = list(fields["tokenizer.ggml.tokens"])
    merges = [tuple(line.split(" ", 1)) for line in fields["tokenizer.ggml.merges"]]
    try:
        inner = tokenizers.Tokenizer(BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise BundleError(f"{path}: its tokenizer cannot be read: the merges do not fit the tokens: {error}") from error
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if SPLIT[split] == "digits" else []
    inner.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytes_])
    inner.decoder = decoders.ByteLevel()
    kinds = fields.get("tokenizer.ggml.token_type", [])
    special = [name for name, kind in zip(names, kinds, strict=False) if kind == 3]  # CONTROL
    inner.add_special_tokens(special)
    return inner
