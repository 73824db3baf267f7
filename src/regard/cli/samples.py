"""`regard samples`: small files to try everything with."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from regard.cli.lines import complain
from regard.errors import ConfigError


def samples(
    folder: Annotated[Path, typer.Argument(help="The folder to write to; created if missing.")] = Path("samples"),
) -> None:
    """Write the shipped samples into a folder.

    They are texts, a picture, a recording, and pairs to train on.
    """
    from regard.storage import write_bytes

    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: a file; name a folder for the samples")
    folder.mkdir(parents=True, exist_ok=True)
    kept = 0
    for sample in sorted(files("regard").joinpath("samples").iterdir(), key=lambda one: one.name):
        content, path = sample.read_bytes(), folder / sample.name
        if path.exists() and not (path.is_file() and path.read_bytes() == content):
            kept += 1
            complain(f"{path}: is there, with another content: left as it is")
            continue
        write_bytes(path, content)
        typer.echo(str(path))
    if kept:
        raise typer.Exit(1)
