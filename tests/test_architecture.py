"""The picture in docs/architecture.md is the code: every room and every file of it, and nothing else."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "regard"


def drawn() -> set[str]:
    """The modules that the picture names, as paths without ending."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    picture = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert picture
    modules: set[str] = set()
    room = parent = ""
    for line in picture[1].splitlines():
        head = re.match(r"( *)([a-z_]+)/ ", line)
        if head:
            inner = bool(head[1])
            parent = parent if inner else head[2]
            room = f"{parent}/{head[2]}" if inner else head[2]
            line = line[head.end() :]
        if files := re.findall(r"\b([a-z_]+)\.py", line):
            modules |= set(files)
            continue
        named = re.sub(r"\([^)·]*\)", "", line).rpartition(": ")[2]  # without notes, and without the room's purpose
        modules |= {f"{room}/{word}" for word in re.sub(r"[·()]", " ", named).split()}
    return modules


def test_every_module_is_drawn_and_every_drawn_name_is_a_module() -> None:
    there = {
        path.relative_to(SOURCE).with_suffix("").as_posix()
        for path in SOURCE.rglob("*.py")
        if path.stem not in ("__init__", "__main__")
    }
    assert drawn() == there


def test_the_way_of_a_sentence_names_files_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    for path in re.findall(r"`([a-z_/]+\.py)(?::\w+)?`", text):
        assert (SOURCE / path).exists() or (ROOT / path).exists(), path
