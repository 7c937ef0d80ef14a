"""Owns the tests of calls that are enforced: with a model of random weights, every answer is the call that was asked for."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import torch

from app.engine.runner import ForwardOutput
from app.text.formats import TOOL_FORMATS
from tests.api.test_chat import answer_of, assembled, message_of, streamed
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.live import LiveServer, assert_error, live_server
from tests.support.tiny import CHAT_TEMPLATE, RESPONSE_TEMPLATE
from tests.text.test_call_grammar import SCHEMAS

TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
STRICT = [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS]
NAMED = {"type": "function", "function": {"name": "weather"}}


class RandomRunner(FakeRunner):
    """Says anything at all."""

    def forward(self, batch: Any) -> ForwardOutput:
        rows = [torch.randn(self.vocab_size) for scheduled in batch if scheduled.completes]
        return ForwardOutput(torch.stack(rows) if rows else torch.empty(0, self.vocab_size), {})


# Random text never ends the reasoning that may come first, so there is none here.
FIELDS: Any = RESPONSE_TEMPLATE["fields"]
NO_REASONING = {**RESPONSE_TEMPLATE, "fields": {name: field for name, field in FIELDS.items() if name != "reasoning_content"}}


@pytest.fixture(scope="module", params=[*TOOL_FORMATS, "response_template"])
def random_server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    """A model of each format, whose markers are text; with a response template, the format is found by trying."""
    loader = FakeLoader(runner=RandomRunner(), context_length=4096)
    if request.param == "response_template":
        loader.response_template = NO_REASONING
    else:
        seen = " ".join(TOOL_FORMATS[request.param].seen)
        loader.chat_template = CHAT_TEMPLATE + "{# " + seen + " #}"
    with live_server(loader) as server:
        if request.param != "response_template":
            assert server.model.loaded.chat.tool_format is TOOL_FORMATS[request.param]
        yield server


def check(calls: list[dict[str, Any]], names: set[str]) -> None:
    assert calls
    for call in calls:
        assert call["name"] in names
        jsonschema.validate(json.loads(call["arguments"]), SCHEMAS[call["name"]])


class TestRandomModels:
    @pytest.mark.parametrize(
        ("choice", "names"),
        [
            ("required", {"weather", "now"}),
            (NAMED, {"weather"}),
            ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}, {"weather"}),
        ],
        ids=["required", "named", "allowed_tools"],
    )
    def test_always_call(self, random_server: LiveServer, choice: Any, names: set[str]) -> None:
        body = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "temperature": 1, "n": 4, "seed": 1}
        for one in answer_of(random_server, **body)["choices"]:
            assert one["finish_reason"] == "tool_calls" and one["message"]["content"] is None
            check([call["function"] for call in one["message"]["tool_calls"]], names)
            assert len(one["message"]["tool_calls"]) == 1
        for message in assembled(streamed(random_server, **body)).values():
            assert message["finish_reason"] == "tool_calls" and not message["content"]
            check(message["tool_calls"], names)

    def test_strict_tools_are_called_right_or_not_at_all(self, random_server: LiveServer) -> None:
        body = {"tools": STRICT, "temperature": 1, "max_tokens": 40, "n": 4}
        for one in answer_of(random_server, **body)["choices"]:
            assert "tool_calls" not in one["message"] or one["finish_reason"] in ("tool_calls", "length")

    def test_an_answer_beside_calls_is_held_to_its_form(self, random_server: LiveServer) -> None:
        """With `response_format`, an answer is one of the two, to the letter, in a stream as without."""
        schema = {"type": "object", "properties": {"a": {"enum": ["<tool_call>", "x"]}}, "required": ["a"]}
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {**schema, "additionalProperties": False}}}
        format = random_server.model.loaded.chat.spelled_format
        body: dict[str, Any] = {"tools": TOOLS, "response_format": form, "parallel_tool_calls": False, "temperature": 1, "n": 8}
        if format is None or format.is_bare:
            assert_error(random_server.chat(**body), 400, param="response_format", code="unsupported_parameter")
            return
        whole = [(one["finish_reason"], one["message"]) for one in answer_of(random_server, **body)["choices"]]
        streamed_ = [(one["finish_reason"], one) for one in assembled(streamed(random_server, **body)).values()]
        for reason, message in whole + streamed_:
            if reason == "tool_calls":
                check([call.get("function", call) for call in message["tool_calls"]], {"weather", "now"})
            elif reason == "stop":
                jsonschema.validate(json.loads(message["content"]), schema)
        assert {"tool_calls", "stop"} & {reason for reason, _ in whole + streamed_}
        # Calls that must be leave no answer to be held to anything.
        (one,) = answer_of(random_server, **body | {"n": 1, "tool_choice": "required"})["choices"]
        assert one["finish_reason"] == "tool_calls"

    def test_functions(self, random_server: LiveServer) -> None:
        functions = [tool["function"] for tool in TOOLS]
        body = {"functions": functions, "function_call": {"name": "weather"}, "temperature": 1}
        message = message_of(random_server, **body)
        check([message["function_call"]], {"weather"})


def test_a_format_that_can_not_be_enforced() -> None:
    """A response template says how calls are read. Where it reads none of the formats that are known, none can be written."""
    calls = {**FIELDS["tool_calls"], "open": "<call>", "close": "</call>"}
    template = {**RESPONSE_TEMPLATE, "fields": {**FIELDS, "tool_calls": calls}}
    answer = '<call>{"name": "now", "arguments": {}}</call>'
    with live_server(FakeLoader(runner=FakeRunner(answer=answer), response_template=template, context_length=2048)) as server:
        for body in ({"tool_choice": "required"}, {"tool_choice": NAMED}):
            assert_error(server.chat(tools=TOOLS, **body), 400, param="tool_choice", code="unsupported_parameter")
        assert_error(server.chat(tools=STRICT), 400, param="tools", code="unsupported_parameter")
        # What can be honoured by reading alone is.
        for body in ({}, {"parallel_tool_calls": False}):
            assert len(message_of(server, tools=TOOLS, **body)["tool_calls"]) == 1


@pytest.mark.parametrize("name", ["qwen_xml", "gemma4"])
def test_what_only_json_can_be_held_to_is_refused_where_arguments_are_not_json(name: str) -> None:
    schema = {"type": "object", "properties": {"day": {"type": "string", "pattern": "^[a-z]+$"}}, "required": ["day"]}
    function = {"name": "f", "parameters": schema}
    template = CHAT_TEMPLATE + "{# " + " ".join(TOOL_FORMATS[name].seen) + " #}"
    with live_server(FakeLoader(runner=RandomRunner(), chat_template=template, context_length=2048)) as server:
        error = assert_error(server.chat(tools=[{"type": "function", "function": {**function, "strict": True}}]), 400)
        assert "`pattern` at $.properties.day" in error["message"]
        assert error["param"].startswith("tools.[0].function.parameters")
        body = {"tools": [{"type": "function", "function": function}], "tool_choice": "required", "temperature": 1}
        (call,) = message_of(server, max_tokens=1500, parallel_tool_calls=False, **body)["tool_calls"]
        assert call["function"]["name"] == "f"


def test_a_strict_schema_that_can_not_be_enforced_is_refused_and_another_one_is_not() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {}, "uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    template = CHAT_TEMPLATE + "{# <tool_call> arguments #}"
    with live_server(FakeLoader(runner=RandomRunner(), chat_template=template, context_length=2048)) as server:
        strict = {"type": "function", "function": {**tool["function"], "strict": True}}
        error = assert_error(server.chat(tools=[strict]), 400)
        assert error["param"].startswith("tools.[0].function.parameters") and "uniqueItems" in error["message"]
        body = {"tools": [tool], "tool_choice": "required", "max_tokens": 60, "temperature": 1}
        assert message_of(server, **body)["tool_calls"][0]["function"]["name"] == "f"


def test_arguments_are_a_strict_schema_s_and_others_at_least_an_object() -> None:
    """Also where the model would rather say something else."""
    template = CHAT_TEMPLATE + "{# <tool_call> arguments #}"
    answer = '<tool_call>\n{"name": "weather", "arguments": {"city": 5, "unit": "K"}}\n</tool_call>'
    with live_server(FakeLoader(runner=FakeRunner(answer=answer), chat_template=template, context_length=2048)) as server:
        (call,) = message_of(server, tools=TOOLS)["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": 5, "unit": "K"}, "nobody asked for more"
        for body in ({"tools": STRICT}, {"tools": TOOLS, "tool_choice": "required"}):
            choice = answer_of(server, max_tokens=300, **body)["choices"][0]
            for call in choice["message"]["tool_calls"] if choice["finish_reason"] == "tool_calls" else ():
                jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])


def test_what_contradicts_a_call_that_must_be() -> None:
    with live_server(FakeLoader(runner=RandomRunner(), response_template=RESPONSE_TEMPLATE, context_length=2048)) as server:
        for name, value in (("ignore_eos", True), ("min_tokens", 5)):
            error = assert_error(server.chat(tools=TOOLS, tool_choice="required", **{name: value}), 400, param=name)
            assert "tool_choice" in error["message"]
            assert server.chat(tools=TOOLS, parallel_tool_calls=False, max_tokens=9, **{name: value}).status_code == 200
