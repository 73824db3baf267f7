"""Checked bodies: every refusal is one sentence that says what was expected, what came, and where."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import Field

from regard.web.refusals import Refusal
from regard.web.schemas import RequestBody, checked, from_form, from_json, from_query


class Asked(RequestBody):
    texts: list[str]
    beam: int = Field(1, ge=1, le=8)
    q: str | list[str] = ""
    words: dict[str, str] | None = None
    fast: bool = False


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "texts is missing"),
        ({"texts": "a"}, "texts: expected a list; got 'a'"),
        ({"texts": ["a", None]}, "texts[1]: expected a string; got null"),
        ({"texts": [], "beam": "2"}, "beam: expected a whole number; got '2'"),
        ({"texts": [], "beam": True}, "beam: expected a whole number; got true"),
        ({"texts": [], "beam": 9}, "beam: expected less than or equal to 8; got 9"),
        ({"texts": [], "beem": 9}, "unknown field 'beem': known are beam, fast, q, texts, words"),
        ({"texts": [], "q": 5}, "q: expected a string or a list; got 5"),
        ({"texts": [], "q": ["a", {}]}, "q[1]: expected a string; got an object"),
        ({"texts": [], "words": {"a": 1.5}}, "words.a: expected a string; got 1.5"),
        ({"texts": [], "fast": "yes"}, "fast: expected true or false; got 'yes'"),
        ([1], "the body: expected an object; got a list of 1"),
        (None, "the body: expected an object; got null"),
    ],
)
def test_what_is_wrong_is_one_sentence(values: Any, sentence: str) -> None:
    with pytest.raises(Refusal) as refused:
        checked(Asked, values)
    assert (refused.value.status, refused.value.message) == (422, sentence)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "the body is empty: expected a JSON object"),
        (b"{", "the body is not JSON: "),
        (b'{"a": NaN}', "the body is not JSON: "),
        (b'{"a": "\\ud800"}', "the body is not JSON: "),
        (b"[" * 100_000, "the body is not JSON: "),
        (b'"\xff"', "the body: not UTF-8 (byte 0xff at position 1)"),
    ],
)
def test_what_is_no_json_is_refused(raw: bytes, sentence: str) -> None:
    with pytest.raises(Refusal) as refused:
        from_json(raw)
    assert refused.value.status == 400
    assert refused.value.message.startswith(sentence)


def test_forms_of_both_kinds_and_parameters() -> None:
    wanted = {"q": ["a é", "b"], "source": "fr"}
    assert from_form(b"q=a+%C3%A9&q=b&source=fr", "application/x-www-form-urlencoded") == wanted
    parts = [("q", "a é"), ("q", "b"), ("source", "fr")]
    raw = "".join(f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in parts)
    assert from_form((raw + "--x--\r\n").encode(), "multipart/form-data; boundary=x") == wanted
    assert from_query(b"q=a%20%C3%A9&q=b&source=fr") == wanted


@pytest.mark.parametrize(
    "read",
    [
        lambda: from_form(b"q=%ff", "application/x-www-form-urlencoded"),
        lambda: from_form(b"q=\xff", "application/x-www-form-urlencoded"),
        lambda: from_form(b"&".join([b"q=1"] * 2000), "application/x-www-form-urlencoded"),
        lambda: from_query(b"q=%ff"),
    ],
)
def test_forms_that_cannot_be_read_are_refused(read: Callable[[], Any]) -> None:
    with pytest.raises(Refusal) as refused:
        read()
    assert refused.value.status == 400


@pytest.mark.parametrize("raw", [b"", b"--", b"--x", b"nothing", b"--x\r\nA: b\r\n\r\nq", b"--x\r\n" * 9])
def test_what_is_no_whole_form_is_refused_and_nothing_is_printed(raw: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data", 'multipart/form-data; boundary="'):
        with pytest.raises(Refusal, match="no whole form"):
            from_form(raw, kind)
    assert capfd.readouterr() == ("", "")


def test_a_part_without_a_name_is_no_field() -> None:
    assert from_form(b"--x\r\nA: b\r\n\r\n\xff\r\n--x--", "multipart/form-data; boundary=x") == {}


@pytest.mark.parametrize(
    "head",
    [
        "Content-Disposition: " + "(" * 100_000,
        "Content-Disposition: form-data; name=" + "(" * 50_000 + ")" * 50_000,
        "Content-Disposition: form-data; " + "a=b; " * 1_000,
        'Content-Disposition: form-data; name="' + '\\"' * 50_000,
        "\r\n".join(f"H{n}: a" for n in range(5_000)),
        'Content-Disposition: form-data; name="q"\r\nContent-Transfer-Encoding: base64',
    ],
)
def test_parts_with_long_headers_are_refused_at_once(head: str) -> None:
    with pytest.raises(Refusal, match="no whole form in UTF-8"):
        from_form(f"--x\r\n{head}\r\n\r\na\r\n--x--\r\n".encode(), "multipart/form-data; boundary=x")


def test_parts_within_parts_are_no_fields() -> None:
    nested = "".join(f"--b{n}\r\nContent-Type: multipart/mixed; boundary=b{n + 1}\r\n\r\n" for n in range(9_000))
    assert from_form(f"{nested}\r\n--b0--".encode(), "multipart/form-data; boundary=b0") == {}


def test_a_part_as_browsers_send_it() -> None:
    raw = (
        '--a b\r\nContent-Type: text/plain\r\ncontent-disposition: form-data; filename="x;y.txt"; '
        'name="q \\"é\\""\r\n\r\nline 1\r\n\r\n--a line\r\n--a b\r\nContent-Disposition: form-data; name=r\r\n\r\n'
        "\r\n--a b--\r\nwhat comes behind"
    )
    assert from_form(raw.encode(), 'multipart/form-data; charset=utf-8; boundary="a b"') == {
        'q "é"': "line 1\r\n\r\n--a line",
        "r": "",
    }
    many = '--x\r\nContent-Disposition: form-data; name="q"\r\n\r\na\r\n' * 1_001 + "--x--\r\n"
    with pytest.raises(Refusal, match="at most 1000 fields"):
        from_form(many.encode(), "multipart/form-data; boundary=x")
