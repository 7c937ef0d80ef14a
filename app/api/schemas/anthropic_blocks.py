"""Owns the content blocks of messages that are sent to /v1/messages: which there are, and which of them are text.

Knows no conversations. anthropic-sdk-python: types/content_block_param.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from app.api.schemas.anthropic import CacheControl, InputMessage, without
from app.api.schemas.common import convert_object
from app.errors import InvalidRequest, UnsupportedParameter

_REFUSED = {
    "caller": "only the model calls tools here.",
    "citations": "there are no citations here.",
    "toolset_name": "there are no toolsets here.",
}
# Values that say nothing.
_HARMLESS: dict[str, Any] = {"caller": {"type": "direct"}, "citations": []}


class TextBlock(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class ThinkingBlock(msgspec.Struct, forbid_unknown_fields=True):
    """The signature is taken as it is: the thought may be another server's."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(msgspec.Struct, forbid_unknown_fields=True):
    """A thought that only Anthropic can read: there is nothing in it for any other model."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolResultBlock(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[dict[str, Any]] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


InputBlock = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock
_KINDS: Mapping[str, type[InputBlock]] = {
    "text": TextBlock,
    "thinking": ThinkingBlock,
    "redacted_thinking": RedactedThinkingBlock,
    "tool_use": ToolUseBlock,
    "tool_result": ToolResultBlock,
}
_OF_ROLE = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}


def blocks_of(message: InputMessage, index: int) -> Iterator[tuple[str, InputBlock]]:
    """Yield the blocks of message number `index`, each with its place; raise RequestError for what can not be shown."""
    place = f"messages.[{index}].content"
    if isinstance(message.content, str):
        yield place, TextBlock("text", message.content)
    else:
        yield from _read(message.content, place, _OF_ROLE[message.role], f"a message of role {message.role}")


def text_of(content: str | Sequence[dict[str, Any]] | None, place: str, what: str) -> str:
    """Return the text of a system prompt or of a tool's result, a line for each of its blocks; raise as `blocks_of` does."""
    if content is None or isinstance(content, str):
        return content or ""
    blocks = [block for _, block in _read(content, place, ("text",), what)]
    return "\n".join(block.text for block in blocks if isinstance(block, TextBlock))


def _read(content: Sequence[dict[str, Any]], place: str, kinds: Sequence[str], what: str) -> Iterator[tuple[str, InputBlock]]:
    for position, raw in enumerate(content):
        at = f"{place}.[{position}]"
        kind = str(raw.get("type"))
        if kind in _KINDS and kind not in kinds:
            raise InvalidRequest(f"A block of type {kind!r} can not be in {what}.", param=f"{at}.type", code="invalid_value")
        if kind not in _KINDS:
            raise UnsupportedParameter(
                f"This server reads text only; a block of type {kind[:40]!r} is not supported.", param=f"{at}.type"
            )
        yield at, convert_object(without(raw, _HARMLESS), _KINDS[kind], _REFUSED, at.replace(".[", "["))
