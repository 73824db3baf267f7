"""Folders of models, made tiny and then changed as a stranger might: every family, bundles, .gguf files."""

import hashlib
import io
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import regard
from regard.bundle import INFO, Bundle, save_bundle
from regard.models.build import ModelConfig, build
from regard.models.language import DecoderConfig, EncoderConfig
from regard.models.questions import StackedAttentionConfig
from regard.models.recurrent import RecurrentConfig
from regard.models.speech import SpeechConfig
from regard.models.transformer import TransformerConfig
from regard.models.vision import VisionConfig
from regard.pretrained.folder import save_pretrained
from regard.text.tokenizer import Tokenizer, TokenizerConfig

V = 97
DEEP = "[" * 50_000 + "]" * 50_000
NASTY: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 10**5, 10**7, 2**31 - 1, 2**31, 10**12, 10**18, 10**400, -(10**12), 0.5, 1e-300, 1e300, -1.5,
    True, False, None, "", "x", "12", "a\nregard: forged", "\x1b[31mred", "x" * 10**5, [], [1], [[]], ["a", 3], {},
    {"a": {"b": 1}}, list(range(2000)),
)  # fmt: skip
PRETRAINED: dict[str, ModelConfig] = {
    "bert": EncoderConfig(
        kind="encoder", width=8, heads=2, layers=2, ffn_width=12, norm="after", positions="learned", length=16,
        kinds=2, scaled=False, embedding_norm=True, activation="gelu",
    ),
    "roberta": EncoderConfig(
        kind="encoder", width=8, heads=2, layers=1, ffn_width=12, norm="after", positions="learned", length=16,
        first_position=2, kinds=1, scaled=False, embedding_norm=True, activation="gelu",
    ),
    "gpt2": DecoderConfig(
        kind="decoder", width=8, heads=2, layers=2, ffn_width=32, positions="learned", length=16, scaled=False,
        output_bias=False, activation="gelu_tanh",
    ),
    "llama": DecoderConfig(
        kind="decoder", width=8, heads=2, key_heads=1, layers=2, ffn_width=12, activation="silu", gated=True, biases=(),
        ffn_biases=False, normalization="rms", positions="rotary", length=32, scaled=False, tied=False,
        output_bias=False,
    ),
    "qwen3": DecoderConfig(
        kind="decoder", width=8, heads=2, key_heads=1, layers=1, ffn_width=12, activation="silu", gated=True, biases=(),
        ffn_biases=False, normalization="rms", positions="rotary", length=32, scaled=False, tied=False,
        output_bias=False, head_norm=True,
    ),
    "marian": TransformerConfig(
        kind="transformer", width=8, heads=2, encoder_layers=1, decoder_layers=2, ffn_width=12, activation="silu",
        norm="after", positions="sinusoidal_halves", length=32,
    ),
    "t5": TransformerConfig(
        kind="transformer", width=8, heads=2, encoder_layers=1, decoder_layers=1, ffn_width=12, biases=(),
        ffn_biases=False, normalization="rms", epsilon=1e-6, positions="relative", scaled=False, score="dot",
        output_bias=False, scaled_output=True,
    ),
    "vit": VisionConfig(
        kind="picture", width=8, heads=2, layers=1, ffn_width=12, positions="none", size=8, patch=4, activation="gelu",
        pooler=True,
    ),
    "whisper": SpeechConfig(
        kind="speech", width=8, heads=2, encoder_layers=1, decoder_layers=1, ffn_width=12, positions="learned",
        length=16, scaled=False, biases=("query", "value", "output"), output_bias=False, bands=5, moments=12,
        activation="gelu",
    ),
}  # fmt: skip
BUNDLES: dict[str, tuple[str, Any, dict[str, Any], dict[str, Any]]] = {
    "recurrent": (
        "translate", RecurrentConfig(kind="recurrent", width=8, embedding=6, score_width=4), {"beam": 2},
        {"site": "decoder.cross", "heads": [0]},
    ),
    "transformer": (
        "translate", TransformerConfig(
            kind="transformer", width=8, heads=2, encoder_layers=1, decoder_layers=1, ffn_width=12,
        ), {"beam": 2, "length_extra": 5}, {"site": "decoder.layers.0.cross", "heads": [1]},
    ),
    "decoder": (
        "complete", DecoderConfig(kind="decoder", width=8, heads=2, layers=1, ffn_width=12), {"begins": True}, {},
    ),
    "encoder": ("fill", EncoderConfig(kind="encoder", width=8, heads=2, layers=1, ffn_width=12), {}, {}),
    "caption": (
        "caption", TransformerConfig(
            kind="transformer", width=8, heads=2, encoder_layers=1, decoder_layers=1, ffn_width=12,
            source_encoder={"kind": "grid", "size": 16, "first": 8, "channels": (8,), "width": 8, "norm": "batch"},
        ), {"longest": 9}, {},
    ),
    "transcribe": (
        "transcribe", RecurrentConfig(
            kind="recurrent", width=8, embedding=6, score_width=4,
            source_encoder={"kind": "pyramid", "bands": 5, "layers": 2, "width": 8},
        ), {"longest": 9}, {},
    ),
    "answer": (
        "answer", StackedAttentionConfig(
            kind="stacked", source_encoder={"kind": "patches", "size": 8, "patch": 4, "width": 8}, answers=2,
            embedding=6, score_width=4,
        ), {"answers": ["yes", "no"]}, {},
    ),
}  # fmt: skip
KINDS = [*PRETRAINED, "shards", *(f"bundle {name}" for name in BUNDLES), "bundle int8", "gguf"]


