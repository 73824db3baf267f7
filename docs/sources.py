"""The role {source}`attention/operator.py:attend`: the line where a name is defined today, and a page to read.

The name may have a dot (Class.method); without one it is the file. A name that is not there stops the build, so no page
of the documentation points at code that has moved.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.util.docutils import SphinxRole
from sphinx.util.logging import getLogger

ROOT = Path(__file__).parents[1] / "src" / "regard"


def line_of(place: str) -> tuple[str, int]:
    """The file of src/regard and the line of "file.py:name"; line 1 without a name.

    Raises:
        LookupError: there is no such file, or the name is not defined in it.
    """
    file, _, name = place.partition(":")
    if not (ROOT / file).is_file():
        raise LookupError(f"there is no src/regard/{file}")
    found: Any = ast.parse((ROOT / file).read_text("utf-8"))
    for part in name.split(".") if name else ():
        inner = [node for node in found.body if part in _names(node)]
        if not inner:
            raise LookupError(f"src/regard/{file} defines no {name}")
        found = inner[0]
    return file, getattr(found, "lineno", 1)


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    return [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []


class SourceRole(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        try:
            file, line = line_of(self.text)
        except LookupError as error:
            getLogger(__name__).warning("source: %s", error, location=self.get_location())
            return [nodes.literal(text=self.text)], []
        up = "../" * self.env.docname.count("/")
        link = nodes.reference("", "", refuri=f"{up}source/{file.removesuffix('.py')}.html#L-{line}")
        name = self.text.partition(":")[2]
        link += nodes.literal(text=f"{file}:{line}" + f" {name}" * bool(name))
        return [link], []


def pages(_: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for every file, its lines numbered."""
    for path in sorted(ROOT.rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        form = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True, wrapcode=True)
        body = highlight(path.read_text("utf-8"), PythonLexer(), form)
        yield f"source/{file.removesuffix('.py')}", {"title": file, "body": f"<h1>{file}</h1>{body}"}, "page.html"


def setup(app: Any) -> dict[str, Any]:
    app.add_role("source", SourceRole())
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
