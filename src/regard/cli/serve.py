"""`regard serve`: models over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from regard.cli.options import Device, Engine, Precision, Threads
from regard.errors import ConfigError


def serve(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME…", help="Shipped models' names, or runs' folders; a,b is an ensemble.")
    ],
    host: Annotated[str, typer.Option(help="The address to listen at; all but loopback ones need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token that requests must carry (Authorization: Bearer …).")
    ] = None,
    device: Device = "cpu",
    precision: Precision = "float32",
    engine: Engine = "regard",
    threads: Threads = None,
) -> None:
    """Serve models over HTTP.

    LibreTranslate's API and regard's own (docs/serving.md).
    """
    from regard.web.tokens import is_loopback, read_token

    token = read_token(token_file) if token_file else None
    if token is None and not is_loopback(host):
        raise ConfigError(f"--host {host} is open to other machines: name a file with a token, --token-file FILE")

    from regard.pipelines.load import load
    from regard.process import use_threads
    from regard.serving.http import create_server_app
    from regard.web.limits import Limits
    from regard.web.server import bind, run

    with bind(host, port) as listening:  # before the models, which take a while
        if threads is not None:
            use_threads(threads)
        models = [load(name, device, precision, engine) for name in names]
        limits = Limits()
        app = create_server_app(models, limits, token, local=token is None)
        run(app, listening, limits, f"serving {', '.join(names)}")
