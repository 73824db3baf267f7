"""A trained model as a folder: `bundle.json`, `weights.safetensors`, `tokenizer.json`. Versioned, no pickle.

A translator that restores diacritics has `diacritics.txt` too: one word, or two, in each line.

`bundle.json` holds the settings and the SHA-256 of the other files, so a truncated or changed file is
named and refused. Weights are stored in float32, float16 or int8 (one scale per row) and always
loaded as float32.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError
from torch import Tensor

from regard.arguments import check_arguments
from regard.config import with_current_names
from regard.errors import BundleError, shown
from regard.models.build import ModelConfig, build_shapes
from regard.models.ensemble import EnsembleConfig
from regard.pretrained.rules import GenerationRules
from regard.storage import write_tensors, write_text
from regard.text.diacritics import Diacritics
from regard.text.tokenizer import Tokenizer, TokenizerConfig
from regard.untrusted import (
    FLOATS,
    Stored,
    TensorFiles,
    faults_of,
    file_size,
    first_line,
    named,
    read_object,
    read_text,
)

FORMAT = 2  # 1 had other names of settings and weights (regard.config.RENAMED)
INFO, WEIGHTS, TOKENIZER, DIACRITICS = "bundle.json", "weights.safetensors", "tokenizer.json", "diacritics.txt"
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
        diacritics: what a source without any is read with; None where it is read as it is.
    """

    task: str
    languages: tuple[str, str]
    model: Any
    model_config: ModelConfig | EnsembleConfig
    tokenizer: Any
    decoding: dict[str, Any] = field(default_factory=dict)
    alignment: dict[str, Any] = field(default_factory=dict)
    rules: GenerationRules = field(default_factory=GenerationRules)
    diacritics: Diacritics | None = None


@check_arguments
def save_bundle(folder: Path, bundle: Bundle, precision: Precision = "float32") -> None:
    """Write a bundle into `folder`; `bundle.json` last, so that an incomplete one is never taken for complete."""
    if not isinstance(bundle.tokenizer, Tokenizer):
        raise BundleError("a model that was read from another library's layout is written in that layout: --layout hf")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO).unlink(missing_ok=True)
    write_tensors(folder / WEIGHTS, pack(dict(bundle.model.state_dict()), precision))
    bundle.tokenizer.save(folder / TOKENIZER)
    names = [WEIGHTS, TOKENIZER]
    if bundle.diacritics is not None:
        write_text(folder / DIACRITICS, "".join(f"{phrase}\n" for phrase in bundle.diacritics.phrases))
        names.append(DIACRITICS)
    info = {
        "format": FORMAT,
        "task": bundle.task,
        "languages": bundle.languages,
        "model": bundle.model_config.model_dump(),
        "tokenizer": bundle.tokenizer.config.model_dump(),
        "decoding": bundle.decoding,
        "alignment": bundle.alignment,
        "files": {name: _sha256((folder / name).read_bytes()) for name in names},
    }
    write_text(folder / INFO, json.dumps(info, indent=2, ensure_ascii=False) + "\n")


class _Alignment(BaseModel):
    """Where word alignments are read; further keys tell how the site was chosen."""

    model_config = ConfigDict(frozen=True, strict=True)

    site: str
    heads: list[NonNegativeInt]


