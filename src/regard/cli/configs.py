"""`regard configs`: the configs that come with the package."""

from typing import Annotated

import typer


def configs(
    name: Annotated[str | None, typer.Argument(help="Print this config; without it, the list of all.")] = None,
) -> None:
    """List the shipped configs, or print one.

    The list says what each trains; a printed one is to be saved and changed.
    """
    from regard.config import config_names, find_config, read_toml

    if name is not None:
        path = find_config(name)
        read_toml(path)  # or says in one sentence what it is
        typer.echo(path.read_text("utf-8-sig"), nl=False)
        return
    width = max(map(len, config_names()))
    for one in config_names():
        first = find_config(one).read_text("utf-8").splitlines()[0]
        typer.echo(f"{one:<{width}}  {first.removeprefix('# ')}")
