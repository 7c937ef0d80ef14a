"""Owns the tests of what /v1/messages tells the model, and holds it to: tools, thinking, formats."""

import json
from typing import Any

import pytest

from app.config import ModelType
from app.text.formats import REASONING_FORMATS
from tests.api.conftest import ANSWER, Serve
from tests.api.test_anthropic import CALLS, SCHEMA, TOOLS, answer, count, post, stream, text_of, with_template
from tests.api.test_chat_templates import PROMPT, SWITCH, TURN
from tests.api.test_forced_calls import NO_REASONING, RandomRunner
from tests.support.anthropic_events import message_of
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.live import LiveServer, assert_error
from tests.support.schemas import validate
from tests.support.tiny import RESPONSE_TEMPLATE


@pytest.fixture
def calling(serve: Serve) -> LiveServer:
    return serve(FakeLoader(runner=FakeRunner(answer=CALLS), response_template=RESPONSE_TEMPLATE))


class TestTools:
    def test_without_tools_nothing_is_a_call(self, calling: LiveServer) -> None:
        for more in ({}, {"tools": TOOLS, "tool_choice": {"type": "none"}}):
            message = answer(calling, **more)
            assert {block["type"] for block in message["content"]} == {"thinking", "text"}
            assert message["stop_reason"] == "end_turn"

    def test_one_at_a_time(self, calling: LiveServer) -> None:
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        for message in (
            answer(calling, tools=TOOLS, tool_choice=choice),
            message_of(stream(calling, tools=TOOLS, tool_choice=choice)),
        ):
            assert [block["type"] for block in message["content"]].count("tool_use") == 1

    @pytest.mark.parametrize(
        ("choice", "names"),
        [
            ({"type": "any", "disable_parallel_tool_use": True}, {"weather", "now"}),
            ({"type": "tool", "name": "weather"}, {"weather"}),
        ],
    )
    def test_must_be_called(self, serve: Serve, choice: Any, names: set[str]) -> None:
        """A model that says anything at all can say nothing else."""
        empty = {"type": "object", "properties": {}, "additionalProperties": False}
        strict = [TOOLS[0] | {"strict": True}, TOOLS[1] | {"input_schema": empty, "strict": True}]
        loader = FakeLoader(runner=RandomRunner(), response_template=NO_REASONING, context_length=4096)
        server = serve(loader)
        for number in range(3):
            message = answer(server, tools=strict, tool_choice=choice, temperature=1, max_tokens=1000, top_k=50 + number)
            (use,) = message["content"]
            assert use["type"] == "tool_use" and use["name"] in names and message["stop_reason"] == "tool_use"
            validate(use["input"], next(tool["input_schema"] for tool in strict if tool["name"] == use["name"]))

    def test_names_may_be_long(self, calling: LiveServer) -> None:
        name = "mcp__server__" + "x" * 100
        tools = [{"name": name, "input_schema": {"type": "object"}}]
        assert post(calling, tools=tools, tool_choice={"type": "auto"}).status_code == 200
        named = post(calling, tools=tools, tool_choice={"type": "tool", "name": "unknown"})
        assert_error(named, 400, param="tool_choice")

    @pytest.mark.parametrize(
        ("tool", "param"),
        [
            ({"type": "web_search_20250305", "name": "web_search"}, "tools.[0].type"),
            ({"type": "bash_20250124", "name": "bash"}, "tools.[0].type"),
            (TOOLS[0] | {"defer_loading": True}, "tools.[0].defer_loading"),
            (TOOLS[0] | {"eager_input_streaming": False}, "tools.[0].eager_input_streaming"),
            (TOOLS[0] | {"input_examples": [{"city": "Rome"}]}, "tools.[0].input_examples"),
            (TOOLS[0] | {"allowed_callers": ["code_execution_20250825"]}, "tools.[0].allowed_callers"),
        ],
        ids=repr,
    )
    def test_what_is_not_supported(self, calling: LiveServer, tool: Any, param: str) -> None:
        error = assert_error(post(calling, tools=[tool]), 400, param=param, code="unsupported_parameter")
        assert tool.get("type", param.split(".")[-1]) in error["message"]

    def test_what_asks_for_nothing_else(self, calling: LiveServer) -> None:
        more = {"type": "custom", "allowed_callers": ["direct"], "defer_loading": False, "eager_input_streaming": True}
        tool = TOOLS[0] | more | {"input_examples": [], "cache_control": {"type": "ephemeral"}}
        assert count(calling, tools=[tool]) == count(calling, tools=[TOOLS[0]])

    @pytest.mark.parametrize(
        ("tools", "choice", "param"),
        [
            (None, {"type": "any"}, "tool_choice"),
            ([TOOLS[0], TOOLS[0]], None, "tools"),
            ([{"name": "f", "input_schema": {"type": "string"}}], None, "tools.[0].input_schema.type"),
            ([{"name": "f"}], None, "tools.[0].input_schema"),
        ],
    )
    def test_what_is_wrong(self, calling: LiveServer, tools: Any, choice: Any, param: str) -> None:
        assert_error(post(calling, tools=tools, tool_choice=choice), 400, param=param)

    def test_models_that_can_not_call(self, saying: LiveServer) -> None:
        assert_error(post(saying, tools=TOOLS), 400, param="tools", code="unsupported_parameter")


ON = ({"type": "enabled"}, {"type": "adaptive"}, {"type": "adaptive", "display": "summarized"})
OFF = {"type": "disabled"}


