"""Owns /v1/responses as a WebSocket: a message is a turn, its events are messages, one turn at a time. Knows no models.

Open Responses 2026-04-24, WebSocket Transport. Each turn is given to the application as a POST with `stream`, so that what
holds for a request holds for it too: its id, its token, limits, the queue, metrics, the line in the log. What differs from HTTP
is the framing, and that a turn may go on from the one before it although nothing is stored.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.api.auth import BearerTokens
from app.api.context import CONNECTION_RESPONSES, Context
from app.api.response_store import ConnectionResponses
from app.errors import InvalidRequest, RequestError, Unauthorized, UnsupportedParameter

PATH = "/v1/responses"
# Open Responses, WebSocket Reconnects.
MAX_SECONDS = 3600.0
# Turns that wait for the one before them; clients that want more at a time have more connections.
MAX_WAITING = 16

_NORMAL = 1000
_POLICY_VIOLATION = 1008
_SERVICE_RESTART = 1012
# Fields of which one value only can be had here: what is so anyway may be said.
_ANYWAY = {
    "stream": (b"true", "a WebSocket always has all events, at once."),
    "background": (b"false", "a WebSocket always has all events, at once."),
    "generate": (b"true", "a prompt is prepared when it is answered."),
}
_DROPPED = frozenset(
    (b"connection", b"upgrade", b"content-type", b"content-length", b"transfer-encoding", b"x-request-id", b"accept-encoding")
)
# The status of what nobody waits for any more.
_CLIENT_GONE = 499
_TERMINAL = (b"response.completed", b"response.incomplete", b"response.failed")
_FAILED = (b"response.failed", b"error")


class WebSocketResponses:
    """ASGI around the whole application: takes WebSockets, and lets everything else through."""

    def __init__(self, app: ASGIApp, context: Context, tokens: BearerTokens, max_seconds: float = MAX_SECONDS) -> None:
        self._app = app
        self._context = context
        self._tokens = tokens
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.WEBSOCKET:
            await self._app(scope, receive, send)
            return
        await receive()  # the connection
        try:
            headers = dict(scope["headers"])
            caller = self._tokens.check(headers.get(b"authorization"), headers.get(b"x-api-key"))
        except Unauthorized:
            await self._refuse(scope, send)
            return
        if scope["path"] != PATH:
            await self._refuse(scope, send)
            return
        if caller is None and _is_of_another_site(headers):
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": ""})  # is a 403
            return
        await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
        await _Connection(self._app, self._context, scope, receive, send).run(self._max_seconds)

    async def _refuse(self, scope: Scope, send: Send) -> None:
        """Answer the handshake as the application answers a GET of its path."""

        async def send_response(message: Message) -> None:
            await send({**message, "type": "websocket." + message["type"]})  # type: ignore[arg-type]

        await self._app(_http_scope(scope, "GET", []), _nothing_more, send_response)


class _Connection:
    """One open WebSocket."""

    def __init__(self, app: ASGIApp, context: Context, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        self._registry = context.registry
        self._max_bytes = context.config.max_body_bytes
        self._responses = ConnectionResponses(context.responses, self._max_bytes)
        self._messages: asyncio.Queue[bytes] = asyncio.Queue()
        self._num_waiting_bytes = 0
        self._gone = asyncio.Event()
        self._is_flooded = False

    async def run(self, max_seconds: float) -> None:
        """Serve turns until the client leaves, or the connection is too old."""
        reader = asyncio.create_task(self._read())
        deadline = asyncio.get_running_loop().time() + max_seconds
        try:
            while (message := await self._next(deadline)) is not None:
                await self._turn(message)
                if self._registry.is_leaving and self._messages.empty() and not self._gone.is_set():
                    await self._close(_SERVICE_RESTART)  # so that the client's next turn finds another replica
                    return
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self) -> None:
        """Take messages while a turn runs too: else nobody would see that the client has left."""
        while not self._is_flooded:
            received: Any = await self._receive()
            if received["type"] == "websocket.disconnect":
                break
            data = (received.get("text") or "").encode() or received.get("bytes") or b""
            self._num_waiting_bytes += len(data)
            self._is_flooded = self._messages.qsize() >= MAX_WAITING or self._num_waiting_bytes > self._max_bytes
            if not self._is_flooded:
                self._messages.put_nowait(data)
        self._gone.set()

    async def _next(self, deadline: float) -> bytes | None:
        """Return the next message; close and return None if there is to be none."""
        next_message = asyncio.ensure_future(self._messages.get())
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait({next_message, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not next_message.done():
                next_message.cancel()
        if self._is_flooded:
            await self._close(_POLICY_VIOLATION, _too_many_turns())
        elif self._gone.is_set():
            pass
        elif not next_message.done() or asyncio.get_running_loop().time() >= deadline:
            await self._close(_NORMAL, _too_old())
        else:
            message = next_message.result()
            self._num_waiting_bytes -= len(message)
            return message
        return None

    async def _turn(self, message: bytes) -> None:
        """Serve one message; whatever is wrong with it is told, and costs the connection nothing."""
        try:
            body = _read_turn(message)
        except RequestError as error:
            await self._tell(error)
            return
        answer = _Answer(self._send_event)
        await self._app(self._turn_scope(), self._receive_of(msgspec.json.encode(body), answer), answer.take)
        previous = body.get("previous_response_id")
        if answer.has_failed and previous is not None:
            with contextlib.suppress(msgspec.ValidationError):
                self._responses.forget(msgspec.json.decode(previous, type=str))

    def _turn_scope(self) -> Scope:
        scope: Any = _http_scope(self._scope, "POST", [(b"content-type", b"application/json")])
        scope[CONNECTION_RESPONSES] = self._responses
        return scope  # type: ignore[no-any-return]

    def _receive_of(self, body: bytes, answer: "_Answer") -> Receive:
        """Return what a request receives: its body, then a disconnect, when its answer is over or the WebSocket gone."""
        is_read = False

        async def receive() -> Any:
            nonlocal is_read
            if not is_read:
                is_read = True
                return {"type": "http.request", "body": body, "more_body": False}
            await _first(self._gone, answer.is_complete)
            return {"type": "http.disconnect"}

        return receive

    async def _send_event(self, data: bytes) -> None:
        if self._gone.is_set():
            return
        message: Any = {"type": "websocket.send", "text": data.decode(), "bytes": None}
        try:
            await self._send(message)
        except OSError:  # what servers raise (ASGI 2.4) when the client has left
            self._gone.set()

    async def _tell(self, error: RequestError) -> None:
        await self._send_event(_error_event(error.status, error.body()["error"], {}))

    async def _close(self, code: int, error: RequestError | None = None) -> None:
        self._gone.clear()  # a flooded connection is not gone
        if error is not None:
            await self._tell(error)
        reason = "" if error is None or error.code is None else error.code
        with contextlib.suppress(OSError):
            await self._send({"type": "websocket.close", "code": code, "reason": reason})


class _Answer:
    """The response to a turn, as it comes: its events without their framing, or its error as an event.

    Events end with the terminal one: clients take what comes behind it for a part of the next turn.
    """

    def __init__(self, send_event: Callable[[bytes], Any]) -> None:
        self._send_event = send_event
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._pending = b""
        self._is_over = False
        self.has_failed = False
        self.is_complete = asyncio.Event()

    async def take(self, message: Any) -> None:
        """Take an ASGI message of the response."""
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], dict(message["headers"])
            return
        if not message.get("more_body", False):
            self.is_complete.set()
        self._pending += message.get("body", b"")
        if self._status == 200:
            await self._take_events()
        elif self.is_complete.is_set():
            self.has_failed = True
            if self._status != _CLIENT_GONE:
                error = msgspec.json.decode(self._pending)["error"]
                names = (b"retry-after", b"x-request-id")
                headers = {name.decode(): self._headers[name].decode() for name in names if name in self._headers}
                await self._send_event(_error_event(self._status, error, headers))

    async def _take_events(self) -> None:
        while b"\n\n" in self._pending and not self._is_over:
            frame, _, self._pending = self._pending.partition(b"\n\n")
            named, _, data = frame.partition(b"\ndata: ")
            name = named.removeprefix(b"event: ")
            if not data:  # [DONE]
                continue
            self._is_over = name in _TERMINAL
            self.has_failed = name in _FAILED
            if name == b"response.created" and b"x-tfoai-ignored" in self._headers:
                ignored = {"x-tfoai-ignored": self._headers[b"x-tfoai-ignored"].decode()}
                data = data[:-1] + b',"headers":' + msgspec.json.encode(ignored) + b"}"
            await self._send_event(data)


def _http_scope(scope: Scope, method: str, headers: list[tuple[bytes, bytes]]) -> Scope:
    """Return the scope of a request on a WebSocket's path, with the headers of its handshake."""
    kept = [header for header in scope["headers"] if header[0] not in _DROPPED and not header[0].startswith(b"sec-websocket-")]
    # The last one is set by Litestar, whose handler this wraps.
    names = ("asgi", "path", "raw_path", "root_path", "client", "server", "litestar_app")
    result: Any = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "https" if scope["scheme"] == "wss" else "http",
        "query_string": b"",
        "headers": [*kept, *headers],
        "extensions": {},
        "state": dict(scope.get("state") or {}),
        **{name: scope[name] for name in names if name in scope},  # type: ignore[literal-required]
    }
    return result  # type: ignore[no-any-return]


