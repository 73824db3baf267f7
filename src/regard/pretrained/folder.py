"""A folder in the Hugging Face layout: `config.json`, `model.safetensors` (sharded too), tokenizer files. No pickle."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from regard.errors import BundleError, nearest
from regard.models.build import ModelConfig, build
from regard.pretrained.bert import BERT, ROBERTA
from regard.pretrained.family import Family, Keys
from regard.pretrained.gguf import read_gguf
from regard.pretrained.gpt2 import GPT2
from regard.pretrained.llama import LLAMA
from regard.pretrained.marian import MARIAN
from regard.pretrained.rules import GenerationRules, read_rules
from regard.pretrained.t5 import T5
from regard.pretrained.vit import VIT
from regard.pretrained.whisper import WHISPER
from regard.storage import write_tensors, write_text

CONFIG, WEIGHTS, INDEX, GENERATION = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "generation_config.json",
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    name: family for family in (BERT, ROBERTA, GPT2, LLAMA, MARIAN, T5, VIT, WHISPER) for name in family.types
}
TASK_OF_KIND = {
    "encoder": "fill",
    "decoder": "complete",
    "transformer": "translate",
    "picture": "see",
    "speech": "transcribe",
}


@dataclass(frozen=True)
class Pretrained:
    """Contents of a folder or a .gguf file.

    Attributes:
        model: our model with the folder's weights.
        config: the settings it was built from.
        task: "fill", "complete", "translate", "see" or "transcribe".
        family: its `model_type`.
        ids: special tokens: "pad", "bos", "eos" (the first of `rules.ends`), "start" (a decoder's first), where the
            folder names them.
        tokenizer: of a .gguf file; a folder keeps its tokenizer in files of their own.
        rules: which tokens end a text, are suppressed or are forced.
    """

    model: Any
    config: ModelConfig
    task: str
    family: str
    ids: dict[str, int]
    tokenizer: tokenizers.Tokenizer | None = None
    rules: GenerationRules = field(default_factory=GenerationRules)


def is_pretrained(folder: Path) -> bool:
    """Whether a folder looks like one of these, or is a .gguf file."""
    return (folder / CONFIG).exists() or is_gguf(folder)


def is_gguf(path: Path) -> bool:
    """Whether this is a .gguf file."""
    return path.suffix == ".gguf" and path.is_file()


def load_pretrained(folder: Path) -> Pretrained:
    """Build the model that a folder or a .gguf file describes, and load every weight.

    Raises:
        BundleError: a file is missing or damaged, a setting is unknown, a weight is missing or left over.
    """
    if is_gguf(folder):
        values, tensors, tokenizer = read_gguf(folder)
    else:
        values, tensors, tokenizer = _json(folder / CONFIG), None, None
    where = folder if is_gguf(folder) else folder / CONFIG
    kind = values.get("model_type")
    if kind not in FAMILIES:
        known = ", ".join(nearest(str(kind), FAMILIES))
        raise BundleError(f"{where}: model_type {kind!r} cannot be read; known are {known}")
    family = FAMILIES[kind]
    tensors = _tensors(folder) if tensors is None else tensors
    keys = Keys(values, str(where), list(tensors))
    try:
        config = family.read(keys)
        keys.done()
        model = build(int(values.get("vocab_size", 0)), config)
    except (ValidationError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{where}: describes no model: {_first_line(error)}") from error
    family.fill(model, config, tensors, str(folder))
    generation = _json(folder / GENERATION) if (folder / GENERATION).exists() else {}
    rules = read_rules(values, generation, values.get("vocab_size") or 0, str(folder))
    ids = _ids(values | generation) | ({"eos": rules.ends[0]} if rules.ends else {})
    return Pretrained(model.eval(), config, TASK_OF_KIND[config.kind], kind, ids, tokenizer, rules)


def save_pretrained(
    folder: Path, model: Any, config: ModelConfig, ids: dict[str, int], rules: GenerationRules | None = None
) -> str:
    """Write a model in this layout, so that transformers loads it; returns its family.

    Args:
        folder: made where it is missing.
        model: the model.
        config: the settings it was built from.
        ids: special tokens, as in `Pretrained`.
        rules: written to `generation_config.json`, where there are any.

    Raises:
        BundleError: no family has just these parts.
    """
    vocabulary = len(model.embedding.weight) if hasattr(model, "embedding") else 0
    for name, family in FAMILIES.items():
        values = _as(family, config, vocabulary, list(dict(model.state_dict())))
        if values is None:
            continue
        names = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "pad_token_id", "start": "decoder_start_token_id"}
        values |= {names[key]: value for key, value in ids.items() if names[key] not in values}
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS, family.name_all(model, config), {"format": "pt"})
        write_text(folder / CONFIG, json.dumps(values, indent=2) + "\n")
        if rules is not None and (said := rules.as_json()):
            special = {name: values[name] for name in names.values() if name in values}
            write_text(folder / GENERATION, json.dumps(special | said, indent=2) + "\n")
        return str(values["model_type"]) or name
    raise BundleError(
        "no family of the Hugging Face layout has these parts: a BERT, RoBERTa, GPT-2, Llama, Mistral, Qwen, "
        "Marian, T5, ViT or Whisper with the same settings can be exported"
    )


def _as(family: Family, config: ModelConfig, vocabulary: int, parameters: list[str]) -> dict[str, Any] | None:
    """A config.json of the family, if reading it gives the same model back."""
    if type(config) is not family.kind:
        return None
    try:
        values = family.write(config, vocabulary)
        tensors = [w.theirs for w in family.weights(config)]
        reread = family.read(Keys(values, "", tensors))
        covered = {name for w in family.weights(config) for name in w.ours}
    except (AttributeError, KeyError, ValueError):
        return None
    own = config.model_dump(exclude={"dropout", "attention_dropout"})
    read = reread.model_dump(exclude={"dropout", "attention_dropout"})
    for one in (own, read):  # two spellings of the same model
        if one.get("heads"):
            one["key_heads"] = one.get("key_heads") or one["heads"]
            one["head_width"] = one.get("head_width") or one["width"] // one["heads"]
        if one.get("positions") not in ("learned",):
            one["first_position"] = 0
        for name, used in (("rotary_base", "rotary"), ("buckets", "relative"), ("max_distance", "relative")):
            if one.get("positions") != used:
                one[name] = None
        if one.get("positions") in ("relative", "sinusoidal", "sinusoidal_halves", "none", "alibi"):
            one["length"] = None
    same = own == read and covered == set(parameters)
    return values if same else None


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Every weight of the folder, of one file or several."""
    files = [WEIGHTS]
    if (folder / INDEX).exists():
        files = sorted(set(_json(folder / INDEX).get("weight_map", {}).values()))
    found: dict[str, Tensor] = {}
    for name in files:
        path = folder / name
        if not path.exists():
            pickled = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt")])
            more = f" ({', '.join(pickled)} is pickle, which can run anything: convert it first)" if pickled else ""
            raise BundleError(f"{path}: no such file{more}")
        try:
            found |= load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise BundleError(f"{path}: damaged: {error}") from error
    return found


def _ids(values: dict[str, Any]) -> dict[str, int]:
    """The special tokens that config.json and generation_config.json name."""
    names = {"pad": "pad_token_id", "bos": "bos_token_id", "eos": "eos_token_id", "start": "decoder_start_token_id"}
    found = {}
    for key, name in names.items():
        value = values.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int):
            found[key] = value
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file") from error
    except (ValueError, OSError) as error:
        raise BundleError(f"{path}: damaged: {error}") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path}: damaged: expected an object")
    return values


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return str(error).splitlines()[0]
