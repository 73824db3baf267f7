"""What regard stands on: bounded in `pyproject.toml`, one release of each in `requirements.lock`, compared by hash."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
DEVELOPED = [Requirement(line) for extra in ("dev", "docs") for line in EXTRAS[extra]]


def locked() -> dict[str, tuple[str, str]]:
    """{name: (release, what stands behind it)}; a package with a marker may stand there once for each system."""
    text = (ROOT / "requirements.lock").read_text("utf-8").replace("\\\n", " ")
    found = re.finditer(r"^([\w.-]+)(?:\[[\w,]+\])?==([\w.+!-]+)(.*)$", text, re.MULTILINE)
    return {canonicalize_name(match[1]): (match[2], match[3]) for match in found}


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.name)
def test_what_is_needed_is_bounded_and_what_is_installed_is_within(needed: Requirement) -> None:
    assert {one.operator for one in needed.specifier} == ({">="} if needed.name == "pillow" else {">=", "<"})
    assert needed.specifier.contains(version(needed.name))


def test_what_extras_bring_is_within_their_bounds() -> None:
    for line in {line for lines in EXTRAS.values() for line in lines}:
        needed = Requirement(line)
        try:
            there = version(needed.name)
        except PackageNotFoundError:
            continue
        assert needed.specifier.contains(there), f"{needed}: {there} is installed"


def test_the_lock_has_every_package_of_development_but_torch_with_its_hashes() -> None:
    lock = locked()
    for needed in [*NEEDED, *DEVELOPED]:
        name = canonicalize_name(needed.name)
        if name == "torch":
            assert name not in lock
            continue
        release, behind = lock[name]
        assert needed.specifier.contains(release), f"{needed}: {release} is locked"
        assert "--hash=sha256:" in behind
    assert all("--hash=sha256:" in behind for _, behind in lock.values())


def test_the_lock_names_no_address_and_agrees_with_the_constraints() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text("utf-8")
    lock = locked()
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            (needed,) = [Requirement(line)]
            assert needed.name == "torch" or needed.specifier.contains(lock[canonicalize_name(needed.name)][0])
