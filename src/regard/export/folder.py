"""A trained model as a folder of its own, in one of several layouts."""

from pathlib import Path
from typing import Any, get_args

from regard.arguments import check_arguments
from regard.bundle import Bundle, Precision, save_bundle
from regard.errors import ConfigError, unknown
from regard.export import ctranslate2, hf, onnx
from regard.export import torch as torch_layout
from regard.models.ensemble import Ensemble
from regard.storage import check_empty, new_folder
from regard.text.pretrained import Pieces

LAYOUTS = ("regard", "hf", "ctranslate2", "onnx", "torch")


@check_arguments
def export_bundle(ready: Any, into: Path, precision: str, layout: str = "regard") -> None:
    """Write a model as a folder of its own.

    Args:
        ready: what `load` returns, or a Bundle.
        into: the folder.
        precision: of the weights, "float32", "float16" or "int8".
        layout: "regard", or "hf": float32 in the Hugging Face layout, which transformers loads; or "ctranslate2": a
            Transformer translator for CTranslate2; or "onnx" and "torch": float32 graphs of the encoder and of one
            step of the decoder, for onnxruntime and for `torch.export.load`.

    Raises:
        ChoiceError: an unknown precision or layout.
        ConfigError: the folder is not empty; what writes the layout is not installed, or cannot express the model.
        BundleError: no family of the Hugging Face layout has the model's parts.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if precision not in get_args(Precision):
        raise unknown("precision", precision, get_args(Precision))
    check_empty(into)
    bundle: Bundle = getattr(ready, "bundle", ready)
    if isinstance(bundle.model, Ensemble):
        raise ConfigError("an ensemble is written by its members: export them one by one, and load them together")
    if layout in ("ctranslate2", "onnx", "torch") and isinstance(bundle.tokenizer, Pieces):
        raise ConfigError(
            "this model's tokenizer is two sentencepiece models, which the layout's tokenizer.json cannot hold: "
            "--layout hf keeps them"
        )
    if layout == "hf":
        hf.write(bundle, into)
    elif layout == "ctranslate2":
        ctranslate2.write(bundle, into, precision)
    elif layout == "onnx":
        onnx.write(bundle, into)
    elif layout == "torch":
        torch_layout.write(bundle, into)
    else:
        with new_folder(into) as folder:
            save_bundle(folder, bundle, precision)  # type: ignore[arg-type]
