"""Owns create_app(): the routes, what wraps them, and the one map from errors to responses. Knows no endpoint's inside."""

import logging
import math
from typing import Any

from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException

from app.api import (
    anthropic,
    chat,
    compaction,
    completions,
    decisions,
    embeddings,
    models,
    responses,
    status,
    stored_responses,
    tokenize,
)
from app.api.auth import BearerTokens
from app.api.context import Context
from app.api.error_shapes import error_body
from app.api.middleware import RequestMiddleware
from app.api.openapi import assets_router, document, openapi_config
from app.api.request_state import RequestState
from app.api.requests import ClientDisconnected
from app.api.response_store import ResponseStore
from app.api.samples import model_samples
from app.api.websocket import WebSocketResponses
from app.config import Config
from app.errors import (
    ContextLengthExceeded,
    Draining,
    EngineDead,
    InvalidRequest,
    ModelLoading,
    NotFound,
    QueueFull,
    RequestError,
    RequestTooLarge,
)
from app.logs import trace_of
from app.metrics import Metrics
from app.registry import Registry
from app.tokens import named_tokens
from app.versions import package_version

logger = logging.getLogger("tfoai.api")


def create_app(
    config: Config, registry: Registry, metrics: Metrics | None = None, tokens: BearerTokens | None = None
) -> Litestar:
    """Return the ASGI application; the caller starts the registry's loading and stops it.

    `tokens` are those of BEARER_TOKENS if they are not given.
    """
    metrics = metrics or Metrics(config.metrics_aliases)
    tokens = tokens or BearerTokens(named_tokens(config.bearer_tokens, config.bearer_tokens_dir))
    responses_kept = ResponseStore(config.response_store_max, config.response_store_bytes, config.response_store_ttl)
    context = Context(config, registry, metrics, responses_kept)
    metrics.collect_from(lambda: model_samples(registry))
    for name in registry.models:
        metrics.add_model(name)
    app = Litestar(
        route_handlers=[
            completions.create_completion,
            completions.create_engine_completion,
            chat.create_chat_completion,
            decisions.create_decision,
            decisions.create_systemone,
            anthropic.create_message,
            anthropic.count_tokens,
            responses.create_response,
            responses.count_input_tokens,
            compaction.compact_response,
            stored_responses.get_response,
            stored_responses.delete_response,
            stored_responses.cancel_response,
            stored_responses.list_input_items,
            models.list_models,
            models.get_model,
            models.list_engines,
            embeddings.create_embeddings,
            embeddings.create_engine_embeddings,
            tokenize.tokenize,
            tokenize.detokenize,
            tokenize.tokenizer_info,
            *status.PROBES,
            *([status.prometheus_metrics] if config.metrics_port is None else []),
            status.legacy_metrics,
            status.version,
            status.load,
            document,
            assets_router(),
        ],
        dependencies={"context": Provide(lambda: context, sync_to_thread=False)},
        state=State({"context": context}),
        before_request=_note_route,
        exception_handlers={Exception: _to_response},
        openapi_config=openapi_config(package_version("tfoai"), config.limits),
        request_max_body_size=config.max_body_bytes,
        # Errors are logged where they are mapped, once.
        logging_config=None,
    )
    app.asgi_handler = WebSocketResponses(RequestMiddleware(app.asgi_handler, context, tokens), context, tokens)
    return app


def create_metrics_app(config: Config, registry: Registry, metrics: Metrics) -> Litestar:
    """Return the application for METRICS_PORT: probes and /metrics, for whoever can reach that port."""
    context = Context(config, registry, metrics)
    app = Litestar(
        route_handlers=[*status.PROBES, status.prometheus_metrics],
        dependencies={"context": Provide(lambda: context, sync_to_thread=False)},
        state=State({"context": context}),
        before_request=_note_route,
        exception_handlers={Exception: _to_response},
        openapi_config=None,
        request_max_body_size=config.max_body_bytes,
        logging_config=None,
    )
    app.asgi_handler = RequestMiddleware(app.asgi_handler, context, None)
    return app


async def _note_route(request: Request[Any, Any, Any]) -> None:
    """Metrics and logs name the route's template: paths are the client's to choose, and without end.

    A coroutine, because Litestar would run a plain function in a thread, for every request.
    """
    template = request.scope.get("path_template")
    if template:
        RequestState.of(request.scope).route = template


def _to_response(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Map any exception to the route's error object; what is no client's business stays in the log."""
    if isinstance(error, ClientDisconnected):
        return Response(None, status_code=499)  # nobody reads it; the log has the status
    headers: dict[str, str] = dict(getattr(error, "headers", None) or {})  # a 405 says what is allowed
    if not isinstance(error, RequestError):
        error = _from_litestar(request, error) if isinstance(error, HTTPException) else _internal(request, error)
    _count_rejected(request, error)
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
        headers["retry-after-ms"] = str(round(1000 * error.retry_after))
    body = error_body(request.scope["path"], error, RequestState.of(request.scope).request_id)
    return Response(body, status_code=error.status, headers=headers, media_type="application/json")


def _from_litestar(request: Request[Any, Any, Any], error: HTTPException) -> RequestError:
    if error.status_code == 404:
        return NotFound("Unknown request URL. Please check the path and the method; see /docs for what there is.")
    if error.status_code == 413:
        context: Context = request.app.state.context
        length = request.headers.get("content-length", "")
        return RequestTooLarge(context.config.max_body_bytes, int(length) if length.isdecimal() else None)
    result = InvalidRequest(error.detail if error.status_code < 500 else "The server failed on this request.")
    result.status = error.status_code  # type: ignore[misc]  # 405 has no class of its own
    result.code = {405: "method_not_allowed"}.get(error.status_code)
    if error.status_code >= 500:
        result.type = "server_error"  # type: ignore[misc]
    return result


def _internal(request: Request[Any, Any, Any], error: Exception) -> RequestError:
    request_id = RequestState.of(request.scope).request_id
    logger.error("request.failed", extra={"request_id": request_id, "error": trace_of(error)})
    return RequestError(f"The server failed on this request. Its operator can find it as {request_id} in the log.")


# The label `reason` of a refused request; the first class that fits.
_REJECTED: tuple[tuple[type[RequestError], str], ...] = (
    (Draining, "draining"),
    (ModelLoading, "loading"),
    (EngineDead, "dead"),
    (QueueFull, "queue_full"),
    (ContextLengthExceeded, "context_length"),
    (InvalidRequest, "invalid"),
)


def _count_rejected(request: Request[Any, Any, Any], error: RequestError) -> None:
    """Count a request for work that was refused; a 404 or a wrong method asked for none."""
    if request.method != "POST" or error.status in (404, 405):
        return
    reason = next((reason for kind, reason in _REJECTED if isinstance(error, kind)), None)
    if reason is not None:
        context: Context = request.app.state.context
        context.metrics.rejected.labels(RequestState.of(request.scope).model, reason).inc()
