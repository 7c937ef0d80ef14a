"""What of JSON Schema is enforced, ignored as an annotation, or refused with its name and place."""

from typing import Any

import pytest

from app.errors import InvalidRequest, UnsupportedParameter
from app.text.json_schema import MAX_DEPTH, constraining


@pytest.mark.parametrize(
    ("schema", "keyword", "place"),
    [
        ({"not": {}}, "not", "$.not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems", "$.uniqueItems"),
        ({"type": "array", "contains": {}}, "contains", "$.contains"),
        ({"type": "array", "minContains": 1}, "minContains", "$.minContains"),
        ({"type": "array", "unevaluatedItems": False}, "unevaluatedItems", "$.unevaluatedItems"),
        ({"type": "array", "additionalItems": False}, "additionalItems", "$.additionalItems"),
        ({"type": "array", "items": [{}]}, "items", "$.items"),
        ({"patternProperties": {}}, "patternProperties", "$.patternProperties"),
        ({"propertyNames": {}}, "propertyNames", "$.propertyNames"),
        ({"dependentRequired": {}}, "dependentRequired", "$.dependentRequired"),
        ({"dependentSchemas": {}}, "dependentSchemas", "$.dependentSchemas"),
        ({"dependencies": {}}, "dependencies", "$.dependencies"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties", "$.unevaluatedProperties"),
        ({"if": {}}, "if", "$.if"),
        ({"then": {}}, "then", "$.then"),
        ({"else": {}}, "else", "$.else"),
        ({"nullable": True}, "nullable", "$.nullable"),
        ({"$dynamicRef": "#a"}, "$dynamicRef", "$.$dynamicRef"),
        ({"$anchor": "a"}, "$anchor", "$.$anchor"),
        ({"$ref": "#a"}, "$ref", "$.$ref"),
        ({"$ref": "https://example.org/x"}, "$ref", "$.$ref"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "$schema", "$.$schema"),
        ({"format": "regex"}, "format", "$.format"),
        ({"x-guidance": {"lenient": True}}, "x-guidance", "$.x-guidance"),
        ({"minimun": 3}, "minimun", "$.minimun"),
        ({"id": "x"}, "id", "$.id"),
        ({"properties": {"a": {"items": {"anyOf": [{}, {"not": {}}]}}}}, "not", "$.properties.a.items.anyOf[1].not"),
        ({"properties": {"a": {"$id": "x"}}}, "$id", "$.properties.a.$id"),
        ({"$defs": {"a": {"not": {}}}, "$ref": "#/$defs/a"}, "not", "#/$defs/a.not"),
        ({"examples": [{"not": {}}], "$ref": "#/examples/0"}, "not", "#/examples/0.not"),
        ({"type": "object", "minProperties": 2}, "minProperties", "$.minProperties"),
        ({"exclusiveMinimum": 0, "maximum": 0.5}, "exclusiveMinimum", "$.exclusiveMinimum"),
        ({"exclusiveMaximum": -3, "allOf": [{"minimum": -3.5}]}, "exclusiveMaximum", "$.exclusiveMaximum"),
        (
            {"$defs": {"a": {"exclusiveMaximum": 2}}, "$ref": "#/$defs/a", "exclusiveMinimum": 1.5},
            "exclusiveMaximum",
            "$.exclusiveMaximum",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_enforced_is_refused_with_its_place(schema: Any, keyword: str, place: str) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        constraining(schema, "response_format")
    assert f"`{keyword}` at {place} " in str(refused.value)
    assert (refused.value.param, refused.value.code) == ("response_format", "unsupported_json_schema")


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (5, "$"),
        (None, "$"),
        ({"type": "text"}, "$.type"),
        ({"type": []}, "$.type"),
        ({"type": ["string", 5]}, "$.type"),
        ({"enum": []}, "$.enum"),
        ({"enum": "ab"}, "$.enum"),
        ({"minLength": "5"}, "$.minLength"),
        ({"maxLength": -1}, "$.maxLength"),
        ({"maxItems": 10**9}, "$.maxItems"),
        ({"maxItems": True}, "$.maxItems"),
        ({"minimum": "1"}, "$.minimum"),
        ({"maximum": 10**20}, "$.maximum"),
        ({"multipleOf": 0}, "$.multipleOf"),
        ({"multipleOf": -2}, "$.multipleOf"),
        ({"pattern": 5}, "$.pattern"),
        ({"required": "a"}, "$.required"),
        ({"required": [1]}, "$.required"),
        ({"properties": []}, "$.properties"),
        ({"properties": {"a": 5}}, "$.properties.a"),
        ({"items": 5}, "$.items"),
        ({"anyOf": []}, "$.anyOf"),
        ({"allOf": {}}, "$.allOf"),
        ({"$defs": []}, "$.$defs"),
        ({"$ref": 5}, "$.$ref"),
        ({"$ref": "#/$defs/none"}, "$.$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": 5}}, "#/$defs/a"),
    ],
    ids=str,
)
def test_what_is_no_schema_is_refused_with_its_place(schema: Any, place: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        constraining(schema, "guided_json")
    assert str(refused.value).startswith(f"Invalid JSON schema at {place}: "), refused.value
    assert (refused.value.param, refused.value.code) == ("guided_json", "invalid_json_schema")


def test_annotations_are_left_out_and_the_rest_keeps_its_order() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:x",
        "title": "T",
        "description": "D",
        "type": "object",
        "properties": {
            "z": {"type": "integer", "default": 1, "examples": [1], "deprecated": True, "x-order": 3},
            "title": {"type": "string", "readOnly": True, "contentEncoding": "base64"},
            "a": {"type": "array", "uniqueItems": False, "items": {"$comment": "any"}},
        },
        "required": ["z"],
        "$defs": {"unused": {"not": {}}},
    }
    checked = constraining(schema, "p")
    assert checked == {
        "type": "object",
        "properties": {"z": {"type": "integer"}, "title": {"type": "string"}, "a": {"type": "array", "items": {}}},
        "required": ["z"],
    }
    assert list(checked["properties"]) == ["z", "title", "a"]