def make(kind: str, place: Path) -> Path:
    """A folder that loads: a family of `PRETRAINED`, "shards", "bundle …", or "gguf" (a file)."""
    torch.manual_seed(1)
    if kind == "gguf":
        place.mkdir()
        return gguf_file(place / "model.gguf", gguf_fields(), gguf_tensors())
    if kind.startswith("bundle"):
        task, config, decoding, alignment = BUNDLES["transformer" if kind == "bundle int8" else kind.split()[1]]
        tokenizer = Tokenizer.learn(
            ["le chat noir", "un chien"] * 2, TokenizerConfig(kind="bpe", vocabulary=50), mask=task == "fill"
        )
        bundle = Bundle(task, ("fr", "en"), build(len(tokenizer), config), config, tokenizer, decoding, alignment)
        save_bundle(place, bundle, "int8" if kind == "bundle int8" else "float32")
        return place
    config = PRETRAINED["gpt2" if kind == "shards" else kind]
    save_pretrained(place, build(V, config), config, {"pad": 0, "bos": 1, "eos": 2, "start": 1})
    if kind == "marian":
        _pieces(place)
    else:
        (place / "tokenizer.json").write_text(json.dumps(tokenizer_json()), "utf-8")
    if kind == "shards":
        whole = load_file(place / "model.safetensors")
        (place / "model.safetensors").unlink()
        files = {name: f"part-{n % 2}.safetensors" for n, name in enumerate(whole)}
        for file in set(files.values()):
            save_file({name: whole[name] for name in whole if files[name] == file}, place / file)
        (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return place


def _pieces(place: Path) -> None:
    """Two sentencepiece models and their vocabulary, as Marian has them."""
    names = ["</s>", "<unk>", "<pad>"]
    for side, text in (("source", "le chat noir"), ("target", "the black cat")):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text] * 4), model_writer=model, vocab_size=25, hard_vocab_limit=False, minloglevel=2
        )
        (place / f"{side}.spm").write_bytes(model.getvalue())
        made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        names += [made.id_to_piece(i) for i in range(made.get_piece_size())]
    (place / "vocab.json").write_text(json.dumps({name: n for n, name in enumerate(dict.fromkeys(names))}))


def tokenizer_json() -> dict[str, Any]:
    """A small tokenizer with every section that a stranger may fill."""
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<unk>": 0, "<mask>": 1, "le": 2, "chat": 3, "noir": 4}, unk_token="<unk>")
    )
    inner.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFC(), tokenizers.normalizers.Replace("''", '"')]
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<mask>"])
    found: dict[str, Any] = json.loads(inner.to_str())
    return found


