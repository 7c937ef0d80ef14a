"""Owns the requests of Anthropic's /v1/messages and /v1/messages/count_tokens. Knows no content blocks and no answers.

anthropic-sdk-python: types/message_create_params.py, types/message_count_tokens_params.py, and types/beta for the rest.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from app.api.schemas.common import TokenCount
from app.engine.defaults import SamplingRequest
from app.errors import Inapplicable, InvalidRequest, UnsupportedParameter
from app.text.constraint import Constraint

if TYPE_CHECKING:
    from app.text.chat import ChatTemplate

REFUSED_FOR_COUNT = {
    "billing_policy": "nothing is billed here.",
    "compaction": "nothing is compacted by itself here.",
    "context_management": "conversations are shown to the model as they are sent.",
    "mcp_servers": "this server calls no tools itself.",
}
REFUSED = REFUSED_FOR_COUNT | {
    "container": "there are no containers here.",
    "diagnostics": "cache misses are not diagnosed here.",
    "fallback_credit_token": "nothing is billed here.",
    "fallbacks": "the model that is asked is the one that answers.",
    "inference_geo": "this server is where it is.",
    "thread": "conversations are not kept here.",
}


class InputMessage(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class CacheControl(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class RequestMetadata(msgspec.Struct, forbid_unknown_fields=True):
    user_id: Annotated[str, Meta(max_length=4096)] | None = None


class AutoChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="auto"):
    disable_parallel_tool_use: bool | None = None


class AnyChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="any"):
    disable_parallel_tool_use: bool | None = None


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="tool"):
    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="none"):
    pass


_Display = Literal["summarized", "omitted"]


class EnabledThinking(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="enabled"):
    budget_tokens: Annotated[int, Meta(ge=1024, le=2**31 - 1)] | None = None
    display: _Display | None = None


class AdaptiveThinking(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="adaptive"):
    display: _Display | None = None


class DisabledThinking(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="disabled"):
    pass


class BetweenToolsThinking(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="between_tools"):
    pass


class OutputFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class _PromptFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the prompt is made of. `cache_control` says what the prefix cache finds by itself; `output_format` is the older name
    of `output_config.format`.
    """

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: AutoChoice | AnyChoice | ToolChoice | NoChoice | None = None
    thinking: EnabledThinking | AdaptiveThinking | DisabledThinking | BetweenToolsThinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    cache_control: CacheControl | None = None
    speed: Literal["standard", "fast"] | None = None

    def check(self) -> None:
        """Raise InvalidRequest for contradictions and UnsupportedParameter for values that are not honoured."""
        if self.speed == "fast":
            raise UnsupportedParameter("`speed` 'fast' is not supported: there is one speed here.", param="speed")
        thinking = self.thinking
        if isinstance(thinking, BetweenToolsThinking):
            raise UnsupportedParameter("`thinking.type` 'between_tools' is not supported.", param="thinking")
        if isinstance(thinking, EnabledThinking | AdaptiveThinking) and thinking.display == "omitted":
            raise UnsupportedParameter(
                "`thinking.display` 'omitted' is not supported: thinking is shown as it is.", param="thinking.display"
            )
        if self.output_format is not None and self.output_config is not None and self.output_config.format is not None:
            raise InvalidRequest(
                "`output_format` is the older name of `output_config.format`; give one of them.", param="output_format"
            )
        _ = self.constraint  # contradictions in it

    @property
    def budget_tokens(self) -> int | None:
        """How many tokens the model may think for."""
        return self.thinking.budget_tokens if isinstance(self.thinking, EnabledThinking) else None

    @property
    def constraint(self) -> Constraint | None:
        """What the answer is held to."""
        if self.output_format is not None:
            return Constraint("json_schema", self.output_format.schema, "output_format")
        if self.output_config is not None and self.output_config.format is not None:
            return Constraint("json_schema", self.output_config.format.schema, "output_config.format")
        return None

    def template_variables(self, chat: "ChatTemplate") -> dict[str, Any]:
        """Return what the template is told of thinking and effort; raise UnsupportedParameter for what it has no word for."""
        variables: dict[str, Any] = {}
        if self.thinking is not None:
            variables = dict(chat.thinking_variables(not isinstance(self.thinking, DisabledThinking)))
        effort = None if self.output_config is None else self.output_config.effort
        if effort is None:
            return variables
        try:
            wanted = chat.effort_variables(effort)
        except UnsupportedParameter as error:
            message = str(error).replace("`reasoning_effort`", "`output_config.effort`")
            raise UnsupportedParameter(message, param="output_config.effort") from error
        if any(variables.get(name, value) != value for name, value in wanted.items()):
            raise Inapplicable(
                "`output_config.effort` is how much to think, and `thinking` turns that off; give one of them.",
                param="output_config.effort",
            )
        return variables | wanted


class CountTokensRequest(_PromptFields, kw_only=True):
    """The part of a MessagesRequest that makes its prompt."""


class MessagesRequest(_PromptFields, kw_only=True):
    """`metadata` and `service_tier` steer Anthropic's own hosting; they can not change an answer here and are accepted."""

    max_tokens: TokenCount
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop_sequences: list[Annotated[str, Meta(min_length=1)]] | None = None
    stream: bool | None = None
    metadata: RequestMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def check(self) -> None:
        _PromptFields.check(self)
        budget = self.budget_tokens
        if budget is not None and budget >= self.max_tokens:
            raise InvalidRequest(
                f"`max_tokens` ({self.max_tokens}) must be more than `thinking.budget_tokens` ({budget}).", param="max_tokens"
            )

    def sampling_request(self) -> SamplingRequest:
        return SamplingRequest(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)


def without(given: dict[str, Any], harmless: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object without the fields whose values ask for what is so anyway."""
    return {name: value for name, value in given.items() if name not in harmless or not _equal(value, harmless[name])}


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)
