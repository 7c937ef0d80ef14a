"""Owns the tests of a message's content: which blocks deltas become, and the order of their events."""

import json
import re
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from app.api.anthropic_events import MessageBuilder
from app.text.deltas import CallArguments, CallBegin, CallEnd, ChatDelta, Content, Reasoning
from tests.api.test_response_events import answers
from tests.support.anthropic_events import BLOCKS, content_of, letters


def plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def cut_up(deltas: list[ChatDelta], size: int) -> list[ChatDelta]:
    """The same deltas in pieces of at most `size` characters."""
    pieces: list[ChatDelta] = []
    for delta in deltas:
        match delta:
            case Content(text):
                pieces += [Content(text[at : at + size]) for at in range(0, len(text), size)]
            case Reasoning(text):
                pieces += [Reasoning(text[at : at + size]) for at in range(0, len(text), size)]
            case CallArguments(index, text):
                pieces += [CallArguments(index, text[at : at + size]) for at in range(0, len(text), size)]
            case _:
                pieces.append(delta)
    return pieces


@given(answers(), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_any_chunking_is_the_same_message(deltas: list[ChatDelta], size: int, step: int, is_cut: bool) -> None:
    whole = MessageBuilder()
    whole.feed(deltas)
    whole.finish(is_cut=is_cut)
    streamed, pieces = MessageBuilder(), cut_up(deltas, size)
    events = [event for at in range(0, len(pieces), step) for event in streamed.feed(pieces[at : at + step])]
    events += streamed.finish(is_cut=is_cut)
    events = plain(events)
    assert re.fullmatch(BLOCKS, letters(events)), letters(events)
    assert content_of(events) == plain(streamed.content) == plain(whole.content)


@given(answers(), st.booleans())
def test_nothing_is_lost(deltas: list[ChatDelta], is_cut: bool) -> None:
    builder = MessageBuilder()
    builder.feed(deltas)
    builder.finish(is_cut=is_cut)
    blocks = plain(builder.content)

    def of(kind: str) -> str:
        return "".join(block[kind] for block in blocks if block["type"] == kind)

    assert of("thinking") == "".join(delta.text for delta in deltas if isinstance(delta, Reasoning))
    # White space between blocks is of none of them.
    content = "".join(delta.text for delta in deltas if isinstance(delta, Content))
    assert "".join(of("text").split()) == "".join(content.split())
    calls = [block for block in blocks if block["type"] == "tool_use"]
    assert [call["id"] for call in calls] == [delta.id for delta in deltas if isinstance(delta, CallBegin)]


def test_the_start_of_a_block_does_not_grow_behind_its_event() -> None:
    builder = MessageBuilder()
    start, *_ = builder.feed([Content("a"), Content("b")])
    assert start["content_block"] == {"type": "text", "text": ""}


def test_an_answer_of_nothing_is_an_empty_text_and_a_cut_one_is_nothing() -> None:
    builder = MessageBuilder()
    assert letters(builder.finish(is_cut=False)) == "BE" and builder.content == [{"type": "text", "text": ""}]
    builder = MessageBuilder()
    assert builder.finish(is_cut=True) == [] and builder.content == []
    builder = MessageBuilder()
    assert builder.feed([Content("\n")]) == []
    assert letters(builder.finish(is_cut=True)) == "BtE" and builder.content == [{"type": "text", "text": "\n"}]


def test_inputs_are_what_the_model_wrote() -> None:
    """Not read and written anew, which would round a number and lose a key that comes twice."""
    text = '{"n": 123456789012345678901234567890.10, "n": 1e2}'
    builder = MessageBuilder()
    builder.feed([CallBegin(0, "a", "f"), CallArguments(0, text), CallEnd(0)])
    assert text.encode() in msgspec.json.encode(builder.content)


def test_an_input_that_is_cut_off_has_what_is_certain() -> None:
    builder = MessageBuilder()
    builder.feed([CallBegin(0, "a", "f"), CallArguments(0, '{"city": "Paris", "days": 1')])
    builder.finish(is_cut=True)
    assert plain(builder.content)[0]["input"] == {"city": "Paris"}


def test_signatures_tell_thoughts_apart() -> None:
    signatures = set()
    for thought in ("a", "b", "a"):
        builder = MessageBuilder()
        builder.feed([Reasoning(thought)])
        builder.finish(is_cut=False)
        signatures.add(builder.content[0]["signature"])
    assert len(signatures) == 2 and all(signatures)
