"""Owns what wraps every request, routes that do not exist included: request id, authorization, clean-up, access line, metrics.

Plain ASGI around the whole application, because Litestar's own middleware does not see unknown paths.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.api.auth import PUBLIC_PATHS, BearerTokens, TokenRefused
from app.api.context import Context
from app.api.embed import EmbeddingWork
from app.api.error_shapes import error_body, speaks_anthropic
from app.api.generate import Generation
from app.api.lenient import header_of
from app.api.request_state import RequestState
from app.engine.sequence import FinishReason

logger = logging.getLogger("tfoai.access")


class RequestMiddleware:
    """Runs one HTTP request from its id to its log line. Without `tokens` (the metrics port) nobody needs one."""

    def __init__(self, app: ASGIApp, context: Context, tokens: BearerTokens | None) -> None:
        self._app = app
        self._context = context
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        state = RequestState.new(headers)
        scope["tfoai"] = state  # type: ignore[typeddict-unknown-key]  # ASGI servers and frameworks keep foreign keys
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                milliseconds = round(1000 * (time.monotonic() - state.start))
                message["headers"] = [
                    *message["headers"],
                    *self._more_headers(state),
                    (b"x-request-id", state.request_id.encode()),
                    *([(b"request-id", state.request_id.encode())] if speaks_anthropic(scope["path"]) else ()),
                    (b"openai-processing-ms", str(milliseconds).encode()),
                    (b"openai-version", b"2020-10-01"),
                    *([(b"x-tfoai-ignored", header_of(state.ignored))] if state.ignored else ()),
                ]
            await send(message)

        try:
            if self._tokens is not None and scope["path"] not in PUBLIC_PATHS:
                caller = self._tokens.check(headers.get(b"authorization"), headers.get(b"x-api-key"))
                if caller is not None:
                    state.client, state.salt = caller
            await self._app(scope, receive, send_with_headers)
        except TokenRefused as error:
            self._context.metrics.auth_failures.labels(error.reason).inc()
            body = error_body(scope["path"], error, state.request_id)
            await _send_error(send_with_headers, error.status, body, [(b"www-authenticate", b"Bearer")])
        finally:
            self._context.end(state)
            self._record(scope, state, status)

    def _more_headers(self, state: RequestState) -> Iterator[tuple[bytes, bytes]]:
        if state.trace is not None:
            yield b"traceparent", state.trace.header
        if self._context.registry.is_leaving:
            # So that the client's next request finds another replica, before this one refuses.
            yield b"connection", b"close"

    def _record(self, scope: Any, state: RequestState, status: int) -> None:
        seconds = time.monotonic() - state.start
        method, route = scope["method"], state.route
        metrics = self._context.metrics
        metrics.http_requests.labels(method, route, str(status)).inc()
        metrics.http_duration.labels(method, route).observe(seconds)
        fields: dict[str, Any] = {
            "request_id": state.request_id,
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round(1000 * seconds, 1),
            "client": state.client,
        }
        if state.trace is not None:
            fields |= {"trace_id": state.trace.trace_id, "span_id": state.trace.span_id}
        generation = state.generation
        if isinstance(generation, EmbeddingWork) and generation.job is not None:
            fields |= {
                "model": generation.model.name,
                "prompt_tokens": generation.job.num_tokens,
                "inputs": len(generation.job.inputs),
                "finish_reason": str(generation.finish_reason or FinishReason.ABORT),
            }
            if generation.finish_reason is None:
                metrics.disconnects.labels(generation.model.name).inc()
                fields["disconnected"] = True
        elif isinstance(generation, Generation) and generation.candidates:
            usage = generation.usage()
            first = generation.time_to_first_token
            fields |= {
                "model": generation.model.name,
                "operation": generation.operation,
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "finish_reason": ",".join(sorted({str(one.finish_reason or "abort") for one in generation.candidates})),
                "ttft_ms": None if first is None else round(1000 * first, 1),
            }
            reasons = {one.finish_reason for one in generation.candidates}
            if status in (200, 499) and None in reasons and not reasons & {FinishReason.ERROR, FinishReason.ABORT}:
                metrics.disconnects.labels(generation.model.name).inc()
                fields["disconnected"] = True
        # Probes and scrapes come every few seconds and say nothing new.
        is_routine = scope["path"] in PUBLIC_PATHS or (scope["path"] == "/metrics" and status == 200)
        logger.log(logging.DEBUG if is_routine else logging.INFO, "request.finished", extra=fields)


async def _send_error(send: Send, status: int, error: dict[str, Any], headers: list[tuple[bytes, bytes]]) -> None:
    body = msgspec.json.encode(error)
    start: Any = {
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": False})