def use(path: Path) -> None:
    """Load what lies there, cut a text with its tokenizer, and compute once with its model."""
    found = regard.load(str(path))
    if found.bundle.model_config.kind == "picture":  # it has no tokens
        return
    try:
        found.tokenizer.encode("le chat <mask> ''3''")
    except regard.BundleError as error:
        if "no tokenizer files" not in str(error):
            raise
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        match found.bundle.model_config.kind:
            case "encoder" | "decoder":
                found.model.encode(ids) if found.bundle.model_config.kind == "encoder" else found.model(ids)
            case "transformer" | "recurrent" if found.bundle.model_config.source_encoder is None:
                found.model(ids, ids)


# changes


def change(kind: str, path: Path, dice: random.Random) -> str:
    """Change one thing in a copy of `make(kind)`; returns what, in a few words."""
    if kind == "gguf":
        return _change_gguf(path, dice)
    texts = sorted(file.name for file in path.iterdir() if file.suffix == ".json")
    weights = sorted(file.name for file in path.iterdir() if file.suffix == ".safetensors")
    what: dict[str, Callable[[], str]] = {
        "value": lambda: _change_value(path / dice.choice(texts), dice),
        "value of the settings": lambda: _change_value(path / _settings(kind), dice),
        "raw text": lambda: _change_text(path / dice.choice(texts), dice),
        "tensor": lambda: _change_tensor(path / dice.choice(weights), dice),
        "header": lambda: _change_header(path / dice.choice(weights), dice),
        "bytes": lambda: _change_bytes(path / dice.choice(weights), dice),
        "file": lambda: _change_file(path / dice.choice([*texts, *weights]), dice),
        "tokenizer": lambda: _change_tokenizer(path / "tokenizer.json", dice),
    }
    if kind == "marian":
        what["pieces"] = lambda: _change_bytes(path / f"{dice.choice(['source', 'target'])}.spm", dice)
        what["pieces file"] = lambda: _change_file(path / f"{dice.choice(['source', 'target'])}.spm", dice)
    if kind == "shards":
        what["index"] = lambda: _change_index(path, dice)
    name = dice.choice(sorted(what))
    done = what[name]()
    if kind.startswith("bundle") and (path / INFO).is_file():
        _sign(path)
    return f"{name}: {done}"


def _settings(kind: str) -> str:
    return INFO if kind.startswith("bundle") else "config.json"


def _sign(path: Path) -> None:
    """Write the digests of a bundle's changed files, as a stranger would."""
    try:
        info = json.loads((path / INFO).read_text("utf-8"))
        for name in ("weights.safetensors", "tokenizer.json"):
            if (path / name).is_file() and not (path / name).is_symlink():
                info["files"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
        (path / INFO).write_text(json.dumps(info), "utf-8")
    except (ValueError, TypeError, KeyError, RecursionError, OSError):
        return


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in inner for place in [(*path, key), *_places(one, (*path, key))]]


def _change_value(file: Path, dice: random.Random) -> str:
    values = json.loads(file.read_text("utf-8"))
    places = _places(values)
    if not places:
        return "nothing"
    *way, last = dice.choice(places)
    inner = values
    for key in way:
        inner = inner[key]
    if dice.random() < 0.15:
        del inner[last]
        done = f"{file.name} without {last}"
    elif dice.random() < 0.1 and isinstance(inner, dict):
        inner[dice.choice(["new", "x\ny", "\x1b[2J", str(last) + "s"])] = dice.choice(NASTY)
        done = f"{file.name} with another key"
    else:
        inner[last] = dice.choice(NASTY)
        done = f"{file.name}: {last} = {str(inner[last])[:30]!r}"
    file.write_text(json.dumps(values), "utf-8")
    return done


def _change_text(file: Path, dice: random.Random) -> str:
    text = file.read_text("utf-8")
    place = dice.randrange(len(text))
    numbers = ("NaN", "Infinity", "1e999", DEEP, '{"a":' * 20_000, "1" * 5000)
    choices = [
        text[:place], "", "[]", "5", DEEP, '{"a":' * 50_000, "\ufeff" + text, text[:place] + "\0" + text[place:],
        text.replace(": 8", ": " + dice.choice(numbers)), text.replace("{", '{"model_type": "gpt2", ', 1),
        text.replace(",", ", ,", 1), text + text,
    ]  # fmt: skip
    n = dice.randrange(len(choices) + 1)
    if n == len(choices):
        file.write_bytes(b"\xff\xfe" + text.encode())
        return f"{file.name} is not UTF-8"
    file.write_text(choices[n], "utf-8")
    return f"{file.name}: raw change {n}"


