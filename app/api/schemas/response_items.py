"""Owns the items of /v1/responses: what clients may send, and the one form in which they are kept, listed and answered.

openai-python: types/responses/response_input_item.py; Open Responses: schema/items.tsp. Knows no models and no requests.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from app.api.schemas.common import convert_object
from app.api.schemas.summaries import read_summary
from app.errors import InvalidRequest, UnsupportedParameter

# An item as it is kept: an object with `type`, `id`, `status` and what else the specification asks for.
Item = dict[str, Any]
Find = Callable[[str], Item | None]

_Id = Annotated[str, Meta(min_length=1, max_length=128)]
_Status = Literal["in_progress", "completed", "incomplete"]


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    """`phase` tells commentary from answers; templates have no word for it."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, Any]]
    type: Literal["message"] = "message"
    id: _Id | None = None
    status: _Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class _FunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function_call"]
    call_id: _Id
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    arguments: str
    id: _Id | None = None
    status: _Status | None = None


class _FunctionCallOutput(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function_call_output"]
    call_id: _Id
    output: str | list[dict[str, Any]]
    id: _Id | None = None
    status: _Status | None = None


class _ReasoningText(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class _Reasoning(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["reasoning"]
    summary: list[_ReasoningText] = []
    content: list[_ReasoningText] | None = None
    id: _Id | None = None
    status: _Status | None = None


class _Compaction(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["compaction"]
    encrypted_content: str
    id: _Id | None = None
    created_by: str | None = None


class _Reference(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["item_reference"]
    id: _Id


class _TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """`annotations` and `logprobs` come with answers that are sent back; they say nothing to a model."""

    type: Literal["input_text", "output_text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


_CALLER = {"caller": "only the model calls tools here.", "namespace": "there are no namespaces of tools here."}
_ENCRYPTED = {"encrypted_content": "reasoning is not encrypted here; send it as `content`."}


def new_item_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


def read_input(given: str | Sequence[dict[str, Any]] | None, find: Find) -> list[Item]:
    """Return a request's `input` as items; raise RequestError for what is malformed or no text.

    `find` looks up what an item_reference names.
    """
    if given is None:
        return []
    if isinstance(given, str):
        return [_message("user", [{"type": "input_text", "text": given}], None)]
    return [_read(item, f"input[{index}]", find) for index, item in enumerate(given)]


def _read(raw: dict[str, Any], place: str, find: Find) -> Item:
    kind = raw.get("type")
    if kind is None:  # both of them may leave it out
        kind = "message" if "role" in raw or "id" not in raw else "item_reference"
    match kind:
        case "message":
            message = convert_object({**raw, "type": "message"}, _Message, {}, place)
            return _message(message.role, _parts(message.content, f"{place}.content", message.role), message.id)
        case "function_call":
            call = convert_object(raw, _FunctionCall, {**_CALLER, "async": "calls are answered in turn here."}, place)
            _check_arguments(call.arguments, place)
            return {
                "type": "function_call",
                "id": call.id or new_item_id("fc"),
                "call_id": call.call_id,
                "name": call.name,
                "arguments": call.arguments,
                "status": call.status or "completed",
            }
        case "function_call_output":
            output = convert_object(raw, _FunctionCallOutput, _CALLER, place)
            text = output.output if isinstance(output.output, str) else _parts(output.output, f"{place}.output", "user")
            return {
                "type": "function_call_output",
                "id": output.id or new_item_id("fco"),
                "call_id": output.call_id,
                "output": text,
                "status": output.status or "completed",
            }
        case "reasoning":
            reasoning = convert_object(raw, _Reasoning, _ENCRYPTED, place)
            return {
                "type": "reasoning",
                "id": reasoning.id or new_item_id("rs"),
                "summary": msgspec.to_builtins(reasoning.summary),
                "content": msgspec.to_builtins(reasoning.content or []),
                "status": reasoning.status or "completed",
            }
        case "compaction":
            compaction = convert_object(raw, _Compaction, {}, place)
            read_summary(compaction.encrypted_content, _dotted(f"{place}.encrypted_content"))
            content = {"encrypted_content": compaction.encrypted_content}
            return {"type": "compaction", "id": compaction.id or new_item_id("cmp"), **content}
        case "item_reference":
            reference = convert_object({**raw, "type": "item_reference"}, _Reference, {}, place)
            item = find(reference.id)
            if item is None:
                raise InvalidRequest(f"Item with id '{reference.id}' not found.", param=_dotted(f"{place}.id"))
            return item
        case other:
            raise UnsupportedParameter(
                f"An item of type {str(other)[:40]!r} is not supported: messages, functions, reasoning and compaction are.",
                param=_dotted(f"{place}.type"),
            )


def _check_arguments(arguments: str, place: str) -> None:
    try:
        decoded = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError) as error:
        message = f"`arguments` of a function call must be a JSON text: {str(error)[:200]}."
        raise InvalidRequest(message, param=_dotted(f"{place}.arguments")) from error
    if not isinstance(decoded, dict):
        raise InvalidRequest(
            "`arguments` of a function call must be the text of a JSON object.", param=_dotted(f"{place}.arguments")
        )


def _message(role: str, content: list[dict[str, Any]], id: str | None) -> Item:
    return {"type": "message", "id": id or new_item_id("msg"), "status": "completed", "role": role, "content": content}


def _parts(content: str | list[dict[str, Any]], place: str, role: str) -> list[dict[str, Any]]:
    """Return content as parts, those of the assistant as output."""
    if isinstance(content, str):
        content = [{"type": "output_text" if role == "assistant" else "input_text", "text": content}]
    return [_part(part, f"{place}[{index}]", role) for index, part in enumerate(content)]


def _part(raw: dict[str, Any], place: str, role: str) -> dict[str, Any]:
    kind = raw.get("type")
    if kind not in ("input_text", "output_text", "refusal"):
        raise UnsupportedParameter(
            f"This server reads text only; a content part of type {str(kind)[:40]!r} is not supported.",
            param=_dotted(f"{place}.type"),
        )
    part = convert_object(raw, _TextPart, {}, place)
    name = "refusal" if kind == "refusal" else "text"
    text = getattr(part, name)
    if text is None:
        raise InvalidRequest(f"A content part of type {kind!r} needs a text in `{name}`.", param=_dotted(f"{place}.{name}"))
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": part.annotations or [], "logprobs": part.logprobs or []}
    return {"type": "input_text", "text": text}


def _dotted(place: str) -> str:
    return place.replace("[", ".[")[:200]


def references(given: str | Sequence[dict[str, Any]] | None) -> set[str]:
    """Return the ids that item references of an `input` name, well-formed or not."""
    if given is None or isinstance(given, str):
        return set()
    items = (item for item in given if item.get("type") in ("item_reference", None) and "role" not in item)
    return {item["id"] for item in items if isinstance(item.get("id"), str)}
