"""Owns the requests of /v1/responses. Knows no items and no answers.

openai-python: types/responses/response_create_params.py; Open Responses: schema/responses.tsp.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from app.api.schemas.beams import BeamFields
from app.api.schemas.common import convert_object
from app.api.schemas.tiers import ServiceTier, tier_priority
from app.api.schemas.tools import MAX_TOOLS, FunctionDefinition, OfferedTools, chosen_tools
from app.errors import InvalidRequest, UnsupportedParameter
from app.text.constraint import Constraint

if TYPE_CHECKING:
    from app.text.chat import ChatTemplate

REFUSED = {
    "access_programs": "there are none here.",
    "background_options": "responses are not made in the background here.",
    "context_management": "nothing is compacted by itself here; /v1/responses/compact does it when it is asked to.",
    "conversation": "conversations are not kept here; `previous_response_id` continues a stored response.",
    "image": "this server answers with text only.",
    "moderation": "there is no moderation here.",
    "n": "a response is one answer.",
    "prompt": "there are no prompt templates here.",
}
REFUSED_FOR_COUNT = {
    "conversation": REFUSED["conversation"],
    "personality": "there are no personalities here.",
}
_REFUSED_OF_TOOLS = {
    "allowed_callers": "only the model calls tools here.",
    "async": "calls are answered in turn here.",
    "defer_loading": "there is no tool search here.",
    "output_schema": "outputs of tools are texts here.",
}
_REFUSED_OF_REASONING = {
    "context": "all reasoning that is sent is shown to the model's template.",
    "mode": "there is one way to reason here.",
}

_LOGPROBS = "message.output_text.logprobs"
_ENCRYPTED = "reasoning.encrypted_content"
# What the others add to belongs to tools that do not exist here, so they are accepted and never matter.
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]
_MetadataKey = Annotated[str, Meta(max_length=64)]
_MetadataValue = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[dict[_MetadataKey, _MetadataValue], Meta(max_length=16)]
_Summary = Literal["auto", "concise", "detailed"]
_Input = str | list[dict[str, Any]]
_Tools = list[dict[str, Any]]
_ShortText = Annotated[str, Meta(max_length=512)]


class _FunctionTool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _NamedTool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    name: str


class _AllowedTools(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_TOOLS)]


class ReasoningOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`summary` "auto" asks for the best that there is: here that is the reasoning itself."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: _Summary | None = None
    generate_summary: _Summary | None = None


class _TextFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    def constraint(self) -> None:
        return None


class _JsonObjectFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    def constraint(self) -> Constraint:
        return Constraint("json_object", None, "text.format")


class _JsonSchemaFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """The schema is enforced whatever `strict` says."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None

    def constraint(self) -> Constraint:
        return Constraint("json_schema", self.schema, "text.format")


class TextOptions(msgspec.Struct, forbid_unknown_fields=True):
    format: _TextFormat | _JsonObjectFormat | _JsonSchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Asked(Protocol):
    """What requests for a response and for its number of tokens have in common."""

    @property
    def tools(self) -> list[dict[str, Any]] | None: ...
    @property
    def tool_choice(self) -> str | dict[str, Any] | None: ...
    @property
    def parallel_tool_calls(self) -> bool | None: ...
    @property
    def reasoning(self) -> dict[str, Any] | None: ...
    @property
    def text(self) -> TextOptions | None: ...


