"""Owns chat messages -> prompt ids, and the model's answer -> content, reasoning and tool calls.

Templates and response templates are the tokenizer's own, rendered and parsed by transformers. Knows no HTTP shapes: messages
and tools come as the plain dictionaries that templates expect.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from jinja2 import TemplateError

from app.errors import InvalidRequest, UnsupportedParameter
from app.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model made; `arguments` is a JSON text, as OpenAI sends it."""

    name: str
    arguments: str


@dataclass(slots=True)
class ChatDelta:
    """What a piece of the answer adds to the message."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


class ChatTemplate:
    """Renders conversations for one model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.hf.chat_template
        sources = list(template.values()) if isinstance(template, dict) else [template or ""]
        self.exists = bool(template)
        self._knows_tools = any("tools" in source for source in sources)
        self._knows_developer = any("developer" in source for source in sources)

    @property
    def response_template(self) -> dict[str, Any] | None:
        template: dict[str, Any] | None = getattr(self._tokenizer.hf, "response_template", None)
        return template

    def render(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None) -> tuple[list[int], str]:
        """Return the prompt's ids, ending where the assistant's answer begins, and as the text that `parser` wants of it.

        What the template refuses is the sender's InvalidRequest. Text of users can not forge control tokens: it is encoded as
        plain text wherever it spells one.
        """
        if not self.exists:
            raise InvalidRequest(
                "This model has no chat template, so it can not chat. Use /v1/completions with a plain prompt.",
                param="model",
                code="unsupported_model",
            )
        if tools and not (self._knows_tools and self.response_template is not None):
            raise UnsupportedParameter(
                "This model can not call tools: its tokenizer has no chat template with tools and response template.",
                param="tools",
            )
        try:
            ids = self._tokenizer.hf.apply_chat_template(
                [self._for_template(message) for message in messages],
                tools=list(tools) if tools else None,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                sanitize_control_tokens=True,
            )
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            message = " ".join(str(error).split())[:300]
            raise InvalidRequest(f"The model's chat template refuses these messages: {message}", param="messages") from error
        prompt_ids = cast(list[int], ids)
        text = "" if self.response_template is None else self._tokenizer.decode(prompt_ids, skip_special_tokens=False)
        return prompt_ids, text

    def _for_template(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] == "developer" and not self._knows_developer:
            return {**message, "role": "system"}
        return message

    def parser(self, prefix: str, tools: Sequence[dict[str, Any]] | None) -> "ChatParser":
        """Return the parser for the answer to a rendered prompt, whose text is `prefix`."""
        if self.response_template is None:
            return ChatParser(None)
        return ChatParser(self._tokenizer.hf.get_response_parser(prefix=prefix, tools=list(tools) if tools else None))


class ChatParser:
    """Sorts an answer, as it arrives, into content, reasoning and tool calls.

    Without a response template all of it is content. Text that does not parse (a broken call) is given out as content, as the
    model wrote it: nothing is lost and nothing is made up.
    """

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._unparsed = ""

    @property
    def needs_special_tokens(self) -> bool:
        return self._parser is not None

    def feed(self, text: str) -> ChatDelta:
        if self._parser is None:
            return ChatDelta(content=text)
        # One by one, so that no step ends in the middle of what another region begins with.
        delta = ChatDelta()
        for index, char in enumerate(text):
            if self._parser is None:
                delta.content += text[index:]
                break
            step = self._guarded(char, partial(self._parser.feed, char))
            delta.content += step.content
            delta.reasoning += step.reasoning
            delta.tool_calls += step.tool_calls
        return delta

    def finish(self) -> ChatDelta:
        if self._parser is None:
            return ChatDelta()
        return self._guarded("", lambda: self._parser.finalize()[1])

    def _guarded(self, text: str, step: Callable[[], list[dict[str, Any]]]) -> ChatDelta:
        self._unparsed += text
        try:
            delta = _delta(step())
        except Exception:  # the parser raises whatever the region's own parser does
            self._parser, text, self._unparsed = None, self._unparsed, ""
            return ChatDelta(content=text)
        if delta != ChatDelta():
            # What the parser holds back, since it may begin a region. It has no public name for that.
            self._unparsed = self._parser._buffer[self._parser._pos :]
        return delta


def _delta(events: Sequence[dict[str, Any]]) -> ChatDelta:
    delta = ChatDelta()
    for event in events:
        if event["type"] == "region_chunk" and not event["dirty"]:
            if event["field"] in ("reasoning_content", "reasoning", "thinking"):
                delta.reasoning += event["text"]
            elif event["field"] == "content":
                delta.content += event["text"]
        elif event["type"] == "region_close" and event["field"] == "tool_calls":
            calls = event["value"] if isinstance(event["value"], list) else [event["value"]]
            delta.tool_calls += [_tool_call(call) for call in calls]
    return delta


def _tool_call(call: dict[str, Any]) -> ToolCall:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    return ToolCall(
        str(function["name"]), arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    )
