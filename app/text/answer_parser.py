"""Owns sorting an answer, as it arrives, into content, reasoning and tool calls. Knows no chat templates and no HTTP.

`MarkerParser` reads the formats of app/text/formats.py; `TemplateParser` lets transformers read by a tokenizer's own response
template. In both, text that is no well-formed call is content as the model wrote it: nothing is lost and nothing is made up.
"""

import json
import secrets
import string
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from app.text.calls import Calls
from app.text.constraint import Reasoning as ReasoningMarkers
from app.text.deltas import CallArguments, CallBegin, CallEnd, ChatDelta, Content, Reasoning
from app.text.formats import ReasoningFormat, ToolFormat
from app.text.reader import Read, Reader
from app.text.reasoning import ReasoningSplitter


class AnswerParser(Protocol):
    """Turns the text of one answer into deltas; the deltas together are the same however the text was cut."""

    def feed(self, text: str) -> list[ChatDelta]: ...

    def finish(self) -> list[ChatDelta]: ...


class PlainParser:
    """For models without tools and reasoning: everything is content."""

    def feed(self, text: str) -> list[ChatDelta]:
        return [Content(text)] if text else []

    def finish(self) -> list[ChatDelta]:
        return []


class ConstrainedParser:
    """For answers whose form is enforced: a block of reasoning, then nothing but content."""

    def __init__(self, reasoning: ReasoningMarkers) -> None:
        self._splitter = ReasoningSplitter(reasoning)

    def feed(self, text: str) -> list[ChatDelta]:
        return self._deltas(*self._splitter.feed(text))

    def finish(self) -> list[ChatDelta]:
        return self._deltas(*self._splitter.finish())

    def _deltas(self, reasoning: str, content: str) -> list[ChatDelta]:
        thought: list[ChatDelta] = [Reasoning(reasoning)] if reasoning else []
        return [*thought, Content(content)] if content else thought


class EitherParser:
    """For answers that are calls, which begin with `opener`, or content whose form is enforced; with reasoning before either.

    `calls` reads answers of this model from their beginning.
    """

    def __init__(self, opener: str, calls: AnswerParser, reasoning: ReasoningMarkers | None) -> None:
        self._opener = opener
        self._calls = calls
        self._content: AnswerParser = PlainParser() if reasoning is None else ConstrainedParser(reasoning)
        self._text = ""
        self._begun = ""  # of the content, until it is known whether it is some
        self._reads: AnswerParser | None = None

    def feed(self, text: str) -> list[ChatDelta]:
        if self._reads is not None:
            return self._reads.feed(text)
        self._text += text
        deltas = self._content.feed(text)
        thought: list[ChatDelta] = [delta for delta in deltas if isinstance(delta, Reasoning)]
        self._begun += "".join(delta.text for delta in deltas if isinstance(delta, Content))
        if self._begun.startswith(self._opener):
            self._reads = self._calls
            # What was thought is given out already.
            return [*thought, *(delta for delta in self._calls.feed(self._text) if not isinstance(delta, Reasoning))]
        if not self._opener.startswith(self._begun):
            self._reads = self._content
            return [*thought, Content(self._begun)]
        return thought

    def finish(self) -> list[ChatDelta]:
        if self._reads is not None:
            return self._reads.finish()
        held: list[ChatDelta] = [Content(self._begun)] if self._begun else []
        return held + self._content.finish()


def new_call_id(length: int = 24) -> str:
    """Return an id of a tool call; Mistral's templates take nothing but nine letters and digits."""
    alphabet = string.ascii_letters + string.digits
    random = "".join(secrets.choice(alphabet) for _ in range(length))
    return random if length == 9 else f"call_{random}"


