"""The application around a table of endpoints: the token, its own routes, refusals in one shape."""

import jaxtyping
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from regard.errors import ConfigError
from regard.web.app import create_app
from regard.web.endpoints import Endpoint
from regard.web.limits import Limits
from regard.web.metrics import RequestMetrics
from regard.web.schemas import RequestBody
from regard.web.tokens import check_token


class Named(RequestBody):
    name: str
    """Of a thing."""


async def fine(_: Request) -> Response:
    return JSONResponse({"fine": True})


async def broken(_: Request) -> Response:
    raise ValueError("a secret of the server")


async def nothing() -> None:
    pass


ENDPOINTS = [
    Endpoint("GET", "/fine", "A fine one.", fine, open=True),
    Endpoint("POST", "/broken", "A broken one.", broken, Named),
    Endpoint("POST", "/plain", "A plain one.", broken, plain=True),
]


def made(token: str | None = None, local: bool = False) -> TestClient:
    app = create_app("things", ENDPOINTS, RequestMetrics(), Limits(), token, nothing, local)
    return TestClient(app, raise_server_exceptions=False)


def test_unknown_routes_and_methods_are_refused_in_the_shape() -> None:
    client = made()
    answer = client.get("/fin")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "/fine" in answer.json()["error"]["message"]
    answer = client.get("/broken")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json() == {"error": {"code": "method_not_allowed", "message": "/broken takes POST; got GET"}}
    assert client.get("/plain").json() == {"error": "/plain takes POST; got GET"}
    assert client.get("/fine/").status_code == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LocalHost:8000", 200), ("127.0.0.1:5", 200), ("127.3.2.1", 200), ("[::1]:80", 200),
        ("a.localhost.", 200), ("rebound.example:8000", 403), ("127.0.0.1.example", 403), ("localhost@evil", 403),
        ("192.168.0.1", 403), ("[::2]:80", 403), ("notlocalhost", 403),
    ],
)  # fmt: skip
def test_only_names_of_this_machine(host: str, status: int) -> None:
    client = made(local=True)
    answer = client.get("/metrics", headers={"Host": host})
    assert answer.status_code == status
    assert client.get("/fine", headers={"Host": host}).status_code == 200  # it is open
    if status == 403:
        assert answer.json()["error"]["code"] == "forbidden"
        assert host in answer.json()["error"]["message"]
        assert "Host" in client.post("/plain", headers={"Host": host}).json()["error"]
    assert made().get("/metrics", headers={"Host": host}).status_code == 200


def test_a_failure_says_nothing_of_the_server() -> None:
    client = made()
    answer = client.post("/broken")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert client.post("/plain").json() == {"error": answer.json()["error"]["message"]}


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Basic right", "right", "Bearer right wrong"])
def test_without_the_token_all_but_open_routes_are_refused(header: str | None) -> None:
    client = made("right")
    headers = {} if header is None else {"Authorization": header}
    for path in ("/metrics", "/openapi.json", "/docs", "/none", "/"):
        answer = client.get(path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/fine", headers=headers).status_code == 200
    assert client.get("/docs", headers={"Authorization": "bearer right"}).status_code == 200


def test_the_description_and_its_page_come_from_the_table() -> None:
    client = made()
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/fine", "/broken", "/plain", "/metrics", "/openapi.json", "/docs"}
    assert described["components"]["schemas"]["Named"]["properties"]["name"]["description"] == "Of a thing."
    page = client.get("/docs")
    assert "Of a thing." in page.text
    assert not any(word in page.text for word in ("http://", "https://", "src="))
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_requests_are_measured_by_route_and_status() -> None:
    client = made()
    for path in ("/fine", "/fine", "/a", "/b"):
        client.get(path)
    text = client.get("/metrics").text
    assert 'regard_requests_total{method="GET",route="/fine",status="200"} 2.0' in text
    assert 'regard_requests_total{method="any",route="other",status="404"} 2.0' in text
    assert 'regard_request_seconds_count{route="/fine"} 2.0' in text


def test_limits_are_numbers_above_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for wrong in ({"seconds": "60"}, {"body": None}, {"texts": 9.5}, {"batch": -5}, {"connections": 0},
                  {"seconds": float("nan")}, {"batch_characters": True}):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"Limits\.{next(iter(wrong))} must be a (whole|finite) number above 0"):
            Limits(**wrong)


def test_a_token_that_everybody_has_is_refused() -> None:
    for token in ("", "two words", "é"):
        with pytest.raises(ConfigError, match="token: expected one token of printable ASCII"):
            check_token(token)
    assert check_token("x-9") == "x-9"
