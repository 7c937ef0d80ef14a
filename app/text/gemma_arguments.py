"""Owns Gemma's way to write the arguments of a call, JSON but for its quotes, and the Lark rules that hold them to a schema.

Knows neither the markers around a call nor what becomes of a schema that can not be enforced.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from app.text.call_arguments import Lark, NotEnforceableError, Rules, counted, escaped, only
from app.text.json_schema import constraining

_NUMBERS = ("integer", "number")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None), "array": list, "object": dict,
}  # fmt: skip
# What tells of which type a schema without a `type` means to be; it is held to that one.
_TELLING = {"properties": "object", "required": "object", "additionalProperties": "object", "items": "array"}
_KEY = re.compile(r"[^\s:,{}\[\]<]+")


class GemmaArguments:
    """`{key:value,...}`: no quotes around keys, `quote` around texts; keys by the alphabet, as its template has them."""

    def __init__(self, quote: str) -> None:
        self._quote = quote

    def spelled(self, arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
        return _spelled(arguments, self._quote)

    def rules(self, rule: str, schema: Mapping[str, Any], lark: Lark) -> Rules:
        return _Schema(rule, constraining(schema, ""), self._quote, lark).rules


def _spelled(value: Any, quote: str) -> str:
    if isinstance(value, str):
        return quote + value + quote
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_spelled(value[key], quote)}" for key in _ordered(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_spelled(item, quote) for item in value) + "]"
    return json.dumps(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(item)


def _ordered(keys: Iterable[str]) -> list[str]:
    return sorted(keys, key=str.lower)


class _Schema:
    """The rules of one schema; those of its parts are numbered as they are met."""

    def __init__(self, rule: str, root: dict[str, Any], quote: str, lark: Lark) -> None:
        self._rule = rule
        self._quote = quote
        self._lark = lark
        self._definitions: dict[str, Any] = root.get("$defs", {})
        self._begun: set[str] = set()
        self.rules: Rules = {rule: ""}  # its place is before those of its parts
        self.rules[rule] = self._object({key: value for key, value in root.items() if key != "$defs"}, "$")

    def _value(self, schema: Any, place: str) -> str:
        """Return a Lark expression of the values that a schema allows."""
        if schema is False:
            raise NotEnforceableError("false", place)
        if schema is True or not schema:
            return self._any()
        if "$ref" in schema:
            only(schema, {"$ref"}, place)
            return self._reference(schema["$ref"])
        if "enum" in schema or "const" in schema:
            return self._one_of(schema, place)
        for union in ("anyOf", "oneOf"):
            if union in schema:
                only(schema, {union}, place)
                if union == "oneOf" and not _exclude_each_other(schema[union]):
                    raise NotEnforceableError(union, place)
                return self._choice([self._value(branch, f"{place}.{union}") for branch in schema[union]])
        if "allOf" in schema:
            raise NotEnforceableError("allOf", place)
        return self._choice([self._of_type(name, schema, place) for name in _types(schema, place)])

    def _of_type(self, name: str, schema: dict[str, Any], place: str) -> str:
        if name == "string":
            for keyword in ("pattern", "format"):
                if keyword in schema:
                    raise NotEnforceableError(keyword, place)
            return self._text(schema)
        if name == "array":
            return self._array(schema, place)
        if name == "object":
            return self._named(self._object(schema, place))
        bounds = {key: schema[key] for key in _BOUNDS if key in schema and name in _NUMBERS}
        return f"%json {json.dumps({'type': name} | bounds)}"

    def _reference(self, reference: str) -> str:
        if reference == "#":
            return self._rule
        definition = reference.removeprefix("#/$defs/")
        name = f"{self._rule}_{definition}"
        if definition not in self._begun:
            self._begun.add(definition)
            self.rules[name] = self._value(self._definitions[definition], f"#/$defs/{definition}")
        return name

    def _one_of(self, schema: dict[str, Any], place: str) -> str:
        only(schema, {"type", "enum", "const"}, place)
        values = schema.get("enum", [schema.get("const")])
        if "enum" in schema and "const" in schema:
            raise NotEnforceableError("const", place)
        if "type" in schema:
            values = [value for value in values if any(_is(value, name) for name in _types(schema, place))]
        spelled = [_spelled(value, self._quote) for value in values]
        if not spelled or any(self._quote in text for text in _texts(values)):
            raise NotEnforceableError("enum" if "enum" in schema else "const", place)
        return self._choice([self._lark.text(text) for text in spelled])

    def _text(self, schema: dict[str, Any]) -> str:
        times, quote = counted(schema), self._lark.text(self._quote)
        name = "QUOTED_" + times.strip("{}").replace(",", "_TO_").replace("*", "ANY")
        end = escaped(self._quote)
        if not self._lark.is_token(self._quote):
            # Where a text ends can not be told from what follows, so its end is a part of it.
            self.rules[name] = f"/(?s:.{times}){end}/ & ~/(?s:.*){end}(?s:.+)/"
            return f"{quote} {name}"
        self.rules[name] = f"/(?s:.{times})/ & ~/(?s:.*){end}(?s:.*)/"
        return f"{quote} {name} {quote}"

    def _array(self, schema: dict[str, Any], place: str) -> str:
        if "prefixItems" in schema:
            raise NotEnforceableError("prefixItems", place)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[" "]"'
        item = self._named(self._value(schema.get("items", True), f"{place}.items"))
        more = f'("," {item}){{{max(0, least - 1)},{"" if most is None else most - 1}}}'
        return f'"[" {item} {more} "]"' if least else f'"[" ({item} {more})? "]"'

    def _object(self, schema: dict[str, Any], place: str) -> str:
        for keyword in (
            "minProperties",
            "maxProperties",
            *(("anyOf", "allOf", "oneOf", "$ref", "enum") if place == "$" else ()),
        ):
            if keyword in schema:
                raise NotEnforceableError(keyword, place)
        properties: dict[str, Any] = schema.get("properties", {})
        required = set(schema.get("required", ()))
        names = _ordered({*properties, *required})
        if not names:
            return self._open_object(schema.get("additionalProperties", True), place)
        for key in names:
            if not _KEY.fullmatch(key):
                raise NotEnforceableError(key[:80], f"{place}.properties")
        values = [self._value(properties.get(key, True), f"{place}.properties.{key[:80]}") for key in names]
        members = [f"{self._lark.text(key + ':')} {self._named(value)}" for key, value in zip(names, values, strict=True)]
        # From the last to the first: what may still come, behind another member and as the first one.
        behind, first = '""', '""'
        for key, member in zip(reversed(names), reversed(members), strict=True):
            rest = self._named(behind)
            taken, as_first = f'"," {member} {rest}', f"{member} {rest}"
            behind, first = (
                (taken, as_first) if key in required else (f"{taken} | {rest}", f"{as_first} | {self._named(first)}")
            )
        return f'"{{" ({first}) "}}"'

    def _open_object(self, additional: Any, place: str) -> str:
        if additional is False:
            return '"{" "}"'
        value = self._named(self._value(additional, f"{place}.additionalProperties"))
        member = self._named(f'/[A-Za-z_][A-Za-z0-9_]*/ ":" {value}')
        return f'"{{" ({member} ("," {member})*)? "}}"'

    def _any(self) -> str:
        if "any_value" not in self.rules:
            self.rules["any_value"] = ""
            member = '/[A-Za-z_][A-Za-z0-9_]*/ ":" any_value'
            self.rules["any_value"] = self._choice(
                [
                    self._text({}),
                    f"%json {json.dumps({'type': ['number', 'boolean', 'null']})}",
                    '"[" (any_value ("," any_value)*)? "]"',
                    f'"{{" ({member} ("," {member})*)? "}}"',
                ]
            )
        return "any_value"

    def _named(self, expression: str) -> str:
        """Return the name of a new rule, which may stand wherever a name may."""
        name = f"{self._rule}_{len(self.rules)}"
        self.rules[name] = expression
        return name

    def _choice(self, alternatives: list[str]) -> str:
        return alternatives[0] if len(alternatives) == 1 else "(" + " | ".join(alternatives) + ")"


def _types(schema: Mapping[str, Any], place: str) -> list[str]:
    found = schema.get("type", [])
    names = [found] if isinstance(found, str) else list(found)
    names = names or [_TELLING[keyword] for keyword in schema if keyword in _TELLING][:1]
    if not names:
        raise NotEnforceableError(next(iter(schema)), place)
    return names


def _is(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and (name == "boolean") == isinstance(value, bool)


def _exclude_each_other(branches: Sequence[Any]) -> bool:
    """Whether no value is of the types of two branches."""
    seen: set[str] = set()
    for branch in branches:
        found = branch.get("type") if isinstance(branch, dict) else None
        names = {found} if isinstance(found, str) else set(found or ())
        names |= {"integer"} if "number" in names else set()
        if not names or names & seen:
            return False
        seen |= names
    return True
