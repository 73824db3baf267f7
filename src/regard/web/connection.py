"""One client: the body it sends, and whether it is still there."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from regard.web.limits import Limits
from regard.web.refusals import Refusal

Made = TypeVar("Made")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body.

    Raises:
        Refusal: it is larger than the limit, which is found out before all of it is read; it comes too slowly; the
            client has gone.
    """
    too_large = Refusal(413, f"the body is too large: expected at most {limits.body:,} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limits.body:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(499, "the client has gone")
                body += message.get("body", b"")
                if len(body) > limits.body:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        sentence = f"the body did not arrive within {limits.body_seconds:g} seconds"
        raise Refusal(408, sentence, headers={"Connection": "close"}) from error


async def while_connected(request: Request, work: Coroutine[Any, Any, Made], seconds: float) -> Made:
    """The result of a coroutine, which is canceled when the client goes or the time is over.

    Args:
        request: whose body was read.
        work: the coroutine.
        seconds: that it may take.

    Raises:
        Refusal: the client has gone, or the time is over.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise Refusal(499, "the client has gone")
        raise late(seconds)
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def late(seconds: float) -> Refusal:
    """The refusal of a request whose time is over."""
    sentence = f"the answer was not ready within {seconds:g} seconds: ask for less at a time, or later"
    return Refusal(503, sentence, "timeout", {"Retry-After": "5"})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
