"""Owns the tests of the output of /v1/responses: which items deltas become, and the order of their events."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.response_events import OutputBuilder
from app.text.deltas import CallArguments, CallBegin, CallEnd, ChatDelta, Content, Reasoning
from app.text.output import TokenAlternative, TokenText
from tests.support.response_events import ITEMS, check_items, letters

LETTERS = "ab é\n"
TEXTS = st.text(LETTERS, min_size=1, max_size=6)
SPACES = st.sampled_from([" ", "\n", "\n\n", "  "])
ARGUMENTS = st.dictionaries(st.text(LETTERS, max_size=3), st.integers(), max_size=3).map(json.dumps)


@st.composite
def answers(draw: st.DrawFn) -> list[ChatDelta]:
    """The deltas of an answer, as parsers give them: calls one after the other, the last one perhaps cut off."""
    deltas: list[ChatDelta] = []
    num_calls = 0
    for kind in draw(st.lists(st.sampled_from(["content", "space", "reasoning", "call"]), max_size=8)):
        match kind:
            case "content":
                deltas.append(Content(draw(TEXTS)))
            case "space":
                deltas.append(Content(draw(SPACES)))
            case "reasoning":
                deltas.append(Reasoning(draw(TEXTS)))
            case "call":
                arguments = draw(ARGUMENTS)
                cut = draw(st.integers(1, len(arguments)))
                pieces = [piece for piece in (arguments[:cut], arguments[cut:]) if piece]
                deltas.append(CallBegin(num_calls, f"call_{num_calls}", "f"))
                deltas += [CallArguments(num_calls, piece) for piece in pieces]
                deltas.append(CallEnd(num_calls))
                num_calls += 1
    if draw(st.booleans()):
        deltas += [CallBegin(num_calls, f"call_{num_calls}", "f"), CallArguments(num_calls, '{"a')]
    return deltas


def texts(output: list[dict[str, Any]], kind: str) -> str:
    return "".join(item["content"][0]["text"] for item in output if item["type"] == kind)


def token(text: str, logprob: float = -1.0) -> TokenText:
    data = text.encode()
    return TokenText(1, text, data, logprob, 0, (TokenAlternative(1, text, data, logprob),))


class TestOrder:
    @given(answers(), st.booleans())
    def test_events_tell_of_the_output(self, deltas: list[ChatDelta], is_cut: bool) -> None:
        builder = OutputBuilder()
        events = [event for delta in deltas for event in builder.feed([delta])]
        events += builder.finish(is_cut=is_cut)
        assert re.fullmatch(ITEMS, letters(events)), letters(events)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert check_items(events) == builder.output

    @given(answers(), st.booleans())
    def test_nothing_is_lost(self, deltas: list[ChatDelta], is_cut: bool) -> None:
        builder = OutputBuilder()
        builder.feed(deltas)
        builder.finish(is_cut=is_cut)
        reasoning = "".join(delta.text for delta in deltas if isinstance(delta, Reasoning))
        content = "".join(delta.text for delta in deltas if isinstance(delta, Content))
        assert texts(builder.output, "reasoning") == reasoning
        # White space between items is of none of them.
        assert "".join(texts(builder.output, "message").split()) == "".join(content.split())
        calls = [item for item in builder.output if item["type"] == "function_call"]
        assert [call["call_id"] for call in calls] == [delta.id for delta in deltas if isinstance(delta, CallBegin)]
        whole = [delta.index for delta in deltas if isinstance(delta, CallEnd)]
        assert [call["status"] for call in calls] == [
            "completed" if index in whole else "incomplete" for index in range(len(calls))
        ]

    @given(answers(), st.integers(1, 3))
    def test_steps_do_not_matter(self, deltas: list[ChatDelta], size: int) -> None:
        """Events of one step or of many are the same, but for the ids."""
        outcomes = []
        for step in (1, size):
            builder = OutputBuilder()
            events = [e for start in range(0, len(deltas), step) for e in builder.feed(deltas[start : start + step])]
            events += builder.finish(is_cut=False)
            outcomes.append([(event["type"], event.get("delta"), event.get("output_index")) for event in events])
        assert outcomes[0] == outcomes[1]


class TestItems:
    def test_an_answer_of_nothing_is_an_empty_message(self) -> None:
        builder = OutputBuilder()
        assert letters(builder.finish(is_cut=False)) == "ApTqD"
        assert texts(builder.output, "message") == ""

    def test_an_answer_cut_before_its_first_word_is_nothing(self) -> None:
        builder = OutputBuilder()
        assert builder.finish(is_cut=True) == []

    def test_white_space_alone_is_a_message_but_not_between_calls(self) -> None:
        builder = OutputBuilder()
        assert builder.feed([Content("\n")]) == []
        builder.finish(is_cut=False)
        assert texts(builder.output, "message") == "\n"
        builder = OutputBuilder()
        call: list[ChatDelta] = [CallBegin(0, "a", "f"), CallArguments(0, "{}"), CallEnd(0)]
        builder.feed([Content("\n"), *call, Content("\n\n"), Reasoning("x"), Content(" ")])
        builder.finish(is_cut=False)
        assert [item["type"] for item in builder.output] == ["function_call", "reasoning"]

    def test_what_is_cut_off_is_incomplete(self) -> None:
        builder = OutputBuilder()
        builder.feed([Reasoning("hm"), Content("Hel")])
        builder.finish(is_cut=True)
        assert [item["status"] for item in builder.output] == ["completed", "incomplete"]

    def test_a_failure_leaves_what_came(self) -> None:
        builder = OutputBuilder()
        builder.feed([Content("Hel")])
        builder.fail()
        assert [(item["status"], item["content"][0]["text"]) for item in builder.output] == [("incomplete", "Hel")]

    def test_items_that_were_added_do_not_grow_behind_their_event(self) -> None:
        builder = OutputBuilder()
        added, part, *_ = builder.feed([Content("a"), Content("b")])
        assert (added["item"]["content"], part["part"]["text"]) == ([], "")


class TestLogprobs:
    def test_tokens_come_with_their_text(self) -> None:
        builder = OutputBuilder()
        events = builder.feed([Content("Hé")], [token("H"), token("é")])
        events += builder.feed([], [token("</s>")]) + builder.finish(is_cut=False)
        deltas = [event for event in events if event["type"] == "response.output_text.delta"]
        assert [[entry["token"] for entry in event["logprobs"]] for event in deltas] == [["H", "é"], ["</s>"]]
        logprobs = builder.output[0]["content"][0]["logprobs"]
        assert logprobs == [entry for event in deltas for entry in event["logprobs"]]
        assert logprobs[1] == {
            "token": "é",
            "bytes": list("é".encode()),
            "logprob": -1.0,
            "top_logprobs": [{"token": "é", "bytes": list("é".encode()), "logprob": -1.0}],
        }

    def test_those_of_markers_reasoning_and_calls_are_left_out(self) -> None:
        builder = OutputBuilder()
        builder.feed([], [token("<think>")])
        builder.feed([Reasoning("hm")], [token("hm")])
        builder.feed([], [token("</think>")])
        builder.feed([Content("yes")], [token("yes")])
        builder.feed([CallBegin(0, "a", "f")], [token("<call>")])
        builder.feed([CallArguments(0, "{}"), CallEnd(0)], [token("{}")])
        builder.finish(is_cut=False)
        assert [entry["token"] for entry in builder.output[1]["content"][0]["logprobs"]] == ["yes"]


class TestTokensOfAStep:
    """Which tokens belong to a text does not depend on how many come with it in one step."""

    @staticmethod
    def tokens(*pieces: bytes) -> list[TokenText]:
        return [TokenText(index, piece.decode(errors="replace"), piece, -0.5, 0) for index, piece in enumerate(pieces)]

    @pytest.mark.parametrize(
        ("pieces", "kept"),
        [
            ((b"a", b"\xf0\x9f", b"\x99\x82", b"</s>"), 4),
            ((b"a", b"\xf0\x9f", b"\x99\x82"), 3),
            ((b"</think>", b"\n", b"a", b"\xf0\x9f\x99\x82"), 2),
            ((b"</think>", b"a", b"\xf0\x9f\x99\x82", b"</s>"), 3),
        ],
    )
    def test_markers_before_it_do_not_count(self, pieces: tuple[bytes, ...], kept: int) -> None:
        builder = OutputBuilder()
        builder.feed([Content("a🙂")], self.tokens(*pieces))
        builder.finish(is_cut=False)
        found = builder.output[0]["content"][0]["logprobs"]
        assert [bytes(entry["bytes"]) for entry in found] == list(pieces[-kept:])
