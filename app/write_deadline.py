"""Owns the deadline of a client that does not read what is written to it. Knows no protocol."""

import asyncio


class WriteDeadline(asyncio.Protocol):
    """Comes before one of uvicorn's protocols, which have no such deadline; aborts the connection when it is over.

    It runs while the transport is full, and while a closed one still has something to send: without it both would wait for the
    client without end.
    """

    # uvicorn's
    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    _write_timer: asyncio.TimerHandle | None = None
    _is_lost = False

    @property
    def write_timeout(self) -> float:
        """Seconds."""
        raise NotImplementedError

    def on_write_timeout(self) -> None:
        """Called before the connection is aborted."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._set_write_timer(None)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._set_write_timer(self.write_timeout)

    def resume_writing(self) -> None:
        self._set_write_timer(None)
        super().resume_writing()
        self.abort_if_unread()

    def abort_if_unread(self) -> None:
        """To be called behind whatever closes the transport, or may have."""
        if self.transport.is_closing() and not self._is_lost and self._write_timer is None:
            self._set_write_timer(self.write_timeout)

    def _abort(self) -> None:
        self.on_write_timeout()
        self.transport.abort()

    def _set_write_timer(self, seconds: float | None) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._write_timer = None if seconds is None else self.loop.call_later(seconds, self._abort)
