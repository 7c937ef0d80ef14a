"""Reasoning before an answer that is held to a grammar: found in the prompt, and split from the text, however it arrives."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.constraint import Reasoning
from app.text.reasoning import ReasoningSplitter, reasoning_of
from tests.support.tiny import RESPONSE_TEMPLATE

OTHER: dict[str, Any] = {"fields": {"thinking": {"open": "[THINK]\n", "close": "[/THINK]"}, "content": {}}}


@pytest.mark.parametrize(
    ("template", "end", "expected"),
    [
        (None, "<s>assistant: ", None),
        (None, "<s>assistant: <think>\n", Reasoning("<think>", "</think>", True)),
        (None, "<think>\n\n</think>\n\n", None),
        (RESPONSE_TEMPLATE, "<s>assistant: ", Reasoning("<think>", "</think>", False)),
        (RESPONSE_TEMPLATE, "<s>assistant: <think>", Reasoning("<think>", "</think>", True)),
        (RESPONSE_TEMPLATE, "<s>assistant: <think>\n\n</think>\n\n", None),
        (OTHER, "x", Reasoning("[THINK]", "[/THINK]", False)),
        (OTHER, "x[THINK]\n", Reasoning("[THINK]", "[/THINK]", True)),
        ({"fields": {"content": {}}}, "x", None),
    ],
)
def test_the_prompt_says_whether_it_reasons(template: Any, end: str, expected: Reasoning | None) -> None:
    assert reasoning_of(template, end) == expected


@given(st.data())
@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("hm</think>\n\n{}", True, ("hm", "{}")),
        ("h<m</thin>k</think>{</think>}", True, ("h<m</thin>k", "{</think>}")),
        ("never ends </thin", True, ("never ends </thin", "")),
        ("<think>hm</think> {}", False, ("hm", "{}")),
        ("<thing>", False, ("", "<thing>")),
        ("<thi", False, ("", "<thi")),
        ("{} <think>x</think>", False, ("", "{} <think>x</think>")),
        ("</think>", True, ("", "")),
    ],
)
def test_the_split_does_not_depend_on_the_pieces(text: str, is_open: bool, expected: tuple[str, str], data: Any) -> None:
    splitter = ReasoningSplitter(Reasoning("<think>", "</think>", is_open))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [splitter.feed(text[start:end]) for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    parts.append(splitter.finish())
    assert ("".join(part[0] for part in parts), "".join(part[1] for part in parts)) == expected