def _change_tensor(file: Path, dice: random.Random) -> str:
    tensors = load_file(file)
    name = dice.choice(sorted(tensors))
    one = tensors[name]
    flat = one.clone().flatten()

    def with_number(number: float) -> Tensor:
        if flat.is_floating_point() and len(flat):
            flat[dice.randrange(len(flat))] = number
        return flat.reshape(one.shape)

    kinds = (torch.int32, torch.bool, torch.complex64, torch.int8, torch.uint8, torch.float64, torch.float16)
    what: dict[str, Callable[[], Tensor]] = {
        "NaN": lambda: with_number(float("nan")), "infinite": lambda: with_number(float("-inf")),
        "kind": lambda: one.to(dice.choice(kinds)), "wider": lambda: torch.cat([one, one], -1) if one.ndim else one,
        "one axis more": lambda: one[None].clone(), "one number": lambda: torch.zeros(()),
        "empty": lambda: torch.zeros(0), "broadcast": lambda: torch.zeros(1, *one.shape[1:]) if one.ndim else one,
        "huge numbers": lambda: one.double() * 1e200,
    }  # fmt: skip
    done = dice.choice([*sorted(what), "missing", "added", "many added", "scale added"])
    if done in what:
        tensors[name] = what[done]().contiguous()
    elif done == "missing":
        del tensors[name]
    elif done == "scale added":
        tensors[name + "#scale"] = torch.ones(dice.choice([1, 3, 10**4]), dice.choice([1, 50]))
    else:
        tensors |= {f"{name}{n}\nx": torch.zeros(1) for n in range(3000 if done == "many added" else 1)}
    save_file(tensors, file)
    return f"{name} {done}"


def _change_header(file: Path, dice: random.Random) -> str:
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    place = dice.choice([p for p in _places(header) if p])
    inner = header
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = dice.choice(NASTY)
    text = json.dumps(header).encode()
    length = dice.choice([len(text)] * 4 + [0, 10**6, 2**40, 2**63])
    file.write_bytes(length.to_bytes(8, "little") + text + raw[8 + size :])
    return f"{place}"


