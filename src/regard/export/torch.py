"""torch's own layout: `encoder.pt2` and `decoder.pt2` in float32, which `torch.export.load` reads without regard.

Beside them `torch.json` names the inputs and outputs, as `onnx.json` does, and `tokenizer.json` is the tokenizer.
"""

import warnings
from io import BytesIO
from pathlib import Path

import torch

from regard.bundle import Bundle
from regard.export.graph import graphs, trace
from regard.export.graph_folder import write_graphs
from regard.storage import write_bytes


def write(bundle: Bundle, into: Path) -> None:
    """Write a model in this layout.

    Args:
        bundle: the model.
        into: the folder, which may exist where it is empty.

    Raises:
        ConfigError: the model has something that the graphs cannot express.
    """
    found = graphs(bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecated calls
        programs = {name: trace(graph) for name, graph in found.items()}

        def save(name: str, path: Path) -> None:
            packed = BytesIO()  # torch's own writer of files ends the process on a full disk
            torch.export.save(programs[name], packed)
            write_bytes(path, packed.getvalue())

        write_graphs(bundle, found, save, into, "torch")
