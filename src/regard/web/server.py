"""The socket and the life of a server: it says when it is ready, cuts off slow clients, and ends what it took."""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from regard.errors import RegardError
from regard.process import allow_open_files
from regard.signals import EXIT_OF_SIGNALS, on_signals
from regard.web.limits import Limits
from regard.web.refusals import Refusal, body_of

BACKLOG = 512  # connections that wait to be accepted
FILES = 64  # that a process may need besides its connections
failures = logging.getLogger("regard.web.failures")  # of the application; what clients do wrong is answered, not logged
failures.setLevel(logging.ERROR)
LEAST_RATE = 1_000  # bytes of an answer a second that a client must take


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet.

    Raises:
        RegardError: the address is in use, or not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except BaseException:  # a port beyond the last is an OverflowError
            made.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RegardError(f"cannot listen at {host} port {port}: {why[:1].lower() + why[1:]}") from error
    return made


def run(app: ASGIApp, sock: socket.socket, limits: Limits, ready: str) -> None:
    """Serve an application until SIGTERM, SIGINT or SIGHUP; what has begun by then is finished.

    A further SIGINT ends the process at once, with exit code 130; the other signals, repeated, change nothing.

    Args:
        app: the application.
        sock: of `bind`; closed at the end.
        limits: of connections and times; fewer connections where the process may not open as many files.
        ready: printed to standard error, with the address, once requests are taken.

    Raises:
        RegardError: another program listens at the address meanwhile.
    """
    host, port = sock.getsockname()[:2]
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise RegardError(f"cannot listen at {host} port {port}: address already in use") from error
    most = max(1, allow_open_files(limits.connections + FILES) - FILES)
    limits = replace(limits, connections=min(limits.connections, most))
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server(app, limits, f"{ready} at {address}").run([sock])


def server(app: ASGIApp, limits: Limits, line: str) -> "Announced":
    """uvicorn with limits for an application.

    Args:
        app: the application.
        limits: of connections and times.
        line: printed to standard error once requests are taken.
    """
    config = uvicorn.Config(
        app, http=protocol(limits), ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=int(limits.seconds + limits.body_seconds),
        backlog=1,  # that asyncio accepts before the limit of connections is looked at
    )  # fmt: skip
    return Announced(config, line)


class Announced(uvicorn.Server):
    """A server that prints one line once it takes requests."""

    def __init__(self, config: uvicorn.Config, line: str) -> None:
        super().__init__(config)
        self.line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and say so."""
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(BACKLOG)  # asyncio has listened with as few as it accepts at once
        print(f"regard: {self.line}", file=sys.stderr, flush=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal; unlike uvicorn, on SIGHUP too, and without raising it again at the end."""
        with on_signals(self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Take no more; a SIGINT that comes while the rest is finished ends the process."""
        if self.should_exit and sig == signal.SIGINT:
            os._exit(EXIT_OF_SIGNALS + sig)  # uvicorn would cancel the answers, each with a traceback
        self.should_exit = True


def protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's HTTP/1.1 with the limits that it lacks: times for headers and for reading an answer, and a number of
    connections.

    Its own refusals, of what is no HTTP, get the shape of all others. A client that closes its side for writing is
    gone, as in uvicorn: one that has closed the connection looks the same until something is written to it, and a
    search would go on for it.
    """

    class Limited(H11Protocol):
        deadline: asyncio.TimerHandle | None = None
        reading: asyncio.TimerHandle | None = None

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.logger = failures  # uvicorn's own prints a line for every request that is no HTTP: without end

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # told of every byte that the client does not take
            self._watch()
            if len(self.connections) > limits.connections:
                self._refuse(Refusal(503, "too many connections: try again later", headers={"Retry-After": "1"}))

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            self._unwatch_reading()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_reading()

        def resume_writing(self) -> None:
            self._unwatch_reading()
            super().resume_writing()

        def data_received(self, data: bytes) -> None:
            if self.deadline is None and self._is_idle():
                self._watch()
            super().data_received(data)
            if not self._is_idle():
                self._unwatch()

        def _is_idle(self) -> bool:
            """Whether no request is being answered: bytes that come are of a header, or of a body nothing waits for."""
            return self.cycle is None or self.cycle.response_complete

        def _watch(self) -> None:
            self.deadline = self.loop.call_later(limits.header_seconds, self._late)

        def _unwatch(self) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

        def _watch_reading(self) -> None:
            self._unwatch_reading()
            waiting = self.transport.get_write_buffer_size()
            self.reading = self.loop.call_later(limits.read_seconds, self._check_reading, waiting)

        def _unwatch_reading(self) -> None:
            if self.reading is not None:
                self.reading.cancel()
                self.reading = None

        def _check_reading(self, before: int) -> None:
            """Cut off a client that reads too little of its answer, and would hold its connection and delay a stop."""
            self.reading = None
            if before - self.transport.get_write_buffer_size() < LEAST_RATE * limits.read_seconds:
                self.transport.abort()
            else:
                self._watch_reading()

        def _late(self) -> None:
            self.deadline = None
            if self.conn.our_state is h11.IDLE and not self.transport.is_closing():
                self._refuse(Refusal(408, f"no whole header arrived within {limits.header_seconds:g} seconds"))
            else:
                self.transport.close()

        def send_400_response(self, msg: str) -> None:
            self._refuse(Refusal(400, f"this is no HTTP/1.1 request that can be read: {msg}"))

        def _refuse(self, refusal: Refusal) -> None:
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE) or self.transport.is_closing():
                self.transport.close()
                return
            if self.cycle is not None:  # what was begun must not answer too
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            body = json.dumps(body_of(refusal, plain=False)).encode()
            headers: list[Any] = [("content-type", "application/json"), ("content-length", str(len(body)))]
            headers += [("connection", "close"), *(refusal.headers or {}).items()]
            response = h11.Response(status_code=refusal.status, headers=headers)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Limited
