"""Bodies and parameters: from bytes to a checked object, or one sentence: what was expected, what came, and where."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import parse_qsl

import pydantic_core
from pydantic import BaseModel, ConfigDict, ValidationError
from python_multipart.multipart import MultipartParser, parse_options_header

from regard.errors import nearest, not_utf8
from regard.web.refusals import Refusal

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

EXPECTED = {  # pydantic's names of errors
    "string_type": "a string", "int_type": "a whole number", "int_from_float": "a whole number",
    "int_parsing": "a whole number", "float_type": "a number", "float_parsing": "a number",
    "bool_type": "true or false", "bool_parsing": "true or false", "list_type": "a list", "dict_type": "an object",
    "model_type": "an object",
}  # fmt: skip
FIELDS = 1000  # of a form
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what clients do wrong is answered, not printed


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
        raise Refusal(400, f"the body is no whole form in UTF-8 of at most {FIELDS} fields") from error
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
    """The fields of a multipart form (RFC 7578)."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    form = Fields()
    calls = {name: getattr(form, name) for name in dir(form) if name.startswith("on_")}
    parser = MultipartParser(boundary, cast("MultipartCallbacks", calls))
    parser.write(raw)
    if not form.ended:
        raise ValueError("a form without an end")
    return form.found


class Fields:
    """What python-multipart calls while it reads a form: it reads the largest body that is taken in milliseconds,
    whatever is in it, where Python's parsers of mail take minutes.

    Attributes:
        found: the fields so far.
        ended: whether the form's end was read.
    """

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []
        self.ended = False

    def on_part_begin(self) -> None:
        """A part has no headers and no value at first."""
        self._headers: dict[bytes, bytes] = {}
        self._name, self._rest, self._value = bytearray(), bytearray(), bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        """Keep a part of a header's name."""
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        """Keep a part of a header's value."""
        self._rest += data[start:end]

    def on_header_end(self) -> None:
        """Keep a header."""
        self._headers[bytes(self._name).lower()] = bytes(self._rest).strip()
        self._name, self._rest = bytearray(), bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Keep a part of a value."""
        self._value += data[start:end]

    def on_part_end(self) -> None:
        """Keep a field.

        Raises:
            ValueError: it is not UTF-8, is in another encoding, or is one too many.
        """
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in (b"7bit", b"8bit", b"binary"):
            raise ValueError("a part in another encoding")
        options = parse_options_header(self._headers.get(b"content-disposition", b""))[1]
        if b"name" in options:
            name = options[b"name"].decode("utf-8")
            self.found.append((name, decoded(bytes(self._value), f"the field {name[:80]}")))
        if len(self.found) > FIELDS:
            raise ValueError("too many fields")

    def on_end(self) -> None:
        """Note the end."""
        self.ended = True


def media_type(headers: Mapping[str, str]) -> str:
    """The content type without its parameters; JSON where there is none."""
    return headers.get("content-type", "application/json").partition(";")[0].strip().lower()
