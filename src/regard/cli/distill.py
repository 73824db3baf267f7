"""`regard distill`: a student that learns a teacher's outputs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.lines import complain
from regard.cli.options import Device, Engine, Precision, Run, Settings, load_for
from regard.cli.progress import lines_bar
from regard.cli.train import train_run


def distill(
    teacher: Annotated[str, typer.Argument(help="A translator: a shipped model's name, or a run's folder.")],
    config: Annotated[
        Path, typer.Argument(help="The student's TOML file or shipped config; its data is what the teacher translates.")
    ],
    settings: Settings = None,
    run: Run = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A file of further sources, one per line; may be repeated.")
    ] = None,
    beam: Annotated[
        int | None, typer.Option(min=1, help="Hypotheses of the teacher. Default: its own; 4 or more with --n-best.")
    ] = None,
    n_best: Annotated[int, typer.Option(min=1, help="Outputs of each source that the student learns.")] = 1,
    device: Device = "cpu",
    precision: Precision = "auto",
    engine: Engine = "regard",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the student's training in its folder.")] = False,
) -> None:
    """Train a student on a teacher's translations.

    The teacher translates the training side of the config's data, then the student is trained on its outputs; both
    continue where they were interrupted.
    """
    from regard.config import parse_setting
    from regard.device import find_device
    from regard.distill import distill as distilled
    from regard.experiment import check_folder, default_folder, read_config
    from regard.training.loop import checkpoint_in

    folder = run or default_folder(config)
    given = dict(map(parse_setting, settings or []))
    if device != "cpu":
        given.setdefault("training.device", device)

    # what would end the student's training is said before the teacher works
    resume = resume and checkpoint_in(folder)
    check_folder(folder, resume)
    own = read_config(config, {**given, "data.train": str(folder.resolve())})
    find_device(own.training.device)

    def load(name: str) -> Any:
        return load_for("translate", name, None, None, device, precision, engine)

    with lines_bar(None, 1, quiet=False) as advance:
        made = distilled(
            teacher, config, given, folder, load, texts=text or [], beam=beam, n_best=n_best, report=advance
        )
    if made.refused:
        complain(f"{made.refused:,} sources have no output of the teacher and are left out")
    complain(f"{made.pairs:,} pairs to learn in {folder / 'distilled'}")
    train_run(config, {**given, **made.overrides}, folder, resume)
