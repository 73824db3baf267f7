"""Extras: all of pyproject.toml, what is installed of them, and the command for what is missing."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from regard.machine import extras as module
from regard.machine.extras import PURPOSES, Extra, Package, extras, required

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    return {line.partition(">=")[0] for line in requirements}


def test_every_extra_of_the_project_and_its_packages() -> None:
    found = {extra.name: {package.name for package in extra.packages} for extra in extras()}
    assert found == {name: names(packages) for name, packages in PROJECT["optional-dependencies"].items()}
    assert {package.name for package in required()} == names(PROJECT["dependencies"])


def test_every_extra_has_a_purpose_and_no_other_has() -> None:
    assert set(PURPOSES) == set(PROJECT["optional-dependencies"])
    assert all(extra.purpose for extra in extras())


def test_versions_are_those_installed() -> None:
    found = {package.name: package for package in required()}
    assert found["torch"] == Package("torch", ">=2.13,<3", version("torch"), fits=True)
    assert all(package.fits for package in found.values())


class Metadata:
    """The metadata of a package with two extras."""

    lines = {  # noqa: RUF012
        "Provides-Extra": ["two", "one"],
        "Requires-Dist": [
            "base>=1", 'there>=2.0; extra == "one"', "absent[more]>=5.1; extra == 'two'", "old (>=3.10) ; extra=='two'",
            "new<4,>=3; extra == 'two'",
            "any; python_version > '3' and extra == 'two'",
        ],
    }  # fmt: skip

    def get_all(self, name: str) -> list[str] | None:
        return self.lines.get(name)


def test_missing_and_old_packages_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"base": "1", "there": "2", "old": "3.9.1", "new": "4.0.1", "any": "0.dev1"}

    def version_of(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(module, "metadata", lambda name: Metadata())
    monkeypatch.setattr(module, "version", version_of)
    assert required() == (Package("base", ">=1", "1", True),)
    packages = (
        Package("absent", ">=5.1", None, False),
        Package("old", ">=3.10", "3.9.1", False),
        Package("new", ">=3,<4", "4.0.1", False),
        Package("any", "", "0.dev1", True),
    )
    assert extras() == (
        Extra("one", "", (Package("there", ">=2.0", "2", True),), True, None),
        Extra("two", "", packages, False, "pip install 'regard[two]'"),
    )


def test_a_folder_that_is_not_installed_has_none() -> None:
    assert extras("regard-that-is-not-installed") == required("regard-that-is-not-installed") == ()
