"""Checks of /v1/responses' event streams: framing, order and content, for tests of the builder and of the wire."""

import json
import re
from collections.abc import Sequence
from typing import Any

import httpx
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_RESPONSE: TypeAdapter[Any] = TypeAdapter(Response)

_LETTERS = {
    "response.created": "C",
    "response.in_progress": "P",
    "response.output_item.added": "A",
    "response.content_part.added": "p",
    "response.output_text.delta": "t",
    "response.output_text.done": "T",
    "response.reasoning_text.delta": "r",
    "response.reasoning_text.done": "R",
    "response.content_part.done": "q",
    "response.function_call_arguments.delta": "g",
    "response.function_call_arguments.done": "G",
    "response.output_item.done": "D",
    "response.completed": "K",
    "response.incomplete": "I",
    "response.failed": "F",
    "error": "E",
}
ITEMS = r"(A(pt*Tq|pr*Rq|g*G?)D)*"
# A stream that fails may do so in the middle of an item.
_STREAM = re.compile(rf"CP{ITEMS}(K|I|(A(p(t*|r*)|g*)?)?FE)")


def letters(events: Sequence[dict[str, Any]]) -> str:
    return "".join(_LETTERS[event["type"]] for event in events)


def named_events(response: httpx.Response, *, done: bool = True) -> list[dict[str, Any]]:
    """Return the events of a whole stream whose events have names; check the framing to the byte."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    body = response.content
    assert b"\r" not in body
    assert body.endswith(b"\n\n")
    parts = body.removesuffix(b"\n\n").split(b"\n\n")
    if done:
        assert parts.pop() == b"data: [DONE]"
    events = []
    for part in parts:
        name, data = part.split(b"\n")
        events.append(json.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + events[-1]["type"].encode()
    return events


def check_response(response: dict[str, Any]) -> None:
    """Check that every field is there that openai-python requires."""
    _RESPONSE.validate_python(response)


def check_events(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Check a whole stream and return its last response object."""
    assert _STREAM.fullmatch(letters(events)), letters(events)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        _EVENT.validate_python(event)
    last: dict[str, Any] = next(event["response"] for event in reversed(events) if "response" in event)
    output = check_items(events)
    if last["status"] != "failed":
        assert output == last["output"]
    assert {event["response"]["id"] for event in events if "response" in event} == {last["id"]}
    return last


def check_items(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Check that each item's events tell of the same item; return the items that are done."""
    items: list[dict[str, Any]] = []
    text = ""
    added: dict[str, Any] = {}
    for event in events:
        if "output_index" in event:
            assert event["output_index"] == len(items)
        if "item_id" in event:
            assert event["item_id"] == added["id"]
        if "content_index" in event:
            assert event["content_index"] == 0
        match event["type"].removeprefix("response."):
            case "output_item.added":
                added, text = event["item"], ""
                assert added["status"] == "in_progress"
                assert not added.get("content") and not added.get("arguments")
            case "content_part.added":
                assert event["part"]["text"] == ""
            case "output_text.delta" | "reasoning_text.delta" | "function_call_arguments.delta":
                text += event["delta"]
            case "output_text.done" | "reasoning_text.done":
                assert event["text"] == text
            case "content_part.done":
                assert event["part"]["text"] == text
            case "function_call_arguments.done":
                assert event["arguments"] == text
                assert isinstance(json.loads(text), dict)
            case "output_item.done":
                item = event["item"]
                assert (item["id"], item["type"]) == (added["id"], added["type"])
                assert item["status"] in ("completed", "incomplete")
                assert (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]) == text
                items.append(item)
    return items
