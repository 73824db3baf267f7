"""`regard train`: from a config to a model."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.lines import complain, say
from regard.cli.options import Run, Settings
from regard.cli.progress import training_bar
from regard.signals import EXIT_OF_SIGNALS


def train(
    config: Annotated[Path, typer.Argument(help="A TOML file, or the name of a shipped config (regard configs).")],
    settings: Settings = None,
    run: Run = None,
    device: Annotated[
        str | None, typer.Option(help="Where to train: cpu, cuda, cuda:1, mps or auto; sets training.device.")
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option("--max-minutes", help="End the run after so many minutes; sets training.max_minutes."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in its folder.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print every setting with its meaning, and stop.")
    ] = False,
) -> None:
    """Train a model from a config."""
    from regard.config import parse_setting, to_toml

    overrides = dict(map(parse_setting, settings or []))
    if device is not None:
        overrides["training.device"] = device
    if max_minutes is not None:
        overrides["training.max_minutes"] = max_minutes
    if print_config:
        from regard.experiment import read_config

        say(to_toml(read_config(config, overrides)), nl=False)
        return
    train_run(config, overrides, run, resume)


def train_run(config: Path, overrides: dict[str, Any], run: Path | None, resume: bool) -> None:
    """Train with a bar, and print the run's folder.

    Args:
        config: the TOML file.
        overrides: settings that replace its own.
        run: the folder; runs/NAME-OF-THE-CONFIG by default.
        resume: continue the run in its folder.

    Raises:
        typer.Exit: with code 130, 143 or 129 where a signal (SIGINT, SIGTERM, SIGHUP) interrupted the run.
    """
    from regard import experiment
    from regard.process import keep_freed_memory
    from regard.training.distributed import started_by_torchrun
    from regard.training.loop import Interrupted

    keep_freed_memory()
    first = os.environ.get("RANK", "0") == "0" or not started_by_torchrun()
    with training_bar() if first else nullcontext(lambda _: None) as report:
        try:
            finished = experiment.train(config, overrides, run=run, resume=resume, report=report)
        except Interrupted as error:
            if first:
                complain("interrupted; everything is saved: the same command with --resume continues")
            raise typer.Exit(EXIT_OF_SIGNALS + error.number) from None
    if first:
        say(f"{finished.path}")
