"""Owns the model list in its new and its legacy spelling. Knows no generation."""

from typing import Any

from litestar import get
from msgspec import UNSET

from app.api.context import Context
from app.api.openapi import documented
from app.api.schemas.common import EngineList, EngineObject, ModelList, ModelObject
from app.registry import ModelState, ServedModel


@get("/v1/models", operation_class=documented("List the served models", None, ModelList))
async def list_models(context: Context) -> Any:
    """Models that are still loading are listed too; `state` tells. Aliases are listed like models; `root` tells."""
    registry = context.registry
    names = [*registry.models, *registry.aliases]
    return ModelList([_model_object(name, registry.get(name)) for name in names])


# A path parameter with slashes, since a served name may be a hub id.
@get("/v1/models/{model_name:path}", operation_class=documented("Describe one served model", None, ModelObject))
async def get_model(context: Context, model_name: str) -> Any:
    name = model_name.lstrip("/")
    return _model_object(name, context.registry.get(name))


@get("/v1/engines", operation_class=documented("List the served models (legacy)", None, EngineList))
async def list_engines(context: Context) -> Any:
    return EngineList([EngineObject(model.name, model.state is ModelState.READY) for model in context.registry.models.values()])


def _model_object(name: str, model: ServedModel) -> ModelObject:
    loaded, encoder = model.loaded_or_none, model.encoder_or_none
    return ModelObject(
        id=name,
        root=model.name,
        created=model.created,
        state=str(model.state),
        type=str(model.settings.type),
        runner=None if loaded is None else loaded.runner,
        context_length=None if loaded is None else loaded.context_length,
        embedding_dimensions=UNSET if encoder is None else encoder.num_dimensions,
        pooling=UNSET if encoder is None else "+".join(encoder.files.pooling),
    )
