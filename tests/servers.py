"""Servers for tests, on free ports of this machine."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

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
