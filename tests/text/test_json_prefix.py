"""Owns the tests of making whole what is the beginning of a JSON object."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.json_prefix import whole_of

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text('ab"\\{}[],: é\n', max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text('ab",{', max_size=3), inner, max_size=3)),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.text('ab",{\\', max_size=3), VALUES, max_size=4)


def is_part(part: Any, whole: Any) -> bool:
    """Whether a value is another one with things missing behind its end."""
    if isinstance(part, dict) and isinstance(whole, dict):
        names = list(part)
        return names == list(whole)[: len(names)] and all(is_part(part[name], whole[name]) for name in names)
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(map(is_part, part, whole))
    return type(part) is type(whole) and bool(part == whole)


@given(OBJECTS, st.data(), st.sampled_from([None, 1]), st.booleans())
def test_every_beginning_of_an_object(value: dict[str, Any], data: st.DataObject, indent: int | None, ascii_: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
    cut = data.draw(st.integers(0, len(text)))
    assert is_part(json.loads(whole_of(text[:cut])), value)
    assert whole_of(text) == text


@given(st.text('{}[]",:1a \\', max_size=30))
def test_what_is_no_json_is_an_object_all_the_same(text: str) -> None:
    assert isinstance(json.loads(whole_of(text)), dict)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", "{}"),
        ("{", "{}"),
        ('{"a', "{}"),
        ('{"a": 1', "{}"),  # it may be 12
        ('{"a": 1,', '{"a": 1}'),
        ('{"a": "x"', '{"a": "x"}'),
        ('{"a": "x', "{}"),
        ('{"a": {"b": [1, "c"', '{"a": {"b": [1, "c"]}}'),
        ('{"a": {"b": 1}, "c": [', '{"a": {"b": 1}, "c": []}'),
        ("[1]", "{}"),
        ("[" * 100_000, "{}"),
    ],
)
def test_what_is_kept(text: str, whole: str) -> None:
    assert whole_of(text) == whole
