"""Owns create_app(): the routes, what wraps them, and the one map from errors to responses. Knows no endpoint's inside."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterable
from typing import Any

from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.exceptions import HTTPException

from app.api import chat, completions, embeddings, models, status, tokenize
from app.api.auth import BearerTokens
from app.api.context import Context
from app.api.middleware import RequestMiddleware
from app.api.openapi import assets_router, document, openapi_config
from app.api.request_state import RequestState
from app.api.requests import ClientDisconnected
from app.config import Config
from app.errors import Draining, InvalidRequest, NotFound, RequestError
from app.metrics import Metrics, ModelSample
from app.registry import ModelState, Registry
from app.versions import package_version

logger = logging.getLogger("tfoai.api")


def create_app(config: Config, registry: Registry, metrics: Metrics | None = None) -> Litestar:
    """Return the ASGI application; the caller starts the registry's loading and stops it."""
    metrics = metrics or Metrics()
    context = Context(config, registry, metrics)
    metrics.collect_from(lambda: _samples(registry))
    app = Litestar(
        route_handlers=[
            completions.create_completion,
            completions.create_engine_completion,
            chat.create_chat_completion,
            models.list_models,
            models.get_model,
            models.list_engines,
            embeddings.create_embeddings,
            embeddings.create_engine_embeddings,
            tokenize.tokenize,
            tokenize.detokenize,
            tokenize.tokenizer_info,
            status.livez,
            status.readyz,
            status.health,
            status.startupz,
            status.prometheus_metrics,
            status.legacy_metrics,
            status.version,
            status.load,
            document,
            assets_router(),
        ],
        dependencies={"context": Provide(lambda: context, sync_to_thread=False)},
        before_request=_note_route,
        exception_handlers={Exception: _to_response},
        openapi_config=openapi_config(package_version("tfoai")),
        request_max_body_size=config.max_body_bytes,
        # Errors are logged where they are mapped, once.
        logging_config=None,
    )
    tokens = None if config.bearer_tokens is None else BearerTokens(config.bearer_tokens)
    app.asgi_handler = RequestMiddleware(app.asgi_handler, context, tokens)
    return app


def _note_route(request: Request[Any, Any, Any]) -> None:
    """Metrics and logs name the route's template: paths are the client's to choose, and without end."""
    template = request.scope.get("path_template")
    if template:
        RequestState.of(request.scope).route = template


def _to_response(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Map any exception to an OpenAI error object; what is no client's business stays in the log."""
    if isinstance(error, ClientDisconnected):
        return Response(None, status_code=499)  # nobody reads it; the log has the status
    headers: dict[str, str] = dict(getattr(error, "headers", None) or {})  # a 405 says what is allowed
    if not isinstance(error, RequestError):
        error = _from_litestar(error) if isinstance(error, HTTPException) else _internal(request, error)
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
        headers["retry-after-ms"] = str(round(1000 * error.retry_after))
    if isinstance(error, Draining):
        headers["Connection"] = "close"
    return Response(error.body(), status_code=error.status, headers=headers, media_type="application/json")


def _from_litestar(error: HTTPException) -> RequestError:
    if error.status_code == 404:
        return NotFound("Unknown request URL. Please check the path and the method; see /docs for what there is.")
    result = InvalidRequest(error.detail if error.status_code < 500 else "The server failed on this request.")
    result.status = error.status_code  # type: ignore[misc]  # 405 and 413 have no class of their own
    result.code = {405: "method_not_allowed", 413: "request_too_large"}.get(error.status_code)
    if error.status_code >= 500:
        result.type = "server_error"  # type: ignore[misc]
    return result


def _internal(request: Request[Any, Any, Any], error: Exception) -> RequestError:
    request_id = RequestState.of(request.scope).request_id
    logger.error("request.failed", exc_info=error, extra={"request_id": request_id})
    return RequestError(f"The server failed on this request. Its operator can find it as {request_id} in the log.")


def _samples(registry: Registry) -> Iterable[ModelSample]:
    for model in registry.models.values():
        state, loaded = model.state, model.loaded_or_none
        info = numbers = None
        if loaded is not None:
            info = {
                "model": model.name,
                "source": model.settings.name,
                "type": str(model.settings.type),
                "runner": loaded.runner,
                "device": loaded.device,
                "dtype": loaded.dtype,
            }
            snapshot = loaded.engine.snapshot()
            numbers = dataclasses.asdict(snapshot)
            # The engine's clock is monotonic; scrapers want Unix time.
            numbers["last_step_time"] += time.time() - time.monotonic()
        yield ModelSample(model.name, {str(one): one is state for one in ModelState}, info, numbers)
