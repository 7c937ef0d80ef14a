"""Owns messages of /v1/messages -> messages as chat templates expect them. Knows no HTTP shapes but those of content blocks."""

from collections.abc import Sequence
from typing import Any

from app.api.response_messages import assistant_message
from app.api.schemas.anthropic import InputMessage
from app.api.schemas.anthropic_blocks import (
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    blocks_of,
    text_of,
)
from app.errors import InvalidRequest


def template_messages(system: str | Sequence[dict[str, Any]] | None, messages: Sequence[InputMessage]) -> list[dict[str, Any]]:
    """Return the messages of a conversation; raise RequestError for blocks that can not be shown, and results without a call.

    Messages of one role that follow each other are one turn (docs.claude.com, Messages). A user's blocks of text are lines of
    it; an assistant's are one text, as it was written. A tool's result is a message of its own.
    """
    turns: list[dict[str, Any]] = []
    prompt = text_of(system, "system", "a system prompt")
    if prompt:
        turns.append({"role": "system", "content": prompt})
    names: dict[str, str] = {}
    for index, message in enumerate(messages):
        if not message.content and not (message.role == "assistant" and index == len(messages) - 1):
            param = f"messages.[{index}].content"
            raise InvalidRequest("A message needs content.", param=param, code="invalid_value")
        for place, block in blocks_of(message, index):
            match block:
                case TextBlock(text=text) if message.role == "assistant":
                    turn = assistant_message(turns, before=("reasoning_content", "content"))
                    turn["content"] = turn.get("content", "") + text
                case TextBlock(text=text):
                    _say(turns, message.role, text)
                case ThinkingBlock(thinking=thinking):
                    turn = assistant_message(turns, before=("reasoning_content",))
                    turn["reasoning_content"] = turn.get("reasoning_content", "") + thinking
                case RedactedThinkingBlock():
                    pass
                case ToolUseBlock():
                    names[block.id] = block.name
                    turn = assistant_message(turns, before=("reasoning_content", "content", "tool_calls"))
                    function = {"name": block.name, "arguments": block.input}
                    call = {"id": block.id, "type": "function", "function": function}
                    turn.setdefault("tool_calls", []).append(call)
                case ToolResultBlock():
                    if block.tool_use_id not in names:
                        raise InvalidRequest(
                            f"There is no `tool_use` block before it with the id {block.tool_use_id[:100]!r}.",
                            param=f"{place}.tool_use_id",
                            code="invalid_value",
                        )
                    turns.append(_result(block, names[block.tool_use_id], place))
    for turn in turns:
        turn.setdefault("content", "")
    return turns


def continues(messages: Sequence[InputMessage], turns: Sequence[dict[str, Any]]) -> bool:
    """Return whether the answer goes on with the last message; raise InvalidRequest if that can not be gone on with."""
    if messages[-1].role != "assistant":
        return False
    last = turns[-1] if turns else {}
    param = f"messages.[{len(messages) - 1}].content"
    if last.get("role") != "assistant" or not last["content"] or "tool_calls" in last:
        raise InvalidRequest(
            "The answer goes on with a last message of role assistant: it needs a text, and no tool use behind it.", param=param
        )
    if last["content"][-1].isspace():
        raise InvalidRequest("A last message of role assistant can not end with white space.", param=param)
    return True


def _say(turns: list[dict[str, Any]], role: str, text: str) -> None:
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += "\n" + text
    else:
        turns.append({"role": role, "content": text})


def _result(block: ToolResultBlock, name: str, place: str) -> dict[str, Any]:
    """Templates have no word for a result that is an error, so its text says so."""
    text = text_of(block.content, f"{place}.content", "a tool's result")
    content = f"Error: {text}" if block.is_error else text
    return {"role": "tool", "tool_call_id": block.tool_use_id, "name": name, "content": content}
