"""`regard tune`: a search over settings."""

from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.lines import complain, say
from regard.signals import EXIT_OF_SIGNALS


def tune(
    config: Annotated[Path, typer.Argument(help="A TOML file, or the name of a shipped config.")],
    ranges: Annotated[
        list[str], typer.Option("--range", help="NAME=LOW..HIGH, NAME=LOW..HIGH,log or NAME=A|B|C; repeat for others.")
    ],
    minutes: Annotated[float, typer.Option(help="Time for the search as a whole.")] = 60.0,
    trial_minutes: Annotated[float, typer.Option(help="Training time of each trial.")] = 5.0,
    folder: Annotated[
        Path | None, typer.Option(help="The search's folder; runs/NAME-OF-THE-CONFIG-tune by default.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a setting: --set model.width=192.")
    ] = None,
) -> None:
    """Search for a config's best settings by short trainings.

    The best settings are those with the best measure on the development data.
    """
    from regard.cli.progress import err
    from regard.config import parse_setting
    from regard.process import keep_freed_memory
    from regard.training.loop import Interrupted
    from regard.tune import BEST, Range
    from regard.tune import tune as search

    def shown_trial(number: int, chosen: dict[str, Any], value: float | None, failed: str) -> None:
        shown = ", ".join(f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
                          for name, value in chosen.items())  # fmt: skip
        err.print(
            f"trial {number}: {shown}: {failed or ('ended early' if value is None else f'{value:.4f}')}", soft_wrap=True
        )

    keep_freed_memory()
    place = folder or Path("runs") / f"{config.stem}-tune"
    try:
        best = search(
            config, [Range.parse(text) for text in ranges], place, minutes=minutes, trial_minutes=trial_minutes,
            overrides=dict(map(parse_setting, settings or [])), on_trial=shown_trial,
        )  # fmt: skip
    except Interrupted as error:
        complain("interrupted; the finished trials are kept: the same command continues the search")
        raise typer.Exit(EXIT_OF_SIGNALS + error.number) from None
    for name, value in best.items():
        say(f"{name} = {value}")
    say(str(place / BEST))
