"""Owns a response's output as it grows: deltas of the answer -> output items, and the events that tell of them, in their order.

The order (Open Responses, Streaming): an item is added, its parts are added, grow and are done, then the item is done; one item
at a time. Event names are openai-python's (types/responses/*_event.py). Knows no requests, no models and no framing.
"""

from collections.abc import Sequence
from typing import Any

from app.api.schemas.common import LOWEST_LOGPROB
from app.api.schemas.response_items import Item, new_item_id
from app.text.deltas import CallArguments, CallBegin, CallEnd, ChatDelta, Content, Reasoning
from app.text.output import TokenText

Event = dict[str, Any]


class OutputBuilder:
    """Builds the output of one response. `output` holds the items so far; the last one may be unfinished."""

    def __init__(self) -> None:
        self.output: list[Item] = []
        self._number = 0
        self._open: Item | None = None
        # White space that may turn out to stand between two items, and be part of none.
        self._space = ""
        self._tokens: list[TokenText] = []

    def event(self, type: str, **fields: Any) -> Event:
        event = {"type": type, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def feed(self, deltas: Sequence[ChatDelta], tokens: Sequence[TokenText] = ()) -> list[Event]:
        """Add what one step brought, with its tokens if logprobs are wanted; return its events."""
        self._tokens += tokens
        events: list[Event] = []
        for delta in deltas:
            events += self._feed(delta)
        return events

    def _feed(self, delta: ChatDelta) -> list[Event]:
        match delta:
            case Content(text):
                return self._content(text)
            case Reasoning(text):
                self._tokens.clear()
                return [*self._begin("reasoning"), self._text_delta("response.reasoning_text.delta", text)]
            case CallBegin(_, id, name):
                return self._begin_call(id, name)
            case CallArguments(_, text):
                self._tokens.clear()
                assert self._open is not None
                self._open["arguments"] += text
                return [self._at_item("response.function_call_arguments.delta", delta=text)]
            case CallEnd():
                return self._close("completed", is_whole_call=True)

    def finish(self, *, is_cut: bool) -> list[Event]:
        """End the output; `is_cut` if the model was not done. A whole answer of nothing is an empty message."""
        events: list[Event] = []
        if not self.output and (self._space or not is_cut):
            text = self._space
            events += [*self._begin("message"), *self._text(text)]
        elif self._open is not None and self._open["type"] == "message":
            events += self._text("")  # the token that ended it has no text
        return events + self._close("incomplete" if is_cut else "completed")

    def fail(self) -> None:
        """End the output without a word: what was begun stays as far as it came."""
        if self._open is not None:
            self._open["status"] = "incomplete"
            self._open = None

    def _content(self, text: str) -> list[Event]:
        if self._open is None or self._open["type"] != "message":
            text, self._space = self._space + text, ""
            if not text.strip():
                self._space = text
                return []
        return [*self._begin("message"), *self._text(text)]

    def _text(self, text: str) -> list[Event]:
        if not text and not self._tokens:
            return []
        logprobs = self._logprobs(text)
        assert self._open is not None
        self._open["content"][0]["logprobs"] += logprobs
        return [self._text_delta("response.output_text.delta", text, logprobs=logprobs)]

    def _text_delta(self, type: str, text: str, **fields: Any) -> Event:
        assert self._open is not None
        self._open["content"][0]["text"] += text
        return self._at_item(type, content_index=0, delta=text, **fields)

    def _logprobs(self, text: str) -> list[dict[str, Any]]:
        """Return the tokens of a piece of text. What came before it belongs to markers that are no part of the text."""
        tokens, self._tokens = self._tokens, []
        data, wanted = b"".join(token.data for token in tokens), text.encode()
        # Behind it there is at most the token that ends the answer, whose text is not given out either.
        before = len(data) - len(wanted) if data.endswith(wanted) else max(0, data.find(wanted))
        while wanted and tokens and before >= len(tokens[0].data) > 0:
            before -= len(tokens.pop(0).data)
        return [_logprob(token) | {"top_logprobs": [_logprob(top) for top in token.top]} for token in tokens]

    def _begin(self, kind: str) -> list[Event]:
        """Begin a message or reasoning with its one part, unless it is open."""
        if self._open is not None and self._open["type"] == kind:
            return []
        events = self._close("completed")
        self._space = ""
        if kind == "message":
            events += self._add(
                {"type": kind, "id": new_item_id("msg"), "status": "in_progress", "role": "assistant", "content": []}
            )
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            events += self._add({"type": kind, "id": new_item_id("rs"), "status": "in_progress", "summary": [], "content": []})
            part = {"type": "reasoning_text", "text": ""}
        assert self._open is not None
        self._open["content"].append(part)
        events.append(self._at_item("response.content_part.added", content_index=0, part=_copy(part)))
        return events

    def _begin_call(self, call_id: str, name: str) -> list[Event]:
        self._space = ""
        self._tokens.clear()
        events = self._close("completed")
        call = {"type": "function_call", "id": new_item_id("fc"), "call_id": call_id, "name": name, "arguments": ""}
        return events + self._add({**call, "status": "in_progress"})

    def _add(self, item: Item) -> list[Event]:
        self._open = item
        self.output.append(item)
        return [self.event("response.output_item.added", output_index=len(self.output) - 1, item=_copy(item))]

    def _close(self, status: str, *, is_whole_call: bool = False) -> list[Event]:
        item = self._open
        if item is None:
            return []
        item["status"] = status = "incomplete" if item["type"] == "function_call" and not is_whole_call else status
        events: list[Event] = []
        if item["type"] == "function_call":
            if status == "completed":
                # Of arguments that are cut off, nothing says that they are done: clients act on that.
                events.append(self._at_item("response.function_call_arguments.done", arguments=item["arguments"]))
        else:
            part = item["content"][0]
            if item["type"] == "message":
                fields = {"text": part["text"], "logprobs": part["logprobs"]}
                events.append(self._at_item("response.output_text.done", content_index=0, **fields))
            else:
                events.append(self._at_item("response.reasoning_text.done", content_index=0, text=part["text"]))
            events.append(self._at_item("response.content_part.done", content_index=0, part=part))
        events.append(self.event("response.output_item.done", output_index=len(self.output) - 1, item=item))
        self._open = None
        return events

    def _at_item(self, type: str, **fields: Any) -> Event:
        assert self._open is not None
        return self.event(type, item_id=self._open["id"], output_index=len(self.output) - 1, **fields)


def _copy(value: dict[str, Any]) -> dict[str, Any]:
    """Return an item or part as it is now: events are encoded after the item has grown."""
    return {key: list(inner) if isinstance(inner, list) else inner for key, inner in value.items()}


def _logprob(token: Any) -> dict[str, Any]:
    return {"token": token.text, "bytes": list(token.data), "logprob": max(token.logprob, LOWEST_LOGPROB)}
