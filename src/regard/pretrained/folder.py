"""A folder in the Hugging Face layout: `config.json`, `model.safetensors` (sharded too), tokenizer files. No pickle."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from pydantic import ValidationError

from regard.arguments import check_arguments
from regard.errors import BundleError, nearest, shown
from regard.models.build import ModelConfig, build_shapes
from regard.pretrained.bert import BERT, ROBERTA
from regard.pretrained.family import Family, Keys
from regard.pretrained.gguf import GGUFTensors, read_gguf
from regard.pretrained.gpt2 import GPT2
from regard.pretrained.llama import LLAMA
from regard.pretrained.marian import MARIAN
from regard.pretrained.rules import GenerationRules, read_rules
from regard.pretrained.t5 import T5
from regard.pretrained.vit import VIT
from regard.pretrained.whisper import WHISPER
from regard.storage import write_tensors, write_text
from regard.untrusted import SHARDS, TensorFiles, faults_of, first_line, read_object

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
        vocabulary: number of tokens; 0 for a model without tokens.
        tokenizer: of a .gguf file; a folder keeps its tokenizer in files of their own.
        rules: which tokens end a text, are suppressed or are forced.
    """

    model: Any
    config: ModelConfig
    task: str
    family: str
    ids: dict[str, int]
    vocabulary: int = 0
    tokenizer: tokenizers.Tokenizer | None = None
    rules: GenerationRules = field(default_factory=GenerationRules)


def is_pretrained(folder: Path) -> bool:
    """Whether a folder looks like one of these, or is a .gguf file."""
    return (folder / CONFIG).exists() or is_gguf(folder)


def is_gguf(path: Path) -> bool:
    """Whether this is a .gguf file."""
    return path.suffix == ".gguf" and path.is_file()


@check_arguments
def load_pretrained(folder: Path) -> Pretrained:
    """Build the model that a folder or a .gguf file describes, and load every weight.

    Raises:
        BundleError: a file is missing or damaged, a setting is unknown, a weight is missing or left over.
    """
    values: dict[str, Any]
    files: TensorFiles | GGUFTensors | None
    if is_gguf(folder):
        values, files, tokenizer = read_gguf(folder)
        where = folder
    else:
        where = folder / CONFIG
        values, files, tokenizer = read_object(where), None, None
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(nearest(str(kind)[:40], FAMILIES))
        raise BundleError(f"{where}: model_type {shown(kind)} cannot be read; known are {known}")
    family = FAMILIES[kind]
    files = TensorFiles(_shards(folder)) if files is None else files
    names = family.without_prefix(files.stored, str(folder))
    stored = {short: files.stored[name] for short, name in names.items()}
    keys = Keys(values, str(where), files.stored)
    try:
        config = family.read(keys)
        keys.done()
    except ValidationError as error:
        raise BundleError(f"{where}: describes no model: {faults_of(error)}") from error
    except (ValueError, TypeError, AttributeError, KeyError, ArithmeticError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{where}: describes no model: {first_line(error)}") from error
    vocabulary = keys.size("vocab_size") if "vocab_size" in values else 0
    table = family.table(config, stored, str(folder))
    model = build_shapes(vocabulary, config, sum(len(entry.ours) for entry in table), str(where))
    family.check(model, table, stored, str(folder))
    family.fill(model, table, stored, lambda short: files.read(names[short]), str(folder))
    generation = read_object(folder / GENERATION) if (folder / GENERATION).exists() else {}
    rules = read_rules(values, generation, vocabulary, str(folder))
    ids = _ids(values | generation, vocabulary) | ({"eos": rules.ends[0]} if rules.ends else {})
    return Pretrained(model.eval(), config, TASK_OF_KIND[config.kind], kind, ids, vocabulary, tokenizer, rules)


@check_arguments
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


def _shards(folder: Path) -> list[Path]:
    """The files of the folder's weights: one, or those that its index names; all lie in the folder itself.

    Raises:
        BundleError: the index is damaged or names a file elsewhere; a file is missing.
    """
    names = [WEIGHTS]
    if (folder / INDEX).exists():
        listed = read_object(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise BundleError(f"{folder / INDEX}: damaged: weight_map must give the file of each weight")
        names = sorted(set(listed.values()))
        if len(names) > SHARDS:
            raise BundleError(f"{folder / INDEX}: names {len(names):,} files; expected at most {SHARDS:,}")
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
            raise BundleError(f"{folder / INDEX}: names {shown(name)}: expected files beside it, by their names alone")
        if not (folder / name).exists():
            pickled = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt")])
            more = f" ({', '.join(pickled)} is pickle, which can run anything: convert it first)" if pickled else ""
            raise BundleError(f"{folder / name}: no such file{more}")
    return [folder / name for name in names]


def _ids(values: dict[str, Any], vocabulary: int) -> dict[str, int]:
    """The special tokens that config.json and generation_config.json name; those beyond the vocabulary are left out."""
    names = {"pad": "pad_token_id", "bos": "bos_token_id", "eos": "eos_token_id", "start": "decoder_start_token_id"}
    found = {}
    for key, name in names.items():
        value = values.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocabulary:
            found[key] = value
    return found
