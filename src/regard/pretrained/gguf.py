"""A .gguf file (of llama.cpp) as the folder it was made from: settings, weights, tokenizer. Llamas only.

The header is read here, in bounds; the `gguf` package dequantizes the weights. The rows of query and key projections
are stored in llama.cpp's order of rotary pairs; they are reordered.
"""

import math
import struct
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import Tensor

from regard.errors import BundleError, not_utf8, shown
from regard.text.tokenizer_file import refused
from regard.untrusted import TENSORS, Stored, as_float, file_size, named

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
FRACTIONS = ("attention.layer_norm_rms_epsilon", "rope.freq_base")
SAME = ("rope.dimension_count", "attention.key_length", "attention.value_length")  # a head's width
SPLIT = {  # how a text is split before byte pairs are merged
    "gpt-2": "gpt2", "smollm": "digits", "default": "gpt2",
}  # fmt: skip


ENTRIES = 2**20  # of all lists together: tokens, merges, scores, kinds
AXES = 4
SCALARS = {  # by the number of a kind, as numpy and struct name it; 8 is a string, 9 a list
    0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
STRING, LIST = 8, 9


class GGUFTensors:
    """The tensors of a .gguf file under their safetensors names; one is dequantized when it is asked for.

    Attributes:
        stored: kind and shape by name; what is dequantized counts as F32.
    """

    def __init__(self, path: Path, gguf: Any, header: "_Header", config: dict[str, Any]) -> None:
        self._path, self._gguf, self._header = path, gguf, header
        heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
        self._heads = {part: config[count] for part, count in heads.items()}
        self._parts = {_name(path, one.name): one for one in header.tensors}
        self.stored = {name: Stored(self._kind(one), one.shape) for name, one in self._parts.items()}
        self._check_sizes()

    def read(self, name: str) -> Tensor:
        """A tensor in float32.

        Raises:
            BundleError: it cannot be dequantized, or has numbers that are infinite or NaN.
        """
        part = self._parts[name]
        raw = self._header.data(part.start, self._bytes(part)).reshape(math.prod(part.shape[:-1]), -1)
        kind = self._gguf.GGMLQuantizationType(part.kind)
        try:
            weight = torch.from_numpy(self._gguf.dequantize(raw.view(FLAT.get(kind.name, "u1")), kind).copy())
        except (ValueError, TypeError, NotImplementedError) as error:
            raise BundleError(f"{self._path}: {part.name} of kind {kind.name} cannot be read: {error}") from error
        weight = as_float(weight.reshape(part.shape), f"{self._path}: {part.name}")
        for own, count in self._heads.items():
            if f"{own}.weight" in name:
                weight = weight.unflatten(0, (count, -1, 2)).transpose(1, 2).flatten(0, 2)
        return weight.contiguous()

    def _kind(self, part: "_Part") -> str:
        try:
            name = str(self._gguf.GGMLQuantizationType(part.kind).name)
        except ValueError as error:
            raise BundleError(f"{self._path}: {named(part.name)} is of an unknown kind, {part.kind}") from error
        return name if name.startswith("I") and not name.startswith("IQ") else "F32"

    def _bytes(self, part: "_Part") -> int:
        block, size = self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType(part.kind)]
        if part.shape[-1] % block:
            raise BundleError(f"{self._path}: {named(part.name)} has rows of {part.shape[-1]}; its kind needs {block}s")
        return int(math.prod(part.shape) // block * size)

    def _check_sizes(self) -> None:
        for part in self._header.tensors:
            if part.start + self._bytes(part) > self._header.size:
                raise BundleError(f"{self._path}: damaged: {named(part.name)} lies beyond the end of the file")


FLAT = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}  # what the package takes as numbers; else bytes


