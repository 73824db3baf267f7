"""A folder of graphs: files, a description of their inputs and outputs, and the tokenizer; whole or not at all."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from regard.bundle import Bundle
from regard.export.graph import SIZES, Graph
from regard.storage import new_folder, write_text
from regard.text.pretrained import Nothing, Pieces

SUFFIX = {"onnx": "onnx", "torch": "pt2"}


def write_graphs(
    bundle: Bundle, found: dict[str, Graph], save: Callable[[str, Path], None], into: Path, layout: str
) -> None:
    """Write a folder of graphs.

    Args:
        bundle: the model.
        found: its graphs by name.
        save: writes the graph of a name to a path.
        into: the folder.
        layout: "onnx" or "torch".
    """
    with new_folder(into) as folder:
        for name in found:
            save(name, folder / f"{name}.{SUFFIX[layout]}")
        if not isinstance(bundle.tokenizer, Nothing | Pieces):  # two models, of which an engine asks the bundle
            bundle.tokenizer.save(folder / "tokenizer.json")
        described = json.dumps(description(bundle, found, layout), indent=2, ensure_ascii=False)
        write_text(folder / f"{layout}.json", described + "\n")


def description(bundle: Bundle, found: dict[str, Graph], layout: str) -> dict[str, Any]:
    """What a program needs beside the graphs.

    Returns:
        `task`, `languages`, `special` (the ids "pad", "bos" and "eos"), `layers` of the decoder, or of the encoder
        where there is no decoder, `decoding` (settings of the search), `rules` (of generated tokens), and for each
        graph its `file` and the `type` and `shape` of every input and output; a size is a number or the name "batch",
        "source", "past" or "past + 1".
    """
    config = bundle.model_config
    layers = [getattr(config, name, None) for name in ("decoder_layers", "layers")]
    return {
        "format": 1,
        "task": bundle.task,
        "languages": list(bundle.languages),
        "special": {name: getattr(bundle.tokenizer, name, None) for name in ("pad", "bos", "eos")},
        "layers": next((count for count in layers if count is not None), 1),
        "decoding": bundle.decoding,
        "rules": {name: value for name, value in asdict(bundle.rules).items() if value not in (None, ())},
        "graphs": {
            name: {
                "file": f"{name}.{SUFFIX[layout]}",
                "inputs": {part: _described(tensor, graph.axes[part]) for part, tensor in graph.inputs.items()},
                "outputs": {part: _described(tensor, graph.axes[part]) for part, tensor in graph.outputs.items()},
            }
            for name, graph in found.items()
        },
    }


def _described(tensor: Tensor, axes: dict[int, str]) -> dict[str, Any]:
    kind = str(tensor.dtype).removeprefix("torch.")
    return {"type": kind, "shape": [_size(count, axes.get(axis)) for axis, count in enumerate(tensor.shape)]}


def _size(count: int, varies: str | None) -> int | str:
    if varies is None:
        return count
    return varies if count == SIZES[varies] else f"{varies} + {count - SIZES[varies]}"
