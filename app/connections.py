"""Owns what one TCP connection may do: deadlines for head, body and reading, limits on number and size. Knows no routes.

uvicorn has a limit on idle time only, so one client with a slow line, or none at all, could hold connections, tasks and memory
for ever. Everything here ends with an error object where one can still be sent, and with a closed connection.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app.write_deadline import WriteDeadline

# status, words for the client; the keys are the label `reason` of the metric.
_REFUSALS = {
    "malformed": (400, "The request is not valid HTTP."),
    "header_timeout": (408, "The head of the request took too long."),
    "body_timeout": (408, "The body of the request took too long."),
    "header_too_large": (431, "The head of the request is too large."),
    "too_many_connections": (503, "The server has too many connections. Please retry."),
}
# Frames that a message of a WebSocket may come in: empty ones take memory too, and count for nothing in its size.
MAX_FRAGMENTS = 4096

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Times are in seconds. `on_refused` is called with a reason of `tfoai_connections_refused_total`.

    `always_served` paths are answered on connections above the limit too: a probe that fails would end a server that only has
    much to do. `refusal` says what a client is told: path, status, reason and words -> body and headers.
    """

    header_timeout: float
    body_timeout: float
    write_timeout: float
    max_connections: int
    max_header_bytes: int
    always_served: frozenset[str]
    on_refused: Callable[[str], None]
    refusal: Callable[[str, int, str, str], tuple[bytes, Headers]]


def protocol_classes(limits: ConnectionLimits) -> tuple[type[HttpToolsProtocol], type[WebSocketsSansIOProtocol]]:
    """Return the protocols that uvicorn makes for each connection, and for each that becomes a WebSocket."""
    return (
        type("LimitedProtocol", (_LimitedProtocol,), {"limits": limits}),
        type("LimitedWebSocket", (_LimitedWebSocket,), {"limits": limits}),
    )


class _Limited(WriteDeadline):
    limits: ClassVar[ConnectionLimits]

    @property
    def write_timeout(self) -> float:
        return self.limits.write_timeout

    def on_write_timeout(self) -> None:
        self.limits.on_refused("write_timeout")

    def _write_refusal(self, reason: str, path: str, default_headers: Headers) -> None:
        status, body, more = self._answer(reason, path)
        lines = [b"%s: %s\r\n" % header for header in (*default_headers, *more)]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))

    def _answer(self, reason: str, path: str) -> tuple[int, bytes, Headers]:
        """Return status, body and headers."""
        status, words = _REFUSALS[reason]
        body, more = self.limits.refusal(path, status, reason, words)
        length = b"%d" % len(body)
        return (
            status,
            body,
            [(b"content-type", b"application/json"), (b"content-length", length), *more, (b"connection", b"close")],
        )


