"""Owns the tests of what a chat template is given for the messages of /v1/messages."""

from typing import Any

import msgspec
import pytest

from app.api.anthropic_messages import continues, template_messages
from app.api.schemas.anthropic import InputMessage
from app.errors import InvalidRequest, UnsupportedParameter

USER = {"role": "user", "content": "weather?"}
USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Köln"}}
CALL = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}


def text(content: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": content, **more}


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def result(content: Any = "rain", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "t1", "content": content, **more}


def read(messages: list[Any]) -> list[InputMessage]:
    return msgspec.convert(messages, list[InputMessage])


def render(*messages: Any, system: Any = None) -> list[dict[str, Any]]:
    return template_messages(system, read(list(messages)))


class TestTurns:
    def test_texts(self) -> None:
        assert render(USER, system="Be brief") == [{"role": "system", "content": "Be brief"}, USER]
        blocks = [text("a", cache_control={"type": "ephemeral"}), text("b", citations=None)]
        assert render(user(*blocks), system=blocks) == [
            {"role": "system", "content": "a\nb"},
            {"role": "user", "content": "a\nb"},
        ]
        assert render(USER, system="") == render(USER, system=[]) == [USER]

    def test_a_text_is_a_block_of_text(self) -> None:
        assert render(user(text("weather?"))) == render(USER)

    def test_turns_of_one_role_are_one(self) -> None:
        assert render(user(text("a")), user(text("b"))) == render(user(text("a"), text("b")))
        assert render(USER, assistant(text("I ")), assistant(text("see"))) == [USER, {"role": "assistant", "content": "I see"}]

    def test_a_call_and_its_result(self) -> None:
        use = USE | {"caller": {"type": "direct"}, "toolset_name": None}
        turns = render(USER, assistant(text("Yes."), use), user(result(), text("and now?")))
        assert turns == [
            USER,
            {"role": "assistant", "content": "Yes.", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "t1", "name": "weather", "content": "rain"},
            {"role": "user", "content": "and now?"},
        ]

    @pytest.mark.parametrize(
        ("block", "content"),
        [
            (result("rain"), "rain"),
            (result([text("ra"), text("in")]), "ra\nin"),
            (result(None), ""),
            ({"type": "tool_result", "tool_use_id": "t1"}, ""),
            (result("no such city", is_error=True), "Error: no such city"),
            (result("rain", is_error=False), "rain"),
        ],
    )
    def test_results(self, block: Any, content: str) -> None:
        assert render(USER, assistant(USE), user(block))[-1]["content"] == content

    def test_thinking(self) -> None:
        blocks = [{"type": "thinking", "thinking": "hm", "signature": "s"}, text("Yes."), USE]
        (_, turn) = render(USER, assistant(*blocks))
        assert turn == {"role": "assistant", "reasoning_content": "hm", "content": "Yes.", "tool_calls": [CALL]}

    def test_thoughts_that_nobody_can_read_are_none(self) -> None:
        hidden = {"type": "redacted_thinking", "data": "x"}
        assert render(USER, assistant(hidden, text("Yes."))) == render(USER, assistant(text("Yes.")))

    def test_what_follows_a_call_is_a_message_of_its_own(self) -> None:
        thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
        turns = render(USER, assistant(USE, thought, text("More.")))
        assert turns[1:] == [
            {"role": "assistant", "tool_calls": [CALL], "content": ""},
            {"role": "assistant", "reasoning_content": "hm", "content": "More."},
        ]


class TestRefused:
    @pytest.mark.parametrize(
        ("message", "param", "named"),
        [
            (user({"type": "image", "source": {}}), "messages.[0].content.[0].type", "'image'"),
            (user(text("a"), {"type": "document"}), "messages.[0].content.[1].type", "'document'"),
            (user({"type": ["text"]}), "messages.[0].content.[0].type", "text only"),
            (user({}), "messages.[0].content.[0].type", "'None'"),
            (user(text("a", citations=[{"type": "page_location"}])), "messages.[0].content.[0].citations", "citations"),
        ],
    )
    def test_what_is_not_supported(self, message: Any, param: str, named: str) -> None:
        with pytest.raises(UnsupportedParameter) as refused:
            render(message)
        assert refused.value.param == param and named in str(refused.value)

    def test_a_results_blocks(self) -> None:
        with pytest.raises(UnsupportedParameter) as refused:
            render(USER, assistant(USE), user(result([text("a"), {"type": "image"}])))
        assert refused.value.param == "messages.[2].content.[0].content.[1].type"

    @pytest.mark.parametrize(
        ("messages", "param"),
        [
            ([user(USE)], "messages.[0].content.[0].type"),
            ([USER, assistant(result())], "messages.[1].content.[0].type"),
            ([user({"type": "thinking", "thinking": "x", "signature": "s"})], "messages.[0].content.[0].type"),
            ([user(result())], "messages.[0].content.[0].tool_use_id"),
            ([user(result()), assistant(USE)], "messages.[0].content.[0].tool_use_id"),
            ([user(text("a", unknown=1))], "messages.[0].content.[0].unknown"),
            ([user({"type": "text"})], "messages.[0].content.[0].text"),
            ([assistant({"type": "tool_use", "id": "t1", "name": "f", "input": "{}"})], "messages.[0].content.[0].input"),
            ([{"role": "user", "content": ""}], "messages.[0].content"),
            ([assistant(), USER], "messages.[0].content"),
            ([{"role": "system", "content": [USE]}], "messages.[0].content.[0].type"),
        ],
    )
    def test_what_is_wrong(self, messages: Any, param: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            render(*messages)
        assert refused.value.param == param and not isinstance(refused.value, UnsupportedParameter)


class TestGoingOn:
    def test_with_the_assistants_words(self) -> None:
        for messages in ([USER, assistant(text("I "), text("see"))], [USER, {"role": "assistant", "content": "I"}]):
            assert continues(read(messages), render(*messages))
        assert not continues(read([USER]), render(USER))

    @pytest.mark.parametrize(
        "last",
        [
            {"role": "assistant", "content": ""},
            assistant(),
            assistant(text("I see ")),
            assistant(text("I see"), USE),
            assistant({"type": "thinking", "thinking": "x", "signature": "s"}),
        ],
        ids=repr,
    )
    def test_not_with_anything_else(self, last: Any) -> None:
        with pytest.raises(InvalidRequest) as refused:
            continues(read([USER, last]), render(USER, last))
        assert refused.value.param == "messages.[1].content"