class MarkerParser:
    """Reads answers in which markers open reasoning and calls.

    `schemas` are the parameters of the offered tools by name; None when there are none, and then nothing is taken for a call.
    """

    def __init__(
        self,
        tools: ToolFormat | None,
        reasoning: ReasoningFormat | None,
        *,
        starts_in_reasoning: bool = False,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        names: frozenset[str] | None = None,
        limit: int | None = None,
    ) -> None:
        self._tools = tools if schemas is not None else None
        self._reasoning = reasoning
        self._reader = Reader()
        new_id = partial(new_call_id, 24 if tools is None else tools.id_length)
        self._calls = Calls(self._reader, new_id, schemas=schemas, names=names, limit=limit)
        self._steps = self._read(starts_in_reasoning)

    def feed(self, text: str) -> list[ChatDelta]:
        self._reader.add(text)
        next(self._steps, None)
        return self._reader.take_found()

    def finish(self) -> list[ChatDelta]:
        self._reader.end()
        return self.feed("")

    def _read(self, in_reasoning: bool) -> Generator[None, None, None]:
        thinks = () if self._reasoning is None else (self._reasoning.open,)
        if in_reasoning:
            yield from self._read_reasoning()
        begins, follows = True, in_reasoning  # whether the answer begins here, and whether markup is just before
        while True:
            if begins and self._tools is not None and self._tools.is_bare:
                follows = (yield from self._read_calls()) or follows
            opens = () if self._tools is None or self._calls.is_full else self._tools.opens
            marker, space = yield from self._reader.until((*thinks, *opens), self._content, trim=True, lead=follows)
            if not marker:
                return
            begins = marker in thinks
            if begins:
                yield from self._read_reasoning()
                follows = True
                continue
            follows = yield from self._read_calls()
            if not follows:
                self._content(space + marker)

    def _read_calls(self) -> Read:
        """Read calls behind their marker; where there are none, go back and return False."""
        assert self._tools is not None
        assert self._tools.read is not None
        self._reader.mark()
        called = yield from self._tools.read(self._calls)
        if not called:
            self._reader.back()
        self._reader.forget_mark()
        return called

    def _read_reasoning(self) -> Generator[None, None, None]:
        assert self._reasoning is not None
        yield from self._reader.until([self._reasoning.close], self._think, trim=True, lead=True)

    def _content(self, text: str) -> None:
        self._reader.emit(Content(text))

    def _think(self, text: str) -> None:
        self._reader.emit(Reasoning(text))


class TemplateParser:
    """Reads answers by a response template of transformers, whose parser is given. A call's arguments come when it is whole."""

    def __init__(self, parser: Any, *, names: frozenset[str] | None = None, limit: int | None = None) -> None:
        self._parser = parser
        self._unparsed = ""
        self._names = names
        self._limit = limit
        self._count = 0

    def feed(self, text: str) -> list[ChatDelta]:
        # One by one, so that no step ends in the middle of what another region begins with.
        deltas: list[ChatDelta] = []
        for index, char in enumerate(text):
            if self._parser is None:
                deltas.append(Content(text[index:]))
                break
            deltas += self._guarded(char, partial(self._parser.feed, char))
        return _joined(deltas)

    def finish(self) -> list[ChatDelta]:
        return [] if self._parser is None else self._guarded("", lambda: self._parser.finalize()[1])

    def _guarded(self, text: str, step: Callable[[], list[dict[str, Any]]]) -> list[ChatDelta]:
        self._unparsed += text
        try:
            deltas = [delta for event in step() for delta in self._deltas(event)]
        except Exception:  # the parser raises whatever the region's own parser does
            self._parser, text, self._unparsed = None, self._unparsed, ""
            return [Content(text)] if text else []
        if deltas:
            # What the parser holds back, since it may begin a region. It has no public name for that.
            self._unparsed = self._parser._buffer[self._parser._pos :]
        return deltas

    def _deltas(self, event: dict[str, Any]) -> list[ChatDelta]:
        if event["type"] == "region_chunk" and not event["dirty"] and event["text"]:
            if event["field"] in ("reasoning_content", "reasoning", "thinking"):
                return [Reasoning(event["text"])]
            return [Content(event["text"])] if event["field"] == "content" else []
        if event["type"] != "region_close" or event["field"] != "tool_calls":
            return []
        calls = event["value"] if isinstance(event["value"], list) else [event["value"]]
        return [delta for call in calls for delta in self._call(call)]

    def _call(self, call: dict[str, Any]) -> list[ChatDelta]:
        function = call.get("function", call)
        name, arguments = str(function["name"]), function.get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        if not isinstance(json.loads(text), dict):
            raise ValueError("arguments that are no object")
        if (self._names is not None and name not in self._names) or (self._limit is not None and self._count >= self._limit):
            raise ValueError("a call that can not be made")
        index, self._count = self._count, self._count + 1
        return [CallBegin(index, new_call_id(), name), CallArguments(index, text), CallEnd(index)]


def _joined(deltas: Sequence[ChatDelta]) -> list[ChatDelta]:
    reader = Reader()
    for delta in deltas:
        reader.emit(delta)
    return reader.take_found()