@dataclass(frozen=True)
class _Part:
    """A tensor as the file describes it: `shape` from the first axis to the last, `start` in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


class _Header:
    """Settings and tensors of a .gguf file, of which nothing is believed before it is compared with the file's size.

    Attributes:
        size: of the file, in bytes.
        fields: the settings.
        tensors: what the file says of its tensors.
    """

    def __init__(self, path: Path) -> None:
        self.size = file_size(path)
        if self.size < 24:
            raise BundleError(f"{path}: not a .gguf file, or damaged: it has {self.size} bytes")
        self._path, self._raw = path, np.memmap(path, dtype=np.uint8, mode="r")
        self._at, self._entries = 4, 0
        version = self._scalar("<I")
        if bytes(self._raw[:4]) != b"GGUF" or version not in (2, 3):
            raise BundleError(f"{path}: not a .gguf file, or damaged: expected GGUF of version 2 or 3")
        tensors, settings = self._scalar("<Q"), self._scalar("<Q")
        self.fields: dict[str, Any] = {}
        for _ in range(settings):  # a false number ends at the end of the file
            name = self._string()
            if name in self.fields:
                raise BundleError(f"{path}: damaged: the setting {named(name)} stands there twice")
            self.fields[name] = self._value(self._scalar("<I"))
        parts = [self._tensor() for _ in _counted(tensors, TENSORS, path)]
        align = self.fields.get("general.alignment", 32)
        if not isinstance(align, int) or not 0 < align <= 2**16:
            raise BundleError(f"{path}: general.alignment = {shown(align)} cannot be read: expected 1 to 65536")
        begin = -(-self._at // align) * align
        self.tensors = [_Part(one.name, one.shape, one.kind, begin + one.start) for one in parts]
        if len({one.name for one in parts}) < len(parts):
            raise BundleError(f"{path}: damaged: two tensors have one name")

    def data(self, start: int, length: int) -> Any:
        """A copy of some bytes of the file."""
        return np.array(self._raw[start : start + length])

    def _take(self, length: int) -> bytes:
        if length > self.size - self._at:
            raise BundleError(f"{self._path}: not a .gguf file, or damaged: it ends at byte {self.size:,}")
        self._at += length
        return self._raw[self._at - length : self._at].tobytes()

    def _scalar(self, kind: str) -> Any:
        (value,) = struct.unpack(kind, self._take(struct.calcsize(kind)))
        if isinstance(value, float) and not math.isfinite(value):
            raise BundleError(f"{self._path}: damaged: expected finite settings; got {value}")
        return value

    def _string(self) -> str:
        try:
            return self._take(self._scalar("<Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{self._path}: damaged: a text is {not_utf8(error)}") from error

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind != LIST:
            raise BundleError(f"{self._path}: damaged: a setting of the unknown kind {kind}")
        kind, count = self._scalar("<I"), self._scalar("<Q")
        self._entries += count
        if self._entries > ENTRIES:
            raise BundleError(f"{self._path}: expected at most {ENTRIES:,} entries in its lists; got more")
        if kind == STRING:
            return [self._string() for _ in range(count)]
        if kind not in SCALARS:
            raise BundleError(f"{self._path}: damaged: a list of the unknown kind {kind}")
        form = SCALARS[kind]
        return np.frombuffer(self._take(count * struct.calcsize(form)), form).tolist()

    def _tensor(self) -> _Part:
        name, axes = self._string(), self._scalar("<I")
        if not 0 < axes <= AXES:
            raise BundleError(f"{self._path}: damaged: {named(name)} has {axes} axes")
        sizes = [self._scalar("<Q") for _ in range(axes)]
        if not all(0 < n < 2**31 for n in sizes):
            raise BundleError(f"{self._path}: damaged: {named(name)} has axes of {shown(sizes)}")
        # the file lists the axes from the last to the first
        return _Part(name, tuple(reversed(sizes)), self._scalar("<I"), self._scalar("<Q"))


def _counted(count: int, most: int, path: Path) -> range:
    if count > most:
        raise BundleError(f"{path}: damaged: it says that it has {count:,} tensors")
    return range(count)


def read_gguf(path: Path) -> tuple[dict[str, Any], GGUFTensors, tokenizers.Tokenizer | None]:
    """Contents of an equivalent config.json, weights under their safetensors names, and the tokenizer.

    Raises:
        BundleError: the gguf package is missing; the file is damaged, or is of another family.
    """
    try:
        gguf = import_module("gguf")
    except ImportError as error:
        raise BundleError(f"{path}: reading it needs the gguf package: pip install 'regard[gguf]'") from error
    header = _Header(path)
    fields = header.fields
    if fields.get("general.architecture") != "llama":
        raise BundleError(
            f"{path}: its architecture is {shown(fields.get('general.architecture'))}; only 'llama' can be read"
        )
    config = _config(path, fields)
    files = GGUFTensors(path, gguf, header, config)
    config["tie_word_embeddings"] = "lm_head.weight" not in files.stored
    return config, files, _tokenizer(path, fields)


def _config(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    own = {name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")}
    config: dict[str, Any] = {"model_type": "llama", "hidden_act": "silu"}
    for name, value in own.items():
        if name in READ:
            if name not in FRACTIONS and (type(value) is not int or not 0 < value < 2**31):
                raise BundleError(f"{path}: llama.{name} = {shown(value)} cannot be read: expected a number from 1 on")
            config[READ[name]] = value
        elif name not in SAME:
            raise BundleError(
                f"{path}: llama.{named(name)} = {shown(value)} is not known: regard loads nothing rather than "
                "something else"
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
            raise BundleError(
                f"{path}: llama.{name} = {shown(own[name])} and a head is {width} wide: this is not known"
            )
    config.setdefault("vocab_size", len(_texts(path, fields, "tokenizer.ggml.tokens")))
    for name in ("bos", "eos", "padding", "eot", "eom"):
        value = fields.get(f"tokenizer.ggml.{name}_token_id")
        if value is not None and type(value) is not int:
            raise BundleError(f"{path}: tokenizer.ggml.{name}_token_id = {shown(value)}: expected a token's number")
        if value is not None and name in ("bos", "eos", "padding"):
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
    if kind != "gpt2" or not isinstance(split, str) or split not in SPLIT:
        return None
    names, merges = (_texts(path, fields, f"tokenizer.ggml.{part}") for part in ("tokens", "merges"))
    pairs: list[Any] = [tuple(line.split(" ", 1)) for line in merges]
    if len(set(names)) < len(names):
        raise BundleError(f"{path}: its tokenizer cannot be read: a token stands there twice")
    if not all(len(pair) == 2 for pair in pairs):
        raise BundleError(f"{path}: its tokenizer cannot be read: the merges do not fit the tokens: expected pairs")
    with refused(f"{path}: its tokenizer cannot be read: the merges do not fit the tokens"):
        inner = tokenizers.Tokenizer(BPE(vocab={name: i for i, name in enumerate(names)}, merges=pairs))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if SPLIT[split] == "digits" else []
    inner.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytes_])
    inner.decoder = decoders.ByteLevel()
    kinds = fields.get("tokenizer.ggml.token_type", [])
    if not isinstance(kinds, list):
        raise BundleError(f"{path}: tokenizer.ggml.token_type = {shown(kinds)}: expected a list")
    special = [name for name, kind in zip(names, kinds, strict=False) if kind == 3]  # CONTROL
    inner.add_special_tokens(special)
    bos = fields.get("tokenizer.ggml.bos_token_id")
    if fields.get("tokenizer.ggml.add_bos_token") is True and type(bos) is int and 0 <= bos < len(names):
        first: Any = {"id": "BOS", "ids": [bos], "tokens": [names[bos]]}  # a template would read the name's own signs
        inner.post_processor = processors.TemplateProcessing("BOS $A", special_tokens=[first])
    own = [name for name, kind in zip(names, kinds, strict=False) if kind == 4]  # USER_DEFINED
    inner.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in own])
    return inner


def _texts(path: Path, fields: dict[str, Any], name: str) -> list[str]:
    """A list of texts; an empty one where there is none."""
    found = fields.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise BundleError(f"{path}: {name} = {shown(found)} cannot be read: expected a list of texts")
    return found
