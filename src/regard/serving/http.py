"""`create_server_app`: the routes of regard's own API, the page, and LibreTranslate's routes over the same queue."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from regard.pipelines.sentences import join
from regard.pipelines.translator import PairError
from regard.serving.libretranslate import LibreTranslate
from regard.serving.schemas import (
    CompleteAnswer,
    CompleteRequest,
    HealthAnswer,
    MediaAnswer,
    MediaQuery,
    ScoreAnswer,
    ScoreRequest,
    TranslateAnswer,
    TranslateRequest,
)
from regard.serving.service import Service, good, number, sentences
from regard.web.app import create_app
from regard.web.connection import late, read_body, while_connected
from regard.web.endpoints import Endpoint
from regard.web.limits import Limits
from regard.web.refusals import Refusal, body_of
from regard.web.schemas import Checked, checked, from_json, from_query, media_type
from regard.web.tokens import check_token

PAGE = Path(__file__).with_name("page.html")
EVENTS = "text/event-stream"
DRAWING = ("temperature", "top_k", "top_p", "min_p", "repetition", "no_repeat", "seed")


def create_server_app(
    models: Sequence[Any], limits: Limits | None = None, token: str | None = None, local: bool = False
) -> ASGIApp:
    """The application that serves models.

    Args:
        models: what `regard.load` returns.
        limits: of requests and the queue.
        token: that requests must bring; None for none.
        local: whether only requests whose header `Host` names this machine (127.0.0.1, localhost) are answered.

    Raises:
        ConfigError: as in `Service`; a token that no client could send, or an empty one.
    """
    limits = limits or Limits()
    if token is not None:
        check_token(token)
    service = Service(models, limits)
    routes = Routes(service)
    endpoints = [*routes.endpoints()]
    if service.of("translate"):
        endpoints += LibreTranslate(service, token).endpoints()
    return create_app("regard serve", endpoints, service.requests, limits, token, service.close, local)


class Routes:
    """The handlers of regard's own API.

    Args:
        service: the models and their queue.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.limits = service, service.limits

    def endpoints(self) -> list[Endpoint]:
        """Those of the tasks that the loaded models have."""
        tasks = {
            "translate": [
                Endpoint("POST", "/v1/translate", "Translate texts.", self.translate, TranslateRequest,
                         gives=TranslateAnswer),
                Endpoint("POST", "/v1/score", "The log-probabilities of given translations.", self.score, ScoreRequest,
                         gives=ScoreAnswer),
                Endpoint("GET", "/", "A page to try a translation.", self.page, media="text/html"),
            ],
            "complete": [
                Endpoint("POST", "/v1/complete", "Continue texts.", self.complete, CompleteRequest,
                         gives=CompleteAnswer)
            ],
            "caption": [
                Endpoint("POST", "/v1/caption", "A caption of a picture.", self.caption, file=("image/*",),
                         query=MediaQuery, gives=MediaAnswer)
            ],
            "transcribe": [
                Endpoint("POST", "/v1/transcribe", "A transcript of a recording.", self.transcribe, file=("audio/*",),
                         query=MediaQuery, gives=MediaAnswer)
            ],
        }  # fmt: skip
        own = [one for task, some in tasks.items() if self.service.of(task) for one in some]
        return [*own, Endpoint("GET", "/health", "Whether it works.", self.health, gives=HealthAnswer, open=True)]

    async def health(self, _: Request) -> Response:
        """The names of the models."""
        return JSONResponse({"status": "ok", "models": list(self.service.models)})

    async def page(self, _: Request) -> Response:
        """The page, the translators written into it."""
        translators = [
            {"name": one.name, "languages": list(one.bundle.languages)} for one in self.service.of("translate")
        ]
        data = json.dumps(translators).replace("<", "\\u003c")
        return HTMLResponse(PAGE.read_text("utf-8").replace('"{translators}"', data))

    async def translate(self, request: Request) -> Response:
        """Translate texts: the whole at once, or sentence by sentence."""
        given = await self._body(request, TranslateRequest)
        self.service.check("texts", given.texts)
        translator = self.service.model("translate", given.model)
        settings = {
            "beam": given.beam, "n_best": given.n_best, "record": given.alignment, "glossary": given.glossary or None,
            "prefix": given.prefix or None, "force": given.force or None, "forbid": given.forbid or None,
            "protect": given.protect or None,
        }  # fmt: skip
        if wants_events(request, given.stream):
            return await self._streamed(request, self._sentences(translator, given, settings))

        async def work() -> list[Any]:
            return await asyncio.gather(*await self.service.translate(translator, given.texts, True, **settings))

        found = good(await while_connected(request, work(), self.limits.seconds), "texts")
        return JSONResponse(self._translations(translator, found, given.alignment))

    async def _sentences(
        self, translator: Any, given: TranslateRequest, settings: dict[str, Any]
    ) -> AsyncIterator[tuple[str, Any]]:
        """An event for each finished sentence, then the whole."""
        language = translator.bundle.languages[0]
        whole = given.prefix or given.force or given.protect  # of the text, not of each of its sentences
        pieces = [[text] for text in given.texts] if whole else await sentences(given.texts, language)
        where = [(index, n) for index, some in enumerate(pieces) for n in range(len(some))]
        flat = [one for some in pieces for one in some]
        futures = await self.service.translate(translator, flat, True, **settings)
        place = dict(zip(futures, where, strict=True))
        end = asyncio.get_running_loop().time() + self.limits.seconds
        pending = set(futures)
        try:
            while pending:
                left = end - asyncio.get_running_loop().time()
                done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise late(self.limits.seconds)
                for future in sorted(done, key=lambda one: place[one]):
                    index, n = place[future]
                    (one,) = good([future.result()], f"texts[{index}].sentences", n)
                    yield "sentence", {"index": index, "sentence": n, "text": one.text}
            made = iter([future.result() for future in futures])
            found = []
            for text, some in zip(given.texts, pieces, strict=True):
                parts = [next(made) for _ in some]
                found.append(parts[0] if len(parts) == 1 else join(text, parts, given.n_best))
            yield "result", self._translations(translator, found, given.alignment)
        finally:
            for future in futures:
                future.cancel()

    def _translations(self, translator: Any, found: Sequence[Any], alignment: bool) -> dict[str, Any]:
        for one in found:
            self.service.count(translator.name, len(one.source_ids), len(one.ids))
        made = [
            {
                "text": one.text, "score": number(one.score), "log_prob": number(one.log_prob),
                "words": [
                    {"text": word.text, "log_prob": number(word.log_prob), "entropy": number(word.entropy)}
                    for word in one.words
                ],
                "alternatives": alternatives(one),
            }
            for one in found
        ]  # fmt: skip
        for one, answer in zip(found, made, strict=True) if alignment else ():
            seen = one.alignment
            answer["alignment"] = {"source": seen.source, "target": seen.target, "pairs": seen.pairs}
        return {"model": translator.name, "translations": made}

    async def score(self, request: Request) -> Response:
        """Score given translations."""
        given = await self._body(request, ScoreRequest)
        self.service.check("sources", given.sources)
        self.service.check("targets", given.targets)
        if len(given.sources) != len(given.targets):
            sentence = f"expected one for each of the {len(given.sources)} sources; got {len(given.targets)}"
            raise Refusal(422, f"targets: {sentence}")
        for field, texts in (("sources", given.sources), ("targets", given.targets)):
            for n, text in enumerate(texts):
                if not text.strip():
                    raise Refusal(422, f"{field}[{n}]: expected a text; got none")
        translator = self.service.model("translate", given.model)

        async def work() -> list[Any]:
            waiting = self.service.score(translator, given.sources, given.targets)
            return await asyncio.gather(*waiting, return_exceptions=True)

        found = await while_connected(request, work(), self.limits.seconds)
        for n, one in enumerate(found):
            if isinstance(one, PairError):  # its own number is that among the pairs computed together
                raise Refusal(422, f"{one.side}s[{n}]: {one.reason}") from one
        found = good(found, "sources")
        made = [
            {
                "log_prob": number(one.log_prob),
                "tokens": [
                    {"text": token, "log_prob": number(log_prob)}
                    for token, log_prob in zip(one.tokens, one.token_log_probs, strict=True)
                ],
            }
            for one in found
        ]
        return JSONResponse({"model": translator.name, "scores": made})

    async def complete(self, request: Request) -> Response:
        """Continue texts: the whole at once, or piece by piece."""
        given = await self._body(request, CompleteRequest)
        self.service.check("texts", given.texts)
        completer = self.service.model("complete", given.model)
        settings = {name: value for name in DRAWING if (value := getattr(given, name)) is not None}
        settings |= {"length": given.length, "stop": given.stop}
        streaming = wants_events(request, given.stream)
        if given.beam is not None and (streaming or set(settings) & set(DRAWING)):
            raise Refusal(
                422, f"beam: a beam search neither streams nor samples: leave out stream and {', '.join(DRAWING)}"
            )
        if given.beam is None and given.n_best is not None:
            raise Refusal(422, "n_best: only a search returns several outputs: give beam too")
        if streaming:
            if len(given.texts) > 1:
                raise Refusal(422, f"texts: a stream continues one text; got {len(given.texts)}")
            return await self._streamed(request, self._pieces(completer, given.texts[0], settings))
        if given.beam is not None:
            best = given.n_best or 1
            settings |= {"beam": max(given.beam, best), "n_best": best}

        async def work() -> list[Any]:
            return await asyncio.gather(*self.service.complete(completer, given.texts, **settings))

        found = good(await while_connected(request, work(), self.limits.seconds), "texts")
        for one in found:
            self.service.count(completer.name, len(one.source_tokens), len(one.ids))
        made = [
            {
                "text": one.text, "score": number(one.score), "log_prob": number(one.log_prob),
                "alternatives": alternatives(one),
            }
            for one in found
        ]  # fmt: skip
        return JSONResponse({"model": completer.name, "completions": made})

    async def _pieces(self, completer: Any, text: str, settings: dict[str, Any]) -> AsyncIterator[tuple[str, Any]]:
        """An event for each piece of text, then the whole."""
        loop, pieces, stopped = asyncio.get_running_loop(), asyncio.Queue[str | None](), threading.Event()

        def collect(piece: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        future = self.service.stream(completer, text, lambda: not stopped.is_set(), collect, **settings)
        future.add_done_callback(lambda _: pieces.put_nowait(None))
        end = loop.time() + self.limits.seconds
        whole = ""
        try:
            while True:
                try:
                    piece = await asyncio.wait_for(pieces.get(), end - loop.time())
                except TimeoutError:
                    raise late(self.limits.seconds) from None
                if piece is None:
                    break
                whole += piece
                yield "piece", {"index": 0, "text": piece}
            good([future.result()], "texts")
            yield "result", {"model": completer.name, "completions": [{"text": whole}]}
        finally:
            stopped.set()
            future.cancel()

    async def caption(self, request: Request) -> Response:
        """The caption of a picture."""
        return await self._media(request, "caption")

    async def transcribe(self, request: Request) -> Response:
        """The transcript of a recording."""
        return await self._media(request, "transcribe")

    async def _media(self, request: Request, task: str) -> Response:
        given = checked(MediaQuery, from_query(request.scope["query_string"]), strict=False)
        describer = self.service.model(task, given.model)
        file = await read_body(request, self.limits)
        if not file:
            raise Refusal(400, "the body is empty: expected the bytes of a file")
        beam = max(given.beam or describer.decoding.beam, given.n_best)

        async def work() -> Any:
            return await self.service.describe(describer, file, beam=beam, n_best=given.n_best)

        (one,) = good([await while_connected(request, work(), self.limits.seconds)], "")
        self.service.count(describer.name, 0, len(one.ids))
        return JSONResponse(
            {
                "model": describer.name, "text": one.text, "score": number(one.score),
                "log_prob": number(one.log_prob), "alternatives": alternatives(one),
                "pieces": [{"start": piece.start, "text": piece.text} for piece in one.pieces],
            }
        )  # fmt: skip

    async def _body(self, request: Request, kind: type[Checked]) -> Checked:
        """The checked body of a request."""
        if (got := media_type(request.headers)) != "application/json":
            raise Refusal(415, f"expected a body of type application/json; got {got[:80]}")
        return checked(kind, from_json(await read_body(request, self.limits)))

    async def _streamed(self, request: Request, events: AsyncIterator[tuple[str, Any]]) -> Response:
        """Server-sent events; what is refused before the first one is refused as any request."""
        first = await while_connected(request, _next(events), self.limits.seconds)

        async def lines() -> AsyncIterator[str]:
            async with aclosing(events):  # type: ignore[type-var]
                yield _event(*first)
                try:
                    async for kind, data in events:
                        yield _event(kind, data)
                except Refusal as refusal:
                    yield _event("error", body_of(refusal, plain=False))

        return StreamingResponse(lines(), media_type=EVENTS, headers={"Cache-Control": "no-store"})


async def _next(events: AsyncIterator[tuple[str, Any]]) -> tuple[str, Any]:
    return await anext(events)


def _event(kind: str, data: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def wants_events(request: Request, stream: bool) -> bool:
    """Whether a request asks for server-sent events."""
    return stream or EVENTS in request.headers.get("accept", "")


def alternatives(one: Any) -> list[dict[str, Any]]:
    """The other outputs of a result."""
    return [{"text": other.text, "score": number(other.score)} for other in one.alternatives]