class TestThinking:
    def test_is_switched(self, serve: Serve) -> None:
        server = with_template(serve, TURN + PROMPT + SWITCH, "Four.")
        for thinking in (None, *ON):
            (block,) = answer(server, thinking=thinking)["content"]
            assert (block["type"], block["thinking"]) == ("thinking", "Four.")
        assert answer(server, thinking=OFF)["content"] == [{"type": "text", "text": "Four."}]

    def test_models_that_never_think(self, saying: LiveServer) -> None:
        assert text_of(answer(saying, thinking=OFF)) == ANSWER
        for thinking in ON:
            error = assert_error(post(saying, thinking=thinking), 400, param="thinking", code="unsupported_parameter")
            assert "does not think" in error["message"]

    def test_models_that_always_think(self, calling: LiveServer) -> None:
        for thinking in ON:
            assert answer(calling, thinking=thinking)["content"][0]["type"] == "thinking"
        error = assert_error(post(calling, thinking=OFF), 400, param="thinking", code="unsupported_parameter")
        assert "disabled" in error["message"]

    @pytest.mark.parametrize("tools", [None, TOOLS], ids=["alone", "with tools"])
    def test_the_budget_ends_it(self, serve: Serve, tools: Any) -> None:
        """The fake model goes on with its letters where it is, once its thought is closed."""
        template = TURN + "{{ tools or '' }}{# <tool_call> arguments #}" + PROMPT + SWITCH
        runner = FakeRunner(answer="h" * 1100)
        server = serve(FakeLoader(runner=runner, chat_template=template, context_length=8192))
        body: dict[str, Any] = {"tools": tools, "max_tokens": 2000}
        if tools:
            body["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
        message = answer(server, thinking={"type": "enabled", "budget_tokens": 1024}, **body)
        thinking, text = message["content"]
        assert (thinking["thinking"], text["text"]) == ("h" * 1024, "h" * (1100 - 1024 - len("</think>")))
        assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("end_turn", 1101)

    def test_the_budget_is_for_a_part_of_the_answer(self, calling: LiveServer) -> None:
        thinking = {"type": "enabled", "budget_tokens": 1024}
        assert_error(post(calling, thinking=thinking, max_tokens=1024), 400, param="max_tokens")
        assert answer(calling, thinking=thinking, max_tokens=1025)["content"][0]["thinking"] == "hm"
        assert count(calling, thinking=thinking) == count(calling)

    def test_thoughts_without_markers_have_no_budget(self, serve: Serve) -> None:
        """Harmony's are messages of their own."""
        template = TURN + PROMPT + "{# <|channel|> analysis #}"
        server = serve(FakeLoader(runner=FakeRunner(answer=ANSWER), chat_template=template), type=ModelType.CAUSAL_LM)
        server.model.loaded.chat.reasoning_format = REASONING_FORMATS["harmony"]
        refused = post(server, thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2000)
        assert_error(refused, 400, param="thinking.budget_tokens", code="unsupported_parameter")
        assert post(server, thinking={"type": "enabled"}).status_code == 200

    def test_effort(self, serve: Serve) -> None:
        template = TURN + PROMPT + "{{ 'x' * 9 if reasoning_effort == 'low' else '' }}"
        server = with_template(serve, template)
        assert count(server, output_config={"effort": "low"}) == count(server) + 9
        assert answer(server, output_config={"effort": "low"})["usage"]["input_tokens"] == count(server) + 9
        error = assert_error(post(server, output_config={"effort": "max"}), 400, code="unsupported_parameter")
        assert error["param"] == "output_config.effort" and "`output_config.effort`" in error["message"]

    def test_effort_and_its_contrary(self, serve: Serve) -> None:
        server = with_template(serve, TURN + PROMPT + SWITCH, "Four.")
        assert post(server, thinking={"type": "enabled"}, output_config={"effort": "low"}).status_code == 200
        refused = post(server, thinking=OFF, output_config={"effort": "low"})
        assert_error(refused, 400, param="output_config.effort")


class TestFormat:
    @pytest.mark.parametrize("body", [{"output_config": {"format": None}}, {"output_format": None}], ids=repr)
    def test_is_enforced(self, serve: Serve, body: dict[str, Any]) -> None:
        format = {"type": "json_schema", "schema": SCHEMA}
        body = {"output_format": format} if "output_format" in body else {"output_config": {"format": format}}
        server = serve(runner=RandomRunner())
        for message in (answer(server, temperature=1, **body), message_of(stream(server, temperature=1, **body))):
            validate(json.loads(text_of(message)), SCHEMA)
            assert message["stop_reason"] == "end_turn"

    def test_beside_tools_an_answer_is_a_call_or_the_form(self, serve: Serve) -> None:
        server = serve(FakeLoader(runner=RandomRunner(), response_template=NO_REASONING, context_length=4096))
        schema = {"type": "object", "properties": {"a": {"enum": ["<tool_call>", "x"]}}, "required": ["a"]}
        output = {"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}}
        kinds = set()
        for number in range(8):
            body = {"tools": TOOLS, "output_config": output, "temperature": 1, "top_k": 50 + number, "max_tokens": 1000}
            message = (answer(server, **body), message_of(stream(server, **body)))[number % 2]
            kinds.add(message["stop_reason"])
            if message["stop_reason"] == "tool_use":
                assert {block["type"] for block in message["content"]} == {"tool_use"}
            elif message["stop_reason"] == "end_turn":
                validate(json.loads(text_of(message)), schema)
        assert kinds & {"tool_use", "end_turn"}

    def test_what_can_not_be(self, saying: LiveServer) -> None:
        format = {"type": "json_schema", "schema": {"type": "object", "patternProperties": {"a": {}}}}
        error = assert_error(post(saying, output_config={"format": format}), 400)
        assert error["param"].startswith("output_config.format") and "patternProperties" in error["message"]
        format["schema"] = SCHEMA
        assert_error(post(saying, output_config={"format": format}, output_format=format), 400, param="output_format")
