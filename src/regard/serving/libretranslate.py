"""LibreTranslate's routes, for its clients: POST /translate, GET /languages, POST /detect."""

import asyncio
from collections import defaultdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from regard.serving.languages import COMMON, detect, language_name, pairs_of
from regard.serving.markup import Markup
from regard.serving.schemas import (
    DetectAnswer,
    DetectRequest,
    KeyFields,
    LanguageAnswer,
    LibreTranslateAnswer,
    LibreTranslateRequest,
)
from regard.serving.service import Service, good
from regard.web.app import unauthorized
from regard.web.connection import read_body, while_connected
from regard.web.endpoints import Endpoint
from regard.web.refusals import Refusal
from regard.web.schemas import Checked, checked, from_form, from_json, from_query, media_type
from regard.web.tokens import is_token

LEAST = 1.0  # percent of confidence of a language that is listed beside the most probable one


class LibreTranslate:
    """The handlers of LibreTranslate's routes.

    Args:
        service: the models and their queue.
        token: the server's, which these routes also take as the field api_key; None for none.
    """

    def __init__(self, service: Service, token: str | None) -> None:
        self.service, self.token = service, token
        self.pairs = pairs_of(service.of("translate"))
        self.codes = sorted({code for pair in self.pairs for code in pair})

    def endpoints(self) -> list[Endpoint]:
        """The table of them."""
        return [
            Endpoint("POST", "/translate", "Translate, as LibreTranslate does.", self.translate, LibreTranslateRequest,
                     form=True, gives=LibreTranslateAnswer, plain=True),
            Endpoint("GET", "/languages", "The languages, as LibreTranslate lists them.", self.languages,
                     query=KeyFields, gives=LanguageAnswer, plain=True),
            Endpoint("POST", "/detect", "The language of a text, as LibreTranslate detects it.", self.detect,
                     DetectRequest, form=True, gives=DetectAnswer, plain=True),
        ]  # fmt: skip

    async def languages(self, request: Request) -> Response:
        """Every language, and those that it can be translated to; itself, which changes nothing, included."""
        await self._fields(request, KeyFields)
        targets = {code: [code, *(target for source, target in self.pairs if source == code)] for code in self.codes}
        return JSONResponse([{"code": one, "name": language_name(one), "targets": targets[one]} for one in self.codes])

    async def detect(self, request: Request) -> Response:
        """The most probable languages of a text."""
        given = await self._fields(request, DetectRequest)
        if not given.q.strip():
            raise Refusal(400, "q: expected a text; got none")
        self._check([given.q])
        ranked = await asyncio.to_thread(detect, given.q, COMMON.union(self.codes))
        found = [_detected(code, share) for code, share in ranked]
        return JSONResponse([one for n, one in enumerate(found) if n == 0 or one["confidence"] >= LEAST])

    async def translate(self, request: Request) -> Response:
        """Translate one text or a list of them."""
        given = await self._fields(request, LibreTranslateRequest)
        texts = [given.q] if isinstance(given.q, str) else given.q
        if not texts or not any(text.strip() for text in texts):
            raise Refusal(400, "q: expected a text; got none")
        if given.format not in ("text", "html"):
            raise Refusal(400, f"format: expected text or html; got {given.format[:40]!r}")
        self._check(texts)
        found = await self._sources(texts, given.source, given.target)
        translators = [self._translator(one["language"], given.target) for one in found]

        async def work() -> list[list[str]]:
            return await self._translated(texts, translators, given.format == "html", given.alternatives)

        made = await while_connected(request, work(), self.service.limits.seconds)
        answer: dict[str, Any] = {"translatedText": [one[0] for one in made]}
        if given.alternatives:
            answer["alternatives"] = [one[1:] for one in made]
        if given.source == "auto":
            answer["detectedLanguage"] = found
        if isinstance(given.q, str):
            answer = {name: values[0] for name, values in answer.items()}
        return JSONResponse(answer)

    async def _sources(self, texts: list[str], source: str, target: str) -> list[dict[str, Any]]:
        """The language of each text: the one that is named, or the most probable that can become the target."""
        if source != "auto":
            return [{"language": source, "confidence": 100.0}] * len(texts)
        among = {first for first, second in self.pairs if second == target} | {target}
        if target not in self.codes:
            raise self._unsupported(target)
        ranked = await asyncio.to_thread(lambda: [detect(text, among)[0] for text in texts])
        return [_detected(*one) for one in ranked]

    def _translator(self, source: str, target: str) -> Any:
        """The translator of a pair; None from a language to itself."""
        for code in (source, target):
            if code not in self.codes:
                raise self._unsupported(code)
        if source != target and (source, target) not in self.pairs:
            known = ", ".join(f"{first} to {second}" for first, second in self.pairs)
            raise Refusal(400, f"{source} to {target} is not supported: this server translates {known}")
        return self.pairs.get((source, target))

    async def _translated(self, texts: list[str], translators: list[Any], html: bool, others: int) -> list[list[str]]:
        """Each text's translation, then its alternatives."""
        protects = [getattr(one, "protects", True) for one in translators]
        documents = []
        for text, inline in zip(texts, protects, strict=True) if html else ():
            # seconds, where tags are not closed: in another thread, so that others are answered meanwhile
            documents.append(await asyncio.to_thread(Markup, text, inline))
        parts = [one.texts() for one in documents] if html else [[text] for text in texts]
        self.service.check_sentences(sum(map(len, parts)))
        by_model: dict[Any, list[tuple[int, int]]] = defaultdict(list)
        outputs: list[list[list[str]]] = [[[part] for part in some] for some in parts]
        for index, translator in enumerate(translators):
            by_model[translator] += [(index, n) for n in range(len(parts[index]))] if translator else []
        for translator, where in by_model.items():
            if not where:
                continue
            some = [parts[index][n] for index, n in where]
            protect = True if html and translator.protects else None
            futures = await self.service.translate(
                translator, some, False, n_best=others + 1, record=False, protect=protect
            )
            for (index, n), one in zip(where, await asyncio.gather(*futures), strict=True):
                good([one], "q", index)
                self.service.count(translator.name, len(one.source_ids), len(one.ids))
                outputs[index][n] = [one.text, *(other.text for other in one.alternatives)]
        made = []
        for index, found in enumerate(outputs):
            count = max(map(len, found), default=1)
            rows = [[one[k] if k < len(one) else one[0] for one in found] for k in range(count)]
            if translators[index] is None:  # from a language to itself
                made.append([texts[index]] * len(rows))
                continue
            made.append([documents[index].filled(row) if html else row[0] for row in rows])
        return made

    async def _fields(self, request: Request, kind: type[Checked]) -> Checked:
        """The checked fields of a URL and a body, JSON or a form.

        Raises:
            Refusal: they are wrong, or bring no token where there is one.
        """
        allowed = bool(request.state.allowed)
        fields = from_query(request.scope["query_string"])
        body = await read_body(request, self.service.limits)
        try:
            if media_type(request.headers) in ("application/x-www-form-urlencoded", "multipart/form-data"):
                fields |= from_form(body, request.headers["content-type"])
            elif body or request.method == "POST":
                values = from_json(body)
                fields = fields | values if isinstance(values, dict) else values
        except Refusal as refusal:
            raise refusal if allowed else unauthorized() from refusal
        key = fields.get("api_key") if isinstance(fields, dict) else None
        if not allowed and not (isinstance(key, str) and is_token(key, self.token or "")):
            raise unauthorized()
        return checked(kind, fields, strict=media_type(request.headers) == "application/json", status=400)

    def _check(self, texts: list[str]) -> None:
        try:
            self.service.check("q", texts)
        except Refusal as refusal:
            raise Refusal(400, refusal.message) from refusal

    def _unsupported(self, code: str) -> Refusal:
        return Refusal(400, f"{code[:40]} is not supported: this server knows {', '.join(self.codes)}")


def _detected(code: str, share: float) -> dict[str, Any]:
    return {"language": code, "confidence": round(100 * share, 1)}
