"""The page's own server: on the loopback address, for the visitor with its token; it reads no file for a request."""

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from regard.errors import RegardError
from regard.explorer.questions import Asked, Atlas, Believe, Look, WhatIf, atlas, how_faithful, look, what_if
from regard.figures.page import Page
from regard.storage import parse_json
from regard.web.connection import read_body
from regard.web.limits import Limits
from regard.web.refusals import Refusal, answer_of
from regard.web.tokens import is_token

QUESTIONS: dict[str, tuple[type[Asked], Callable[..., dict[str, Any]]]] = {
    "look": (Look, look), "what-if": (WhatIf, what_if), "believe": (Believe, how_faithful),
    "atlas": (Atlas, atlas),
}  # fmt: skip
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


class GivenWay(Exception):
    """A test in the background stops for another question; it is no fault, and the page asks again."""


def create_explorer(
    page: Page, pipeline: Any | None, token: str | None = None, *, against: Sequence[Any] = (),
    steps: Mapping[int, Any] | None = None,
) -> tuple[ASGIApp, str]:  # fmt: skip
    """The application of a page, and the token that its address brings.

    Args:
        page: what is shown first.
        pipeline: what answers the page's questions; None where there is no model of texts to ask.
        token: a new one by default.
        against: further models that another text is shown of, as they are on the page.
        steps: checkpoints of the model's training, likewise.
    """
    own = token or secrets.token_urlsafe(24)
    limits = Limits(body=64 * 1024)
    turn = threading.Lock()  # one question at a time: a change of a model's attention is seen by all that run it
    waiting = 0  # questions that a test in the background would hold up
    counting = threading.Lock()
    asks = list(QUESTIONS) if pipeline is not None else []

    async def show(request: Request) -> Response:
        if not is_token(request.query_params.get("token", ""), own):
            return HTMLResponse("<p>This page opens with the address that regard printed.", 401, HEADERS)
        return HTMLResponse(page.html({"token": own, "asks": asks} if asks else None), headers=HEADERS)

    def answer(name: str, body: bytes) -> dict[str, Any]:
        kind, work = QUESTIONS[name]
        work = partial(work, against=against, steps=steps) if work is look else work
        try:
            asked = kind.model_validate(parse_json(body))
        except ValueError as error:
            raise Refusal(422, _first_fault(error)) from error
        if isinstance(asked, Believe) and asked.yields:
            with turn:
                try:
                    give_way()
                    return answered(partial(work, pipeline, asked, between=give_way))
                except GivenWay:
                    return {"later": True}
        nonlocal waiting
        with counting:
            waiting += 1
        turn.acquire()
        with counting:
            waiting -= 1
        try:
            return answered(partial(work, pipeline, asked))
        finally:
            turn.release()

    def answered(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return work()
        except RegardError as error:
            raise Refusal(422, str(error)) from error

    def give_way() -> None:
        if waiting:
            raise GivenWay

    async def question(request: Request) -> Response:
        name = request.path_params["name"]
        try:
            kind, _, given = request.headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not is_token(given, own):
                raise Refusal(401, "this page's questions bring the token of its address")
            if name not in asks:
                raise Refusal(404, f"no such question: {name[:40]}")
            body = await read_body(request, limits)
            return JSONResponse(await run_in_threadpool(answer, name, body), headers=HEADERS)
        except Refusal as refusal:
            return answer_of(refusal, False)

    app = Starlette(
        routes=[Route("/", show), Route("/api/{name}", question, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False)],
    )
    return app, own


def _first_fault(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the question'}: {first['msg']}"
    return "the question is no JSON object"
