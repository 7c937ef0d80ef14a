"""A stop string never leaks, whole or in part, however the text is cut."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.stop import StopChecker

TEXTS = st.text(alphabet="ab#日🎉", max_size=24)
STOPS = st.lists(st.text(alphabet="ab#日🎉", min_size=1, max_size=4), min_size=1, max_size=4)


def run(stop: list[str], pieces: list[str], *, include: bool = False) -> tuple[str, list[str], bool]:
    checker = StopChecker(stop, include=include)
    out: list[str] = []
    for piece in pieces:
        out.append(checker.add(piece))
        if checker.stopped:
            break
    if not checker.stopped:
        out.append(checker.flush())
    return "".join(out), out, checker.stopped


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


def expected(text: str, stop: list[str], include: bool) -> str:
    found = [(text.find(one), len(one)) for one in stop if one in text]
    if not found:
        return text
    start, length = min(found)
    return text[: start + length if include else start]


@settings(max_examples=1000, deadline=None)
@given(TEXTS, STOPS, st.lists(st.integers(0, 24), max_size=10), st.booleans())
def test_the_cut_is_the_same_for_every_way_to_cut(text: str, stop: list[str], cuts: list[int], include: bool) -> None:
    result, out, stopped = run(stop, pieces_of(text, cuts), include=include)
    assert result == expected(text, stop, include)
    assert stopped == any(one in text for one in stop)
    given_out = ""
    for piece in out:
        given_out += piece
        assert expected(text, stop, include).startswith(given_out), "what is given out is never taken back"


@given(TEXTS, STOPS, st.lists(st.integers(0, 24), max_size=10))
def test_which_one_it_was_is_the_same_too(text: str, stop: list[str], cuts: list[int]) -> None:
    checker = StopChecker(stop)
    for piece in pieces_of(text, cuts):
        checker.add(piece)
    checker.flush()
    found = [(text.find(one), len(one), one) for one in stop if one in text]
    assert checker.matched == (min(found)[2] if found else None)


def test_text_is_given_out_as_soon_as_it_can_not_be_a_stop_string() -> None:
    checker = StopChecker(["###", "END"])
    assert checker.add("hello #") == "hello "
    assert checker.add("x") == "#x"
    assert checker.add(" EN") == " "
    assert checker.add("TRY") == "ENTRY"


def test_nothing_comes_after_a_stop_string() -> None:
    checker = StopChecker(["STOP"])
    assert checker.add("a STOP b") == "a "
    assert checker.stopped
    assert checker.add("more") == ""
    assert checker.flush() == ""


def test_the_earlier_start_wins_over_the_earlier_end() -> None:
    checker = StopChecker(["abcX", "bc"])
    assert checker.add("abc") == ""
    assert not checker.stopped
    assert checker.add("X") == ""
    assert checker.stopped
    other = StopChecker(["abcX", "bc"])
    other.add("abc")
    assert other.add("Y") == "a"
    assert other.stopped


@pytest.mark.parametrize("stop", [[], [""]])
def test_without_stop_strings_text_passes(stop: list[str]) -> None:
    assert run(stop, ["a", "b"]) == ("ab", ["a", "b", ""], False)
