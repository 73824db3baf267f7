"""Endpoints as data: from one table come the routes, their description as OpenAPI, and the page that shows it."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

TEMPLATE = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    Attributes:
        method, path: of the request.
        summary: one sentence.
        handle: from a request to its response.
        takes: the schema of its body; None for none.
        form: the body may also be a form.
        file: the body is the bytes of a file; its media types.
        query: the schema of its parameters.
        gives: the schema of its answer; None for a page or a text.
        media: the type of the answer.
        plain: refusals are {"error": message}, and the token may also come as a field `api_key`.
        open: needs no token.
    """

    method: str
    path: str
    summary: str
    handle: Callable[[Request], Awaitable[Response]]
    takes: type[BaseModel] | None = None
    form: bool = False
    file: tuple[str, ...] = ()
    query: type[BaseModel] | None = None
    gives: type[BaseModel] | None = None
    media: str = "application/json"
    plain: bool = False
    open: bool = False


def openapi(endpoints: Iterable[Endpoint], title: str, version: str, secured: bool) -> dict[str, Any]:
    """The description of the endpoints in OpenAPI 3.1."""
    endpoints = list(endpoints)
    kinds = {kind for one in endpoints for kind in (one.takes, one.gives, one.query) if kind}
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, definitions = models_json_schema([(kind, "validation") for kind in ordered], ref_template=TEMPLATE)
    schemas = definitions.get("$defs", {})
    error = {"type": "object", "properties": {"code": {"type": "string"}, "message": {"type": "string"}}}
    schemas["Refusal"] = {"type": "object", "properties": {"error": error}, "required": ["error"]}
    schemas["PlainRefusal"] = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    paths: dict[str, Any] = {}
    for one in endpoints:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schemas, secured)
    described: dict[str, Any] = {
        "openapi": "3.1.0", "info": {"title": title, "version": version}, "paths": paths,
        "components": {"schemas": schemas},
    }  # fmt: skip
    if secured:
        described["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return described


def _operation(one: Endpoint, schemas: dict[str, Any], secured: bool) -> dict[str, Any]:
    answer = _reference(one.gives) if one.gives else {"type": "string"}
    refusal = {"$ref": TEMPLATE.format(model="PlainRefusal" if one.plain else "Refusal")}
    made: dict[str, Any] = {
        "summary": one.summary,
        "responses": {
            "200": {"description": "The result.", "content": {one.media: {"schema": answer}}},
            "4XX": {"description": "A refusal, in one sentence.", "content": {"application/json": {"schema": refusal}}},
        },
    }
    if one.takes:
        types = ("application/json", "application/x-www-form-urlencoded")[: 2 if one.form else 1]
        content = {kind: {"schema": _reference(one.takes)} for kind in types}
        made["requestBody"] = {"required": True, "content": content}
    if one.file:
        whole = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in one.file}
        made["requestBody"] = {"required": True, "content": whole}
    if one.query:
        fields = schemas[one.query.__name__].get("properties", {})
        made["parameters"] = [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]
    if secured and not one.open:
        made["security"] = [{"bearer": []}]
    return made


def _reference(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": TEMPLATE.format(model=kind.__name__)}


def page(endpoints: Iterable[Endpoint], title: str) -> str:
    """The endpoints with the fields of their bodies and answers, as a page that needs nothing else."""
    return PAGE.replace("{title}", escape(title)).replace("{rows}", "\n".join(map(_section, endpoints)))


def _section(one: Endpoint) -> str:
    body = f"<p>The body is the bytes of one file ({escape(', '.join(one.file))}).</p>" if one.file else ""
    if one.form:
        body += "<p>JSON or a form.</p>"
    tables = [
        f"<h3>{heading}</h3>{_table(kind.model_json_schema(), kind.model_json_schema().get('$defs', {}))}"
        for heading, kind in (("takes", one.takes), ("parameters", one.query), ("gives", one.gives))
        if kind
    ]
    return (
        f'<section><h2><b class="{one.method}">{one.method}</b> {escape(one.path)}</h2><p>{escape(one.summary)}</p>'
        f"{body}{''.join(tables)}</section>"
    )


def _table(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    return f"<table>{''.join(_rows(schema, definitions, 0))}</table>"


def _rows(schema: dict[str, Any], definitions: dict[str, Any], depth: int) -> Iterator[str]:
    """A row for each field; the fields of an object follow it, further in."""
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        has_default = name not in required and "default" in field
        default = f", default <code>{escape(_default(field['default']))}</code>" if has_default else ""
        yield (
            f'<tr><td style="padding-left: {1.4 * depth}rem"><code>{escape(name)}</code></td>'
            f"<td>{escape(_kind(field))}{default}</td><td>{escape(field.get('description', ''))}</td></tr>"
        )
        for one in (field, field.get("items", {}), *field.get("anyOf", ())):
            if "$ref" in one:
                yield from _rows(definitions[one["$ref"].rpartition("/")[2]], definitions, depth + 1)


def _kind(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(kind for one in field["anyOf"] if (kind := _kind(one)) != "null")
    if "$ref" in field:
        return "object"
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', field.get('prefixItems', [{}])[0])) or 'value'}s"
    return str(field.get("type", ""))


def _default(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}: the API</title>
<style>
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #e4e7ec; --paper: #fcfcfa; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e1; --soft: #98a2b3; --line: #2c323d; --paper: #14171c; --card: #1a1e25; }
}
body { margin: 0 auto; max-width: 52rem; padding: 3rem 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
h1 { font: 600 1.7rem/1.2 Georgia, serif; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .3rem 1.3rem 1rem;
  margin: 1.2rem 0; overflow-x: auto; }
h2 { font: 600 1.02rem ui-monospace, monospace; }
h2 b { display: inline-block; min-width: 2.6rem; margin-right: .5rem; color: #17716a; }
h2 b.POST { color: #b4541a; }
h3 { font-size: .72rem; letter-spacing: .08em; text-transform: uppercase; color: var(--soft); margin: 1.1rem 0 .2rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
td { border-top: 1px solid var(--line); padding: .4rem .9rem .4rem 0; vertical-align: top; }
td:nth-child(2) { color: var(--soft); white-space: nowrap; }
a { color: inherit; }
</style></head><body>
<h1>{title}</h1>
<p>Refusals are <code>{"error": {"code", "message"}}</code>; those of LibreTranslate's routes
<code>{"error": message}</code>. The same for programs: <a href="openapi.json">openapi.json</a>.</p>
{rows}
</body></html>
"""