def test_a_schema_that_refers_to_itself_is_copied_once() -> None:
    schema = {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}
    assert constraining(schema, "p") == {
        "$ref": "#/$defs/d0",
        "$defs": {"d0": {"type": "object", "properties": {"next": {"$ref": "#/$defs/d0"}}}},
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
        {"oneOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"oneOf": [{"$ref": "#/$defs/a"}]}}},
        {"oneOf": [{"$ref": "#"}]},
    ],
)
def test_references_in_one_of_are_resolved_as_far_as_they_go(schema: Any) -> None:
    checked = constraining(schema, "p")
    assert checked["oneOf"][0] != {} and checked["oneOf"][0] is not True and checked["oneOf"][0] is not None


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def test_depth_is_limited_in_place_and_through_references() -> None:
    constraining(nested(MAX_DEPTH), "p")
    with pytest.raises(InvalidRequest, match="64 levels"):
        constraining(nested(MAX_DEPTH + 1), "p")
    chain = {f"d{index}": {"items": {"$ref": f"#/$defs/d{index + 1}"}} for index in range(100)} | {"d100": {}}
    with pytest.raises(InvalidRequest, match="64 levels"):
        constraining({"$defs": chain, "$ref": "#/$defs/d0"}, "p")
    value: Any = 1
    for _ in range(500):
        value = [value]
    with pytest.raises(InvalidRequest, match="64 levels"):
        constraining({"const": value}, "p")


def test_size_is_limited() -> None:
    with pytest.raises(InvalidRequest, match="20000 schemas"):
        constraining({"properties": {f"p{index}": {} for index in range(20_001)}}, "p")
