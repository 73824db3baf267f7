"""The course runs: every code block of every page, in order; an exercise's check passes with its answer alone."""

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
OTHERS = ("index.md", "glossary.md", "notes.md")  # without code
PAGES = sorted(page for page in (DOCS / "course").glob("*.md") if page.name not in OTHERS)
HIDDEN = {"remove-cell", "remove-input", "hide-input", "hide-cell"}  # code that is folded away, or not on the page
sys.path.insert(0, str(DOCS))
from formulas import mathml  # noqa: E402
from sources import line_of  # noqa: E402

CELL = re.compile(r"^```\{code-cell\} python3\n(?::tags: \[(.*?)\]\n)?(.*?)^```$", re.DOTALL | re.MULTILINE)
Cell = tuple[set[str], str]


def cells(page: Path) -> list[Cell]:
    """Every code block with its tags; what stands before it is kept as empty lines, so that errors name the line."""
    text = page.read_text("utf-8")
    return [
        (set((match[1] or "").split(", ")), "\n" * text[: match.start(2)].count("\n") + match[2])
        for match in CELL.finditer(text)
    ]


def run(page: Path, source: str, names: dict[str, Any]) -> None:
    exec(compile(source, str(page), "exec"), names)


@pytest.fixture(autouse=True)
def _drawn_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore")
def test_a_page_runs_and_its_checks_need_their_answers(page: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for tags, source in cells(page):
        before = dict(names)
        run(page, source, names)
        if "answer" in tags:
            given = {name for name, value in names.items() if before.get(name) is not value}
        if "check" in tags:
            poorer = {name: value for name, value in names.items() if name not in given}
            with pytest.raises(NameError):
                run(page, source, poorer)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_exercises_with_answers_and_checks_and_downloads(page: Path) -> None:
    text, tagged = page.read_text("utf-8"), [tags for tags, _ in cells(page)]
    assert text.count("```{code-cell}") == len(tagged), f"{page.name}: a code block that is not read"
    kinds = [kind for tags in tagged for kind in ("answer", "check") if kind in tags]
    exercises = len(re.findall(r"^### Exercise \d", text, re.MULTILINE))
    assert exercises in (2, 3)
    assert kinds == ["answer", "check"] * exercises
    assert all("assert " in source for tags, source in cells(page) if "check" in tags)
    assert f"{{nb-download}}`Download this page as a notebook <{page.stem}.ipynb>`" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_what_it_is_for_and_what_to_take_along_and_is_mostly_words(page: Path) -> None:
    text = page.read_text("utf-8")
    head, _, rest = text.partition("\n## ")
    promised = head.partition("After this page you can\n\n")[2]
    assert 2 <= len(re.findall(r"^- ", promised, re.MULTILINE)) <= 4
    last = rest.rpartition("\n## ")[2]
    assert last.startswith("What to take away\n")
    assert 3 <= len(re.findall(r"^- ", last, re.MULTILINE)) <= 5
    words = sum(bool(line.strip()) for line in CELL.sub("", text.split("---\n", 2)[2]).splitlines())
    code = sum(bool(line.strip()) for tags, source in cells(page) if not tags & HIDDEN for line in source.splitlines())
    assert code < 0.45 * (code + words), f"{page.name}: {code} visible lines of code beside {words} of text"
    for tags, source in cells(page):  # a notebook shows the value of a cell's last expression only
        lines = ast.parse(source).body
        shown = [isinstance(line, ast.Expr) and "table(" in ast.unparse(line) for line in lines]
        assert "remove-cell" in tags or not any(shown[:-1]), f"{page.name}: a table that is not shown in\n{source}"
        assert lines, f"{page.name}: an empty block"
        assert not source.endswith("manual_seed(0)\n"), f"{page.name}: end with a semicolon, or the generator is shown"
    assert "print(f" not in "".join(source for tags, source in cells(page) if not tags & HIDDEN)


@pytest.mark.parametrize("page", sorted(DOCS.glob("course/*.md")), ids=lambda page: page.stem)
def test_every_formula_is_typeset(page: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    formulas = re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", text, re.DOTALL)
    assert text.count("$") == sum(4 if block else 2 for block, _ in formulas)
    for block, inline in formulas:
        assert mathml(block or inline).startswith("<math")
    with pytest.raises(ValueError, match="cannot be typeset"):
        mathml(r"\nosuchcommand x")


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_every_place_in_the_source_is_there(page: Path) -> None:
    for place in re.findall(r"\{source\}`([^`]*)`", page.read_text("utf-8")):
        line_of(place)


def test_a_place_that_is_not_there_is_refused() -> None:
    assert line_of("attention/operator.py:Plan")[1] > 1
    for place in ("attention/no_such.py", "attention/operator.py:no_such", "attention/operator.py:Plan.no_such"):
        with pytest.raises(LookupError):
            line_of(place)


def test_the_quiz_s_answers_stand_where_they_say() -> None:
    text = (DOCS / "quiz.md").read_text("utf-8")
    questions, answers = text.split("## Answers")
    found = re.findall(r"^\d+\. \{source\}`([^`]*)` `([^`]*)`", answers, re.MULTILINE)
    assert len(found) == 10 == len(re.findall(r"^\d+\. ", questions, re.MULTILINE))
    for place, piece in found:
        file, line = line_of(place)
        below = (DOCS.parent / "src" / "regard" / file).read_text("utf-8").splitlines()[line - 1 : line + 25]
        assert any(piece in one for one in below), (place, piece)


def test_every_heading_of_the_notes_is_in_the_appendix() -> None:
    """Wherever the notes stand beside the data: each heading's words are in one row of the appendix."""
    notes = Path(os.environ.get("REGARD_DATA", "none")).parent / "notes"
    if not notes.is_dir():
        pytest.skip("the notes are not here")
    rows = [line.lower() for line in (DOCS / "course" / "notes.md").read_text("utf-8").splitlines()]
    for path in sorted(notes.glob("*.txt")):
        for heading in re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE):
            wanted = [word.lower() for word in re.findall(r"[A-Za-z]{4,}", heading.split("\\")[0])]
            assert any(all(word in row for word in wanted) for row in rows), heading
