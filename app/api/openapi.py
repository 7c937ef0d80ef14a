"""Owns the OpenAPI document and its page. Knows the schemas, not the handlers.

Bodies are decoded by msgspec directly (strict types, errors that name the parameter), so Litestar can not see their types:
each handler names them with `documented`, and msgspec makes the JSON Schemas.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request, get
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import SwaggerRenderPlugin
from litestar.openapi.spec import Components, Operation
from litestar.static_files import create_static_files_router

from app.api.limits import describe_limits
from app.api.schemas.anthropic import CountTokensRequest, MessagesRequest
from app.api.schemas.anthropic_objects import AnthropicError, AnthropicMessage, MessageTokensCount
from app.api.schemas.chat import ChatCompletion, ChatCompletionChunk, ChatRequest
from app.api.schemas.common import EngineList, ErrorResponse, ModelList, ModelObject
from app.api.schemas.compaction import Compaction, CompactRequest
from app.api.schemas.completions import Completion, CompletionRequest
from app.api.schemas.decisions import Decision, DecisionRequest, SystemOneAnswers, SystemOneRequest
from app.api.schemas.embeddings import EmbeddingList, EmbeddingRequest
from app.api.schemas.response_objects import DeletedResponse, InputTokens, ItemList, ResponseObject
from app.api.schemas.responses import InputTokensRequest, ResponseRequest
from app.api.schemas.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    Load,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
    Version,
)
from app.config_limits import Limits

_REF = "#/components/schemas/{name}"
_STRUCTS: list[type[msgspec.Struct]] = [
    AnthropicError,
    AnthropicMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    CompactRequest,
    Compaction,
    Completion,
    CompletionRequest,
    CountTokensRequest,
    Decision,
    DecisionRequest,
    DeletedResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    EmbeddingList,
    EmbeddingRequest,
    EngineList,
    ErrorResponse,
    InputTokens,
    InputTokensRequest,
    ItemList,
    Load,
    MessageTokensCount,
    MessagesRequest,
    ModelList,
    ModelObject,
    ResponseObject,
    ResponseRequest,
    SystemOneAnswers,
    SystemOneRequest,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
    Version,
]
_ASSETS = "/docs/assets"
# Either will do.
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}

_ERRORS = {
    "400": "A parameter is wrong, unknown or not supported; `param` names it",
    "401": "Missing or wrong token",
    "404": "No such model",
    "413": "The body is too large",
    "415": "The body is not JSON",
    "429": "The queue is full; see Retry-After",
    "500": "The server failed; see x-request-id",
    "503": "The model is loading or the server is going down; see Retry-After",
}


def documented(
    summary: str,
    request: type[msgspec.Struct] | None = None,
    response: type[msgspec.Struct] | None = None,
    *,
    streams: bool = False,
    error: type[msgspec.Struct] = ErrorResponse,
) -> type[Operation]:
    """Return the Operation class for a handler: its body and answers in the words of the schemas."""

    class Documented(Operation):
        def to_schema(self) -> dict[str, Any]:
            schema = {**super().to_schema(), "summary": summary, "responses": _responses(request, response, streams, error)}
            if request is not None:
                schema["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(request)}}}
            return schema

    return Documented


def _ref(struct: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=struct.__name__)}


def _responses(
    request: type[msgspec.Struct] | None, response: type[msgspec.Struct] | None, streams: bool, error: type[msgspec.Struct]
) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "Success"}
    if response is not None:
        good["content"] = {"application/json": {"schema": _ref(response)}}
        if streams:
            good["content"]["text/event-stream"] = {}  # OpenAPI 3.1 has no words for a stream of events
    codes = _ERRORS if request is not None else {code: _ERRORS[code] for code in ("401", "404", "503")}
    body = {"application/json": {"schema": _ref(error)}}
    return {"200": good} | {code: {"description": text, "content": body} for code, text in codes.items()}


def _components(limits: Limits) -> Components:
    """Return the schemas as msgspec writes them, with the limits of this server."""

    class Documented(Components):
        def to_schema(self) -> dict[str, Any]:
            _, schemas = msgspec.json.schema_components(_STRUCTS, ref_template=_REF)
            describe_limits(schemas, limits)
            return {"schemas": schemas, "securitySchemes": _SECURITY}

    return Documented()


def openapi_config(version: str, limits: Limits) -> OpenAPIConfig:
    """The document at /openapi.json, the page at /docs; the page's script is served from here, so it works offline."""
    return OpenAPIConfig(
        title="tfoai",
        version=version,
        description="Hugging Face transformers models behind the APIs of OpenAI and Anthropic.",
        path="/docs",
        components=_components(limits),
        security=[{name: []} for name in _SECURITY],
        render_plugins=[
            SwaggerRenderPlugin(
                path="/",
                favicon="<link rel='icon' href='data:,'>",
                js_url=f"{_ASSETS}/swagger-ui-bundle.js",
                css_url=f"{_ASSETS}/swagger-ui.css",
                standalone_preset_js_url=f"{_ASSETS}/swagger-ui-standalone-preset.js",
            ),
        ],
    )


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def document(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Not a render plugin of Litestar's: its router answers every unknown path beside the document with an HTML page."""
    return request.app.openapi_schema.to_schema()


def assets_router() -> Any:
    """Serve the page's files from the package that ships them."""
    vendor = Path(str(files("swagger_ui_bundle"))) / "vendor"
    newest = sorted(path for path in vendor.iterdir() if path.is_dir())[-1]
    return create_static_files_router(path=_ASSETS, directories=[newest], include_in_schema=False)
