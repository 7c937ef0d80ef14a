"""Owns what one TCP connection may do: deadlines for head, body and reading, limits on number and size. Knows no routes.

uvicorn has a limit on idle time only, so one client with a slow line, or none at all, could hold connections, tasks and memory
for ever. Everything here ends with an error object where one can still be sent, and with a closed connection.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

# status, words for the client; the keys are the label `reason` of the metric.
_REFUSALS = {
    "malformed": (400, "The request is not valid HTTP."),
    "header_timeout": (408, "The head of the request took too long."),
    "body_timeout": (408, "The body of the request took too long."),
    "header_too_large": (431, "The head of the request is too large."),
    "too_many_connections": (503, "The server has too many connections. Please retry."),
}


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


def protocol_class(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """Return the protocol that uvicorn makes for each connection."""
    return type("LimitedProtocol", (_LimitedProtocol,), {"limits": limits})


class _LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with deadlines.

    A connection is at any time in the head of a request, in its body, or behind it; the first two have a deadline. Another
    deadline runs while the client does not read what was written.
    """

    limits: ClassVar[ConnectionLimits]
    # uvicorn sets it where a request begins, which not all that is refused does.
    url = b""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
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
        self._set_write_timer(None)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        self._abort_if_unread()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_if_unread()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._abort_if_unread()

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

    # Writing

    def pause_writing(self) -> None:
        super().pause_writing()
        self._set_write_timer(self.limits.write_timeout)

    def resume_writing(self) -> None:
        self._set_write_timer(None)
        super().resume_writing()
        self._abort_if_unread()

    def _abort_if_unread(self) -> None:
        """A closed transport still waits for its client to read the rest, without end if it is let."""
        if self.transport.is_closing() and self._write_timer is None:
            self._set_write_timer(self.limits.write_timeout)

    def _on_write_timeout(self) -> None:
        self.limits.on_refused("write_timeout")
        self.transport.abort()

    # Refusing

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser did not take."""
        self._refuse(self._refusal)

    def _refuse(self, reason: str) -> None:
        """Say why, unless an answer is on its way already, and close."""
        self.limits.on_refused(reason)
        if self._may_answer:
            status, body, more = self._answer(reason, self.url.partition(b"?")[0].decode("latin-1"))
            headers = [*self.server_state.default_headers, *more]
            lines = [b"%s: %s\r\n" % header for header in headers]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
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
        self._abort_if_unread()

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

    # Timers

    def _set_read_timer(self, seconds: float | None, then: Callable[[], None] | None = None) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._read_timer = None if seconds is None or then is None else self.loop.call_later(seconds, then)

    def _set_write_timer(self, seconds: float | None) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._write_timer = None if seconds is None else self.loop.call_later(seconds, self._on_write_timeout)
