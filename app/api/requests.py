"""Owns what every POST handler needs of its request: a decoded body, and to stop when the client leaves. Knows no endpoint."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from app.api.lenient import leave_out
from app.api.limits import check_depth, check_limits
from app.api.request_state import RequestState
from app.api.schemas.common import decode_body
from app.api.sse import PLAIN, Framing, event_stream
from app.errors import RequestError

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


class ClientDisconnected(Exception):
    """Nobody is left to answer."""


class UnsupportedMediaType(RequestError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


async def read_body(
    request: Request[Any, Any, Any], kind: type[S], refused: Mapping[str, str], defaults: Mapping[str, Any] | None = None
) -> S:
    """Read and decode a JSON body; raise a RequestError that names what is wrong. `defaults` fill what the body lacks."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        found = f"'{content_type[:80]}'" if content_type else "nothing"
        raise UnsupportedMediaType(f"Content-Type must be application/json; found {found}.")
    try:
        body = await request.body()
    except InternalServerException as error:  # Litestar's word for a client that stopped in the middle of its body
        raise ClientDisconnected from error
    ignored = RequestState.of(request.scope).ignored
    limits = request.app.state.context.config.limits
    # Few bodies have so many brackets that they are worth a look.
    may_be_deep = body.count(b"[") + body.count(b"{") > limits.json_depth
    decoded = decode_body(
        body,
        kind,
        refused,
        defaults or {},
        without=lambda data: leave_out(data, ignored),
        check=(lambda data: check_depth(data, limits)) if may_be_deep else None,
    )
    check_limits(decoded, limits)
    return decoded


async def unless_disconnected(request: Request[Any, Any, Any], work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; when the client leaves first, cancel it and raise ClientDisconnected.

    Litestar watches for that only while it streams. The body must have been read.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            # Its clean-up (slots, aborts) must be over before the request is.
            await asyncio.gather(task, return_exceptions=True)


async def _wait_for_disconnect(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Answer(Protocol):
    """An endpoint's way from a generation to its response."""

    async def submit(self) -> None:
        """Check, encode and hand everything to the engine; raise what refuses the request."""
        ...

    async def whole(self) -> Any:
        """Return the response object."""
        ...

    def chunks(self) -> AsyncIterator[Any]:
        """Yield the response's parts for a stream."""
        ...


async def respond(request: Request[Any, Any, Any], answer: Answer, *, stream: bool, framing: Framing = PLAIN) -> Any:
    """Submit, then return the whole answer, or a stream of its parts; stop everything when the client leaves."""
    if not stream:
        return await unless_disconnected(request, _after_submit(answer, answer.whole))
    chunks = answer.chunks()
    first = await unless_disconnected(request, _after_submit(answer, chunks.__anext__))
    return event_stream(first, chunks, framing)


async def _after_submit(answer: Answer, work: Callable[[], Awaitable[Any]]) -> Any:
    await answer.submit()
    return await work()