class _LimitedProtocol(_Limited, HttpToolsProtocol):
    """uvicorn's protocol with deadlines.

    A connection is at any time in the head of a request, in its body, or behind it; the first two have a deadline.
    """

    # uvicorn sets it where a request begins, which not all that is refused does.
    url = b""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._num_head_bytes = 0
        self._refusal = "malformed"

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        if len(self.connections) > 2 * self.limits.max_connections:
            # Not even an answer: each costs a file descriptor for a while.
            self.limits.on_refused("too_many_connections")
            transport.abort()
        elif len(self.connections) > self.limits.max_connections:
            self.app = self._too_many
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_read_timer(None)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        self.abort_if_unread()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.abort_if_unread()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.abort_if_unread()

    # Reading

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            if self._read_timer is None:  # the first byte after an idle time; a lone newline counts too
                self._await_head()
            self._num_head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._num_head_bytes > self.limits.max_header_bytes and not self.transport.is_closing():
            self._refuse("header_too_large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._read_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_header_bytes:
            self._refusal = "header_too_large"
            raise ValueError(self._refusal)  # ends the parsing; uvicorn then calls send_400_response
        self._in_head = False
        self._set_read_timer(self.limits.body_timeout, self._on_body_timeout)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._set_read_timer(None)
        self._in_head = True
        self._num_head_bytes = 0
        super().on_message_complete()

    def _await_head(self) -> None:
        self._set_read_timer(self.limits.header_timeout, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        if self._num_head_bytes:
            self._refuse("header_timeout")
        else:  # somebody who connected and had nothing to say
            self._close()

    def _on_body_timeout(self) -> None:
        if self.flow.read_paused:  # our doing, not the client's
            self._set_read_timer(self.limits.body_timeout, self._on_body_timeout)
        else:
            self._refuse("body_timeout")

    # WebSockets

    def handle_websocket_upgrade(self) -> None:
        self._set_read_timer(None)
        if self.app is not self.config.loaded_app:  # above the limit
            self._refuse("too_many_connections")
        else:
            super().handle_websocket_upgrade()

    # Refusing

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser did not take."""
        self._refuse(self._refusal)

    def _refuse(self, reason: str) -> None:
        """Say why, unless an answer is on its way already, and close."""
        self.limits.on_refused(reason)
        if self._may_answer:
            self._write_refusal(reason, self.url.partition(b"?")[0].decode("latin-1"), self.server_state.default_headers)
        self._close()

    @property
    def _may_answer(self) -> bool:
        """True if the next bytes that the client reads would be taken as the answer to what is refused."""
        if self.cycle is None:
            return True
        return self.cycle.response_complete if self._in_head else not self.cycle.response_started

    def _close(self) -> None:
        self._set_read_timer(None)
        self.transport.close()
        self.abort_if_unread()

    async def _too_many(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request on a connection above the limit."""
        if scope["path"] in self.limits.always_served:
            await self.config.loaded_app(scope, receive, send)
            return
        reason = "too_many_connections"
        self.limits.on_refused(reason)
        status, body, more = self._answer(reason, scope["path"])
        headers = [*more, (b"retry-after", b"1"), (b"retry-after-ms", b"1000")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    # Timers

    def _set_read_timer(self, seconds: float | None, then: Callable[[], None] | None = None) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._read_timer = None if seconds is None or then is None else self.loop.call_later(seconds, then)


class _LimitedWebSocket(_Limited, WebSocketsSansIOProtocol):
    """uvicorn's protocol behind an upgrade; its pings find clients that are gone."""

    _discards = False

    def data_received(self, data: bytes) -> None:
        if self._discards:
            return
        super().data_received(data)
        if not self.handshake_initiated:
            # The head comes whole; this one the protocol did not take, and it tells nobody.
            self.limits.on_refused("malformed")
            self._write_refusal("malformed", "", self.default_headers)
            self.transport.close()
        self.abort_if_unread()

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        elif not self._discards:
            self.conn.fail(1009, "too many fragments")
            self.handle_parser_exception()

    def handle_parser_exception(self) -> None:
        """Say why, and discard what still comes until the client has closed its side too.

        To close with bytes unread would reset the connection, and what was said be lost.
        """
        sent = self.conn.close_sent
        assert sent is not None
        self._discards = self.close_sent = True
        self.frames = []
        self.queue.put_nowait({"type": "websocket.disconnect", "code": sent.code, "reason": sent.reason})
        if self.transport.is_closing():
            return
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.write_eof()
        self.transport.resume_reading()
        self._close_later()

    def eof_received(self) -> None:
        super().eof_received()
        self.loop.call_soon(self.abort_if_unread)  # the transport is closed behind this

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.abort_if_unread()

    def shutdown(self) -> None:
        super().shutdown()
        self.abort_if_unread()

    async def send(self, message: Any) -> None:
        """Raise ClientDisconnected once the connection is being closed, from whichever side; uvicorn calls that a mistake."""
        await self.writable.wait()
        if self.close_sent or self.transport.is_closing():
            raise ClientDisconnected
        await super().send(message)
        if self.close_sent:
            self.handshake_complete = True  # or an answer instead of a handshake would be logged as none
        if self.close_timer is not None:
            self._close_later()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self.abort_if_unread()

    def _close_later(self) -> None:
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(self.close_timeout, self._close)

    def _close(self) -> None:
        self.transport.close()
        self.abort_if_unread()
