"""The optional extras of the installed package: what is there, and the command that installs what is missing."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version

from regard.machine.redaction import redact

# the package's metadata lists extras and requirements, but not what they are for
PURPOSES = {
    "bench": "libraries that `make bench` compares with",
    "ctranslate2": "`regard export --layout ctranslate2`",
    "data": "Arrow and Parquet files: corpora, `regard distill`",
    "dev": "tests and checks of a checkout",
    "docs": "`make docs`",
    "features": "EfficientNet features of pictures",
    "gguf": ".gguf files of Llama models",
    "marian": "tokenizers of Marian models",
    "notebook": "the interactive page as a widget in a notebook",
    "onnx": "`regard export --layout onnx`, `--engine onnx`",
    "questions": "questions about pictures of shapes",
    "ray": "`regard translate --engine ray`: a corpus translated by many processes",
    "scenes": "scenes of emoji",
    "tensorboard": "curves of a training run in TensorBoard",
    "transformers": "attention inside models from the transformers library",
    "tune": "`regard tune`, a search over settings",
}
_REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:\[[^]]*])?\s*\(?([^;)]*)\)?\s*(?:;.*extra\s*==\s*['\"]([\w.-]+)['\"])?")


@dataclass(frozen=True)
class Package:
    """A required package."""

    name: str
    requirement: str
    """The lower bound first, ">=5.0,<6"."""
    version: str | None
    """The installed one; None where the package is missing."""
    fits: bool
    """Installed, within the bounds."""


@dataclass(frozen=True)
class Extra:
    """A set of optional packages."""

    name: str
    purpose: str
    packages: tuple[Package, ...]
    complete: bool
    """Every package fits."""
    install: str | None
    """The command that installs what is missing; None where nothing is."""


def extras(distribution: str = "regard") -> tuple[Extra, ...]:
    """Every extra in the metadata of an installed distribution, by name; empty where it is not installed."""
    packages = _packages(distribution)
    packages.pop("", None)
    return tuple(_extra(name, required, distribution) for name, required in packages.items())


def required(distribution: str = "regard") -> tuple[Package, ...]:
    """The packages that a distribution cannot do without, by name; empty where it is not installed."""
    return tuple(sorted(_packages(distribution).get("", ()), key=lambda package: package.name))


def _packages(distribution: str) -> dict[str, list[Package]]:
    """The required packages of every extra; under "" those without an extra."""
    try:
        found = metadata(distribution)
    except PackageNotFoundError:
        return {}
    packages: dict[str, list[Package]] = {name: [] for name in ("", *sorted(found.get_all("Provides-Extra") or ()))}
    for line in found.get_all("Requires-Dist") or ():
        if (match := _REQUIREMENT.match(line)) and (match[3] or "") in packages:
            packages[match[3] or ""].append(_package(match[1], match[2].strip()))
    return packages


def _extra(name: str, packages: list[Package], distribution: str) -> Extra:
    complete = all(package.fits for package in packages)
    install = None if complete else f"pip install '{distribution}[{name}]'"
    return Extra(name, PURPOSES.get(name, ""), tuple(packages), complete, install)


def _package(name: str, requirement: str) -> Package:
    requirement = ",".join(sorted(requirement.replace(" ", "").split(","), reverse=True))
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Package(name, requirement, None, fits=False)
    installed = redact(installed)
    least, end = re.search(r">=([\d.]+)", requirement), re.search(r"<([\d.]+)", requirement)
    old = least is not None and _numbers(installed) < _numbers(least[1])
    new = end is not None and _numbers(installed) >= _numbers(end[1])
    return Package(name, requirement, installed, fits=not old and not new)


def _numbers(text: str) -> tuple[int, ...]:
    """The release of a version, without trailing zeros: 5.0 and 5 are one release."""
    match = re.match(r"[\d.]*", text)
    numbers = [int(part) for part in match[0].split(".") if part] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
