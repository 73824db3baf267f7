"""An ASGI application from a table of endpoints, behind one gate: the token, the metrics, what is left of a body."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regard import __version__
from regard.errors import shown
from regard.web.endpoints import Endpoint, openapi, page
from regard.web.limits import Limits
from regard.web.metrics import RequestMetrics
from regard.web.refusals import Refusal, answer_of
from regard.web.tokens import is_loopback, is_token

SAFETY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        b"img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
]
logger = logging.getLogger("regard.web")


def create_app(
    title: str, endpoints: Sequence[Endpoint], metrics: RequestMetrics, limits: Limits, token: str | None,
    close: Callable[[], Awaitable[None]], local: bool = False,
) -> ASGIApp:  # fmt: skip
    """The application that serves a table of endpoints, and its own: /metrics, /openapi.json and /docs.

    Args:
        title: of its description.
        endpoints: the table.
        metrics: of its requests.
        limits: of its requests.
        token: that every request must bring, but those to endpoints that are open; None for none.
        close: awaited when the server stops.
        local: whether requests must ask for this machine by a name of its own (127.0.0.1, localhost): a page in a
            browser may make another name point here (DNS rebinding), and would read the answers.
    """

    async def measured(_: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def described(_: Request) -> Response:
        return JSONResponse(openapi(whole, title, __version__, token is not None))

    async def shown(_: Request) -> Response:
        return HTMLResponse(page(whole, title))

    own = [
        Endpoint("GET", "/metrics", "Measurements for Prometheus.", measured, media="text/plain"),
        Endpoint("GET", "/openapi.json", "This description, for programs.", described),
        Endpoint("GET", "/docs", "This description, as a page.", shown, media="text/html"),
    ]
    whole = [*endpoints, *own]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await close()

    plain = {one.path for one in endpoints if one.plain}

    async def refused(request: Request, error: Exception) -> Response:
        refusal = error if isinstance(error, Refusal) else Refusal(500, "the server failed; its log says why")
        return answer_of(refusal, request.url.path in plain)

    async def not_routed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path, allowed = request.url.path, (error.headers or {}).get("Allow", "")
        if error.status_code == 405:
            refusal = Refusal(405, f"{path} takes {allowed}; got {request.method}", headers={"Allow": allowed})
        else:
            known = ", ".join(dict.fromkeys(one.path for one in whole))
            refusal = Refusal(error.status_code, f"no such route: {path[:80]}; there are {known}")
        return await refused(request, refusal)

    methods: dict[str, list[str]] = {}
    for one in whole:
        methods.setdefault(one.path, []).append(one.method)
    routes = [Route(one.path, one.handle, methods=[one.method]) for one in whole]
    handlers: dict[Any, Any] = {HTTPException: not_routed, Refusal: refused, Exception: refused}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    return Gate(app, whole, metrics, limits, token, local)


class Gate:
    """The outermost application: refuses what may not ask, measures, and reads the rest of a body behind an answer.

    A connection that is closed while its client still sends is reset, and the answer on it may be lost: so what is left
    of a body is read and dropped, for a limited time.

    Args:
        app: the application within.
        endpoints: all of them; requests to other paths are measured together.
        metrics: of the requests.
        limits: how long the rest of a body is read.
        token, local: as in `create_app`.
    """

    def __init__(
        self, app: ASGIApp, endpoints: Sequence[Endpoint], metrics: RequestMetrics, limits: Limits, token: str | None,
        local: bool,
    ) -> None:  # fmt: skip
        self.app, self.metrics, self.limits, self.token, self.local = app, metrics, limits, token, local
        self.routes = {one.path: one for one in endpoints}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, read = perf_counter(), 499, False
        route = self.routes.get(scope["path"])

        async def receiving() -> Message:
            nonlocal read
            message = await receive()
            read = read or not message.get("more_body", False)
            return message

        async def rest() -> None:
            while not read:
                await receiving()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *SAFETY]
            elif not message.get("more_body", False) and not read:
                await send({**message, "more_body": True})
                try:
                    await asyncio.wait_for(rest(), self.limits.linger_seconds)
                except TimeoutError:
                    logger.info("the rest of a body was not read")
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        scope.setdefault("state", {})["allowed"] = allowed = self._is_allowed(scope)
        try:
            if self.local and not (route is not None and route.open) and (host := _foreign_host(scope)):
                await answer_of(elsewhere(host), route is not None and route.plain)(scope, receiving, sending)
            elif allowed or (route is not None and (route.open or route.plain)):
                await self.app(scope, receiving, sending)
            else:
                await answer_of(unauthorized(), False)(scope, receiving, sending)
        finally:
            method = scope["method"] if route else "any"
            known = method in ("GET", "POST", "HEAD", "any")
            seconds = perf_counter() - start
            self.metrics.answered(route.path if route else "other", method if known else "other", status, seconds)

    def _is_allowed(self, scope: Scope) -> bool:
        """Whether the header brings the token, where there is one."""
        if self.token is None:
            return True
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        kind, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        return kind.lower() == "bearer" and is_token(token.strip(), self.token)


def _foreign_host(scope: Scope) -> str:
    """The host that a request asks for, where it is no name of this machine; empty where it is one, or is not given."""
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    host = re.sub(r":\d*$", "", given[0]).removeprefix("[").removesuffix("]").rstrip(".").lower() if given else ""
    return "" if not host or is_loopback(host) or host.endswith(".localhost") else given[0]


def elsewhere(host: str) -> Refusal:
    """The refusal of a request for another machine's name."""
    return Refusal(
        403, f"this server has no token, and answers to localhost and 127.0.0.1 alone; got Host: {shown(host)}; "
        "--token-file lets it answer to other names",
    )  # fmt: skip


def unauthorized() -> Refusal:
    """The refusal of a request without the token."""
    sentence = "this server asks for its token: send the header Authorization: Bearer TOKEN"
    return Refusal(401, sentence, headers={"WWW-Authenticate": "Bearer"})
