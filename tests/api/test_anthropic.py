"""Owns the tests of /v1/messages and /v1/messages/count_tokens on the wire."""

import concurrent.futures
import threading
from typing import Any

import httpx
import pytest

from app.engine.kv_cache import BlockLedger
from app.engine.sequence import Sequence
from tests.api.conftest import ANSWER, Serve
from tests.api.test_chat_templates import PROMPT, TURN
from tests.api.test_errors import failing
from tests.support.anthropic_events import STREAM, content_of, letters, message_of
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.live import MODEL, LiveServer, SlowRunner, assert_error, eventually, openai_error
from tests.support.response_events import named_events
from tests.support.tiny import RESPONSE_TEMPLATE

USER = {"role": "user", "content": "hello"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Köln", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"name": "weather", "description": "Look out", "input_schema": SCHEMA},
    {"name": "now", "input_schema": {"type": "object"}},
]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
CALLS = "<think>hm</think>Yes." + CALL + CALL


def post(server: LiveServer, path: str = "/v1/messages", **body: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [USER], "max_tokens": 200} | body
    if path != "/v1/messages":
        del body["max_tokens"]
    return server.http.post(path, json=body)


def answer(server: LiveServer, **body: Any) -> dict[str, Any]:
    response = post(server, **body)
    assert response.status_code == 200, response.text
    message: dict[str, Any] = response.json()
    return message


def stream(server: LiveServer, **body: Any) -> list[dict[str, Any]]:
    return named_events(post(server, stream=True, **body), done=False)


def count(server: LiveServer, **body: Any) -> int:
    response = post(server, "/v1/messages/count_tokens", **body)
    assert response.status_code == 200, response.text
    assert list(response.json()) == ["input_tokens"]
    return int(response.json()["input_tokens"])


def text_of(message: dict[str, Any]) -> str:
    return "".join(block.get("text", "") for block in message["content"])


@pytest.fixture
def calling(serve: Serve) -> LiveServer:
    return serve(FakeLoader(runner=FakeRunner(answer=CALLS), response_template=RESPONSE_TEMPLATE))


def with_template(serve: Serve, template: str, text: str = ANSWER) -> LiveServer:
    return serve(FakeLoader(runner=FakeRunner(answer=text), chat_template=template))


