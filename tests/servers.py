"""Servers for tests, on free ports of this machine."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from starlette.types import ASGIApp

from regard.web.limits import Limits
from regard.web.server import bind, server


@contextlib.contextmanager
def serving(app: ASGIApp, limits: Limits | None = None) -> Iterator[int]:
    """Serve on a free port, which is given."""
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        made = server(app, limits or Limits(), "ready")
        thread = threading.Thread(target=made.run, args=([sock],))
        thread.start()
        try:
            wait_until(lambda: made.started)
            yield port
        finally:
            made.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until it is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


@contextlib.contextmanager
def served(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server as a process of its own, and its port."""
    command = [sys.executable, "-m", "regard", "serve", *map(str, arguments), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith("regard: serving "), line
            yield process, int(line.strip().rpartition(":")[2])
        finally:
            process.kill()


def ask(port: int, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """The status and the JSON of an answer; a body is posted."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        raw = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, raw, headers or {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def text_of(port: int, path: str) -> str:
    """A page of a server."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()
