"""Owns how formats write the arguments of a call, and the Lark rules that hold them to a schema: as JSON, and as tagged text.

Knows neither the markers around a call nor what becomes of a schema that can not be enforced.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from app.text.dialects import is_text
from app.text.json_schema import constraining

# Name -> definition.
Rules = dict[str, str]
# What means something in a regular expression, or ends it. Others must not be escaped: \\< is the end of a word.
_SPECIAL = re.compile(r"([][\\.^$*+?{}()|/])")


class NotEnforceableError(Exception):
    """A format has no rule for `keyword`, which the schema has at `place`."""

    def __init__(self, keyword: str, place: str) -> None:
        super().__init__(keyword, place)
        self.keyword = keyword
        self.place = place


class Lark(Protocol):
    """Writes for Lark what a format spells."""

    def text(self, text: str) -> str:
        """Return a text, in which markers are the tokens that they are."""
        ...

    def is_token(self, marker: str) -> bool: ...


class Arguments(Protocol):
    """How a format writes the arguments of a call."""

    def spelled(self, arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
        """Return the arguments as the model writes them."""
        ...

    def rules(self, rule: str, schema: Mapping[str, Any], lark: Lark) -> Rules:
        """Return rules by which `rule` is all that a schema of an object allows, or less, but nothing else.

        The names of all begin with `rule`, or mean the same for every schema. Raise NotEnforceableError.
        """
        ...


class JsonArguments:
    """One JSON object."""

    def spelled(self, arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
        return json.dumps(arguments, ensure_ascii=False)

    def rules(self, rule: str, schema: Mapping[str, Any], lark: Lark) -> Rules:
        return {rule: f"%json {json.dumps(schema, ensure_ascii=False)}"}


class TaggedArguments:
    """`<parameter=name>`, a line with the value and `</parameter>` for each: texts as they are, all else as JSON."""

    def spelled(self, arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
        properties = schema.get("properties", {})
        values = {
            key: value
            if isinstance(value, str) and is_text(_mapping(properties.get(key)))
            else json.dumps(value, ensure_ascii=False)
            for key, value in arguments.items()
        }
        return "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())

    def rules(self, rule: str, schema: Mapping[str, Any], lark: Lark) -> Rules:
        checked = constraining(schema, "")
        only(checked, {"type", "properties", "required", "additionalProperties", "$defs"}, "$")
        properties: dict[str, Any] = checked.get("properties", {})
        required = checked.get("required", [])
        names = [*properties, *(key for key in dict.fromkeys(required) if key not in properties)]
        if not names:
            return self._any(rule, checked.get("additionalProperties", True))
        original, rules, parts = schema.get("properties", {}), Rules(), []
        definitions = {"$defs": checked["$defs"]} if "$defs" in checked else {}
        for number, key in enumerate(names):
            place, value = f"$.properties.{key[:80]}", properties.get(key, True)
            if re.search(r"[>\n]", key) or key != key.strip() or not key:
                raise NotEnforceableError(key[:80], "$.properties")
            if is_text(_mapping(original.get(key))):
                spelled = _text(value, place, rules)
            elif '"$ref": "#"' in json.dumps(value) or value is False:
                raise NotEnforceableError("$ref" if value else "false", place)
            else:
                spelled = f"%json {json.dumps((value if isinstance(value, dict) else {}) | definitions)} {_END}"
            rules[f"{rule}_{number}"] = f'{lark.text(f"<parameter={key}>")} "\\n" ({spelled}) "\\n"'
            parts.append(f"{rule}_{number}" if key in required else f"{rule}_{number}?")
        return {rule: " ".join(parts)} | rules

    def _any(self, rule: str, additional: Any) -> Rules:
        if additional is False:
            return {rule: '""'}
        if additional not in (True, {}):  # parameters that no schema names are read as texts
            raise NotEnforceableError("additionalProperties", "$")
        rules = Rules()
        text = _text(True, "$", rules)
        return {rule: "any_parameter*", "any_parameter": f'"<parameter=" /[^>\\s]+/ ">\\n" {text} "\\n"'} | rules


_END = '"\\n</parameter>"'


def _text(schema: Any, place: str, rules: Rules) -> str:
    """Return what a text may be, with the end of its parameter; the first end there is, because that is where it is read to."""
    if not isinstance(schema, dict):
        schema = {}
    for union in ("anyOf", "oneOf"):
        if union in schema:
            only(schema, {union}, place)
            texts = [branch for branch in schema[union] if not isinstance(branch, dict) or is_text(branch)]
            if not texts or (union == "oneOf" and len(texts) > 1):
                raise NotEnforceableError(union, place)
            return " | ".join(_text(branch, f"{place}.{union}", rules) for branch in texts)
    if "enum" in schema or "const" in schema:
        only(schema, {"type", "enum", "const"}, place)
        values = [value for value in schema.get("enum", [schema.get("const")]) if isinstance(value, str)]
        if not values or any("</parameter>" in value for value in values) or {"enum", "const"} <= schema.keys():
            raise NotEnforceableError("enum" if "enum" in schema else "const", place)
        return "(" + " | ".join(json.dumps(value, ensure_ascii=False) for value in values) + f") {_END}"
    only(schema, {"type", "minLength", "maxLength"}, place)
    terminal = rf"(?s:.{counted(schema)})\n<\/parameter>"
    name = "PARAMETER_" + counted(schema).strip("{}").replace(",", "_TO_").replace("*", "ANY")
    rules[name] = rf"/{terminal}/ & ~/(?s:.*)<\/parameter>(?s:.+)/"
    return name


def counted(schema: Mapping[str, Any]) -> str:
    """Return how often a pattern of one character is repeated in a text that the schema allows."""
    if not {"minLength", "maxLength"} & schema.keys():
        return "*"
    return f"{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}"


def only(schema: Mapping[str, Any], known: set[str], place: str) -> None:
    """Raise NotEnforceableError for the first keyword of a schema that is not known."""
    for keyword in schema:
        if keyword not in known:
            raise NotEnforceableError(keyword, place)


def escaped(text: str) -> str:
    """Return a regular expression of Lark's for a text."""
    return _SPECIAL.sub(r"\\\1", text)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
