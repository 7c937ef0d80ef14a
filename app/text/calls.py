"""Owns reading tool calls whose arguments are JSON, as model families write them. Knows no chat templates and no grammars.

A function here starts behind the marker that opened it. It returns False when what follows is no call: the caller then goes
back and gives it out as text. Once a call has begun it is a call: what the model writes of its arguments is passed on as it
comes, so a call that is cut off, or whose arguments stop being JSON, is given out as far as it was written, without a CallEnd.
"""

import json
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any

import regex

from app.text.deltas import CallArguments, CallBegin, CallEnd
from app.text.reader import Read, Reader

_HEAD = regex.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)',
    regex.DOTALL,
)
_BEFORE_OBJECT = regex.compile(r"\s*(?=\{)")


class Calls:
    """The calls of one answer. `names`, when given, are the only ones that may be called; at most `limit` calls are made."""

    def __init__(
        self,
        reader: Reader,
        new_id: Callable[[], str],
        *,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        names: Collection[str] | None = None,
        limit: int | None = None,
    ) -> None:
        self.reader = reader
        self._new_id = new_id
        self._schemas = schemas or {}
        self._names = names
        self._limit = limit
        self.count = 0

    @property
    def is_full(self) -> bool:
        return self._limit is not None and self.count >= self._limit

    def begin(self, name: str) -> bool:
        """Begin a call; False if this one can not be made."""
        if not name or self.is_full or (self._names is not None and name not in self._names):
            return False
        self.reader.forget_mark()
        self.reader.emit(CallBegin(self.count, self._new_id(), name))
        self.count += 1
        return True

    def arguments(self, text: str) -> None:
        self.reader.emit(CallArguments(self.count - 1, text))

    def end(self) -> None:
        self.reader.emit(CallEnd(self.count - 1))

    def schema(self, name: str, key: str) -> Mapping[str, Any]:
        """Return the JSON schema of a parameter of the tool, as far as it is known."""
        properties = self._schemas.get(name, {}).get("properties")
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        return schema if isinstance(schema, Mapping) else {}


def _arguments(calls: Calls, close: str) -> Read:
    """Read the arguments of a call that has begun; when they are no JSON, all that is written up to `close`."""
    whole = yield from calls.reader.object(calls.arguments)
    if not whole:
        yield from calls.reader.until([close] if close else [], calls.arguments)
        return False
    calls.end()
    return True


def json_call(calls: Calls, close: str) -> Read:
    """Read `{"name": ..., "arguments": {...}}`, or with "parameters"; other orders too, but those not before they are whole."""
    reader = calls.reader
    head = yield from reader.match(_HEAD)
    if head is not None:
        name = loads(head[1])
        if not isinstance(name, str) or not calls.begin(name):
            return False
        if (yield from _arguments(calls, close)):
            yield from reader.match(_tail(close))
        return True
    pieces: list[str] = []
    if (yield from reader.match(_BEFORE_OBJECT)) is None or not (yield from reader.object(pieces.append)):
        return False
    call = _whole_call(loads("".join(pieces)))
    if call is None or not calls.begin(call[0]):
        return False
    calls.arguments(call[1])
    calls.end()
    if close:
        yield from reader.match(literal(close))
    return True


def _tail(close: str) -> "regex.Pattern[str]":
    """What follows the arguments: the object's brace, which small models forget, and the marker."""
    extra = r'(?:\s*,\s*"id"\s*:\s*"[^"]*")?'
    return regex.compile(rf"{extra}\s*(?:\}}\s*)?{regex.escape(close)}" if close else rf"{extra}\s*\}}")


def literal(text: str) -> "regex.Pattern[str]":
    return regex.compile(r"\s*" + regex.escape(text))


def loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _whole_call(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, dict):
        return None
    value = value["function"] if isinstance(value.get("function"), dict) else value
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str) and isinstance(loads(arguments), dict):
        text = arguments
    elif arguments is None or isinstance(arguments, dict):
        text = json.dumps(arguments or {}, ensure_ascii=False)
    else:
        return None
    return (name, text) if isinstance(name, str) and name else None


def bare_call(calls: Calls) -> Read:
    """Llama 3: `{"name": ..., "parameters": {...}}`, several with `;` between them."""
    if not (yield from json_call(calls, "")):
        return False
    yield from _more(calls, _NEXT_BARE)
    return True


def _more(calls: Calls, separator: "regex.Pattern[str]") -> Generator[None, None, None]:
    """Read JSON calls as long as one follows the separator."""
    while True:
        calls.reader.mark()
        if (yield from calls.reader.match(separator)) is None or not (yield from json_call(calls, "")):
            calls.reader.back()
            return


_NEXT_BARE = regex.compile(r"\s*(?:;\s*)?(?:<\|python_tag\|>\s*)?(?=\{)")


def mistral_calls(calls: Calls) -> Read:
    """`[TOOL_CALLS][{...}, ...]`, or since v11 `[TOOL_CALLS]name[ARGS]{...}` (with `[CALL_ID]id` between them in some)."""
    reader = calls.reader
    head = yield from reader.match(_MISTRAL_HEAD)
    if head is not None:
        if not calls.begin(head[1]):
            return False
        yield from _arguments(calls, "[TOOL_CALLS]")
        return True
    return (yield from json_list(calls, ""))


_MISTRAL_HEAD = regex.compile(r"\s*([A-Za-z0-9_.-]+)(?:\[CALL_ID\][A-Za-z0-9]*)?\[ARGS\]\s*(?=\{)")
_LIST_BEGIN = regex.compile(r"\s*\[")
_LIST_NEXT = regex.compile(r"\s*,")
_LIST_END = regex.compile(r"\s*\]")


def json_list(calls: Calls, close: str) -> Read:
    """A JSON list of calls, or a single one."""
    reader = calls.reader
    if (yield from reader.match(_LIST_BEGIN)) is None:
        return (yield from json_call(calls, close))
    if not (yield from json_call(calls, "")):
        return False
    yield from _more(calls, _LIST_NEXT)
    yield from reader.match(_LIST_END)
    if close:
        yield from reader.match(literal(close))
    return True


def deepseek_calls(calls: Calls) -> Read:
    """Behind `<｜tool▁calls▁begin｜>`: calls in a fence (V3, R1) or with their name before the separator (V3.1)."""
    reader = calls.reader
    num_before = calls.count
    while True:
        if calls.count > num_before:
            reader.mark()
        head = yield from reader.match(_DEEPSEEK_HEAD)
        if head is None or not calls.begin((head[1] or head[2]).strip()):
            if calls.count == num_before:
                return False
            reader.back()
            break
        if (yield from _arguments(calls, "<｜tool▁call▁end｜>")):
            yield from reader.match(_DEEPSEEK_TAIL)
    yield from reader.match(_DEEPSEEK_END)
    return True


_DEEPSEEK_HEAD = regex.compile(
    r"\s*<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>([^\n<{]+)\n```(?:json)?\s*(?=\{)|([^\n<{]+)<｜tool▁sep｜>\s*(?=\{))"
)
_DEEPSEEK_TAIL = regex.compile(r"\s*(?:```\s*)?<｜tool▁call▁end｜>")
_DEEPSEEK_END = regex.compile(r"\s*<｜tool▁calls▁end｜>")
