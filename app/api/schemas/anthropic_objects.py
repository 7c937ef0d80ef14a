"""Owns the answers of /v1/messages and below it (anthropic-sdk-python: types/message.py). Knows no requests."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from app.api.schemas.common import Usage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class OutputTokensDetails(msgspec.Struct):
    thinking_tokens: int


class MessageUsage(msgspec.Struct, kw_only=True):
    """The prompt has `input_tokens` + `cache_read_input_tokens` tokens; what is kept of it costs nobody anything."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails | UnsetType = UNSET
    service_tier: Literal["standard"] = "standard"

    @classmethod
    def of(cls, usage: Usage) -> "MessageUsage":
        cached, details = usage.prompt_tokens_details.cached_tokens, usage.completion_tokens_details
        return cls(
            input_tokens=usage.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(details.reasoning_tokens) if details else UNSET,
        )


class AnthropicMessage(msgspec.Struct, kw_only=True):
    """Blocks of `content` are of type text, thinking or tool_use; `stop_reason` is null where a stream begins."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[dict[str, Any]]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class MessageTokensCount(msgspec.Struct):
    input_tokens: int


class AnthropicErrorDetails(msgspec.Struct, omit_defaults=True):
    """Which parameter an error is about, as a path such as `messages.[0].content`, and a word for what it is."""

    error_code: str | None = None
    param: str | None = None


class AnthropicErrorObject(msgspec.Struct):
    type: str
    message: str
    details: AnthropicErrorDetails | UnsetType = UNSET


class AnthropicError(msgspec.Struct, kw_only=True):
    type: Literal["error"] = "error"
    error: AnthropicErrorObject
    request_id: str