class TestMessage:
    def test_whole(self, saying: LiveServer) -> None:
        response = post(saying)
        message = response.json()
        assert message.pop("id").startswith("msg_")
        num_output = len(ANSWER.encode()) + 1
        assert message == {
            "type": "message",
            "role": "assistant",
            "model": MODEL,
            "content": [{"type": "text", "text": ANSWER}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": count(saying),
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": num_output,
                "output_tokens_details": {"thinking_tokens": 0},
                "service_tier": "standard",
            },
        }
        assert response.headers["request-id"] == response.headers["x-request-id"]

    def test_stream(self, saying: LiveServer) -> None:
        response = post(saying, stream=True)
        assert response.headers["request-id"]
        assert b"[DONE]" not in response.content
        streamed, whole = message_of(named_events(response, done=False)), answer(saying)
        assert streamed.pop("id") != whole.pop("id")
        assert streamed == whole

    def test_blocks(self, calling: LiveServer) -> None:
        whole = answer(calling, tools=TOOLS)
        events = stream(calling, tools=TOOLS)
        assert STREAM.fullmatch(letters(events))
        streamed = message_of(events)
        for message in (whole, streamed):
            message.pop("id")
            ids = [block.pop("id") for block in message["content"] if block["type"] == "tool_use"]
            assert len(set(ids)) == 2
        assert streamed == whole
        thinking, text, *uses = whole["content"]
        assert (thinking["type"], thinking["thinking"]) == ("thinking", "hm") and thinking["signature"]
        assert text == {"type": "text", "text": "Yes."}
        assert uses == [{"type": "tool_use", "name": "weather", "input": {"city": "Köln"}}] * 2
        assert whole["stop_reason"] == "tool_use"
        assert whole["usage"]["output_tokens_details"]["thinking_tokens"] == 2

    def test_the_stream_comes_as_it_is_made(self, serve: Serve) -> None:
        events = stream(serve(runner=SlowRunner(answer=ANSWER)))
        assert letters(events).count("t") > 5
        assert 1 <= events[0]["message"]["usage"]["output_tokens"] < events[-2]["usage"]["output_tokens"]

    def test_the_answer_can_be_sent_back(self, calling: LiveServer) -> None:
        content = answer(calling, tools=TOOLS)["content"]
        results = [{"type": "tool_result", "tool_use_id": block["id"], "content": "rain"} for block in content if "id" in block]
        messages = [USER, {"role": "assistant", "content": content}, {"role": "user", "content": results}]
        assert answer(calling, messages=messages, tools=TOOLS)["content"]

    def test_the_last_words_are_gone_on_with(self, saying: LiveServer) -> None:
        messages = [USER, {"role": "assistant", "content": "I"}]
        chat = saying.chat(messages, max_tokens=1, continue_final_message=True).json()
        message = answer(saying, messages=messages, max_tokens=1)
        assert message["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"] == count(saying, messages=messages)
        assert chat["usage"]["prompt_tokens"] < count(saying, messages=[*messages, USER])

    def test_headers_of_versions_change_nothing(self, saying: LiveServer) -> None:
        headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "some-beta-2026-01-01"}
        body = {"model": MODEL, "messages": [USER], "max_tokens": 200}
        assert text_of(saying.http.post("/v1/messages?beta=true", json=body, headers=headers).json()) == ANSWER

    def test_what_agents_send(self, serve: Serve) -> None:
        """Everything that changes nothing here beside what does, and far more room for the answer than there is."""
        loader = FakeLoader(runner=FakeRunner(answer=CALLS), response_template=RESPONSE_TEMPLATE, context_length=4096)
        server = serve(loader)
        mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
        schema = {"$schema": "http://json-schema.org/draft-07/schema#", **SCHEMA}
        message = message_of(
            stream(
                server,
                system=[{"type": "text", "text": "You are an agent."}, {"type": "text", "text": "Be brief.", **mark}],
                tools=[{**tool, "input_schema": schema, **mark} for tool in TOOLS],
                tool_choice={"type": "auto"},
                metadata={"user_id": '{"device_id": "x"}'},
                messages=[
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "<reminder>", **mark}, {"type": "text", "text": "hi"}],
                    },
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}, **mark}],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no clock", "is_error": True, **mark},
                            {"type": "text", "text": "go on", **mark},
                        ],
                    },
                ],
                thinking={"type": "enabled", "budget_tokens": 31_999},
                max_tokens=32_000,
                temperature=1,
                top_k=1,
                service_tier="auto",
                cache_control={"type": "ephemeral"},
            )
        )
        assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use", "tool_use"]
        assert message["stop_reason"] == "tool_use"

    def test_what_the_prefix_cache_had_is_told_apart(self, serve: Serve) -> None:
        loader = FakeLoader(runner=FakeRunner(answer=ANSWER), ledger=BlockLedger(100, 4))
        server = serve(loader)
        first, second = answer(server)["usage"], message_of(stream(server))["usage"]
        assert first["cache_read_input_tokens"] == 0 < second["cache_read_input_tokens"]
        for usage in (first, second):
            assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count(server)
            assert usage["cache_creation_input_tokens"] == 0

    def test_it_is_counted(self, saying: LiveServer) -> None:
        answer(saying)
        assert 'operation="message"' in saying.http.get("/metrics").text


class TestSampling:
    def test_parameters_reach_the_engine(self, serve: Serve) -> None:
        seen: list[Sequence] = []

        def look(seq: Sequence) -> None:
            seen.append(seq)

        server = serve(runner=FakeRunner(answer=ANSWER, raises=look))
        answer(server, temperature=0.25, top_p=0.5, top_k=7, max_tokens=3)
        params = seen[-1].params
        assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.25, 0.5, 7, 3)
        answer(server, temperature=0, max_tokens=3)
        assert seen[-1].params.temperature == 0