def _change_bytes(file: Path, dice: random.Random) -> str:
    raw = bytearray(file.read_bytes())
    for _ in range(dice.choice([1, 3, 100])):
        raw[dice.randrange(min(len(raw), dice.choice([8, 400, len(raw)])))] = dice.randrange(256)
    raw = raw[: dice.choice([len(raw)] * 3 + [0, 7, 9, len(raw) // 2])]
    file.write_bytes(raw)
    return f"{file.name}"


def _change_file(file: Path, dice: random.Random) -> str:
    file.unlink()
    done = dice.choice(["missing", "pipe", "folder", "zeros", "itself", "bytes of zero"])
    if done == "pipe":
        os.mkfifo(file)
    elif done == "folder":
        file.mkdir()
    elif done == "zeros":
        file.symlink_to("/dev/zero")
    elif done == "itself":
        file.symlink_to(file)
    elif done == "bytes of zero":
        file.write_bytes(bytes(10**5))
    return f"{file.name} is {done}"


def _change_index(path: Path, dice: random.Random) -> str:
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    outside = path.parent / "outside.safetensors"
    shutil.copy(path / "part-0.safetensors", outside)
    name = dice.choice(
        ["../outside.safetensors", str(outside), "", ".", "..", "x/../part-0.safetensors", "/dev/zero", "\0", 5, None,
         ["a"], "part-0.safetensors"]
    )  # fmt: skip
    index["weight_map"] = dice.choice(
        [name, dict.fromkeys(index["weight_map"], name), index["weight_map"] | {"x": name}]
    )
    file.write_text(json.dumps(index))
    return f"{name!r}"


def _change_tokenizer(file: Path, dice: random.Random) -> str:
    if not file.exists():
        return "none"
    values = json.loads(file.read_text("utf-8"))
    longer = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    pattern = dice.choice(["(a+)+$", "(", "(?=", "\\", "(|a)*", "", "[\\p{L}]*"])
    parts: dict[str, list[Any]] = {
        "padding": [{
            "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": dice.choice([0, None, 10**9]),
            "pad_id": 10**9, "pad_type_id": 0, "pad_token": "x",
        }],
        "truncation": [{"max_length": dice.choice([0, 1]), "strategy": "LongestFirst", "stride": 5,
                        "direction": "Right"}],
        "normalizer": [
            {"type": "Sequence", "normalizers": [longer] * dice.choice([3, 60])},
            {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 60},
            {"type": "Precompiled", "precompiled_charsmap": dice.choice(["AAAA", "!!", "", "BAAAAP///w8=", "A" * 400])},
            {"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"},
            {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 1000},
            {"type": "Prepend", "prepend": "a" * 10**5},
            json.loads('{"type":"Sequence","normalizers":[' * 40 + ']}' * 40),
        ],
        "pre_tokenizer": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "Sequence", "pretokenizers": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}] * 60},
        ],
        "post_processor": [
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * n, "pair": [],
             "special_tokens": {"x": {"id": "x", "ids": [10**9], "tokens": ["x"]}}} for n in (1, 100)
        ],
        "model": [
            {"type": "WordLevel", "vocab": {"le": dice.choice([10**9, 2**32 - 1, 2**32, -1]), "u": 1},
             "unk_token": "u"},
            {"type": "Unigram", "unk_id": 99, "vocab": [["a", 0.0]]}, {"type": "Unigram", "vocab": [["a", -1e308]]},
            {"type": "BPE", "vocab": {"l": 0, "e": 1, "le": 2}, "merges": ["l e"], "dropout": dice.choice([0.5, 7.0])},
            {"type": "BPE", "vocab": {"l": 0}, "merges": ["l x"]},
            {"type": "WordPiece", "vocab": {}, "unk_token": "x", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 0},
        ],
        "added_tokens": [
            [{"id": 10**9, "content": "le", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": dice.choice([True, False])}], [{"id": 0}], 5,
        ],
        "decoder": [{"type": "Sequence", "decoders": [longer] * 60}],
    }  # fmt: skip
    name = dice.choice(sorted(parts))
    values[name] = dice.choice(parts[name])
    file.write_text(json.dumps(values), "utf-8")
    return f"{name}: {str(values[name])[:40]}"


# .gguf files

TYPES = {"<I": 4, "<f": 6, "?": 7, "<Q": 10, "<i": 5}


def gguf_fields() -> dict[str, tuple[str, Any]]:
    """The settings of a tiny Llama: name -> (kind, value)."""
    names = ["<end>", *(chr(0x100 + n) for n in range(20)), chr(0x100) + chr(0x101)]
    numbers = {
        "block_count": 2, "embedding_length": 8, "feed_forward_length": 12, "attention.head_count": 2,
        "attention.head_count_kv": 1, "context_length": 32, "vocab_size": 22,
    }  # fmt: skip
    return {
        "general.architecture": ("s", "llama"),
        **{f"llama.{name}": ("<I", value) for name, value in numbers.items()},
        "llama.rope.freq_base": ("<f", 500.0),
        "llama.attention.layer_norm_rms_epsilon": ("<f", 1e-5),
        "tokenizer.ggml.model": ("s", "gpt2"), "tokenizer.ggml.pre": ("s", "gpt-2"),
        "tokenizer.ggml.tokens": ("[s", names), "tokenizer.ggml.token_type": ("[<i", [3] + [1] * 21),
        "tokenizer.ggml.merges": ("[s", [f"{chr(0x100)} {chr(0x101)}"]),
        "tokenizer.ggml.bos_token_id": ("<I", 0), "tokenizer.ggml.eos_token_id": ("<I", 0),
    }  # fmt: skip


def gguf_tensors() -> dict[str, Tensor]:
    """The weights of a tiny Llama."""
    shapes = {
        "attn_norm": (8,), "attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8),
        "ffn_norm": (8,),
        "ffn_gate": (12, 8), "ffn_up": (12, 8), "ffn_down": (8, 12),
    }  # fmt: skip
    layers = {f"blk.{n}.{name}.weight": shape for n in range(2) for name, shape in shapes.items()}
    whole = {"token_embd.weight": (22, 8), "output_norm.weight": (8,), **layers}
    return {name: torch.randn(shape) for name, shape in whole.items()}


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _field(kind: str, value: Any) -> bytes:
    if kind == "s":
        return struct.pack("<I", 8) + _text(value)
    if kind == "[s":
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
    if kind.startswith("["):
        return struct.pack("<IIQ", 9, TYPES[kind[1:]], len(value)) + b"".join(struct.pack(kind[1:], v) for v in value)
    return struct.pack("<I", TYPES[kind]) + struct.pack(kind, value)


def gguf_file(
    path: Path, fields: dict[str, tuple[str, Any]], tensors: dict[str, Tensor], twice: str = "",
    about: Callable[[str, list[int], int], tuple[list[int], int, int]] | None = None,
) -> Path:  # fmt: skip
    """Write a .gguf file; `about` may change sizes, kind and offset of a tensor in its description."""
    settings = [_text(name) + _field(*field) for name, field in fields.items()]
    settings += [_text(twice) + _field(*fields[twice])] if twice else []
    described, data = [], b""
    for name, tensor in tensors.items():
        sizes, kind, start = list(reversed(tensor.shape)), 0, len(data)
        if about is not None:
            sizes, kind, start = about(name, sizes, start)
        described.append(_text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, start))
        raw = tensor.numpy().astype("<f4").tobytes()
        data += raw + bytes(-len(raw) % 32)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(settings)) + b"".join([*settings, *described])
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


