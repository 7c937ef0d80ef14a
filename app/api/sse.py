"""Owns server-sent events: their framing and their end. Knows no event's content.

Framing (openai-python's _streaming.py, vllm bench, guidellm): each event is one body message `data: {json}` and a blank line,
LF only, and the stream ends with `data: [DONE]`. Litestar's own ServerSentEvent writes CRLF, so its plain Stream is used.
"""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar.response import Stream

from app.errors import RequestError
from app.logs import trace_of

logger = logging.getLogger("tfoai.api")

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Framing:
    """How an endpoint frames its events.

    `named`: events are objects with a `type`, which an `event:` line repeats. `end` closes the stream.
    """

    named: bool = False
    end: bytes = DONE


PLAIN = Framing()


def event(data: Any, framing: Framing = PLAIN) -> bytes:
    """Return one event with a JSON body."""
    name = b"event: " + data["type"].encode() + b"\n" if framing.named else b""
    return name + b"data: " + _encode(data) + b"\n\n"


def event_stream(first: Any, rest: AsyncIterator[Any], framing: Framing = PLAIN) -> Stream:
    """Return the response that sends `first` and `rest` as events.

    The first one is there already: until it was, the request could still fail with a status of its own.
    """
    return Stream(
        _framed(first, rest, framing),
        status_code=200,
        # As a header, because the handler's media type (JSON) would win over the response's.
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
        },
    )


def told(error: Exception) -> RequestError:
    """Return what a client is told of an error behind the status line; what is no client's business stays in the log."""
    if isinstance(error, RequestError):
        return error
    logger.error("stream.failed", extra={"error": trace_of(error)})
    return RequestError("The server failed on this request.")


async def _framed(first: Any, rest: AsyncIterator[Any], framing: Framing) -> AsyncIterator[bytes]:
    """The status is sent, so a failure from here on becomes an error event before the end.

    Endpoints with named events have error events of their own, and raise nothing.
    """
    try:
        yield event(first, framing)
        async for item in rest:
            yield event(item, framing)
    except Exception as error:
        yield event(told(error).body())
    if framing.end:
        yield framing.end