class TestStopReason:
    @pytest.mark.parametrize(
        ("stop", "text", "found"),
        [
            (["wör"], "Hello, ", "wör"),
            (["nothing", "ld"], "Hello, wör", "ld"),
            (["lo, wörld", "lo"], "Hel", "lo"),
            (["H"], "", "H"),
            (["nothing"], ANSWER, None),
            ([], ANSWER, None),
        ],
    )
    def test_stop_sequences(self, saying: LiveServer, stop: list[str], text: str, found: str | None) -> None:
        whole, streamed = answer(saying, stop_sequences=stop), message_of(stream(saying, stop_sequences=stop))
        for message in (whole, streamed):
            assert text_of(message) == text
            assert message["stop_sequence"] == found
            assert message["stop_reason"] == ("end_turn" if found is None else "stop_sequence")

    def test_max_tokens(self, counting: LiveServer) -> None:
        for message in (answer(counting, max_tokens=5), message_of(stream(counting, max_tokens=5))):
            assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("max_tokens", 5)
        eventually(counting.is_idle)

    def test_no_tokens_at_all(self, saying: LiveServer) -> None:
        """Anthropic's way to fill the prefix cache."""
        for message in (answer(saying, max_tokens=0), message_of(stream(saying, max_tokens=0))):
            assert (message["content"], message["stop_reason"], message["usage"]["output_tokens"]) == ([], "max_tokens", 0)

    def test_max_tokens_may_be_more_than_there_is(self, counting: LiveServer) -> None:
        """Agents ask for tens of thousands whatever the model is; where its context ends, so does the answer."""
        message = answer(counting, max_tokens=100_000)
        assert message["stop_reason"] == "model_context_window_exceeded"
        assert message["usage"]["input_tokens"] + message["usage"]["output_tokens"] == 512
        room = 512 - count(counting)
        assert answer(counting, max_tokens=room)["stop_reason"] == "max_tokens"

    def test_a_prompt_may_not(self, counting: LiveServer) -> None:
        spare = 512 - count(counting)
        longest = [{"role": "user", "content": "hello" + "x" * (spare - 1)}]
        assert answer(counting, messages=longest, max_tokens=9)["usage"]["output_tokens"] == 1
        too_long = [{"role": "user", "content": "hello" + "x" * spare}]
        error = assert_error(post(counting, messages=too_long), 400, param="messages", code="context_length_exceeded")
        assert error["message"] == "prompt is too long: 512 tokens > 511 maximum"

    def test_a_call_that_is_cut_off(self, serve: Serve) -> None:
        server = with_template(serve, TURN + "{{ tools }}" + PROMPT + "{# <tool_call> arguments #}", CALL)
        for missing, found in ((14, {"city": "Köln"}), (15, {})):
            body = {"tools": TOOLS, "max_tokens": len(CALL.encode()) - missing}
            for message in (answer(server, **body), message_of(stream(server, **body))):
                assert message["stop_reason"] == "max_tokens"
                (use,) = message["content"]
                assert (use["name"], use["input"]) == ("weather", found)


