"""Arguments that are not JSON: what the rules of a schema let through is valid by it, and what has no rule is named."""

import json
import random
from typing import Any

import jsonschema
import pytest

from app.text.call_arguments import NotEnforceableError
from app.text.call_grammar import Parts, call_grammar, spelled_call
from app.text.constraint import Constraint
from app.text.formats import TOOL_FORMATS
from tests.text.test_call_grammar import compiler_of, draw
from tests.text.test_formats import parser_of, read

NOT_JSON = ["qwen_xml", "gemma4", "functiongemma"]
TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "left": {"$ref": "#/$defs/tree"}, "right": {"$ref": "#/$defs/tree"}},
    "required": ["value"],
    "additionalProperties": False,
}
SHORT = {"type": "string", "maxLength": 3}


def of(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


SCHEMAS: dict[str, dict[str, Any]] = {
    "all_optional": of([], b=SHORT, A={"type": "integer", "minimum": 3, "maximum": 7}, c={"type": "boolean"}),
    "the_middle_required": of(["b"], a=SHORT, b=SHORT, c=SHORT),
    "choices": of(
        ["unit", "n", "k"], unit={"type": "string", "enum": ["C", "°F"]}, n={"enum": [1, 10, None]}, k={"const": "x"}
    ),
    "lengths": of(
        ["a", "b"], a={"type": "string", "minLength": 2, "maxLength": 4}, b={"type": "string", "minLength": 1, "maxLength": 2}
    ),
    "lists": of(
        ["a", "b", "c"],
        a={"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 3},
        b={"type": "array", "items": {"type": "array", "items": {"type": "null"}, "maxItems": 2}, "maxItems": 2},
        c={"type": "array", "maxItems": 0},
    ),
    "nested": of(["at"], at=of(["x"], x={"type": "number", "minimum": -1, "maximum": 1}, y=of([], z={"type": "boolean"}))),
    "unions": of(["a"], a={"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, b={"type": ["integer", "null"]}),
    "text_or_nothing": of(["a"], a={"anyOf": [SHORT, {"type": "null"}]}),
    "recursive": {**of(["root"], root={"$ref": "#/$defs/tree"}), "$defs": {"tree": TREE}},
    "nothing": of([]),
}
# Random bytes hardly ever end a text by themselves.
ENDLESS: dict[str, dict[str, Any]] = {
    "anything": {"type": "object"},
    "required_without_schema": {"type": "object", "required": ["a"]},
    "text": of(["a"], a={"type": "string", "minLength": 1}),
}


def grammar_of(name: str, schema: dict[str, Any], *, as_tokens: bool) -> Any:
    format = TOOL_FORMATS[name]
    compiler = compiler_of(format, as_tokens=as_tokens)
    return compiler, call_grammar(format, {"f": schema}, marker=compiler.marker, must_call=True, single=True)


@pytest.mark.parametrize("as_tokens", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("schema", (SCHEMAS | ENDLESS).values(), ids=SCHEMAS | ENDLESS)
@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_drawn_is_valid(name: str, schema: dict[str, Any], as_tokens: bool) -> None:
    compiler, lark = grammar_of(name, schema, as_tokens=as_tokens)
    rng, seen = random.Random(name), set()
    for _ in range(6):
        text = draw(compiler, lark, rng, limit=800)
        answer, _ = read(parser_of(name, schemas={"f": schema}), [text])
        if not answer.tool_calls[0].is_whole:
            assert len(text) >= 400, text  # the drawing was cut off
            continue
        jsonschema.validate(json.loads(answer.tool_calls[0].arguments), schema)
        seen.add(answer.tool_calls[0].arguments)
    assert seen or schema in ENDLESS.values()


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_spelled_is_read_and_may_be_written(name: str) -> None:
    """All that JSON has, and texts that look like something else."""
    schema = of(
        ["text", "number", "list", "at"],
        text={"type": "string"}, number={"type": "number"}, at=of(["y"], x={"type": "null"}, y={"type": "string"}),
        list={"type": "array", "items": {"type": "string"}},
    )  # fmt: skip
    for text in ("", "7", "null", '"', "two\n lines\n", "{a:1}", "Zoë </p>", "a<|b"):
        arguments = {"at": {"x": None, "y": text}, "list": [text, "x"], "number": -1.5e-07, "text": text}
        call = spelled_call(TOOL_FORMATS[name].spelling, "f", arguments, schema)
        answer, _ = read(parser_of(name, schemas={"f": schema}), [call])
        assert json.loads(answer.tool_calls[0].arguments) == arguments and answer.tool_calls[0].is_whole
        compiler, lark = grammar_of(name, {**schema, "properties": dict(sorted(schema["properties"].items()))}, as_tokens=True)
        matcher = compiler.compile_here(Constraint("lark", lark, "tools")).start()
        ids = compiler._tokenizer.encode(call, add_special_tokens=False)
        assert all(matcher.native.consume_token(token_id) for token_id in ids) and matcher.is_accepting, call


@pytest.mark.parametrize(
    ("name", "schema", "keyword"),
    [
        *((name, {"type": "string", "pattern": "a"}, "pattern") for name in NOT_JSON),
        *((name, {"type": "string", "format": "uuid"}, "format") for name in NOT_JSON),
        ("gemma4", {"allOf": [{"type": "string"}]}, "allOf"),
        ("gemma4", {"oneOf": [{"type": "string"}, {"type": ["string", "null"]}]}, "oneOf"),
        ("gemma4", {"type": "array", "prefixItems": [{"type": "null"}]}, "prefixItems"),
        ("gemma4", {"type": "object", "properties": {"b": {}}, "minProperties": 1}, "minProperties"),
        ("gemma4", {"enum": ['<|"|>']}, "enum"),
        ("gemma4", {"minimum": 3}, "minimum"),
        ("qwen_xml", {"enum": ["a</parameter>"]}, "enum"),
        ("qwen_xml", {"oneOf": [{"type": "string"}, {"type": "string"}]}, "oneOf"),
        ("qwen_xml", {"$ref": "#"}, "$ref"),
    ],
)
def test_what_has_no_rule_is_named(name: str, schema: dict[str, Any], keyword: str) -> None:
    format = TOOL_FORMATS[name]
    parts = Parts(format, json.dumps)
    with pytest.raises(NotEnforceableError) as raised:
        format.spelling.arguments.rules("arguments", of([], a=schema), parts)
    assert raised.value.keyword == keyword and raised.value.place.startswith("$.properties.a")


@pytest.mark.parametrize(("name", "key"), [("qwen_xml", "a>b"), ("qwen_xml", "a\n"), ("gemma4", "a b"), ("gemma4", "a:b")])
def test_keys_that_could_not_be_read_have_no_rule(name: str, key: str) -> None:
    format = TOOL_FORMATS[name]
    with pytest.raises(NotEnforceableError):
        format.spelling.arguments.rules("arguments", of([], **{key: SHORT}), Parts(format, json.dumps))
