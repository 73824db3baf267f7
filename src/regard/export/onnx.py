"""ONNX's layout: `encoder.onnx` and `decoder.onnx` in float32, which onnxruntime and other programs run.

Beside them `onnx.json` names the inputs and outputs (`description`), and `tokenizer.json` is the tokenizer.
"""

import warnings
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch

from regard.bundle import Bundle
from regard.errors import ConfigError
from regard.export.graph import Graph, graphs, trace
from regard.export.graph_folder import write_graphs

OPSET = 20  # the first with Gelu; later operators would only be decomposed again by runtimes that lack them


def write(bundle: Bundle, into: Path) -> None:
    """Write a model in this layout.

    Args:
        bundle: the model.
        into: the folder, which may exist where it is empty.

    Raises:
        ConfigError: onnx or onnxscript is not installed; the model has something that the graphs cannot express.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError("ONNX graphs need onnx, onnxscript and onnxruntime: pip install 'regard[onnx]'") from error
    found = graphs(bundle)
    programs = {name: _program(graph) for name, graph in found.items()}

    def save(name: str, path: Path) -> None:
        programs[name].save(path)

    write_graphs(bundle, found, save, into, "onnx")


def _program(graph: Graph) -> Any:
    names = list(graph.inputs), list(graph.outputs)
    logger = getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecated calls
        try:
            logger.setLevel(ERROR)  # and of operators of packages that are not installed
            return torch.onnx.export(
                trace(graph), dynamo=True, opset_version=OPSET, input_names=names[0], output_names=names[1],
                verbose=False,
            )  # fmt: skip
        finally:
            logger.setLevel(level)
