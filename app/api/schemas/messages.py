"""Owns the messages of a chat request, and what chat templates expect of them. Knows no models and no answers."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from app.api.limits import is_deeper
from app.errors import InvalidRequest, UnsupportedParameter

# As deep as a body may be by default; these are JSON in a text of it.
MAX_ARGUMENTS_DEPTH = 128


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str


class MessageToolCall(msgspec.Struct, forbid_unknown_fields=True):
    function: FunctionCall
    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One message of a conversation; what servers answer may be sent back as it is, so its null fields are legal here."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: FunctionCall | None = None

    def for_template(self, index: int, last_call_id: str = "") -> dict[str, Any]:
        """Return what chat templates expect: text content, arguments as objects; raise for what is no text.

        A message of role function, the predecessor of tool, answers the call of `last_call_id`.
        """
        message: dict[str, Any] = {"role": self.role, "content": self._text(index)}
        if self.role == "function":
            if self.name is None:
                raise InvalidRequest("A message of role function needs the `name` of it.", param=f"messages.[{index}].name")
            message |= {"role": "tool", "tool_call_id": last_call_id}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        reasoning = self.reasoning_content or self.reasoning
        if reasoning:
            message["reasoning_content"] = reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                _for_template(call.id, call.function, f"messages.[{index}].tool_calls.[{position}].function")
                for position, call in enumerate(self.tool_calls)
            ]
        elif self.function_call is not None:
            place = f"messages.[{index}].function_call"
            message["tool_calls"] = [_for_template(_legacy_call_id(index), self.function_call, place)]
        has_more = self.tool_calls or self.function_call or self.refusal or reasoning
        if self.content is None and not (self.role == "assistant" and has_more):
            raise InvalidRequest(f"`content` is missing in a message of role {self.role}.", param=f"messages.[{index}].content")
        return message

    def _text(self, index: int) -> str:
        if self.content is None:
            return self.refusal or ""
        if isinstance(self.content, str):
            return self.content
        texts: list[str] = []
        for position, part in enumerate(self.content):
            place = f"messages.[{index}].content.[{position}]"
            kind = part.get("type")
            if kind not in ("text", "refusal"):
                raise UnsupportedParameter(
                    f"This server reads text only; a content part of type {str(kind)[:40]!r} is not supported.",
                    param=f"{place}.type",
                )
            text = part.get(kind)
            if not isinstance(text, str):
                raise InvalidRequest(f"A content part of type {kind!r} needs a text in `{kind}`.", param=f"{place}.{kind}")
            texts.append(text)
        return "".join(texts)


def _legacy_call_id(index: int) -> str:
    """Return an id for the call of a message that has none: nine letters and digits, which every template takes."""
    return f"call{index:05}"


def _for_template(call_id: str | None, function: FunctionCall, place: str) -> dict[str, Any]:
    """Templates write the arguments as JSON themselves, so a text would be quoted twice."""
    try:
        arguments = msgspec.json.decode(function.arguments or "{}")
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"`arguments` of a tool call must be a JSON text: {str(error)[:200]}.", param=f"{place}.arguments"
        ) from error
    if is_deeper(arguments, MAX_ARGUMENTS_DEPTH):
        raise InvalidRequest(
            f"`arguments` of a tool call is nested more than {MAX_ARGUMENTS_DEPTH} levels deep.", param=f"{place}.arguments"
        )
    return {"id": call_id, "type": "function", "function": {"name": function.name, "arguments": arguments}}


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as chat templates expect them; raise RequestError for what they can not hold."""
    rendered: list[dict[str, Any]] = []
    last_call_id = _legacy_call_id(0)
    for index, message in enumerate(messages):
        if message.function_call is not None:
            last_call_id = _legacy_call_id(index)
        rendered.append(message.for_template(index, last_call_id))
    return rendered
