"""`regard doctor`: this machine and its software, in a form to paste into a bug report."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli.lines import say
from regard.errors import RegardError
from regard.machine.redaction import reason

if TYPE_CHECKING:
    from regard.machine.devices import Device, Precision
    from regard.machine.extras import Package
    from regard.machine.facts import Machine

WIDTH = 120  # of a line; the last column is continued on the next
Row = Sequence[str]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with everything that was found.")] = False,
) -> None:
    """Describe this machine for a bug report.

    Devices, precisions, threads, versions, what is fast, and missing extras.
    """
    try:
        from regard.machine.facts import examine

        machine = examine()
    except (ImportError, OSError, AttributeError) as error:  # a torch that is broken or half installed
        again = "install it again, pip install --force-reinstall torch"
        raise RegardError(f"torch does not work here ({reason(error)}): {again}") from error
    try:
        from regard.pipelines.load import shipped

        models = shipped()
    except Exception as error:  # a broken package is what a report is for
        models = []
        machine = replace(machine, notes=(*machine.notes, f"models could not be listed: {reason(error)}"))
    say(json.dumps(machine.as_json() | {"models": models}) if as_json else "\n".join(report(machine, models)))


def report(machine: "Machine", models: Sequence[str]) -> Iterator[str]:
    """The lines of the report: sections of aligned columns, ASCII alone."""
    yield from section("software", _software(machine, models))
    yield from section("processor", _processor(machine))
    for device in machine.devices:
        yield from _device(device, machine.auto)
    missing: list[Row] = [("unknown: regard runs from a folder and is not installed",)]
    yield from section("extras", list(_extras(machine)) or missing)
    variables: list[Row] = [(f"{one.name}={one.value}", one.changes) for one in machine.variables]
    yield from section("environment", variables or [("no variable is set that changes torch",)])
    if machine.notes:
        yield from section("notes", [(note,) for note in machine.notes])


def section(title: str, rows: Sequence[Row]) -> Iterator[str]:
    """A title and aligned columns; the last cell of a row is broken into lines where it is long."""
    columns = max(map(len, rows))
    widths = [max((len(row[n]) for row in rows if n < len(row) - 1), default=0) for n in range(columns)]
    yield title
    for row in rows:
        lead = "  " + "".join(f"{cell.ljust(widths[n])}  " for n, cell in enumerate(row[:-1]))
        lines = wrap(row[-1], max(WIDTH - len(lead), 40), break_long_words=False, break_on_hyphens=False) or [""]
        yield (lead + lines[0]).rstrip()
        yield from (" " * len(lead) + line for line in lines[1:])


def _software(machine: "Machine", models: Sequence[str]) -> list[Row]:
    software = machine.software
    libraries = ", ".join(software.libraries) or "no library"
    return [
        ("regard", software.regard),
        ("Python", software.python),
        ("torch", f"{software.torch}, built for {software.build}, with {libraries}"),
        ("system", software.system),
        ("packages", ", ".join(map(_package, machine.packages)) or "unknown"),
        ("models", ", ".join(models) or "none"),
    ]


def _processor(machine: "Machine") -> list[Row]:
    processor, memory, threads = machine.processor, machine.memory, machine.threads
    limit = "" if processor.quota is None else f", limited to the time of {processor.quota:g}"
    usable = "" if processor.usable_cores is None else f", {processor.usable_cores} usable by this process"
    sizes = (("total", memory.total), ("available", memory.available), ("limit", memory.limit))
    return [
        ("name", f"{processor.name} ({processor.architecture})"),
        ("torch uses", processor.capability),
        ("instructions", ", ".join(processor.instructions) or "unknown"),
        ("cores", f"{processor.cores or 'unknown'}{usable}{limit}"),
        ("threads", f"{threads.intra_op} inside an operator, {threads.inter_op} between operators"),
        ("memory", ", ".join(_size(*size) for size in sizes if size[1] is not None) or "unknown"),
    ]


def _device(device: "Device", auto: str) -> Iterator[str]:
    """A device: what it is, its precisions with their measured speeds, what attention and compilation use."""
    from regard.machine.devices import fastest

    about = [device.name, *([] if device.memory is None else [_size("memory", device.memory)])]
    about += [] if device.capability is None else [device.capability]
    about += ['chosen by device="auto"'] if device.word.partition(":")[0] == auto else []
    measured = sorted({rows for precision in device.precisions for rows in precision.speed or {}})
    heading = ("precision", *(f"speed, {rows} rows" for rows in measured), "why")
    table = [heading, *(_precision(precision, measured) for precision in device.precisions)]
    yield from section(f"device {device.word}: {', '.join(about)}", table)
    facts: list[Row] = []
    best = [
        f"{name} for {rows} rows" + ("" if name == "float32" else f" ({ratio:.1f} times the speed of float32)")
        for rows, (name, ratio) in fastest(device).items()
    ]
    facts += [("fastest", f"{', '.join(best)}; measured just now on a linear layer")] if best else []
    facts += [("attention", f"torch uses {_kernels(device)}")] if device.attention else []
    compiler = device.compiler
    facts += [("compiler", f"{compiler.found or 'none found'}; torch.compile and FlexAttention need {compiler.needs}")]
    yield from list(section("", facts))[1:]


def _kernels(device: "Device") -> str:
    """The kernels of torch's attention, each with the cases that it is taken for."""
    found = sorted(device.attention, key=lambda one: one.kernel)
    masks = {"none": "without a mask", "causal": "causal", "table": "under a mask"}
    groups = {
        kernel: ", ".join(f"{one.precision} {masks[one.mask]}" for one in cases)
        for kernel, cases in groupby(found, key=lambda one: one.kernel)
    }
    if len(groups) == 1:
        return f"{found[0].kernel} (float32 and bfloat16, with and without a mask)"
    return "; ".join(f"{kernel} ({cases})" for kernel, cases in groups.items())


def _precision(precision: "Precision", measured: Sequence[int]) -> Row:
    """A precision's line: speeds as multiples of float32's, or why there are none."""
    word = {True: "-", False: "no", None: "unknown"}[precision.supported]
    cells = [f"{precision.speed[rows]:.2f}" if precision.speed else word for rows in measured]
    lead = "" if measured or precision.supported else f"{word}: "
    unmeasured = f"; not measured: {precision.not_measured}" if precision.not_measured else ""
    return (precision.name, *cells, f"{lead}{precision.why}{unmeasured}")


def _extras(machine: "Machine") -> Iterator[Row]:
    """An extra's line: the command that completes it, what it is for, its packages."""
    for extra in machine.extras:
        lead = f"{extra.purpose}: " if extra.purpose else ""
        yield extra.name, extra.install or "installed", lead + ", ".join(map(_package, extra.packages))


def _package(package: "Package") -> str:
    too_old = package.version is not None and not package.fits
    return f"{package.name} {package.version or 'missing'}" + (f" (needs {package.requirement})" if too_old else "")


def _size(name: str, size: int | None) -> str:
    return f"{name} unknown" if size is None else f"{name} {size / 2**30:.1f} GiB"