def _is_of_another_site(headers: Mapping[bytes, bytes]) -> bool:
    """True for a handshake by a page that this server did not give.

    Browsers let pages of any site open WebSockets to anywhere, and read them, which over HTTP they do not.
    """
    origin = headers.get(b"origin")
    return origin is not None and origin.lower().partition(b"://")[2] != headers.get(b"host", b"").lower()


async def _first(*events: asyncio.Event) -> None:
    """Wait for any of them."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _nothing_more() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


def _read_turn(message: bytes) -> dict[str, Any]:
    """Return the body of the request that a message stands for; raise RequestError for what is none.

    The values stay as they were written, for the endpoint to read.
    """
    try:
        body: dict[str, Any] = msgspec.json.decode(message, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"A message must be a JSON object: {str(error)[:200]}.") from error
    kind = bytes(body.pop("type", b"null"))
    if kind != b'"response.create"':
        found = kind[:60].decode(errors="replace")
        raise InvalidRequest(f"`type` of a message must be 'response.create'; found {found}.", param="type")
    for name, (so_anyway, reason) in _ANYWAY.items():
        if bytes(body.pop(name, so_anyway)) not in (so_anyway, b"null"):
            raise UnsupportedParameter(f"`{name}` can only be {so_anyway.decode()} here: {reason}", param=name)
    return body | {"stream": True}


def _error_event(status: int, error: dict[str, Any], headers: Mapping[str, str]) -> bytes:
    """Return the error envelope. Its `code` must be a text; the error's type is one where there is no code."""
    event: dict[str, Any] = {"type": "error", "status": status, "error": error | {"code": error["code"] or error["type"]}}
    return msgspec.json.encode(event | ({"headers": headers} if headers else {}))


def _too_old() -> RequestError:
    return InvalidRequest(
        f"A connection lasts for {round(MAX_SECONDS / 60)} minutes; please open a new one.",
        code="websocket_connection_limit_reached",
    )


def _too_many_turns() -> RequestError:
    return InvalidRequest(
        f"Too much waits for the turn that runs; at most {MAX_WAITING} messages may, of at most MAX_BODY_BYTES together.",
        code="websocket_too_many_messages",
    )
