"""The prose of README and docs: links that lead somewhere, spelling, grammar. `make check` runs it.

Links: a file of this repository exists, and so does the heading behind a #; an address is well formed (CI has no
network). Spelling and grammar: Harper, in American English, with the words of `.ci/vocabulary.txt`; codespell over the
sources, for misspellings in docstrings and messages. Code, mathematics and directives are not prose.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from harper import Dialect, Linter

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
         *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "course").glob("*.md"))]  # fmt: skip
VOCABULARY = ROOT / ".ci" / "vocabulary.txt"
# kinds and rules whose findings on these pages, read one by one, were matters of taste or false
TASTE = {"Capitalization", "Formatting", "Readability", "Regionalism", "Enhancement"}
OFF = ("OxfordComma", "ExpandTimeShorthands", "ExpandMemoryShorthands", "ExpandMinimum", "ExpandConfiguration",
       "ExpandControl", "SplitWords", "MergeWords", "CompoundNouns", "MassNouns", "Overall", "WrongNegative",
       "PronounVerbAgreement", "SimplePastToPastParticiple", "RegularIrregulars", "HopHope", "ToTwoToo", "ThereToTheir",
       "PhrasalVerbAsCompoundNoun", "NounVerbConfusion", "ItsContraction", "CondenseAllThe", "MissingPreposition",
       "PronounInflectionBe", "HavePronoun", "SingleBe", "Without", "MissingTo")  # fmt: skip
FRENCH = "ans,fille,mange,rouge,ist,te,toi"  # codespell takes other languages for misspellings
NAMES = "aer,caf,discreet,nd,pinter,sais,overrideable"  # and names
SKIPPED = "*.json,*.tsv,*.gz,*.txt,*.svg,*.mjs,*.css,_build,.jupyter_cache,jupyter_execute,gallery,names.tsv"

FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)`*\s*?$", re.MULTILINE | re.DOTALL)
NOT_PROSE = (
    re.compile(r"\A---\n.*?^---$", re.MULTILINE | re.DOTALL),  # settings of a page
    FENCE,
    re.compile(r"\$\$.*?\$\$|(?<!\$)\$[^$\n]+\$(?!\$)", re.DOTALL),
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"^:{3,}.*$|^:[a-z-]+:.*$|^\(.*\)=$", re.MULTILINE),  # directives, their options, labels
    re.compile(r"\{[a-z-]+\}(?=`)"),  # roles
    re.compile(r"\|[A-Z]( ∩ [A-Z])?\||\b[A-Za-z]_\w+|\*\w\*"),  # symbols
    re.compile(r"(?<=\])\([^)]*\)|<https?:[^>]*>|https?://\S+"),
)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
PICTURE = re.compile(r"^[`:]{3,}\{(?:image|figure|include|literalinclude)\}\s+(\S+)", re.MULTILINE)


def blanked(text: str, patterns: tuple[re.Pattern[str], ...] = NOT_PROSE) -> str:
    """The text with everything that is not prose as spaces: every place stays where it was."""
    for pattern in patterns:
        text = pattern.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    return text


def line_of(text: str, place: int) -> int:
    """The number of the line, from 1."""
    return text.count("\n", 0, place) + 1


def anchors(text: str) -> set[str]:
    """What may stand behind a #: GitHub's and MyST's names of the headings, and labels."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", blanked(text, (FENCE,)), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
    names = {f"{name}-{n}" if n else name for name, last in found.items() for n in range(last + 1)}
    return names | set(re.findall(r"^\((.+)\)=$", text, re.MULTILINE))


def dead_links(page: Path, text: str) -> Iterator[str]:
    """Links and pictures of a page that lead nowhere; what the documentation's build draws is taken for there."""
    plain = blanked(text, (FENCE,))
    spans = re.compile(r"`[^`\n]*`")
    for found in (*LINK.finditer(blanked(plain, (spans,))), *PICTURE.finditer(text)):
        target = found[1]
        where = f"{page.relative_to(ROOT)}:{line_of(text, found.start())}"
        parts = urlsplit(target)
        if parts.scheme:
            if parts.scheme not in ("http", "https", "mailto") or not (parts.netloc or parts.scheme == "mailto"):
                yield f"{where}: {target} is not a well-formed address"
            continue
        file = (page.parent / parts.path).resolve() if parts.path else page
        if "gallery" in Path(parts.path).parts[:-1]:
            continue
        if not file.exists():
            yield f"{where}: there is no {target}"
        elif parts.fragment and file.suffix == ".md" and parts.fragment not in anchors(file.read_text("utf-8")):
            yield f"{where}: {file.name} has no heading #{parts.fragment}"


def misspelt(where: Path, text: str, linter: Linter) -> Iterator[str]:
    """What Harper finds in the prose of a text."""
    prose = blanked(text)
    for lint in linter.lint(prose):
        found = " ".join(lint.problem_text.split())
        symbol = len(found) < 3 or not re.fullmatch(r"[A-Za-zÀ-ÿ'’.-]+", found)
        if lint.lint_kind in TASTE or (lint.lint_kind == "Spelling" and symbol):
            continue
        yield f"{where}:{line_of(prose, lint.span.start)}: {found!r}: {lint.message} ({lint.lint_kind})"


def harper() -> Linter:
    """Harper with this project's words, without the rules that are off."""
    linter = Linter(dialect=Dialect.AMERICAN)
    words = VOCABULARY.read_text("utf-8").split()
    linter.import_words([*words, *(f"{word}'s" for word in words)])
    linter.set_lint_config({**linter.get_lint_config(), **dict.fromkeys(OFF, False)})
    return linter


def main() -> int:
    linter = harper()
    faults = []
    for page in PAGES:
        text = page.read_text("utf-8")
        faults += dead_links(page, text)
        faults += misspelt(page.relative_to(ROOT), text, linter)
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "src", "docs", ".ci", "README.md", "CONTRIBUTING.md", "CHANGELOG.md",
         "--skip", SKIPPED, "--ignore-words-list", f"{FRENCH},{NAMES}"],
        cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    faults += (done.stdout + done.stderr).splitlines()
    print("\n".join(faults) or f"prose: {len(PAGES)} pages, no dead link, no misspelling")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