class TestCount:
    """The number is that of the prompt, whatever it is made of."""

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"system": "Be brief"},
            {"system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]},
            {"tools": TOOLS},
            {"tools": TOOLS, "tool_choice": {"type": "none"}},
            {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "weather"}},
            {"messages": [USER, {"role": "assistant", "content": "I"}]},
            {"messages": [USER, {"role": "assistant", "content": "I see."}, USER]},
            {"thinking": {"type": "adaptive"}, "cache_control": {"type": "ephemeral"}},
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "now", "input": {}}]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "12"}]},
                ],
                "tools": TOOLS,
            },
        ],
        ids=repr,
    )
    def test_equals_the_usage(self, calling: LiveServer, body: dict[str, Any]) -> None:
        usage = answer(calling, max_tokens=1, **body)["usage"]
        assert count(calling, **body) == usage["input_tokens"] + usage["cache_read_input_tokens"] > 5

    def test_is_that_of_the_same_chat(self, calling: LiveServer) -> None:
        """Both say the same to the model."""
        tools = [
            {"type": "function", "function": {"name": "weather", "description": "Look out", "parameters": SCHEMA}},
            {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
        ]
        chat = calling.chat([{"role": "system", "content": "Be brief"}, USER], tools=tools, max_tokens=1)
        assert count(calling, system="Be brief", tools=TOOLS) == chat.json()["usage"]["prompt_tokens"]

    def test_makes_nothing(self, calling: LiveServer) -> None:
        before = calling.loader.runner.num_steps
        count(calling)
        assert calling.loader.runner.num_steps == before and calling.is_idle()

    def test_what_belongs_to_messages_only(self, saying: LiveServer) -> None:
        body = {"model": MODEL, "messages": [USER], "max_tokens": 3}
        response = saying.http.post("/v1/messages/count_tokens", json=body)
        assert_error(response, 400, param="max_tokens", code="unknown_parameter")


def kind_of(response: httpx.Response) -> str:
    return str(response.json()["error"]["type"])


class TestErrors:
    """`assert_error` checks for Anthropic's shape below /v1/messages, and for the request's id in body and header."""

    def test_400(self, counting: LiveServer) -> None:
        response = post(counting, temperature=2)
        error = assert_error(response, 400, param="temperature")
        assert kind_of(response) == "invalid_request_error" and "temperature" in error["message"]
        assert_error(counting.http.post("/v1/messages", json={"model": MODEL, "messages": [USER]}), 400, param="max_tokens")

    def test_401(self, serve: Serve) -> None:
        server = serve(bearer_tokens=("x",))
        response = server.http.post("/v1/messages", headers={"Authorization": "Bearer y"})
        assert_error(response, 401, code="invalid_api_key")
        assert kind_of(response) == "authentication_error"

    def test_404(self, counting: LiveServer) -> None:
        for response in (post(counting, model="nope"), post(counting, "/v1/messages/count_tokens", model="nope")):
            assert_error(response, 404, param="model")
            assert kind_of(response) == "not_found_error"
        for path in ("/v1/messages/batches", "/v1/messages/"):
            assert kind_of(counting.http.get(path)) in ("not_found_error", "invalid_request_error")
        assert set(counting.http.post("/v1/messagesx").json()) == {"error"}, "no route of Anthropic's"

    def test_405(self, counting: LiveServer) -> None:
        response = counting.http.get("/v1/messages")
        assert_error(response, 405)
        assert kind_of(response) == "invalid_request_error"

    def test_413(self, serve: Serve) -> None:
        response = post(serve(max_body_bytes=1024), system="x" * 2000)
        assert_error(response, 413)
        assert kind_of(response) == "request_too_large"

    def test_415(self, counting: LiveServer) -> None:
        assert_error(counting.http.post("/v1/messages", content=b"{}"), 415)

    def test_429(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(answer=ANSWER, gate=threading.Event()), max_num_seqs=1, max_queue=1)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            pool.submit(server.complete, n=2, max_tokens=1)
            eventually(lambda: server.model.num_admitted == 2)
            response = post(server, stream=True)
            assert_error(response, 429)
            assert kind_of(response) == "rate_limit_error" and 1 <= int(response.headers["retry-after"]) <= 120
            assert server.loader.runner.gate is not None
            server.loader.runner.gate.set()

    @pytest.mark.parametrize("stream", [False, True])
    def test_500_of_the_engine(self, serve: Serve, stream: bool) -> None:
        server = serve(runner=failing())
        response = post(server, stream=stream)
        assert_error(response, 500)
        assert kind_of(response) == "api_error" and "secret" not in response.text
        eventually(server.is_idle)

    def test_500_of_the_server(self, serve: Serve) -> None:
        server = serve()

        def broken(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("secret inside")

        server.model.loaded.chat.render = broken
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            response = post(server, path)
            assert_error(response, 500)
            assert kind_of(response) == "api_error" and "secret" not in response.text
        eventually(server.is_idle)

    def test_503(self, serve: Serve) -> None:
        server = serve(FakeLoader(gate=threading.Event()), wait_ready=False)
        response = post(server)
        assert_error(response, 503)
        assert kind_of(response) == "overloaded_error" and 1 <= int(response.headers["retry-after"]) <= 120

    def test_in_the_middle_of_a_stream(self, serve: Serve) -> None:
        server = serve(runner=failing(after=3))
        response = post(server, stream=True)
        events = named_events(response, done=False)
        assert STREAM.fullmatch(letters(events)) and letters(events).endswith("X")
        assert text_of({"content": content_of(events[:-1])}), "what came before it is there"
        assert openai_error(events[-1])["type"] == "server_error" and "secret" not in response.text
        assert events[-1]["request_id"] == response.headers["request-id"]
        eventually(server.is_idle)

    def test_what_is_refused_is_left_out_where_that_is_wanted(self, serve: Serve) -> None:
        server = serve(compatibility="lenient")
        more = {
            "thinking": {"type": "adaptive"},
            "context_management": {"edits": []},
            "output_config": {"effort": "high"},
            "unknown": 1,
        }
        response = post(server, max_tokens=2, **more)
        assert response.status_code == 200, response.text
        ignored = {"thinking", "context_management", "output_config.effort", "unknown"}
        assert set(response.headers["x-tfoai-ignored"].split(", ")) == ignored
        image = {"role": "user", "content": [{"type": "image", "source": {}}]}
        assert_error(post(server, messages=[image]), 400, param="messages.[0].content.[0].type")
