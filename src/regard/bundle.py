"""A trained model as a folder: `bundle.json`, `weights.safetensors`, `tokenizer.json`. Versioned, no pickle.

`bundle.json` holds the settings and the SHA-256 of the other files, so a truncated or changed file is
named and refused. Weights are stored in float32, float16 or int8 (one scale per row) and always
loaded as float32.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load as load_tensors
from torch import Tensor

from regard.config import with_current_names
from regard.errors import BundleError
from regard.models.build import ModelConfig, build
from regard.pretrained.rules import GenerationRules
from regard.storage import write_tensors, write_text
from regard.text.tokenizer import Tokenizer, TokenizerConfig

FORMAT = 2  # 1 had other names of settings and weights (regard.config.RENAMED)
INFO, WEIGHTS, TOKENIZER = "bundle.json", "weights.safetensors", "tokenizer.json"
Precision = Literal["float32", "float16", "int8"]


@dataclass
class Bundle:
    """A trained model with everything needed to use it.

    Attributes:
        task: "translate", "complete", …
        languages: of source and target.
        model: the module, in evaluation mode; `model_config` determines its class.
        tokenizer: text to ids and back; a `regard.text.protocol.TextTokenizer`: ours, or that of a folder of others.
        model_config: the settings the model was built from.
        decoding: default settings of the search.
        alignment: {"site": …, "heads": […]}, where word alignments are read, chosen on development data.
        rules: tokens that end a text, are suppressed or are forced, where a folder of others states them.
    """

    task: str
    languages: tuple[str, str]
    model: Any
    model_config: ModelConfig
    tokenizer: Any
    decoding: dict[str, Any] = field(default_factory=dict)
    alignment: dict[str, Any] = field(default_factory=dict)
    rules: GenerationRules = field(default_factory=GenerationRules)


def save_bundle(folder: Path, bundle: Bundle, precision: Precision = "float32") -> None:
    """Write a bundle into `folder`; `bundle.json` last, so that an incomplete one is never taken for complete."""
    if not isinstance(bundle.tokenizer, Tokenizer):
        raise BundleError("a model that was read from another library's layout is written in that layout: --layout hf")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO).unlink(missing_ok=True)
    write_tensors(folder / WEIGHTS, pack(dict(bundle.model.state_dict()), precision))
    bundle.tokenizer.save(folder / TOKENIZER)
    info = {
        "format": FORMAT,
        "task": bundle.task,
        "languages": bundle.languages,
        "model": bundle.model_config.model_dump(),
        "tokenizer": bundle.tokenizer.config.model_dump(),
        "decoding": bundle.decoding,
        "alignment": bundle.alignment,
        "files": {name: _sha256((folder / name).read_bytes()) for name in (WEIGHTS, TOKENIZER)},
    }
    write_text(folder / INFO, json.dumps(info, indent=2, ensure_ascii=False) + "\n")


def load_bundle(folder: Path) -> Bundle:
    """Read what `save_bundle` wrote.

    Raises:
        BundleError: something is missing, cut short, changed, or from a newer version.
    """
    info = _read_info(folder / INFO)
    try:
        weights = _read_checked(folder, WEIGHTS, info)
        _read_checked(folder, TOKENIZER, info)
        config: ModelConfig = TypeAdapter(ModelConfig).validate_python(
            with_current_names({"model": info["model"]})[0]["model"]
        )
        tokenizer = Tokenizer.load(folder / TOKENIZER, TokenizerConfig(**info["tokenizer"]))
        model = build(len(tokenizer), config)
        model.load_state_dict({current_weight(name): tensor for name, tensor in unpack(load_tensors(weights)).items()})
        return Bundle(
            info["task"], tuple(info["languages"]), model.eval(), config, tokenizer, info["decoding"], info["alignment"]
        )
    except (ValidationError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise BundleError(f"{folder / INFO}: does not describe the model that its weights are of: {error}") from error


def pack(tensors: dict[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Weights as they are stored: int8 for matrices (w ≈ q · scale, scale = max |row| / 127), float16 for the rest."""
    packed = {}
    for name, tensor in tensors.items():
        if precision == "int8" and tensor.ndim == 2:
            scale = tensor.abs().amax(1).clamp(min=1e-12) / 127
            packed[name] = (tensor / scale[:, None]).round().to(torch.int8)
            packed[name + _SCALE] = scale
        else:
            packed[name] = tensor.half() if precision != "float32" and tensor.ndim > 1 else tensor
        packed[name] = packed[name].contiguous()
    return packed


def unpack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Restore what `pack` returned, in float32."""
    plain = {}
    for name, tensor in tensors.items():
        if not name.endswith(_SCALE):
            scale = tensors.get(name + _SCALE)
            plain[name] = tensor.float() if scale is None else tensor.float() * scale[:, None]
    return plain


_SCALE = "#scale"
_RENAMED_WEIGHTS = {"reads.": "source_encoder.", "aligned.": "ctc_head."}  # of format 1, whole modules


def current_weight(name: str) -> str:
    """The current name of a weight of format 1."""
    for old, new in _RENAMED_WEIGHTS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _read_info(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise BundleError(
            f"{path}: no such file: {path.parent} is not a trained model (its training may not be finished)"
        )
    try:
        info = json.loads(path.read_text("utf-8"))
        newer = info["format"] > FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: damaged: {error!r}") from error
    if newer:
        raise BundleError(f"{path}: format {info['format']} is newer than this regard reads ({FORMAT}): update regard")
    return dict(info)


def _read_checked(folder: Path, name: str, info: dict[str, Any]) -> bytes:
    path = folder / name
    if not path.exists():
        raise BundleError(f"{path}: no such file, and {folder / INFO} lists it")
    raw = path.read_bytes()
    if info["files"].get(name) != _sha256(raw):
        raise BundleError(f"{path}: damaged or changed since it was saved (its digest differs): copy or train it again")
    return raw


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
