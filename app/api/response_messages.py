"""Owns items of /v1/responses -> messages as chat templates expect them, and dropping the oldest where there is no room.

Knows no HTTP shapes but those of items.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from app.api.schemas.response_items import Item
from app.api.schemas.summaries import read_summary
from app.errors import InvalidRequest

T = TypeVar("T")

_SUMMARY = "Summary of the conversation so far:\n"


def template_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return the messages of a conversation; raise InvalidRequest for an output without its call.

    A model writes reasoning, text and calls as one message, so consecutive items of these kinds are put together again. A
    summary stands before what the user says next, in the same message: many templates want the roles to take turns.
    """
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    is_summary = False
    for item in items:
        was_summary, is_summary = is_summary, item["type"] == "compaction"
        match item["type"]:
            case "compaction":
                messages.append({"role": "user", "content": _SUMMARY + read_summary(item["encrypted_content"], "input")})
            case "message" if was_summary and item["role"] == "user":
                messages[-1]["content"] += "\n\n" + _text(item["content"])
            case "reasoning":
                text = "".join(part["text"] for part in item["content"] or item["summary"])
                if text:
                    assistant_message(messages, before=())["reasoning_content"] = text
            case "message" if item["role"] == "assistant":
                assistant_message(messages, before=("reasoning_content",))["content"] = _text(item["content"])
            case "message":
                messages.append({"role": item["role"], "content": _text(item["content"])})
            case "function_call":
                names[item["call_id"]] = item["name"]
                message = assistant_message(messages, before=("reasoning_content", "content", "tool_calls"))
                function = {"name": item["name"], "arguments": _arguments(item["arguments"])}
                call = {"id": item["call_id"], "type": "function", "function": function}
                message.setdefault("tool_calls", []).append(call)
            case "function_call_output":
                call_id, output = item["call_id"], item["output"]
                if call_id not in names:
                    raise InvalidRequest(f"No tool call found for function call output with call_id {call_id}.", param="input")
                text = output if isinstance(output, str) else _text(output)
                messages.append({"role": "tool", "tool_call_id": call_id, "name": names[call_id], "content": text})
    for message in messages:
        message.setdefault("content", "")
    return messages


def assistant_message(messages: list[dict[str, Any]], *, before: tuple[str, ...]) -> dict[str, Any]:
    """Return the assistant's message that the next item is part of; it may have the fields of `before` already."""
    if not messages or messages[-1]["role"] != "assistant" or set(messages[-1]) - {"role", *before}:
        messages.append({"role": "assistant"})
    return messages[-1]


def _arguments(text: str) -> Any:
    """Templates write the arguments as JSON themselves. What a model left unfinished stays a text."""
    try:
        return msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return text


def _text(parts: Sequence[dict[str, Any]]) -> str:
    return "".join(part["refusal" if part["type"] == "refusal" else "text"] for part in parts)


async def drop_oldest(
    messages: Sequence[dict[str, Any]], num_kept: int, render: Callable[[list[dict[str, Any]]], Awaitable[T | None]]
) -> T | None:
    """Return what `render` makes of as many of the newest messages as it has room for, None if not even the last turn fits.

    `render` returns None for too many. The first `num_kept` messages stay. A tool's output goes together with its call, and so
    does an answer with what it answers: what is left begins with a message that is neither.
    """
    starts = [index for index in range(num_kept, len(messages)) if messages[index]["role"] not in ("assistant", "tool")]
    starts = [num_kept, *(index for index in starts if index > num_kept)]
    low, high, best = 0, len(starts) - 1, None
    while low <= high:
        middle = (low + high) // 2
        rendered = await render([*messages[:num_kept], *messages[starts[middle] :]])
        if rendered is None:
            low = middle + 1
        else:
            best, high = rendered, middle - 1
    return best
