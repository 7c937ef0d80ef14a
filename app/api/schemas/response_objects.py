"""Owns the response object of /v1/responses, and what else its routes answer. Knows no requests and no events.

Every field that openai-python's Response and Open Responses' ResponseResource require is there, with the values in effect.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET

from app.api.schemas.common import Usage
from app.api.schemas.response_items import Item

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class IncompleteDetails(msgspec.Struct):
    reason: Literal["max_output_tokens"]


class ResponseError(msgspec.Struct):
    code: str
    message: str


class InputTokensDetails(msgspec.Struct):
    """`cache_write_tokens` are those that writing is charged for: none."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "ResponseUsage":
        details = usage.completion_tokens_details
        return cls(
            usage.prompt_tokens,
            InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            usage.completion_tokens,
            OutputTokensDetails(0 if details is UNSET else details.reasoning_tokens),
            usage.total_tokens,
        )


class EffectiveReasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None


class EffectiveText(msgspec.Struct):
    format: dict[str, Any]
    verbosity: str = "medium"


class ResponseObject(msgspec.Struct, kw_only=True):
    """Sampling parameters are those that were sampled with, whoever set them: the request or the model's defaults."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status = "in_progress"
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[Item]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    reasoning: EffectiveReasoning
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: EffectiveText
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]


class DeletedResponse(msgspec.Struct):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(msgspec.Struct):
    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"
