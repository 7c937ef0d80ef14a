"""Owns what of JSON Schema can be enforced: checks a client's schema and returns the part that constrains. Knows no grammars.

A keyword is enforced, or says nothing about what is valid (an annotation), or is refused with its name and place: a schema is
never loosened. The dialect is draft 2020-12; of drafts 7 and 2019-09, what means the same there. Every key of a schema is
looked at, and every `$ref` is followed, because llguidance takes some keywords that it then does not enforce.
"""

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from app.errors import InvalidRequest, UnsupportedParameter

# Levels of schemas in schemas, through references too: compilers recurse as deep.
MAX_DEPTH = 64
MAX_NODES = 20_000
# Largest number that counts anything (lengths, items).
MAX_COUNT = 1_000_000
# Those that llguidance has a pattern for.
FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})

_LOWER = ("minimum", "exclusiveMinimum")
_UPPER = ("maximum", "exclusiveMaximum")
_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_DIALECTS = re.compile(r"https?://json-schema\.org/(draft-07/schema|draft/2019-09/schema|draft/2020-12/schema)#?")
_ANNOTATIONS = frozenset(
    {
        "$comment", "$schema", "contentEncoding", "contentMediaType", "contentSchema", "default", "deprecated", "description",
        "discriminator", "example", "examples", "externalDocs", "readOnly", "title", "writeOnly", "xml",
    }
)  # fmt: skip
# Keywords that say nothing with this value.
_NEUTRAL: dict[str, Any] = {"uniqueItems": False, "nullable": False, "unevaluatedProperties": True, "unevaluatedItems": True}
_INSTEAD = {
    "additionalItems": "use `prefixItems` and `items`.",
    "nullable": 'use a `type` of ["...", "null"].',
    "patternProperties": "use `properties` and `additionalProperties`.",
    "uniqueItems": "the items of an array can not be compared while they are generated.",
}
# The format's pattern takes 29 February in every year, and the year 0.
_CALENDAR = (
    r"^(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})-(?:0[13-9]|1[0-2]|02-(?:[01]|2[0-8]))"
    r"|^(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29"
)


def constraining(schema: Any, param: str) -> Any:
    """Return `schema` with nothing in it but what is enforced, keys in their order; raise InvalidRequest, or a subclass, that
    names the keyword and its place below `param`."""
    return _Walk(schema, param).result()


