"""The `regard` command: its verbs, and what becomes of an error. torch is imported inside the verb that needs it."""

import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

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
from regard.cli.train import train
from regard.cli.transcribe import transcribe
from regard.cli.translate import translate
from regard.cli.tune import tune
from regard.cli.why import why
from regard.errors import ChoiceError, ConfigError, RegardError, harmless
from regard.signals import EXIT_OF_SIGNALS, Ended, end_on_signals, end_quietly, received

OK, USAGE = 0, 2


class Verbs(TyperGroup):
    """The verbs; an interrupt is an exit code that tells the signal, which typer's own does not."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the command line."""
        with _exiting():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        with _exiting():
            return super().invoke(ctx)


@contextmanager
def _exiting() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise typer.Exit(_interrupted(error)) from None


app = typer.Typer(
    name="regard",
    cls=Verbs,
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
    try:
        end_on_signals()
        os.environ["MPLBACKEND"] = "agg"  # figures need no window, whatever is set for a notebook or another program
        _use_utf8()
        _draw_as_regard_does()
        code = run()
        _flush()
    except KeyboardInterrupt as error:  # before or after the verb
        code = _interrupted(error)
    except OSError as error:
        code = _failed(error)
    end_quietly()  # the interpreter's own end runs code of libraries, and a signal may come meanwhile
    sys.exit(code)


def _draw_as_regard_does() -> None:
    """Let matplotlib read no settings but its own: those of the working directory may be a stranger's, and run TeX."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not epoch.isdecimal() or len(epoch) > 11:
        del os.environ["SOURCE_DATE_EPOCH"]  # which matplotlib would take for the seconds of a date
    found = find_spec("matplotlib")
    if found is None or not found.origin:
        return
    place = Path(found.origin).parent / "mpl-data"
    os.environ["MATPLOTLIBRC"] = str(place / "matplotlibrc")
    if os.path.lexists("matplotlibrc"):  # which matplotlib reads first, where it is imported
        with chdir(place):
            import_module("matplotlib")


def run(arguments: list[str] | None = None) -> int:
    """Run a verb and return its exit code.

    0, 1 (the work failed), 2 (usage), 130, 143 or 129 (ended by SIGINT, SIGTERM or SIGHUP).
    """
    if sys.stdout is None:
        complain("standard output is closed: there is nowhere to write results to")
        return FAILED
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"regard: {harmless(str(message))}\n"
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    finally:
        warnings.formatwarning = before


def _run(arguments: list[str]) -> int:
    received()  # forget one of an earlier command
    try:
        return int(app(arguments, standalone_mode=False) or OK)
    except (typer.Abort, KeyboardInterrupt) as error:
        return _interrupted(error)
    except Exception as error:
        if number := received():  # that a library has caught, and raised an error of its own
            return _interrupted(Ended(number))
        return _refused(error)


def _refused(error: Exception) -> int:
    """Say in one sentence why a verb failed; an error that is a fault of regard's is raised."""
    if isinstance(error, RegardError):
        complain(str(error))
        return USAGE if isinstance(error, ChoiceError | ConfigError) else FAILED
    if isinstance(error, OSError):
        return _failed(error)
    if isinstance(error, MemoryError):
        return _out_of_memory(str(error))
    if isinstance(error, RuntimeError) and re.search("can't allocate memory|out of memory", str(error)):
        return _out_of_memory("")  # torch's of its own allocators
    if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
        raise error
    context = getattr(error, "ctx", None)  # typer's own refusals of a wrong command line; their class is private
    way = f" (see {context.command_path} --help)" if context else ""
    # pydantic's checks, whose messages do not quote the value
    checks: list[dict[str, object]] = getattr(error.__cause__, "errors", list)()
    got = f"; got {', '.join(repr(str(check['input'])) for check in checks)}" if checks else ""
    complain(f"{error.format_message().rstrip('.')}{got}{way}")
    return int(error.exit_code)


def _out_of_memory(why: str) -> int:
    complain(f"out of memory{f': {why}' if why else ''}: give smaller inputs, or fewer at a time")
    return FAILED


def _interrupted(error: BaseException) -> int:
    complain("interrupted")
    signalled = error.__cause__ if isinstance(error, typer.Abort) else error  # typer's, of a KeyboardInterrupt
    return EXIT_OF_SIGNALS + getattr(signalled, "number", signal.SIGINT)


def _failed(error: OSError) -> int:
    if not isinstance(error, BrokenPipeError):  # that one: the reader of the output has gone, as head does
        complain(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
    with suppress(OSError, ValueError):  # what could not be written is not tried again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _use_utf8() -> None:
    """Write results in UTF-8, as inputs are read, whatever the locale; a terminal is shown what it has letters for."""
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty() or stream is sys.stderr:
                stream.reconfigure(errors="backslashreplace")
            else:
                stream.reconfigure(encoding="utf-8", errors=errors)


def _flush() -> None:
    """Flush standard output while an error can still be told: a full disk, a closed descriptor."""
    if sys.stdout is not None:
        sys.stdout.flush()


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
