"""The `regard` command: its verbs, and what becomes of an error. torch is imported inside the verb that needs it."""

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import typer
from typer.core import TyperCommand

from regard import __version__
from regard.cli.answer import answer
from regard.cli.average import average
from regard.cli.caption import caption
from regard.cli.complete import complete
from regard.cli.configs import configs
from regard.cli.data import app as data
from regard.cli.distill import distill
from regard.cli.doctor import doctor
from regard.cli.evaluate import evaluate
from regard.cli.export import export
from regard.cli.fill import fill
from regard.cli.lines import FAILED, complain
from regard.cli.look import look
from regard.cli.meaning import meaning
from regard.cli.options import BareLook
from regard.cli.prepare import prepare
from regard.cli.report import report
from regard.cli.samples import samples
from regard.cli.serve import serve
from regard.cli.trace import trace
from regard.cli.train import INTERRUPTED, train
from regard.cli.transcribe import transcribe
from regard.cli.translate import translate
from regard.cli.tune import tune
from regard.cli.why import why
from regard.errors import ChoiceError, ConfigError, RegardError

OK, USAGE = 0, 2

app = typer.Typer(
    name="regard",
    help="Attention you can choose, train and see.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
VERBS: tuple[tuple[Callable[..., None], type[TyperCommand]], ...] = (
    (translate, TyperCommand), (complete, TyperCommand), (fill, TyperCommand), (meaning, TyperCommand),
    (caption, BareLook), (transcribe, BareLook), (answer, BareLook),
    (train, TyperCommand), (distill, TyperCommand), (prepare, TyperCommand), (evaluate, TyperCommand),
    (trace, TyperCommand), (why, TyperCommand), (look, TyperCommand), (configs, TyperCommand), (samples, TyperCommand),
    (average, TyperCommand), (report, TyperCommand), (tune, TyperCommand), (export, TyperCommand),
    (serve, TyperCommand), (doctor, TyperCommand),
)  # fmt: skip
for verb, kind in VERBS:
    app.command(cls=kind)(verb)
app.add_typer(data, name="data")


def main() -> None:
    """The `regard` command: runs a verb; a refusal is one sentence on standard error."""
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Run a verb and return its exit code: 0, 1 (the work failed), 2 (usage), 130 (interrupted)."""
    warnings.formatwarning = lambda message, *_: f"regard: {message}\n"
    if sys.stdout is None:
        complain("standard output is closed: there is nowhere to write results to")
        return FAILED
    try:
        return int(app(sys.argv[1:] if arguments is None else arguments, standalone_mode=False) or OK)
    except (typer.Abort, KeyboardInterrupt):
        complain("interrupted")
        return INTERRUPTED
    except (ChoiceError, ConfigError) as error:
        complain(str(error))
        return USAGE
    except RegardError as error:
        complain(str(error))
        return FAILED
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # that one: the reader of the output has gone, as head does
            complain(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        with suppress(OSError):  # what could not be written is not tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()  # typer's own refusals of a wrong command line; their class is private
        return int(error.exit_code)


def _show_version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"regard {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = None,
) -> None:
    """Attention you can choose, train and see."""
