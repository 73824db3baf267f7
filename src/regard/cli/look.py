"""`regard look`: the interactive page of attention maps."""

from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.options import Device, load
from regard.errors import ConfigError

TASKS = ("translate", "complete")


def look(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A shipped model, a run's folder, or a saved map (.safetensors).")
    ],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[INPUT]…", help="The inputs of the model.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the page as one .html file instead of serving it.")] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Another model or checkpoint, compared on the same inputs; repeatable.")
    ] = None,
    atlas: Annotated[
        bool,
        typer.Option(
            "--atlas", help="Measure each head's importance and roles first, over the inputs or the shipped samples."
        ),
    ] = False,
    checkpoints: Annotated[
        bool,
        typer.Option("--checkpoints", help="Add the checkpoints that the run MODEL keeps, and a slider through them."),
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    device: Device = "cpu",
) -> None:
    """Open a page of attention maps, or save it as one file.

    The page is served on this machine only.
    """
    if save is not None:
        from regard.figures.files import check_page

        check_page(save)
    if model.endswith(".safetensors"):
        if texts or against or atlas or checkpoints:
            given = " ".join(texts or against or ["--atlas" if atlas else "--checkpoints"])
            raise ConfigError(f"{model} is a saved map: it has no model that could take {given!r}")
        from regard.attention.maps.map import AttentionMap

        page, pipeline, pipelines, steps = AttentionMap.load(model).look(), None, [], None
    else:
        if not texts:
            raise ConfigError(f'regard look {model} needs something to look at: regard look {model} "le chat noir"')
        from regard.pipelines.page import look_at

        pipelines = [load(name, texts, device=device) for name in [model, *(against or [])]]
        pipeline = pipelines[0]
        steps = None
        if checkpoints:
            from regard.pipelines.checkpoints import checkpoints_of

            steps = checkpoints_of(model, device)
        # a served page shows its maps first, and asks for their test
        page = look_at(pipelines, texts, atlas, tests=save is not None or pipeline.task not in TASKS, steps=steps)
    if save is not None:
        typer.echo(f"regard: {save}: {page.size / 1e6:.1f} MB", err=True)
        page.save(save)
        return
    answers = pipeline if pipeline is not None and pipeline.task in TASKS else None
    _serve(page, answers, pipelines[1:], steps, port, browser)


def _serve(page: Any, pipeline: Any, against: Any, steps: Any, port: int, browser: bool) -> None:
    import webbrowser

    from regard.explorer.server import create_explorer
    from regard.web.limits import Limits
    from regard.web.server import bind, run

    app, token = create_explorer(page, pipeline, against=against, steps=steps)
    with bind("127.0.0.1", port) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/?token={token}"
        typer.echo(f"regard: {address}", err=True)
        if browser:
            listening.listen()  # the browser may come before the server runs
            webbrowser.open(address)
        run(app, listening, Limits(), "the page is served (Ctrl-C ends it)")
