"""A hundred JSON schemas of rising difficulty, from tables, and what a random text is checked with."""

import re
from collections.abc import Callable, Iterator
from datetime import datetime, time
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator, FormatChecker

Schema = dict[str, Any]


def _object(properties: Schema, **more: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False} | more


_SHORT = {"type": "string", "maxLength": 5}
_DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}

_SCALARS: list[Schema] = [
    {"type": "null"},
    {"type": "boolean"},
    _DIGIT,
    _SHORT,
    {"type": ["string", "null"], "maxLength": 3},
    {"type": ["integer", "boolean"], "minimum": -5, "maximum": 5},
    {"enum": ["red", "green", "blue"]},
    {"enum": [1, 2.5, True, None, "x", [1], {"a": 1}]},
    {"const": "only this"},
    {"const": {"a": [1, {"b": None}], "c": 'ö 🙂 " \\ \n'}},
    {"type": "string", "enum": ["a", "b", 3]},
    {"type": "string", "maxLength": 0},
]
_NUMBERS: list[Schema] = [
    {"type": "integer", "minimum": 3, "maximum": 17},
    {"type": "integer", "exclusiveMinimum": -4, "exclusiveMaximum": 4},
    {"type": "integer", "minimum": 100, "maximum": 1999, "multipleOf": 7},
    {"type": "integer", "minimum": -1_000_000, "maximum": 1_000_000},
    {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 0.5},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "number", "minimum": -2.5, "maximum": 2.5},
    {"type": "number", "minimum": 99.5, "maximum": 100.25, "multipleOf": 0.25},
    {"type": "number", "minimum": 1, "exclusiveMinimum": 1, "maximum": 2},
]
_STRINGS: list[Schema] = [
    {"type": "string", "minLength": 3, "maxLength": 3},
    {"type": "string", "pattern": "^[a-f]{2,4}$"},
    {"type": "string", "pattern": "^(yes|no|maybe)$"},
    {"type": "string", "pattern": r"^\d{3}-\d{4}$"},
    {"type": "string", "pattern": "x", "maxLength": 6},
    {"type": "string", "pattern": "^a.c", "maxLength": 6},
    {"type": "string", "pattern": r"^\w+@\w+$", "minLength": 5, "maxLength": 12},
    {"type": "string", "pattern": r'^["\\/]{2}$'},
    {"type": "string", "pattern": "^[äöü€🙂]{1,3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time", "maxLength": 25},
    {"type": "string", "format": "time", "maxLength": 15},
    {"type": "string", "format": "duration", "maxLength": 12},
    {"type": "string", "format": "email", "maxLength": 15},
    {"type": "string", "format": "hostname", "maxLength": 15},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "ipv6"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "uri", "maxLength": 20},
    {"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "b$"}, {"maxLength": 6}]},
]
_ARRAYS: list[Schema] = [
    {"type": "array", "items": _DIGIT, "maxItems": 4},
    {"type": "array", "items": _DIGIT, "minItems": 2, "maxItems": 2},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [_DIGIT, _SHORT], "items": False, "minItems": 2},
    {"type": "array", "prefixItems": [_DIGIT], "items": {"type": "boolean"}, "maxItems": 3},
    {"type": "array", "items": {"type": "array", "items": _DIGIT, "maxItems": 2}, "maxItems": 3},
    {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 3, "maxItems": 5},
    {"type": "array", "items": {"anyOf": [_DIGIT, {"type": "null"}]}, "maxItems": 3},
    {"type": "array", "maxItems": 0},
    {"type": "array", "items": False},
]
_OBJECTS: list[Schema] = [
    _object({}),
    _object({"a": _DIGIT}),
    _object({"a": _DIGIT, "b": _SHORT, "c": {"type": "boolean"}}),
    _object({"a": _DIGIT, "b": _SHORT}, required=["b"]),
    _object({"a": _DIGIT, "b": _DIGIT, "c": _DIGIT}, required=[]),
    _object({"ключ": _DIGIT, 'quote " and \\': _DIGIT, "": _DIGIT}),
    _object({"a": _object({"b": _object({"c": _DIGIT})})}),
    _object({"list": {"type": "array", "items": _object({"id": _DIGIT}), "maxItems": 3}}),
    _object({"a": {"type": ["integer", "null"], "minimum": 0, "maximum": 9}, "b": {"const": 1}}),
    {"type": "object", "additionalProperties": _DIGIT, "maxProperties": 2},
    {"type": "object", "additionalProperties": _DIGIT, "minProperties": 1, "maxProperties": 2},
    {
        "type": "object",
        "properties": {"a": _DIGIT},
        "required": ["a", "z"],
        "additionalProperties": {"type": "null"},
        "maxProperties": 2,
    },
    {"type": "object", "properties": {"a": _DIGIT}, "maxProperties": 1, "required": ["a"]},
    {"properties": {"a": _DIGIT}, "required": ["a"], "type": "object", "additionalProperties": False, "minProperties": 1},
]
_COMBINED: list[Schema] = [
    {"anyOf": [_DIGIT, {"type": "null"}]},
    {"anyOf": [_object({"a": _DIGIT}), _object({"b": _SHORT})]},
    {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "integer", "minimum": 10, "maximum": 12}, {"type": "boolean"}]},
    {"oneOf": [_DIGIT, {"type": "string", "maxLength": 3}]},
    {"oneOf": [_object({"kind": {"const": "a"}, "x": _DIGIT}), _object({"kind": {"const": "b"}, "y": _SHORT})]},
    {"oneOf": [{"type": "null"}]},
    {"allOf": [_DIGIT, {"minimum": 3}, {"maximum": 5}]},
    {
        "allOf": [{"type": "object", "properties": {"a": _DIGIT}, "required": ["a"]}],
        "additionalProperties": False,
        "properties": {"a": {"minimum": 5}},
    },
    {
        "type": "object",
        "allOf": [{"properties": {"a": _DIGIT}}, {"properties": {"b": _DIGIT}}],
        "required": ["a", "b"],
        "maxProperties": 2,
    },
    {"type": "integer", "anyOf": [{"minimum": 5, "maximum": 6}, {"minimum": 50, "maximum": 60}]},
    {"enum": [1, 2, 3, "4"], "type": "integer", "minimum": 2},
    {
        "type": "object",
        "properties": {"a": _DIGIT},
        "required": ["a"],
        "anyOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"a": {"const": 2}}}],
        "additionalProperties": False,
    },
]
_DEFS = {"digit": _DIGIT, "name": _SHORT, "pair": _object({"x": {"$ref": "#/$defs/digit"}, "y": {"$ref": "#/$defs/digit"}})}
_REFERENCES: list[Schema] = [
    {"$defs": _DEFS, "$ref": "#/$defs/digit"},
    {"$defs": _DEFS} | _object({"p": {"$ref": "#/$defs/pair"}, "n": {"$ref": "#/$defs/name"}}),
    {"definitions": _DEFS, "$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/name"},
    {"$defs": _DEFS, "type": "array", "items": {"$ref": "#/$defs/digit", "minimum": 4}, "maxItems": 3},
    {"$defs": {"a/b~c d": _DIGIT}, "$ref": "#/$defs/a~1b~0c%20d"},
    _object({"first": _SHORT, "second": {"$ref": "#/properties/first"}}),
    {
        "$defs": {"tree": _object({"v": _DIGIT, "l": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}})},
        "$ref": "#/$defs/tree",
    },
    _object({"v": _DIGIT, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}),
    {
        "$defs": {"e": {"anyOf": [_DIGIT, {"type": "array", "items": {"$ref": "#/$defs/e"}, "maxItems": 2}]}},
        "$ref": "#/$defs/e",
    },
    {
        "$defs": {"cat": _object({"kind": {"const": "cat"}, "lives": _DIGIT}), "dog": _object({"kind": {"const": "dog"}})},
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        "discriminator": {"propertyName": "kind"},
    },
    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": _DIGIT}, "$ref": "#/$defs/a"},
]


