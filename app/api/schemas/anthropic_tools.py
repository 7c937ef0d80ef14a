"""Owns the tools of /v1/messages: what of Anthropic's `tools` and `tool_choice` is honoured, as the tools of a chat.

Knows no models. anthropic-sdk-python: types/tool_param.py, types/tool_choice_param.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from app.api.schemas.anthropic import AnyChoice, AutoChoice, CacheControl, NoChoice, ToolChoice, without
from app.api.schemas.common import convert_object
from app.api.schemas.tools import FunctionDefinition, OfferedTools, chosen_tools
from app.errors import InvalidRequest, UnsupportedParameter

_REFUSED = {
    "allowed_callers": "only the model calls tools here.",
    "defer_loading": "there is no tool search here.",
    "eager_input_streaming": "inputs are streamed as the model writes them.",
    "input_examples": "models have no place for them; put them into the `description`.",
}
# Values that ask for what is so anyway.
_HARMLESS: dict[str, Any] = {
    "allowed_callers": ["direct"],
    "defer_loading": False,
    "eager_input_streaming": True,
    "input_examples": [],
}


class _CustomTool(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None


def offered_tools(
    tools: Sequence[dict[str, Any]] | None, choice: AutoChoice | AnyChoice | ToolChoice | NoChoice | None
) -> OfferedTools:
    """Put tools and choice together; raise InvalidRequest for contradictions, UnsupportedParameter for what is not honoured."""
    functions = [_function(raw, f"tools[{index}]") for index, raw in enumerate(tools or ())]
    single = choice is not None and not isinstance(choice, NoChoice) and choice.disable_parallel_tool_use is True
    offered = chosen_tools(functions, _chat_choice(choice), limit=1 if single else None, place="tools.[{}].input_schema")
    if offered.param == "parallel_tool_calls":
        return replace(offered, param="tool_choice.disable_parallel_tool_use")
    return offered


def _chat_choice(choice: AutoChoice | AnyChoice | ToolChoice | NoChoice | None) -> str | dict[str, Any] | None:
    """Return the choice as /v1/chat/completions spells it."""
    match choice:
        case None:
            return None
        case AutoChoice():
            return "auto"
        case AnyChoice():
            return "required"
        case NoChoice():
            return "none"
        case ToolChoice(name=name):
            return {"type": "function", "function": {"name": name}}


def _function(raw: dict[str, Any], place: str) -> FunctionDefinition:
    kind = raw.get("type")
    if kind not in (None, "custom"):
        raise UnsupportedParameter(
            f"A tool of type {str(kind)[:40]!r} is not supported: this server has no tools of its own, only yours.",
            param=place.replace("[", ".[") + ".type",
        )
    tool = convert_object(without(raw, _HARMLESS), _CustomTool, _REFUSED, place)
    if tool.input_schema.get("type", "object") != "object":
        param = place.replace("[", ".[") + ".input_schema.type"
        raise InvalidRequest(f"Invalid value for '{param}': an input is an object.", param=param, code="invalid_value")
    return FunctionDefinition(tool.name, tool.description, tool.input_schema, tool.strict)
