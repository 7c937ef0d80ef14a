"""Checks of /v1/messages' event streams: order, and the message that they tell, for tests of the builder and of the wire."""

import json
import re
from collections.abc import Sequence
from typing import Any

from app.text.json_prefix import whole_of

_LETTERS = {
    "message_start": "M",
    "content_block_start": "B",
    "text_delta": "t",
    "thinking_delta": "h",
    "signature_delta": "s",
    "input_json_delta": "j",
    "content_block_stop": "E",
    "message_delta": "D",
    "message_stop": "S",
    "error": "X",
}
BLOCKS = r"(B(t*|h+s|j*)E)*"
# A stream that fails may do so in the middle of a block.
STREAM = re.compile(rf"M{BLOCKS}(DS|(B(t*|h*|j*))?X)")
_GROWING = {"text_delta": "text", "thinking_delta": "thinking"}


def letters(events: Sequence[dict[str, Any]]) -> str:
    return "".join(_LETTERS[event.get("delta", {}).get("type", event["type"])] for event in events)


def content_of(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the blocks together as a client does; check that each event is about the block that is open."""
    content: list[dict[str, Any]] = []
    arguments, is_open = "", False
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert not is_open and event["index"] == len(content)
                block = dict(event["content_block"])
                assert not any(block[name] for name in ("text", "thinking", "signature", "input") if name in block)
                content.append(block)
                arguments, is_open = "", True
            case "content_block_delta":
                assert is_open and event["index"] == len(content) - 1
                delta = event["delta"]
                if delta["type"] in _GROWING:
                    name = _GROWING[delta["type"]]
                    assert delta[name], "no delta is empty"
                    content[-1][name] += delta[name]
                elif delta["type"] == "signature_delta":
                    content[-1]["signature"] = delta["signature"]
                else:
                    arguments += delta["partial_json"]
            case "content_block_stop":
                assert is_open and event["index"] == len(content) - 1
                is_open = False
                if content[-1]["type"] == "tool_use":
                    content[-1]["input"] = json.loads(whole_of(arguments))
    return content


def message_of(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Check a whole stream that did not fail, and return its message."""
    assert STREAM.fullmatch(letters(events)), letters(events)
    message: dict[str, Any] = dict(events[0]["message"])
    assert (message["content"], message["stop_reason"], message["stop_sequence"]) == ([], None, None)
    last = events[-2]
    return message | last["delta"] | {"content": content_of(events), "usage": last["usage"]}
