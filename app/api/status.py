"""Owns the probes, the metrics routes, /version and /load. Knows no generation.

Kubernetes' three questions: has it started (`/startupz`), may it get traffic (`/readyz`, and `/health` for those used to
it), must it be restarted (`/livez`). Overload makes none of them fail.
"""

from typing import Any

from litestar import Response, get

from app.api.context import Context
from app.api.openapi import documented
from app.api.schemas.tokenize import Load, ModelLoad, Version
from app.errors import NotFound
from app.metrics import CONTENT_TYPE
from app.registry import Registry
from app.versions import package_version


@get("/livez", operation_class=documented("Liveness: 503 when an engine has died or makes no progress"))
async def livez(context: Context) -> Response[Any]:
    return _status(context.registry.is_alive, context.registry)


@get("/readyz", operation_class=documented("Readiness: 503 while models load and while the server drains"))
async def readyz(context: Context) -> Response[Any]:
    return _status(context.registry.is_ready, context.registry)


@get("/health", operation_class=documented("The same as /readyz"))
async def health(context: Context) -> Response[Any]:
    return _status(context.registry.is_ready, context.registry)


@get("/startupz", operation_class=documented("Startup: 503 until every model has been loaded once"))
async def startupz(context: Context) -> Response[Any]:
    return _status(context.registry.has_started, context.registry)


# The routes that need no token.
PROBES = (livez, readyz, health, startupz)


@get("/metrics", operation_class=documented("Prometheus metrics"))
async def prometheus_metrics(context: Context) -> Response[bytes]:
    if not context.config.metrics:
        raise NotFound("Metrics are switched off (METRICS in the configuration).")
    # As a header, because Litestar would add a second charset to a media type.
    return Response(context.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@get("/v1/metrics", operation_class=documented("Token totals as JSON, as transformers-openai-api gave them"))
async def legacy_metrics(context: Context) -> Response[Any]:
    if not context.config.metrics:
        raise NotFound("Metrics are switched off (METRICS in the configuration).")
    return Response(context.metrics.legacy.as_json())


@get("/version", operation_class=documented("The version of this server", None, Version))
async def version() -> Any:
    return Version(package_version("tfoai"))


@get("/load", operation_class=documented("How many requests and sequences are in work", None, Load))
async def load(context: Context) -> Any:
    """`server_load` is what vLLM gives; `models` tells more. For people and balancers without Prometheus."""
    models: dict[str, ModelLoad] = {}
    for model in context.registry.models.values():
        loaded = model.loaded_or_none
        running, waiting = 0, 0
        if loaded is not None:
            snapshot = loaded.engine.snapshot()
            running, waiting = snapshot.num_running, snapshot.num_waiting
        models[model.name] = ModelLoad(running=running, waiting=waiting, admitted=model.num_admitted, capacity=model.capacity)
    return Load(server_load=context.registry.num_open_requests, models=models)


def _status(is_good: bool, registry: Registry) -> Response[Any]:
    models = {
        model.name: {"state": str(model.state), "progress": round(model.progress, 3)} for model in registry.models.values()
    }
    content = {"status": "ok" if is_good else "unavailable", "draining": registry.is_leaving, "models": models}
    return Response(content, status_code=200 if is_good else 503)
