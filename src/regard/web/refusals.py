"""Refusals as answers: a status, a code, and one sentence."""

from typing import Any

from starlette.responses import JSONResponse

from regard.errors import RegardError

CODES = {
    400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    408: "timeout", 413: "too_large", 415: "unsupported_media_type", 422: "invalid", 429: "overloaded",
    431: "too_large", 499: "disconnected", 500: "internal", 503: "unavailable",
}  # fmt: skip


class Refusal(RegardError):
    """An answer that is no result.

    Args:
        status: of HTTP.
        message: one sentence.
        code: a word for programs; that of the status by default.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers
        self.code = code or CODES.get(status, "error")


def body_of(refusal: Refusal, plain: bool) -> dict[str, Any]:
    """A refusal as JSON: {"error": {"code", "message"}}, or {"error": message} for LibreTranslate's clients."""
    return {"error": refusal.message if plain else {"code": refusal.code, "message": refusal.message}}


def answer_of(refusal: Refusal, plain: bool) -> JSONResponse:
    """The response that tells a refusal."""
    return JSONResponse(body_of(refusal, plain), refusal.status, refusal.headers)