class _Walk:
    def __init__(self, root: Any, param: str) -> None:
        self._root = root
        self._param = param
        self._num_nodes = 0
        # Places that `$ref` points to, with the names of their copies; a copy is None while it is being made.
        self._names: dict[str, str] = {}
        self._definitions: dict[str, Any] = {}

    def result(self) -> Any:
        checked = self._schema(self._root, "$", 0)
        return checked | {"$defs": self._definitions} if self._definitions else checked

    def _schema(self, schema: Any, place: str, depth: int) -> Any:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES or depth > MAX_DEPTH:
            limit = f"{MAX_NODES} schemas in one" if self._num_nodes > MAX_NODES else f"{MAX_DEPTH} levels"
            raise InvalidRequest(f"The JSON schema is too large: at {place[:200]} it passes {limit}.", param=self._param)
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise self._wrong(place, "a schema is an object or a boolean")
        result: dict[str, Any] = {}
        for key, value in schema.items():
            self._keyword(result, schema, key, value, place, depth)
        if result.get("format") in ("date", "date-time"):
            result["allOf"] = [*result.get("allOf", []), {"pattern": _CALENDAR}]
        self._check_counts(result, place)
        self._check_exclusive(result, place)
        return result

    def _keyword(self, result: dict[str, Any], schema: dict[str, Any], key: str, value: Any, place: str, depth: int) -> None:
        at = f"{place}.{key}"
        if key in _ANNOTATIONS or (key.startswith("x-") and key != "x-guidance"):
            if key == "$schema" and not (isinstance(value, str) and _DIALECTS.fullmatch(value)):
                raise self._unsupported(key, at, "drafts 7, 2019-09 and 2020-12 are.")
        elif key == "$id" and place == "$":
            pass  # names the document; references are looked up in it alone
        elif key in ("$defs", "definitions"):
            # Only what is referred to is looked at, and only that is copied.
            self._require(isinstance(value, dict), at, "an object of schemas")
        elif key == "$ref":
            result[key] = self._reference(value, at, depth)
        elif key in ("anyOf", "allOf", "oneOf", "prefixItems"):
            self._require(isinstance(value, list) and bool(value), at, "a list of schemas that is not empty")
            result[key] = [self._schema(item, f"{at}[{index}]", depth + 1) for index, item in enumerate(value)]
            if key == "oneOf":
                # Whether branches exclude each other is looked for in the branches themselves, not behind references.
                result[key] = [self._resolved(item) for item in result[key]]
        elif key == "properties":
            self._require(isinstance(value, dict), at, "an object of schemas")
            result[key] = {name: self._schema(item, f"{at}.{name[:80]}", depth + 1) for name, item in value.items()}
        elif key in ("items", "additionalProperties"):
            if key == "items" and isinstance(value, list):
                raise self._unsupported("items", at, "as a list it is not; use `prefixItems`.")
            result[key] = self._schema(value, at, depth + 1)
        elif key == "format" and value not in FORMATS:
            raise self._unsupported(key, at, f"of {str(value)[:40]!r} it is not; of {', '.join(sorted(FORMATS))} it is.")
        elif key in _CHECKS:
            is_right, expected = _CHECKS[key]
            self._require(is_right(value), at, expected)
            result[key] = value
        elif not (key in _NEUTRAL and value is _NEUTRAL[key]):
            raise self._unsupported(key, at, _INSTEAD.get(key, "leave it out, or say it with keywords that are."))

    def _reference(self, value: Any, at: str, depth: int) -> str:
        """Check what a `$ref` points to, once, and return the reference to its copy."""
        self._require(isinstance(value, str), at, "a text")
        if value != "#" and not value.startswith("#/"):
            raise self._unsupported("$ref", at, 'references inside of the schema, as "#/$defs/name", are.')
        if value == "#":
            return "#"
        if value not in self._names:
            name = self._names[value] = f"d{len(self._names)}"
            self._definitions[name] = None  # its place is before those that it refers to
            self._definitions[name] = self._schema(self._target(value, at), value, depth + 1)
        return f"#/$defs/{self._names[value]}"

    def _target(self, reference: str, at: str) -> Any:
        found = self._root
        for part in reference.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise self._wrong(at, f"nothing is at {reference[:200]!r}")
        return found

    def _resolved(self, schema: Any) -> Any:
        """Return what a schema that is nothing but a reference refers to, unless that is still being made."""
        while isinstance(schema, dict) and list(schema) == ["$ref"] and schema["$ref"] != "#":
            target = self._definitions[schema["$ref"].removeprefix("#/$defs/")]
            if target is None or target is schema:
                break
            schema = target
        return schema

    def _check_counts(self, schema: dict[str, Any], place: str) -> None:
        # Generated keys beside `properties` may repeat, so only the first of them is known to add to the count.
        if schema.get("minProperties", 0) > len(set(schema.get("required", ()))) + 1:
            raise self._unsupported("minProperties", f"{place}.minProperties", "up to one more than `required` names it is.")

    def _check_exclusive(self, schema: dict[str, Any], place: str) -> None:
        # Where both bounds share their whole part, llguidance's pattern takes a whole number that is itself excluded.
        bounds = self._bounds(schema, set())
        for exclusive, others in (("exclusiveMinimum", _UPPER), ("exclusiveMaximum", _LOWER)):
            for key, bound in bounds:
                near = [other for name, other in bounds if name in others and abs(other - bound) < 1]
                if key == exclusive and bound == int(bound) and near:
                    hint = "of a whole number it is not where the other bound is less than 1 away."
                    raise self._unsupported(exclusive, f"{place}.{exclusive}", hint)

    def _bounds(self, schema: Any, seen: set[str]) -> set[tuple[str, float]]:
        """Return the bounds of numbers that hold in the place of `schema`, its own and those that apply in place."""
        if not isinstance(schema, dict):
            return set()
        found = {(key, schema[key]) for key in (*_LOWER, *_UPPER) if key in schema}
        for key in ("allOf", "anyOf", "oneOf"):
            found = found.union(*(self._bounds(part, seen) for part in schema.get(key, ())))
        name = schema.get("$ref", "#").removeprefix("#/$defs/")
        if name not in seen and name in self._definitions:
            found |= self._bounds(self._definitions[name], seen | {name})
        return found

    def _require(self, condition: bool, at: str, expected: str) -> None:
        if not condition:
            raise self._wrong(at, f"expected {expected}")

    def _wrong(self, at: str, reason: str) -> InvalidRequest:
        return InvalidRequest(f"Invalid JSON schema at {at[:300]}: {reason}.", param=self._param, code="invalid_json_schema")

    def _unsupported(self, keyword: str, at: str, hint: str) -> UnsupportedParameter:
        return UnsupportedParameter(
            f"The JSON schema keyword `{keyword[:80]}` at {at[:300]} is not supported: {hint}",
            param=self._param,
            code="unsupported_json_schema",
        )


def _is_number(value: Any) -> bool:
    # Beyond this range llguidance can not make a pattern of a bound.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _is_shallow(value: Any, depth: int = 0) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth <= MAX_DEPTH and all(_is_shallow(part, depth + 1) for part in parts)


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in _TYPES for name in names)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_NUMBER = (_is_number, "a number between -2^53 and 2^53")
_COUNT = (_is_count, f"a whole number from 0 to {MAX_COUNT}")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"one or a list of {', '.join(sorted(_TYPES))}"),
    "enum": (lambda value: isinstance(value, list) and bool(value) and _is_shallow(value), "a list that is not empty"),
    "const": (lambda value: _is_shallow(value), f"a value of at most {MAX_DEPTH} levels"),
    "required": (_is_names, "a list of names"),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "minProperties": _COUNT,
    "maxProperties": _COUNT,
    "pattern": (lambda value: isinstance(value, str), "a text"),
    "format": (lambda value: isinstance(value, str), "a text"),
}


def dumps(schema: Any) -> str:
    """Return a schema as JSON text, keys in their order."""
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
