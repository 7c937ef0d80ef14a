"""Owns the routes of responses that are stored: reading, listing their input, deleting. Knows nothing of how they are made."""

from collections.abc import Collection
from typing import Any

import msgspec
from litestar import Request, Response, delete, get, post

from app.api.context import Context
from app.api.openapi import documented
from app.api.request_state import RequestState
from app.api.response_store import Stored
from app.api.schemas.response_objects import DeletedResponse, ItemList, ResponseObject
from app.errors import InvalidRequest, NotFound, UnknownParameter, UnsupportedParameter

_MAX_LISTED = 100
_DEFAULT_LISTED = 20


@get("/v1/responses/{response_id:str}", operation_class=documented("Get a stored response", None, ResponseObject))
async def get_response(request: Request[Any, Any, Any], context: Context, response_id: str) -> Any:
    for name in ("stream", "include_obfuscation"):
        if request.query_params.get(name, "false").lower() != "false":
            raise UnsupportedParameter(f"`{name}` is not supported: a stored response is not sent in events.", param=name)
    _check_query(request, {"stream", "include_obfuscation"}, refused={"include", "include[]", "starting_after"})
    return Response(_stored(request, context, response_id).response, media_type="application/json")


@delete(
    "/v1/responses/{response_id:str}",
    status_code=200,
    operation_class=documented("Delete a stored response", None, DeletedResponse),
)
async def delete_response(request: Request[Any, Any, Any], context: Context, response_id: str) -> Any:
    _check_query(request, ())
    if not context.responses.delete(RequestState.of(request.scope).salt, response_id):
        raise _not_found(response_id)
    return DeletedResponse(response_id)


@post(
    "/v1/responses/{response_id:str}/cancel",
    status_code=200,
    operation_class=documented("Cancel a response in the background", None, ResponseObject),
)
async def cancel_response(request: Request[Any, Any, Any], context: Context, response_id: str) -> Any:
    """A response ends with its request here, so that the client cancels one by hanging up."""
    _check_query(request, ())
    _stored(request, context, response_id)
    raise InvalidRequest("Only responses created with `background` true can be cancelled, and this one is over.", param="id")


@get("/v1/responses/{response_id:str}/input_items", operation_class=documented("List a response's input", None, ItemList))
async def list_input_items(request: Request[Any, Any, Any], context: Context, response_id: str) -> Any:
    _check_query(request, {"limit", "order", "after"}, refused={"include", "include[]", "before"})
    query = request.query_params
    limit = query.get("limit", str(_DEFAULT_LISTED))
    if not limit.isdecimal() or not 1 <= int(limit[:6]) <= _MAX_LISTED:
        raise InvalidRequest(f"`limit` must be a number from 1 to {_MAX_LISTED}; found {limit[:20]!r}.", param="limit")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"`order` must be 'asc' or 'desc'; found {order[:20]!r}.", param="order")
    items: list[dict[str, Any]] = msgspec.json.decode(_stored(request, context, response_id).input)
    if order == "desc":
        items.reverse()
    after = query.get("after")
    if after is not None:
        position = next((index for index, item in enumerate(items) if item["id"] == after), None)
        if position is None:
            raise InvalidRequest(f"Item with id '{after[:100]}' not found.", param="after")
        items = items[position + 1 :]
    data = items[: int(limit)]
    return ItemList(
        data=data,
        first_id=data[0]["id"] if data else None,
        last_id=data[-1]["id"] if data else None,
        has_more=len(items) > len(data),
    )


def _stored(request: Request[Any, Any, Any], context: Context, response_id: str) -> Stored:
    stored = context.responses.get(RequestState.of(request.scope).salt, response_id)
    if stored is None:
        raise _not_found(response_id)
    return stored


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"Response with id '{response_id[:100]}' not found.", param="id")


def _check_query(request: Request[Any, Any, Any], known: Collection[str], refused: Collection[str] = ()) -> None:
    for name in request.query_params:
        if name in refused:
            raise UnsupportedParameter(f"`{name[:100]}` is not supported here.", param=name.removesuffix("[]"))
        if name not in known:
            raise UnknownParameter(f"Unrecognized request argument supplied: {name[:100]}", param=name[:100])