class _Info(BaseModel):
    """What a `bundle.json` has."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: int
    task: str
    languages: list[str] = Field(min_length=2, max_length=2)
    model: dict[str, Any]
    tokenizer: dict[str, Any]
    decoding: dict[str, Any]
    alignment: dict[str, Any]
    files: dict[str, str]


@check_arguments
def load_bundle(folder: Path) -> Bundle:
    """Read what `save_bundle` wrote.

    The folder may be a stranger's, whose digests prove nothing: its weights are compared with the model that its
    settings describe before one is read, and again when they are read.

    Raises:
        BundleError: something is missing, cut short, changed, of another model, or from a newer version.
    """
    where = folder / INFO
    info = _read_info(where)
    for name in (WEIGHTS, TOKENIZER, *([DIACRITICS] if DIACRITICS in info.files else [])):
        _check_digest(folder, name, info)
    try:
        settings = with_current_names({"model": info.model})[0]["model"]
        config: ModelConfig = TypeAdapter(ModelConfig).validate_python(settings)
        tokenizer_config = TokenizerConfig(**info.tokenizer)
        if info.alignment:
            _check_heads(_Alignment(**info.alignment), config)
    except ValidationError as error:
        raise BundleError(f"{where}: does not describe a model: {faults_of(error)}") from error
    except TypeError as error:
        raise BundleError(f"{where}: does not describe a model: {first_line(error)}") from error
    tokenizer = Tokenizer.load(folder / TOKENIZER, tokenizer_config)
    _check_decoding(info, config, where)
    files = TensorFiles([folder / WEIGHTS])
    model = build_shapes(len(tokenizer), config, len(files.stored), str(where))
    stored = _check_weights(model, files.stored, folder)
    filled = {}
    for name, expected in model.state_dict().items():
        parts = [stored[name], *([scale] if (scale := stored[name] + _SCALE) in files.stored else [])]
        (tensor,) = unpack({part: files.read(part) for part in parts}).values()
        filled[name] = tensor.to(expected.dtype)
    model.load_state_dict(filled, assign=True)
    source, target = info.languages
    diacritics = _read_diacritics(folder / DIACRITICS) if DIACRITICS in info.files else None
    return Bundle(
        info.task, (source, target), model, config, tokenizer, info.decoding, info.alignment, diacritics=diacritics
    )


def _read_diacritics(path: Path) -> Diacritics:
    text = read_text(path)
    try:
        return Diacritics(text.removesuffix("\n").split("\n") if text else [])
    except BundleError as error:
        raise BundleError(f"{path}: damaged: {error}") from error


def _check_weights(model: Any, stored: Mapping[str, Stored], folder: Path) -> dict[str, str]:
    """The stored name of each of the model's tensors, all of which have its kind and shape, and no others are there.

    Args:
        model: on `meta`.
        stored: what the file's header says.
        folder: for messages.
    """
    path, expected = folder / WEIGHTS, model.state_dict()
    names = {current_weight(name): name for name in stored if not name.endswith(_SCALE)}
    other = sorted(set(names) ^ set(expected))
    if other:
        kind = "no weight" if other[0] in expected else "a weight too many,"
        raise BundleError(f"{folder / INFO}: does not describe the model of {path}: {kind} {named(other[0])}")
    if lone := [name for name in stored if name.endswith(_SCALE) and name.removesuffix(_SCALE) not in stored]:
        raise BundleError(f"{path}: damaged: {named(lone[0])} is the scale of no weight")
    for name, tensor in expected.items():
        found, shape, scale = stored[names[name]], tuple(tensor.shape), stored.get(names[name] + _SCALE)
        if found.shape != shape:
            raise BundleError(
                f"{folder / INFO}: does not describe the model of {path}: {named(name)} has shape "
                f"{list(found.shape)}, and the settings make it {list(shape)}"
            )
        kinds = ("I8",) if scale is not None else FLOATS if tensor.is_floating_point() else ("I64",)
        if found.kind not in kinds:
            raise BundleError(f"{path}: {named(name)} is of kind {found.kind}; expected {', '.join(kinds)}")
        if scale is not None and (len(shape) != 2 or scale.shape != shape[:1] or scale.kind not in FLOATS):
            raise BundleError(f"{path}: the scale of {named(name)} is not one number for each of its rows")
    return names


def _check_heads(alignment: _Alignment, config: ModelConfig) -> None:
    heads = getattr(config, "heads", 1)
    if not alignment.heads or max(alignment.heads) >= heads:
        raise TypeError(f"alignment: heads = {shown(alignment.heads)}, and a site has {heads}")


def _check_decoding(info: _Info, config: ModelConfig, where: Path) -> None:
    """Refuse settings of the tasks that have no settings of a search; the others' pipelines check theirs."""
    if info.task == "answer":
        answers = info.decoding.get("answers")
        if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
            raise BundleError(f"{where}: decoding.answers = {shown(answers)}: expected a list of texts")
        if len(answers) != getattr(config, "answers", -1):
            raise BundleError(
                f"{where}: {len(answers)} answers, and the model has {getattr(config, 'answers', 'none')}"
            )
    if info.task == "complete" and not isinstance(info.decoding.get("begins", False), bool):
        raise BundleError(f"{where}: decoding.begins = {shown(info.decoding['begins'])}: expected true or false")


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


def _read_info(path: Path) -> _Info:
    if not path.exists():
        raise BundleError(
            f"{path}: no such file: {path.parent} is not a trained model (its training may not be finished)"
        )
    found = read_object(path)
    newer = found.get("format")
    if isinstance(newer, int) and newer > FORMAT:
        raise BundleError(f"{path}: format {shown(newer)} is newer than this regard reads ({FORMAT}): update regard")
    try:
        return _Info(**found)
    except ValidationError as error:
        raise BundleError(f"{path}: damaged: {faults_of(error)}") from error


def _check_digest(folder: Path, name: str, info: _Info) -> None:
    path = folder / name
    if not path.exists():
        raise BundleError(f"{path}: no such file, and {folder / INFO} lists it")
    file_size(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if info.files.get(name) != digest:
        raise BundleError(f"{path}: damaged or changed since it was saved (its digest differs): copy or train it again")


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
