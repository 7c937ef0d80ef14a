"""Prompts are cut on one side to a number of tokens, and keep the special tokens around a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.truncation import Truncation


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [
        (Truncation(4), [1, 7, 8, 2]),
        (Truncation(4, "right"), [1, 5, 6, 2]),
        (Truncation(6), [1, 5, 6, 7, 8, 2]),
        (Truncation(2), [8, 2]),
        (Truncation(1, "right"), [1]),
    ],
)
def test_special_tokens_around_a_text_stay_while_there_is_room(truncation: Truncation, expected: list[int]) -> None:
    assert truncation.cut([1, 5, 6, 7, 8, 2], ([1], [2])) == expected


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(1, 12), st.sampled_from(["left", "right"]))
def test_ids_without_special_tokens(ids: list[int], num_tokens: int, side: str) -> None:
    cut = Truncation(num_tokens, side).cut(ids)  # type: ignore[arg-type]
    assert cut == (ids[-num_tokens:] if side == "left" else ids[:num_tokens])
