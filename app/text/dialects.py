"""Owns reading tool calls whose arguments are not JSON (Qwen3-Coder's XML, Gemma's), and writing them as JSON on the way.

What app/text/calls.py says of its functions is true of these. Knows no chat templates.
"""

import json
from collections.abc import Mapping
from typing import Any

import regex

from app.text.calls import Calls, json_call, literal, loads
from app.text.reader import Read


def tagged_call(calls: Calls) -> Read:
    """`<tool_call>{json}</tool_call>` (Hermes, Qwen) and `<tool_call><function=name>...</tool_call>` (Qwen3-Coder)."""
    head = yield from calls.reader.match(_XML_HEAD)
    if head is not None:
        return (yield from _xml_call(calls, head[1].strip()))
    return (yield from json_call(calls, "</tool_call>"))


_XML_HEAD = regex.compile(r"\s*<function=([^>\n]+)>")
_XML_PARAMETER = regex.compile(r"\s*<parameter=([^>\n]+)>")
_XML_NEWLINE = regex.compile(r"\r?\n")
_XML_END = regex.compile(r"\s*</function>\s*</tool_call>")


def _xml_call(calls: Calls, name: str) -> Read:
    reader = calls.reader
    if not calls.begin(name):
        return False
    calls.arguments("{")
    first = True
    while (parameter := (yield from reader.match(_XML_PARAMETER))) is not None:
        key = parameter[1].strip()
        calls.arguments(("" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
        first = False
        yield from reader.match(_XML_NEWLINE)
        quoted = is_text(calls.schema(name, key))
        pieces: list[str] = []
        if quoted:
            calls.arguments('"')
        emit = (lambda text: calls.arguments(_quoted(text))) if quoted else pieces.append
        marker, _ = yield from reader.until(["\n</parameter>", "</parameter>"], emit)
        if not marker:
            return True
        calls.arguments('"' if quoted else _as_json("".join(pieces)))
    calls.arguments("}")
    if (yield from reader.match(_XML_END)) is not None:
        calls.end()
    return True


def is_text(schema: Mapping[str, Any]) -> bool:
    """Whether a parameter with this schema is text, as it is without one; else it is JSON."""
    return "string" in _types(schema)


def _types(schema: Mapping[str, Any]) -> list[str]:
    """Return the types that a parameter may have; without a schema, which would say more, it is text."""
    types = schema.get("type", [])
    found = [types] if isinstance(types, str) else [name for name in types if isinstance(name, str)]
    for union in ("anyOf", "oneOf"):
        for choice in schema.get(union) or []:
            found += _types(choice) if isinstance(choice, Mapping) else []
    if not found and isinstance(schema.get("enum"), list):
        return ["string"] if all(isinstance(value, str) for value in schema["enum"]) else []
    return found or ([] if schema else ["string"])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _as_json(text: str) -> str:
    """Return a value that was written without JSON's quotes as JSON."""
    stripped = text.strip()
    word = {"True": "true", "False": "false", "None": "null"}.get(stripped, stripped)
    if word in ("NaN", "Infinity", "-Infinity") or (word != "null" and loads(word) is None):
        return json.dumps(text, ensure_ascii=False)
    return word


def gemma_call(calls: Calls, quote: str, close: str) -> Read:
    """`call:name{key:value,...}`: JSON without quotes around keys, and with `quote` around texts."""
    head = yield from calls.reader.match(_GEMMA_HEAD)
    if head is None or not calls.begin(head[1]):
        return False
    yield from calls.reader.match(regex.compile(r"\s*\{"))
    if (yield from _gemma_object(calls, quote)) and (yield from calls.reader.match(literal(close))) is not None:
        calls.end()
    return True


_GEMMA_HEAD = regex.compile(r"\s*call:\s*([A-Za-z0-9_.-]+)(?=\s*\{)")
_GEMMA_KEY = regex.compile(r"\s*([^\s:,{}\[\]<]+)\s*:\s*(?=\S)")
_GEMMA_WORD = regex.compile(r"\s*([^\s,{}\[\]<][^,{}\[\]<]*)(?=[,}\]])")


def _gemma_object(calls: Calls, quote: str) -> Read:
    calls.arguments("{")
    separator = ""
    while (yield from calls.reader.match(_ending("}"))) is None:
        key = yield from calls.reader.match(_quoted_key(quote))
        if key is None:
            key = yield from calls.reader.match(_GEMMA_KEY)
        if key is None:
            return False
        calls.arguments(separator + json.dumps(key[1], ensure_ascii=False) + ": ")
        separator = ", "
        if not (yield from _gemma_value(calls, quote)):
            return False
        yield from calls.reader.match(_GEMMA_COMMA)
    calls.arguments("}")
    return True


_GEMMA_COMMA = regex.compile(r"\s*,")


def _ending(bracket: str) -> "regex.Pattern[str]":
    return regex.compile(rf"\s*\{bracket}")


def _quoted_key(quote: str) -> "regex.Pattern[str]":
    return regex.compile(rf"\s*{regex.escape(quote)}([^:,{{}}]+){regex.escape(quote)}\s*:\s*(?=\S)")


def _gemma_value(calls: Calls, quote: str) -> Read:
    reader = calls.reader
    if (yield from reader.match(literal(quote))) is not None:
        calls.arguments('"')
        marker, _ = yield from reader.until([quote], lambda text: calls.arguments(_quoted(text)))
        calls.arguments('"' if marker else "")
        return bool(marker)
    if (yield from reader.match(_ending("{"))) is not None:
        return (yield from _gemma_object(calls, quote))
    if (yield from reader.match(_ending("["))) is not None:
        calls.arguments("[")
        separator = ""
        while (yield from reader.match(_ending("]"))) is None:
            calls.arguments(separator)
            separator = ", "
            if not (yield from _gemma_value(calls, quote)):
                return False
            yield from reader.match(_GEMMA_COMMA)
        calls.arguments("]")
        return True
    word = yield from reader.match(_GEMMA_WORD)
    if word is None:
        return False
    calls.arguments(_as_json(word[1].strip()))
    return True
