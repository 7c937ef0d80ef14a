"""Owns the objects of /v1/chat/completions (openai-python: types/chat/)."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app.api.schemas.common import SamplingFields, TokenCount, Usage
from app.errors import InvalidRequest, UnsupportedParameter

MAX_MESSAGES = 2048
MAX_TOOLS = 128

REFUSED = {
    "audio": "this server answers with text only.",
    "functions": "use `tools`.",
    "function_call": "use `tool_choice`.",
    "moderation": "there is no moderation here.",
    "prediction": "no predicted output yet.",
    "reasoning_effort": "no reasoning control yet.",
    "verbosity": "no verbosity control yet.",
    "web_search_options": "there is no web search here.",
}


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str


class MessageToolCall(msgspec.Struct, forbid_unknown_fields=True):
    function: FunctionCall
    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One message of a conversation; what servers answer may be sent back as it is, so its null fields are legal here."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    def for_template(self, index: int) -> dict[str, Any]:
        """Return what chat templates expect: text content, arguments as objects; raise for what is no text."""
        message: dict[str, Any] = {"role": self.role, "content": self._text(index)}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        reasoning = self.reasoning_content or self.reasoning
        if reasoning:
            message["reasoning_content"] = reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _arguments(call, index, position)},
                }
                for position, call in enumerate(self.tool_calls)
            ]
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.refusal or reasoning)):
            raise InvalidRequest(f"`content` is missing in a message of role {self.role}.", param=f"messages.[{index}].content")
        return message

    def _text(self, index: int) -> str:
        if self.content is None:
            return self.refusal or ""
        if isinstance(self.content, str):
            return self.content
        texts: list[str] = []
        for position, part in enumerate(self.content):
            place = f"messages.[{index}].content.[{position}]"
            kind = part.get("type")
            if kind not in ("text", "refusal"):
                raise UnsupportedParameter(
                    f"This server reads text only; a content part of type {str(kind)[:40]!r} is not supported.",
                    param=f"{place}.type",
                )
            text = part.get(kind)
            if not isinstance(text, str):
                raise InvalidRequest(f"A content part of type {kind!r} needs a text in `{kind}`.", param=f"{place}.{kind}")
            texts.append(text)
        return "".join(texts)


def _arguments(call: MessageToolCall, index: int, position: int) -> Any:
    """Templates write the arguments as JSON themselves, so a text would be quoted twice."""
    try:
        return msgspec.json.decode(call.function.arguments or "{}")
    except msgspec.DecodeError as error:
        place = f"messages.[{index}].tool_calls.[{position}].function.arguments"
        raise InvalidRequest(f"`arguments` of a tool call must be a JSON text: {error}.", param=place) from error


class FunctionDefinition(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionDefinition

    def for_template(self, index: int) -> dict[str, Any]:
        if self.function.strict:
            raise UnsupportedParameter(
                "`strict` tools need constrained decoding, which is not there yet.", param=f"tools.[{index}].function.strict"
            )
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        function["parameters"] = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class ChatRequest(SamplingFields, kw_only=True):
    """`max_completion_tokens` wins over its older name `max_tokens`.

    `store`, `metadata`, `safety_identifier`, the `prompt_cache_*` and `service_tier` of "auto" or "default" steer OpenAI's own
    hosting; they can not change an answer here and are accepted.
    """

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default"] | None = None

    def check(self) -> None:
        """Raise InvalidRequest for contradictions and UnsupportedParameter for values that are not honoured yet."""
        self.check_stream_options()
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("`top_logprobs` needs `logprobs` to be true.", param="top_logprobs")
        if self.store:
            raise UnsupportedParameter("`store` true is not supported: nothing is stored here.", param="store")
        if self.modalities is not None and self.modalities != ["text"]:
            raise UnsupportedParameter("`modalities` other than text are not supported.", param="modalities")
        kind = None if self.response_format is None else self.response_format.get("type")
        if self.response_format is not None and kind != "text":
            raise UnsupportedParameter(
                f"`response_format` of type {str(kind)[:40]!r} is not supported yet; only 'text' is.", param="response_format"
            )
        if self.tool_choice not in (None, "auto", "none"):
            raise UnsupportedParameter("`tool_choice` other than 'auto' and 'none' is not supported yet.", param="tool_choice")
        if self.tool_choice == "auto" and not self.tools:
            raise InvalidRequest("`tool_choice` is only allowed when `tools` are given.", param="tool_choice")
        if self.parallel_tool_calls is False and self.offered_tools:
            raise UnsupportedParameter("`parallel_tool_calls` false is not supported yet.", param="parallel_tool_calls")

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the model may call, as templates expect them; None if there are none, or `tool_choice` is "none"."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.for_template(index) for index, tool in enumerate(self.tools)]


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class CalledTool(msgspec.Struct):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class FunctionDelta(msgspec.Struct):
    arguments: str
    name: str | UnsetType = UNSET


class CalledToolDelta(msgspec.Struct):
    """`id`, `type` and the name are in a call's first delta only; its arguments are those of all its deltas together."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class AnswerMessage(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CalledTool] | UnsetType = UNSET


ChatFinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    system_fingerprint: str
    usage: Usage


class ChoiceDelta(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CalledToolDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: ChoiceDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