def _change_gguf(path: Path, dice: random.Random) -> str:
    fields, tensors = gguf_fields(), gguf_tensors()
    done = dice.choice(["value", "value", "value", "list", "kind", "twice", "missing", "description", "tensor", "bytes",
                        "bytes", "bytes", "counts"])  # fmt: skip
    name = dice.choice(sorted(fields))
    twice, about = "", None
    numbers = [name for name, (kind, _) in fields.items() if kind == "<I"]
    if done == "value":
        name = dice.choice(numbers)
        fields[name] = ("<Q", dice.choice([0, 1, 3, 7, 10**5, 10**9, 2**31, 2**40, 2**64 - 1]))
    elif done == "list":
        name = dice.choice(numbers)
        fields[name] = ("[<I", [2, 2])
    elif done == "kind":
        other: list[tuple[str, Any]] = [
            ("s", "x\ny"), ("?", 1), ("<f", float("nan")), ("<f", float("inf")), ("[s", ["a", "a"]), ("<i", -1),
            ("[s", ["one"]), ("[<i", []),
        ]  # fmt: skip
        fields[name] = dice.choice(other)
    elif done == "twice":
        twice = name
    elif done == "missing":
        del fields[name]
    elif done == "description":
        sizes = dice.choice([[], [0], [8], [2**40], [8, 2**33], [8, 8, 8, 8, 8], [2**63, 2]])
        kind, start = dice.choice([0, 1, 2, 8, 12, 24, 30, 99]), dice.choice([0, 32, 2**40, 2**63])
        chosen = dice.choice(sorted(tensors))
        n = dice.randrange(3)

        def about(one: str, own: list[int], at: int) -> tuple[list[int], int, int]:
            if one != chosen:
                return own, 0, at
            return (sizes if n == 0 else own, kind if n == 1 else 0, start if n == 2 else at)

        name = f"{chosen} {n}"
    elif done == "tensor":
        name = dice.choice(sorted(tensors))
        tensors[name] = tensors[name] * dice.choice([float("nan"), float("inf"), 1e38])
    gguf_file(path, fields, tensors, twice, about)
    if done in ("bytes", "counts"):
        raw = bytearray(path.read_bytes())
        if done == "counts":
            at = dice.choice([4, 8, 16])
            raw[at : at + 8] = struct.pack("<Q", dice.choice([0, 1, 10**6, 2**40, 2**63]))
        for _ in range(dice.choice([1, 3, 50]) if done == "bytes" else 0):
            raw[dice.randrange(dice.choice([24, 900, len(raw)]))] = dice.randrange(256)
        path.write_bytes(raw[: dice.choice([len(raw)] * 3 + [len(raw) // 2, 20])])
        name = ""
    return f"{done} {name}"
