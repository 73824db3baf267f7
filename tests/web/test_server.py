"""The socket: slow clients, what is no HTTP, large bodies while they are sent, too many connections."""

import json
import socket
import time
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from regard.errors import RegardError
from regard.web.app import create_app
from regard.web.connection import read_body
from regard.web.endpoints import Endpoint
from regard.web.limits import Limits
from regard.web.metrics import RequestMetrics
from regard.web.server import bind
from servers import serving

LIMITS = Limits(body=1000, header_seconds=0.4, body_seconds=0.5, linger_seconds=1.0, connections=5)


async def length(request: Request) -> Response:
    return JSONResponse({"bytes": len(await read_body(request, LIMITS))})


async def nothing() -> None:
    pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    endpoints = [Endpoint("POST", "/length", "The length of a body.", length)]
    with serving(create_app("test", endpoints, RequestMetrics(), LIMITS, None, nothing), LIMITS) as port:
        yield port


def heard(sock: socket.socket) -> tuple[int, dict]:
    """The status and the JSON of the answer on a socket."""
    sock.settimeout(5)
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += (got := sock.recv(4096))
        assert got, raw
    head, _, body = raw.partition(b"\r\n\r\n")
    (size,) = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while len(body) < size:
        body += sock.recv(4096)
    return int(head.split()[1]), json.loads(body)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_body_is_read(port: int) -> None:
    with connect(port) as sock:
        for _ in range(2):
            sock.sendall(b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
            assert heard(sock) == (200, {"bytes": 3})


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_large_body_is_refused_before_it_is_sent_and_while_it_is(port: int, version: bytes) -> None:
    with connect(port) as sock:
        sock.sendall(b"POST /length HTTP/%b\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n" % version)
        status, answer = heard(sock)
        assert (status, answer["error"]["code"]) == (413, "too_large")
        assert "1,000 bytes" in answer["error"]["message"]
        sock.sendall(b"x" * 200_000)  # the connection still takes what comes: the answer is not lost by a reset
    with connect(port) as sock:
        sock.sendall(b"POST /length HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5000000\r\n\r\n")
        assert heard(sock)[0] == 413


def test_a_body_of_no_announced_length_is_refused_while_it_is_sent(port: int) -> None:
    with connect(port) as sock:
        sock.sendall(b"POST /length HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            sock.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")
        assert heard(sock)[0] == 413
        sock.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")


def test_slow_clients_are_cut_off(port: int) -> None:
    with connect(port) as sock:
        start = time.monotonic()
        sock.sendall(b"POST /length HTTP/1.1\r\nHo")
        for _ in range(3):
            time.sleep(0.1)
            sock.sendall(b"x")
        status, answer = heard(sock)
        assert (status, answer["error"]["code"]) == (408, "timeout")
        assert time.monotonic() - start < 2
        assert sock.recv(10) == b""
    with connect(port) as sock:
        sock.sendall(b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab")
        assert heard(sock)[0] == 408
        sock.settimeout(3)
        assert sock.recv(10) == b""
    with connect(port) as sock:  # a further request on a connection that was used
        sock.sendall(b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na")
        assert heard(sock)[0] == 200
        sock.sendall(b"POST /len")
        assert heard(sock)[0] == 408


def test_a_client_that_says_nothing_is_cut_off(port: int) -> None:
    with connect(port) as sock:
        assert heard(sock)[0] == 408


def test_what_is_no_http_gets_the_shape_of_all_refusals(port: int) -> None:
    for raw in (b"\x16\x03\x01\x02\x00\x01\n\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        with connect(port) as sock:
            sock.sendall(raw)
            status, answer = heard(sock)
            assert (status, answer["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01 is no HTTP\r\n\r\n", 400),
        (b"GET /openapi.json HTTP/1.1\r\n\r\n", 400),
        (b"POST /length HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /openapi.json HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /none HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
    ],
)
def test_no_client_fills_the_log(port: int, request_: bytes, status: int, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        with connect(port) as sock:
            sock.sendall(request_)
            assert f"HTTP/1.1 {status}".encode() in sock.recv(20)
            sock.shutdown(socket.SHUT_WR)
    assert [record.getMessage() for record in caplog.records] == []


def test_too_many_connections_are_refused(port: int) -> None:
    socks = [connect(port) for _ in range(5)]
    try:
        with connect(port) as sock:
            assert heard(sock)[0] == 503
    finally:
        for sock in socks:
            sock.close()
        time.sleep(0.1)


def test_an_address_in_use_and_one_of_another_machine_are_refused_in_one_sentence() -> None:
    with bind("127.0.0.1", 0) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(RegardError, match=rf"^cannot listen at 127.0.0.1 port {port}: address already in use$"):
            bind("127.0.0.1", port)
    with pytest.raises(RegardError, match=r"cannot listen at 203.0.113.7 port 80: "):
        bind("203.0.113.7", 80)


def read(sock: socket.socket) -> int:
    """The number of bytes until the end."""
    size = 0
    while some := len(sock.recv(2**16)):
        size += some
    return size


def test_a_client_that_does_not_read_its_answer_is_cut_off() -> None:
    limits, size = Limits(read_seconds=0.3), 20_000_003

    async def large(_: Request) -> Response:
        return Response(b"x" * size)

    app = create_app("test", [Endpoint("GET", "/", "A large answer.", large)], RequestMetrics(), limits, None, nothing)
    with serving(app, limits) as port:
        with connect(port) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(2)
            assert read(sock) < size  # what the system holds of it, then the end
        with connect(port) as sock:  # one that reads gets all of it
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert read(sock) > size