def _grown() -> Iterator[Schema]:
    """Yield larger ones, made of the others."""
    parts = [*_SCALARS[:6], *_NUMBERS, *_STRINGS[:9], *_ARRAYS, *_COMBINED[:6]]
    for size in (2, 3, 4, 5):
        chosen = parts[size :: 7 - size][:size]
        yield _object({f"p{index}": part for index, part in enumerate(chosen)})
        yield {"type": "array", "prefixItems": chosen, "items": False, "minItems": size}
        yield _object(
            {"deep": _object({"deeper": {"type": "array", "items": {"anyOf": chosen}, "minItems": 1, "maxItems": 2}})}
        )


SCHEMAS: list[Schema] = [
    *_SCALARS, *_NUMBERS, *_STRINGS, *_ARRAYS, *_OBJECTS, *_COMBINED, *_REFERENCES, *_grown(),
]  # fmt: skip


_FORMATS = FormatChecker(("date", "email", "ipv4", "ipv6", "uuid"))
# For those that jsonschema checks with further packages only.
_MORE_FORMATS: dict[str, Callable[[str], Any]] = {
    "date-time": lambda text: datetime.fromisoformat(_without_leap_second(text)),
    "time": lambda text: time.fromisoformat(_without_leap_second(text)),
    "duration": lambda text: re.fullmatch(r"P(?!$)(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?", text) or 1 / 0,
    "hostname": lambda text: re.fullmatch(r"(?!-)[\w-]{1,63}(?<!-)(\.(?!-)[\w-]{1,63}(?<!-))*", text) or 1 / 0,
    "uri": lambda text: urlsplit(text).scheme[0],
}
for _name, _check in _MORE_FORMATS.items():
    _FORMATS.checks(_name, (ValueError, IndexError, ZeroDivisionError))(lambda text, check=_check: bool(check(text)) or True)


def _without_leap_second(text: str) -> str:
    return re.sub(r":60", ":59", text.upper())


def validate(value: Any, schema: Any) -> None:
    Draft202012Validator(schema, format_checker=_FORMATS).validate(value)
