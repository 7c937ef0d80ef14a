"""Owns reading gpt-oss's harmony format: messages on channels, of which one is the answer. Knows no chat templates.

`<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...`, and a call is a message on the
channel `commentary to=functions.f <|constrain|>json`.
"""

from collections.abc import Generator, Mapping
from typing import Any

import regex

from app.text.calls import Calls
from app.text.deltas import ChatDelta, Content, Reasoning
from app.text.reader import Reader

_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_STARTS = ("<|start|>", "<|channel|>")
_HEADER = regex.compile(
    r"\s*(?:<\|start\|>)?(?:assistant)?(?:\s*to=([^\s<]+))?\s*<\|channel\|>\s*([a-z]+)(?:\s+to=([^\s<]+))?"
    r"(?:\s*<\|constrain\|>\s*[a-z0-9_]+|\s+(?!to=)[a-z0-9_]+)?\s*<\|message\|>"
)
_START = regex.compile(r"<\|(?:start|channel)\|>")
_OBJECT = regex.compile(r"\s*(?=\{)")
_FUNCTIONS = "functions."


class HarmonyParser:
    """Parses like MarkerParser; `prefix` is the end of the prompt, in which a channel may already be open."""

    def __init__(
        self,
        *,
        prefix: str = "",
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        names: frozenset[str] | None = None,
        limit: int | None = None,
        new_id: Any,
    ) -> None:
        self._reader = Reader()
        self._calls = Calls(self._reader, new_id, schemas=schemas, names=names, limit=limit)
        self._has_tools = schemas is not None
        self._last: type[Content] | type[Reasoning] | None = None
        self._steps = self._read()
        _, start, open_message = prefix.rpartition("<|start|>assistant")
        self.feed(open_message if start else "")

    def feed(self, text: str) -> list[ChatDelta]:
        self._reader.add(text)
        next(self._steps, None)
        return self._reader.take_found()

    def finish(self) -> list[ChatDelta]:
        self._reader.end()
        return self.feed("")

    def _read(self) -> Generator[None, None, None]:
        reader = self._reader
        while True:
            reader.mark()
            header = yield from reader.match(_HEADER)
            if header is None:
                reader.forget_mark()
                marker, _ = yield from reader.until(_STARTS, self._content, stay=True)
                if not marker:
                    return
                reader.mark()
                header = yield from reader.match(_HEADER)
                if header is None:
                    reader.forget_mark()
                    start = yield from reader.match(_START)
                    self._content("" if start is None else start[0])
                    continue
            yield from self._read_body(header)

    def _read_body(self, header: "regex.Match[str]") -> Generator[None, None, None]:
        reader = self._reader
        recipient = header[1] or header[3] or ""
        if recipient:
            name = recipient.removeprefix(_FUNCTIONS)
            if (
                self._has_tools
                and name != recipient
                and (yield from reader.match(_OBJECT)) is not None
                and self._calls.begin(name)
            ):
                yield from self._read_call()
                return
            reader.back()
            self._content_begins()
            yield from reader.until(_ENDS, self._content)
            return
        reader.forget_mark()
        if header[2] == "analysis":
            self._begins(Reasoning)
            yield from reader.until(_ENDS, lambda text: reader.emit(Reasoning(text)), trim=True)
        else:
            self._content_begins()
            yield from reader.until(_ENDS, self._content)

    def _read_call(self) -> Generator[None, None, None]:
        whole = yield from self._reader.object(self._calls.arguments)
        if whole:
            self._calls.end()
        yield from self._reader.until(_ENDS, self._content if whole else self._calls.arguments, trim=whole, lead=whole)

    def _content(self, text: str) -> None:
        if text:
            self._last = Content
            self._reader.emit(Content(text))

    def _content_begins(self) -> None:
        self._begins(Content)

    def _begins(self, kind: "type[Content] | type[Reasoning]") -> None:
        """Keep messages of one kind apart by a line break, where they would run together."""
        if self._last is kind:
            self._reader.emit(kind("\n"))
        self._last = kind