class ResponseRequest(BeamFields, kw_only=True):
    """`safety_identifier`, `user`, `metadata` and the `prompt_cache_*` can not change an answer; they come back in it.

    `max_tool_calls` counts calls of built-in tools, of which there are none. `input` may be left out to go on from
    `previous_response_id`.
    """

    input: _Input | None = None
    instructions: str | None = None
    previous_response_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    tools: _Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    reasoning: dict[str, Any] | None = None
    text: TextOptions | None = None
    include: Annotated[list[Includable], Meta(max_length=16)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: Metadata | None = None
    service_tier: ServiceTier | None = None
    safety_identifier: _ShortText | None = None
    prompt_cache_key: _ShortText | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: dict[str, Any] | None = None

    def check(self) -> None:
        """Raise InvalidRequest for contradictions and UnsupportedParameter for values that are not honoured."""
        self.check_stream_options()
        self.check_beams()
        if self.stream_options is not None and self.stream_options.include_usage is not None:
            raise UnsupportedParameter(
                "`stream_options.include_usage` belongs to chat completions: a response's last event has its usage.",
                param="stream_options.include_usage",
            )
        if self.background:
            raise UnsupportedParameter("`background` true is not supported.", param="background")
        if self.input is None and self.previous_response_id is None:
            raise InvalidRequest("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
        if _ENCRYPTED in (self.include or ()):
            raise UnsupportedParameter(
                f"`include` {_ENCRYPTED!r} is not supported: reasoning is the `content` of its item, and may be sent back.",
                param="include",
            )
        if self.priority is not None and tier_priority(self.service_tier):
            raise InvalidRequest("`priority` and `service_tier` say the same thing; give one of them.", param="service_tier")
        _ = self.constraint  # contradictions in it

    def constraints(self) -> list[Constraint]:
        wanted = None if self.text is None or self.text.format is None else self.text.format.constraint()
        return ([] if wanted is None else [wanted]) + BeamFields.constraints(self)

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives each token of the answer comes with, None for no logprobs at all."""
        wanted = _LOGPROBS in (self.include or ()) or self.top_logprobs
        return (self.top_logprobs or 0) if wanted else None


class InputTokensRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The part of a ResponseRequest that makes its prompt."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    input: _Input | None = None
    instructions: str | None = None
    previous_response_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    tools: _Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None


def read_tools(body: Asked) -> list[dict[str, Any]]:
    """Return the tools as answers repeat them; raise for those that are no functions."""
    return [_tool(raw, f"tools[{index}]") for index, raw in enumerate(body.tools or ())]


def _tool(raw: dict[str, Any], place: str) -> dict[str, Any]:
    kind = raw.get("type")
    if kind != "function":
        raise UnsupportedParameter(
            f"A tool of type {str(kind)[:40]!r} is not supported: this server has no tools of its own, only your functions.",
            param=place.replace("[", ".[") + ".type",
        )
    kept = {name: value for name, value in raw.items() if not (name in _REFUSED_OF_TOOLS and value is False)}
    tool = convert_object(kept, _FunctionTool, _REFUSED_OF_TOOLS, place)
    definition = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", **definition, "strict": bool(tool.strict)}


def offered_tools(body: Asked, tools: Sequence[dict[str, Any]]) -> OfferedTools:
    """Put the fields of a request together; raise RequestError for what contradicts itself or can not be honoured."""
    functions = []
    for index, tool in enumerate(tools):
        fields = {name: value for name, value in tool.items() if name != "type"}
        functions.append(convert_object(fields, FunctionDefinition, {}, f"tools[{index}]"))
    choice = _choice(body.tool_choice)
    # "auto" is what an answer says of a request without tools, too.
    choice = None if choice == "auto" and not functions else choice
    limit = 1 if body.parallel_tool_calls is False else None
    return chosen_tools(functions, choice, limit=limit, place="tools.[{}].parameters")


def _choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """Spell a tool choice as chat completions do."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "allowed_tools":
        allowed = convert_object(choice, _AllowedTools, {}, "tool_choice")
        tools = [_named(tool, f"tool_choice.tools[{index}]") for index, tool in enumerate(allowed.tools)]
        return {"type": "allowed_tools", "allowed_tools": {"mode": allowed.mode, "tools": tools}}
    return _named(choice, "tool_choice")


def _named(tool: dict[str, Any], place: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise UnsupportedParameter(
            f"A tool of type {str(tool.get('type'))[:40]!r} is not supported: only functions are.",
            param=place.replace("[", ".[") + ".type",
        )
    return {"type": "function", "function": {"name": convert_object(tool, _NamedTool, {}, place).name}}


def read_reasoning(body: Asked) -> ReasoningOptions:
    """Return the `reasoning` object; raise for what of it can not be honoured."""
    given = dict(body.reasoning or {})
    for name, harmless in (("context", "auto"), ("mode", "standard")):
        if given.get(name) == harmless:
            del given[name]
    options = convert_object(given, ReasoningOptions, _REFUSED_OF_REASONING, "reasoning")
    for name in ("summary", "generate_summary"):
        if getattr(options, name) not in (None, "auto"):
            raise UnsupportedParameter(
                f"`reasoning.{name}` other than 'auto' is not supported: there is the reasoning itself.",
                param=f"reasoning.{name}",
            )
    return options


def template_variables(options: ReasoningOptions, verbosity: str | None, chat: "ChatTemplate") -> dict[str, Any]:
    """Return what the template is told of effort and verbosity; raise UnsupportedParameter if it has no word for one."""
    given = {} if verbosity is None else chat.verbosity_variables(verbosity, "text.verbosity")
    if options.effort is None:
        return given
    try:
        return given | chat.effort_variables(options.effort)
    except UnsupportedParameter as error:
        message = str(error).replace("`reasoning_effort`", "`reasoning.effort`")
        raise UnsupportedParameter(message, param="reasoning.effort") from error
