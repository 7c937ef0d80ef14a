"""Owns the objects of /v1/chat/completions (openai-python: types/chat/)."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app.api.schemas.common import SamplingFields, TokenCount, Usage
from app.api.schemas.messages import FunctionCall, Message, template_messages
from app.api.schemas.output import PromptLogprob
from app.api.schemas.prompts import PromptFields
from app.api.schemas.tiers import ServiceTier, served_tier, tier_priority
from app.api.schemas.tools import FunctionDefinition, NamedFunction, OfferedTools, Tool, offered_tools
from app.errors import Inapplicable, InvalidRequest, UnsupportedParameter
from app.text.constraint import Constraint

if TYPE_CHECKING:
    from app.text.chat import ChatTemplate


REFUSED = {
    "audio": "this server answers with text only.",
    "moderation": "there is no moderation here.",
    "web_search_options": "there is no web search here.",
}


class _TextPart(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class Prediction(msgspec.Struct, forbid_unknown_fields=True):
    """What the answer will probably be: a hint that can make it come sooner, never another one. It is not used yet."""

    type: Literal["content"]
    content: str | list[_TextPart]


class TextFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    def constraint(self) -> None:
        return None


class JsonObjectFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    def constraint(self) -> Constraint:
        return Constraint("json_object", None, "response_format")


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    """`schema` is any object when it is absent. It is enforced whatever `strict` says."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema

    def constraint(self) -> Constraint:
        if self.json_schema.schema is None:
            return Constraint("json_object", None, "response_format")
        return Constraint("json_schema", self.json_schema.schema, "response_format")


class ChatRequest(PromptFields, kw_only=True):
    """`max_completion_tokens` wins over its older name `max_tokens`.

    `store`, `metadata`, `safety_identifier` and the `prompt_cache_*` steer OpenAI's own hosting; they can not change an answer
    here and are accepted. `service_tier` is a priority among those that wait. OpenAI's is not `chat_template_kwargs`, nor
    `documents`, `add_generation_prompt` and `continue_final_message`.
    """

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionDefinition] | None = None
    function_call: str | NamedFunction | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    modalities: list[str] | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: ServiceTier | None = None
    prediction: Prediction | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def check(self) -> None:
        """Raise InvalidRequest for contradictions and UnsupportedParameter for values that are not honoured yet."""
        self.check_stream_options()
        self.check_beams()
        if self.top_logprobs is not None and not self.logprobs:
            raise Inapplicable("`top_logprobs` needs `logprobs` to be true.", param="top_logprobs")
        if self.store:
            raise UnsupportedParameter("`store` true is not supported: nothing is stored here.", param="store")
        if self.modalities is not None and self.modalities != ["text"]:
            raise UnsupportedParameter("`modalities` other than text are not supported.", param="modalities")
        _ = self.constraint  # contradictions in it
        if self.priority is not None and self.tier_priority:
            raise InvalidRequest("`priority` and `service_tier` say the same thing; give one of them.", param="service_tier")
        self.check_prompt_fields(has_logprobs=bool(self.logprobs))
        if self.truncation_side == "right":
            raise UnsupportedParameter(
                "`truncation_side` right is not supported in chat: it would cut off where the answer begins.",
                param="truncation_side",
            )
        self._check_continuation()

    def _check_continuation(self) -> None:
        if not self.continue_final_message:
            return
        if self.add_generation_prompt:
            raise InvalidRequest(
                "`continue_final_message` continues a message; `add_generation_prompt` begins one.",
                param="add_generation_prompt",
            )
        last = self.messages[-1]
        if last.role != "assistant" or not last.content or last.tool_calls or last.function_call:
            raise InvalidRequest(
                "`continue_final_message` needs a last message of role assistant with text in it, and no calls.",
                param="continue_final_message",
            )

    def constraints(self) -> list[Constraint]:
        wanted = None if self.response_format is None else self.response_format.constraint()
        return ([] if wanted is None else [wanted]) + SamplingFields.constraints(self)

    @property
    def offered_tools(self) -> OfferedTools:
        """What the request says of tools; raises RequestError for what contradicts itself or can not be honoured."""
        return offered_tools(self.tools, self.tool_choice, self.parallel_tool_calls, self.functions, self.function_call)

    def template_messages(self) -> list[dict[str, Any]]:
        """Return the messages as chat templates expect them; raise RequestError for what they can not hold."""
        return template_messages(self.messages)

    def template_variables(self, chat: "ChatTemplate") -> dict[str, Any]:
        """Return what the template is told besides messages and tools; raise UnsupportedParameter for what it does not read."""
        given = chat.checked_variables(self.chat_template_kwargs or {})
        wanted = {
            "reasoning_effort": {} if self.reasoning_effort is None else chat.effort_variables(self.reasoning_effort),
            "verbosity": {} if self.verbosity is None else chat.verbosity_variables(self.verbosity, "verbosity"),
            "documents": {} if self.documents is None else chat.document_variables(self.documents),
        }
        for param, variables in wanted.items():
            twice = next((name for name in variables if name in given and given[name] != variables[name]), None)
            if twice is not None:
                raise InvalidRequest(f"`{param}` and `chat_template_kwargs.{twice}` contradict each other.", param=param)
        return given | {name: value for variables in wanted.values() for name, value in variables.items()}

    @property
    def tier_priority(self) -> int:
        """How much later the request is served than others, which `priority` says too."""
        return tier_priority(self.service_tier)

    @property
    def served_tier(self) -> str | None:
        """The tier that the answer names, as OpenAI does: only if the request named one."""
        return None if self.service_tier is None else served_tier(self.service_tier)


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
    function_call: FunctionCall | UnsetType = UNSET


ChatFinishReason = Literal["stop", "length", "tool_calls", "function_call", "content_filter"]


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    system_fingerprint: str
    service_tier: str | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | UnsetType = UNSET
    usage: Usage


class ChoiceDelta(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CalledToolDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: ChoiceDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    service_tier: str | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    usage: Usage | UnsetType | None = UNSET
