"""`regard export`: a model as a folder of its own."""

from pathlib import Path
from typing import Annotated

import typer

from regard.cli.lines import say
from regard.cli.options import ModelName, load


def export(
    model: ModelName,
    into: Annotated[Path, typer.Argument(help="The folder to write.")],
    precision: Annotated[
        str,
        typer.Option(help="Number format of the weights (layouts regard and ctranslate2): float32, float16 or int8."),
    ] = "int8",
    layout: Annotated[
        str,
        typer.Option(
            help="regard; hf: config.json and model.safetensors in float32, which transformers loads; ctranslate2; "
            "onnx: float32 graphs for onnxruntime; or torch: the same graphs for torch.export.load."
        ),
    ] = "regard",
) -> None:
    """Write a model as a small folder, or for another program."""
    from regard.export.folder import export_bundle

    export_bundle(load(model), into, precision, layout)
    say(str(into))
