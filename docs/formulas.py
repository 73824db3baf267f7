"""Formulas as MathML: converted when the pages are built, shown by the browser without a script or a network."""

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.logging import getLogger


def mathml(tex: str, block: bool = False) -> str:
    """The MathML of a formula in LaTeX.

    Raises:
        ValueError: docutils' converter does not know a command of the formula.
    """
    try:
        return str(tex2mathml(tex, as_block=block))
    except (MathError, SyntaxError) as error:
        raise ValueError(f"the formula {tex!r} cannot be typeset: {error}") from error


def _written(self: Any, node: nodes.Element, block: bool) -> None:
    try:
        self.body.append(mathml(node.astext(), block))
    except ValueError as error:
        getLogger(__name__).warning("%s", error, location=node)
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    app.add_html_math_renderer(
        "mathml",
        (lambda self, node: _written(self, node, False), None),
        (lambda self, node: _written(self, node, True), None),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
