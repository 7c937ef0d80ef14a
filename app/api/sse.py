"""Owns server-sent events: their framing and their end. Knows no event's content.

Framing (openai-python's _streaming.py, vllm bench, guidellm): each event is one body message `data: {json}` and a blank line,
LF only, and the stream ends with `data: [DONE]`. Litestar's own ServerSentEvent writes CRLF, so its plain Stream is used.
"""

import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar.response import Stream

from app.errors import RequestError
from app.logs import trace_of

logger = logging.getLogger("tfoai.api")

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def event(data: Any) -> bytes:
    """Return one event with a JSON body."""
    return b"data: " + _encode(data) + b"\n\n"


def event_stream(first: Any, rest: AsyncIterator[Any]) -> Stream:
    """Return the response that sends `first` and `rest` as events.

    The first one is there already: until it was, the request could still fail with a status of its own.
    """
    return Stream(
        _framed(first, rest),
        status_code=200,
        # As a header, because the handler's media type (JSON) would win over the response's.
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
        },
    )


async def _framed(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """The status is sent, so a failure from here on becomes an error event before the end."""
    try:
        yield event(first)
        async for item in rest:
            yield event(item)
    except RequestError as error:
        yield event(error.body())
    except Exception as error:
        logger.error("stream.failed", extra={"error": trace_of(error)})
        yield event(RequestError("The server failed on this request.").body())
    yield DONE
