"""Bodies and parameters: from bytes to a checked object, or one sentence: what was expected, what came, and where."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import pydantic_core
from pydantic import BaseModel, ConfigDict, ValidationError

from regard.errors import nearest, not_utf8
from regard.web.refusals import Refusal

EXPECTED = {  # pydantic's names of errors
    "string_type": "a string", "int_type": "a whole number", "int_from_float": "a whole number",
    "int_parsing": "a whole number", "float_type": "a number", "float_parsing": "a number",
    "bool_type": "true or false", "bool_parsing": "true or false", "list_type": "a list", "dict_type": "an object",
    "model_type": "an object",
}  # fmt: skip
FIELDS = 1000  # of a form
HEAD = 2000  # bytes of the headers of one of them
# possessive: each character is read once
_PARAMETER = re.compile(r""";\s*+([^\s;="]++)\s*+=\s*+(?:"((?:[^"\\]++|\\.)*+)"|([^\s;"]*+))\s*+""")


class RequestBody(BaseModel):
    """A request of regard's own API: unknown fields and values of other types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class AnswerBody(BaseModel):
    """An answer, for the description of the API."""

    model_config = ConfigDict(use_attribute_docstrings=True)


Checked = TypeVar("Checked", bound=BaseModel)


def checked(kind: type[Checked], values: Any, strict: bool = True, status: int = 422) -> Checked:
    """The object that plain data describes.

    Args:
        kind: its class.
        values: the data.
        strict: "1" is no number.
        status: of a refusal.

    Raises:
        Refusal: one sentence about the first thing that is wrong.
    """
    try:
        return kind.model_validate(values, strict=strict)
    except ValidationError as error:
        raise Refusal(status, sentence(error, kind)) from error


def sentence(error: ValidationError, kind: type[BaseModel]) -> str:
    """What was expected, what came, and where."""
    found = [(_place(one["loc"]), one) for one in error.errors(include_url=False)]
    place = max((place for place, _ in found), key=len)
    some = [one for at, one in found if at == place]
    where, first = _name(place), some[0]
    match first["type"]:
        case "missing":
            return f"{where} is missing"
        case "extra_forbidden":
            known = ", ".join(nearest(str(place[-1]), kind.model_fields))
            return f"unknown field {where!r}: known are {known}"
    expected = [EXPECTED.get(one["type"]) or _reworded(one["msg"]) for one in some]
    return f"{where}: expected {' or '.join(dict.fromkeys(expected))}; got {_shown(first['input'])}"


def _place(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A place without pydantic's names for the members of a union."""
    return tuple(part for part in loc if isinstance(part, int) or not (part == "str" or part.startswith("list[")))


def _name(place: tuple[int | str, ...]) -> str:
    name = ""
    for part in place:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name or "the body"


def _reworded(message: str) -> str:
    for opening in ("Input should be ", "Value error, "):
        message = message.removeprefix(opening)
    return message[:1].lower() + message[1:]


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)[:20]
        case str():
            return repr(value if len(value) <= 20 else value[:20] + "…")
        case list():
            return f"a list of {len(value)}"
    return "an object"


def decoded(raw: bytes, what: str = "the body") -> str:
    """Bytes as text.

    Raises:
        Refusal: they are not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(400, f"{what}: {not_utf8(error)}") from error


def from_json(raw: bytes) -> Any:
    """The value that JSON describes.

    Raises:
        Refusal: it is not JSON in UTF-8.
    """
    text = decoded(raw)
    if not text.strip():
        raise Refusal(400, "the body is empty: expected a JSON object")
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error


def from_form(raw: bytes, content_type: str) -> dict[str, Any]:
    """The fields of a form; one that occurs several times is a list.

    Raises:
        Refusal: it is not UTF-8, or has too many fields.
    """
    try:
        pairs = _multipart(raw, content_type) if "multipart/" in content_type else _pairs(decoded(raw))
    except ValueError as error:
        raise Refusal(400, f"the body is no form in UTF-8 of at most {FIELDS} fields") from error
    return collected(pairs)


def from_query(raw: bytes) -> dict[str, Any]:
    """The parameters of a URL.

    Raises:
        Refusal: they are not UTF-8, or too many.
    """
    try:
        return collected(_pairs(raw.decode("ascii")))
    except ValueError as error:
        raise Refusal(400, f"the URL's parameters are not UTF-8, or more than {FIELDS}") from error


def collected(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Values by their names, in a list where there are several."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _pairs(text: str) -> list[tuple[str, str]]:
    return parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS, errors="strict")


def _multipart(raw: bytes, content_type: str) -> list[tuple[str, str]]:
    """The fields of a multipart form (RFC 7578), in time that grows with its bytes alone.

    Python's parsers of mail take minutes for a header of many parameters, and recur into parts within parts.
    """
    boundary = _parameters(content_type).get("boundary", "")
    if not boundary:
        return []
    found: list[tuple[str, str]] = []
    # a boundary begins a line; what comes before the first is no part
    pieces = (b"\r\n" + raw).split(b"\r\n--" + boundary.encode("latin-1"), FIELDS + 2)[1:]
    for piece in pieces:
        if piece.startswith(b"--"):
            break
        head, end, value = piece.partition(b"\r\n\r\n")
        if not end:
            continue
        if len(head) > HEAD:
            raise ValueError("a part with long headers")
        lines = [line.partition(":") for line in head.decode("utf-8").split("\r\n")]
        headers = {name.strip().lower(): rest.strip() for name, _, rest in lines}
        if headers.get("content-transfer-encoding", "binary").lower() not in ("7bit", "8bit", "binary"):
            raise ValueError("a part in another encoding")
        name = _parameters(headers.get("content-disposition", "")).get("name")
        if name is not None:
            found.append((name, decoded(value, f"the field {name[:80]}")))
    if len(found) > FIELDS:
        raise ValueError("too many fields")
    return found


def _parameters(header: str) -> dict[str, str]:
    """The parameters of a header `value; name=token; name="text"`, up to the first that is none."""
    found: dict[str, str] = {}
    place = len(header.partition(";")[0])
    while one := _PARAMETER.match(header, place):
        quoted, token = one[2], one[3]
        found.setdefault(one[1].lower(), token if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        place = one.end()
    return found


def media_type(headers: Mapping[str, str]) -> str:
    """The content type without its parameters; JSON where there is none."""
    return headers.get("content-type", "application/json").partition(";")[0].strip().lower()
