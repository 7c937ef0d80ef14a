"""Owns a message of /v1/messages as it grows: deltas of the answer -> content blocks, and the events that tell of them.

The order (docs.claude.com, Streaming Messages): a block starts, grows by its deltas and stops; one block at a time. Knows no
requests, no models and no framing.
"""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from app.text.deltas import CallArguments, CallBegin, CallEnd, ChatDelta, Content, Reasoning
from app.text.json_prefix import whole_of

Block = dict[str, Any]
Event = dict[str, Any]


class MessageBuilder:
    """Builds the content of one message. `content` holds the blocks so far; the last one may be unfinished."""

    def __init__(self) -> None:
        self.content: list[Block] = []
        self._open: Block | None = None
        # White space that may turn out to stand between two blocks, and be part of none.
        self._space = ""
        self._arguments = ""

    def feed(self, deltas: Sequence[ChatDelta]) -> list[Event]:
        """Add what one step brought; return its events."""
        return [event for delta in deltas for event in self._feed(delta)]

    def _feed(self, delta: ChatDelta) -> list[Event]:
        match delta:
            case Content(text):
                return self._text(text)
            case Reasoning(text):
                begun = self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                self._last["thinking"] += text
                return [*begun, self._delta("thinking_delta", thinking=text)]
            case CallBegin(_, id, name):
                stopped = self._stop()
                self._arguments = ""
                return stopped + self._start({"type": "tool_use", "id": id, "name": name, "input": {}})
            case CallArguments(_, text):
                self._arguments += text
                return [self._delta("input_json_delta", partial_json=text)]
            case CallEnd():
                # As the model wrote it: no number is rounded, no key lost.
                self._last["input"] = msgspec.Raw(self._arguments.encode())
                return self._stop(is_whole_call=True)

    def finish(self, *, is_cut: bool) -> list[Event]:
        """End the content; `is_cut` if the model was not done. A whole answer of nothing is a text of nothing."""
        events: list[Event] = []
        if not self.content and (self._space or not is_cut):
            text, self._space = self._space, ""
            events = self._begin("text", {"type": "text", "text": text})
            events += [self._delta("text_delta", text=text)] if text else []
        return events + self._stop()

    def _text(self, text: str) -> list[Event]:
        if self._open is None or self._open["type"] != "text":
            text, self._space = self._space + text, ""
            if not text.strip():
                self._space = text
                return []
        begun = self._begin("text", {"type": "text", "text": ""})
        self._last["text"] += text
        return [*begun, self._delta("text_delta", text=text)]

    @property
    def _last(self) -> Block:
        return self.content[-1]

    def _begin(self, kind: str, block: Block) -> list[Event]:
        """Start a block, unless one of its kind is open."""
        if self._open is not None and self._open["type"] == kind:
            return []
        return self._stop() + self._start(block)

    def _start(self, block: Block) -> list[Event]:
        self._space = ""
        self._open = block
        self.content.append(block)
        empty = {**block, "text": ""} if block["type"] == "text" else dict(block)
        return [{"type": "content_block_start", "index": len(self.content) - 1, "content_block": empty}]

    def _stop(self, *, is_whole_call: bool = False) -> list[Event]:
        block, self._open = self._open, None
        if block is None:
            return []
        index = len(self.content) - 1
        events: list[Event] = []
        if block["type"] == "thinking":
            block["signature"] = _signature(block["thinking"])
            events.append(self._delta("signature_delta", signature=block["signature"]))
        elif block["type"] == "tool_use" and not is_whole_call:
            block["input"] = msgspec.Raw(whole_of(self._arguments).encode())
        return [*events, {"type": "content_block_stop", "index": index}]

    def _delta(self, kind: str, **fields: str) -> Event:
        return {"type": "content_block_delta", "index": len(self.content) - 1, "delta": {"type": kind, **fields}}


def _signature(thinking: str) -> str:
    """Return what clients send back with a thought and do not look into: its digest. Nothing is checked by it here."""
    return base64.b64encode(hashlib.sha256(thinking.encode()).digest()).decode()
