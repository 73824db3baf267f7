"""Types and shapes of regard's functions and methods are checked while tests run.

jaxtyping's own hook would check three times as long: it decorates functions inside functions, anew at every call, and
binds the arguments of every function to look for shapes. Here a function inside another is left out, and one without
shapes has its types checked alone.
"""

import ast
from collections.abc import Callable
from functools import wraps
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import _import_hook, config, install_import_hook, jaxtyped


class Outermost(_import_hook.JaxtypingTransformer):
    """Decorates functions of modules and classes."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """A function; nothing inside it is visited."""
        if not any(map(_import_hook._is_no_type_check, node.decorator_list)):
            decorator = ast.parse("__import__('checked').typed", mode="eval").body
            node.decorator_list.append(ast.copy_location(decorator, node))
        return node


def typed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its types checked, and its shapes where it has any."""
    if any(map(_needs_jaxtyping, function.__annotations__.values())):
        return jaxtyped(function, typechecker=beartype)
    checked = beartype(function, conf=BeartypeConf(violation_type=TypeError))  # as jaxtyping's is
    if checked is function:
        return function

    @wraps(function)
    def run(*args: Any, **settings: Any) -> Any:
        return (function if config.jaxtyping_disable else checked)(*args, **settings)

    return run


def _needs_jaxtyping(annotation: Any) -> bool:
    """Whether an annotation has a shape, or a name in quotes, which may be known to type checkers alone."""
    return "jaxtyping" in repr(annotation) or (not isinstance(annotation, type) and "'" in repr(annotation))


def check_types() -> None:
    """Check the types of what is imported from here on."""
    _import_hook.JaxtypingTransformer = Outermost
    install_import_hook("regard", "beartype.beartype")
