"""Owns the tests of /v1/responses on the wire: answers, streams, what is stored, and what is refused."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.api.schemas.responses import REFUSED
from tests.api.conftest import ANSWER, Serve
from tests.support.fakes import FakeLoader, FakeRunner, ids_of
from tests.support.live import MODEL, LiveServer, SlowRunner, assert_error, eventually
from tests.support.response_events import check_events, check_response, named_events
from tests.support.tiny import RESPONSE_TEMPLATE

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "days": [1, 2]}}</tool_call>'
ARGUMENTS = '{"city": "Köln", "days": [1, 2]}'
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": False}
ServeTemplate = Callable[..., LiveServer]


def post(server: LiveServer, input: Any = "hello", **body: Any) -> httpx.Response:
    return server.http.post("/v1/responses", json={"model": MODEL, "input": input, **body})


def respond(server: LiveServer, input: Any = "hello", **body: Any) -> dict[str, Any]:
    response = post(server, input, **body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    check_response(result)
    return result


def stream(server: LiveServer, input: Any = "hello", **body: Any) -> dict[str, Any]:
    return check_events(named_events(post(server, input, stream=True, **body)))


def text_of(response: dict[str, Any]) -> str:
    return "".join(item["content"][0]["text"] for item in response["output"] if item["type"] == "message")


def num_tokens(*messages: str) -> int:
    """The number of tokens of a conversation in the test template, `<s>` being one."""
    text = "".join(f"{message}\n" for message in messages) + "assistant: "
    return len(ids_of(text)) + len(messages) + 1


def counted(server: LiveServer, input: Any, **body: Any) -> int:
    response = server.http.post("/v1/responses/input_tokens", json={"model": MODEL, "input": input, **body})
    assert response.status_code == 200, response.text
    assert response.json()["object"] == "response.input_tokens"
    return int(response.json()["input_tokens"])


@pytest.fixture
def serve_template(serve: Serve) -> ServeTemplate:
    """Serve a model with a response template that says `answer`."""

    def with_answer(answer: str, runner: type[FakeRunner] = FakeRunner) -> LiveServer:
        return serve(FakeLoader(runner=runner(answer=answer), response_template=RESPONSE_TEMPLATE))

    return with_answer


class TestAnswer:
    def test_has_every_field_of_the_specification(self, saying: LiveServer) -> None:
        before = int(time.time())
        response = respond(saying, metadata={"a": "b"}, user="me", temperature=0.5, top_p=0.9, safety_identifier="s")
        assert set(response) == {
            *("id", "object", "created_at", "completed_at", "status", "background", "error", "incomplete_details"),
            *("instructions", "max_output_tokens", "max_tool_calls", "model", "output", "parallel_tool_calls"),
            *("previous_response_id", "prompt_cache_key", "prompt_cache_retention", "reasoning", "safety_identifier"),
            *("service_tier", "store", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p"),
            *("presence_penalty", "frequency_penalty", "truncation", "usage", "user", "metadata"),
        }
        assert response["id"].startswith("resp_") and response["output"][0]["id"].startswith("msg_")
        assert before <= response["created_at"] <= response["completed_at"] <= time.time()
        assert (response["status"], response["error"], response["incomplete_details"]) == ("completed", None, None)
        assert (response["temperature"], response["top_p"]) == (0.5, 0.9)
        assert (response["metadata"], response["user"], response["safety_identifier"]) == ({"a": "b"}, "me", "s")
        assert text_of(response) == ANSWER
        num_prompt, num_answer = num_tokens("user: hello"), len(ids_of(ANSWER)) + 1
        assert response["usage"] == {
            "input_tokens": num_prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": num_answer,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_prompt + num_answer,
        }

    def test_sampling_that_was_not_asked_for_is_said_too(self, saying: LiveServer) -> None:
        response = respond(saying)
        assert (response["temperature"], response["top_p"], response["presence_penalty"]) == (0, 1, 0)
        assert (response["truncation"], response["tool_choice"], response["tools"]) == ("disabled", "auto", [])

    def test_max_output_tokens(self, counting: LiveServer) -> None:
        response = respond(counting, max_output_tokens=3)
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert (response["completed_at"], response["output"][0]["status"]) == (None, "incomplete")
        assert response["usage"]["output_tokens"] == 3
        assert stream(counting, max_output_tokens=3)["status"] == "incomplete"

    def test_logprobs(self, saying: LiveServer) -> None:
        response = respond(saying, include=["message.output_text.logprobs"], top_logprobs=2)
        tokens = response["output"][0]["content"][0]["logprobs"]
        assert b"".join(bytes(token["bytes"]) for token in tokens).startswith(ANSWER.encode())
        assert all(len(token["top_logprobs"]) == 2 for token in tokens)
        assert response["top_logprobs"] == 2
        assert stream(saying, top_logprobs=2)["output"][0]["content"][0]["logprobs"] == tokens
        assert respond(saying)["output"][0]["content"][0]["logprobs"] == []

    def test_extras_are_honoured(self, counting: LiveServer) -> None:
        assert respond(counting, stop_token_ids=[110], top_k=1)["status"] in ("completed", "incomplete")
        one, two = (respond(counting, temperature=1.5, seed=7, max_output_tokens=8) for _ in range(2))
        assert text_of(one) == text_of(two)


class TestStream:
    def test_says_what_the_whole_answer_says(self, saying: LiveServer) -> None:
        whole, streamed = respond(saying), stream(saying)
        for key in set(whole) - {"id", "output", "created_at", "completed_at", "usage"}:
            assert streamed[key] == whole[key], key
        assert text_of(streamed) == ANSWER
        assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"]

    def test_comes_as_it_is_made(self, serve: Serve) -> None:
        events = named_events(post(serve(runner=SlowRunner(answer=ANSWER)), stream=True))
        assert sum(event["type"] == "response.output_text.delta" for event in events) > 5
        check_events(events)

    def test_reasoning_and_calls(self, serve_template: ServeTemplate) -> None:
        for runner in (FakeRunner, SlowRunner):
            server = serve_template(f"<think>hm</think>Yes.{CALL}", runner)
            for response in (respond(server, tools=[TOOL]), stream(server, tools=[TOOL])):
                reasoning, message, call = response["output"]
                assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}]
                assert (reasoning["summary"], message["content"][0]["text"]) == ([], "Yes.")
                assert (call["name"], call["arguments"], call["status"]) == ("weather", ARGUMENTS, "completed")
                assert call["call_id"].startswith("call_") and call["id"].startswith("fc_")
                assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == len(ids_of("hm"))
                assert response["tools"] == [{**TOOL, "description": None}]

    def test_a_failure_before_the_first_token_has_its_status(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(raises=lambda seq: RuntimeError("secret inside")))
        assert_error(post(server, stream=True), 500, code="engine_error")
        assert_error(post(server), 500, code="engine_error")

    def test_a_failure_in_the_middle(self, serve: Serve) -> None:
        server = serve(runner=SlowRunner(raises=lambda seq: RuntimeError("secret") if seq.num_generation_tokens == 4 else None))
        response = post(server, stream=True)
        events = named_events(response)
        last = check_events(events)
        assert "secret" not in response.text
        assert (last["status"], last["error"]["code"]) == ("failed", "server_error")
        assert last["output"][0]["status"] == "incomplete"
        assert events[-1]["code"] == events[-1]["error"]["code"] == "engine_error"
        assert server.http.get(f"/v1/responses/{last['id']}").json() == last
        eventually(server.is_idle)


class TestInput:
    def test_instructions_come_first(self, saying: LiveServer) -> None:
        assert counted(saying, "hello", instructions="Be brief") == num_tokens("system: Be brief", "user: hello")

    def test_forms_of_a_message(self, saying: LiveServer) -> None:
        parts = [{"type": "input_text", "text": "hel"}, {"type": "input_text", "text": "lo"}]
        for message in (
            {"role": "user", "content": "hello"},
            {"type": "message", "role": "user", "content": parts},
            {"type": "message", "role": "user", "content": parts, "id": "msg_1", "status": "completed"},
        ):
            assert counted(saying, [message]) == num_tokens("user: hello")

    def test_answers_may_be_sent_back(self, serve_template: ServeTemplate) -> None:
        server = serve_template(f"<think>hm</think>Yes.{CALL}")
        first = respond(server, tools=[TOOL])
        call = first["output"][2]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
        user = {"role": "user", "content": "hello"}
        sent_back = counted(server, [user, *first["output"], result], tools=[TOOL])
        assert sent_back == counted(server, [result], previous_response_id=first["id"], tools=[TOOL])
        referenced = [user, *({"type": "item_reference", "id": item["id"]} for item in first["output"]), result]
        assert sent_back == counted(server, referenced, tools=[TOOL])

    def test_what_the_model_wrote_at_once_is_one_message(self, serve_template: ServeTemplate) -> None:
        server = serve_template("ok")
        assistant = {"role": "assistant", "content": "a"}
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        output = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]}
        apart = counted(server, [assistant, {"role": "user", "content": ""}, {"role": "assistant", "content": "b"}])
        assert counted(server, [assistant, {"role": "assistant", "content": "b"}]) < apart
        assert counted(server, [assistant, call, output]) < counted(
            server, [assistant, {**assistant, "content": ""}, call, output]
        )

    def test_previous_response(self, saying: LiveServer) -> None:
        first = respond(saying, instructions="Be brief")
        second = respond(saying, "more", previous_response_id=first["id"])
        assert second["previous_response_id"] == first["id"]
        # Instructions are not carried over.
        expected = num_tokens("user: hello", f"assistant: {ANSWER}", "user: more")
        assert second["usage"]["input_tokens"] == expected
        third = respond(saying, None, previous_response_id=second["id"])
        assert third["usage"]["input_tokens"] == expected + num_tokens(f"assistant: {ANSWER}") - num_tokens()

    def test_truncation(self, serve: Serve) -> None:
        server = serve(FakeLoader(context_length=100, runner=FakeRunner(answer="ok")))
        old = [{"role": "user", "content": "x" * 30}, {"role": "assistant", "content": "y" * 30}]
        new = {"role": "user", "content": "hello"}
        error = assert_error(post(server, [*old, new]), 400, code="context_length_exceeded", param="input")
        assert "100 tokens" in error["message"]
        response = respond(server, [*old, new], truncation="auto", instructions="Be brief")
        assert response["truncation"] == "auto"
        assert response["usage"]["input_tokens"] == num_tokens("system: Be brief", "user: hello")
        assert respond(server, [*old, new], truncation="auto")["usage"]["input_tokens"] == num_tokens("user: hello")
        assert counted(server, [*old, new], truncation="auto") == num_tokens("user: hello")
        too_long = {"role": "user", "content": "x" * 200}
        assert_error(post(server, [*old, too_long], truncation="auto"), 400, code="context_length_exceeded")
        # What is left must leave room for the answer that was asked for.
        assert respond(server, [old[0], new], truncation="auto", max_output_tokens=10)["usage"]["input_tokens"] > 60
        smaller = respond(server, [old[0], new], truncation="auto", max_output_tokens=50)
        assert smaller["usage"]["input_tokens"] == num_tokens("user: hello")


class TestStored:
    def test_is_there_until_it_is_deleted(self, saying: LiveServer) -> None:
        for response in (respond(saying), stream(saying)):
            path = f"/v1/responses/{response['id']}"
            assert saying.http.get(path).json() == response
            assert saying.http.delete(path).json() == {"id": response["id"], "object": "response", "deleted": True}
            for answer in (saying.http.get(path), saying.http.delete(path), saying.http.get(f"{path}/input_items")):
                assert_error(answer, 404, code="not_found")
            assert_error(saying.http.post(f"{path}/cancel"), 404)
            assert_error(post(saying, previous_response_id=response["id"]), 400, code="previous_response_not_found")

    def test_not_if_it_should_not(self, saying: LiveServer) -> None:
        response = respond(saying, store=False)
        assert response["store"] is False
        assert_error(saying.http.get(f"/v1/responses/{response['id']}"), 404)

    def test_a_server_without_a_store(self, serve: Serve) -> None:
        server = serve(response_store_max=0)
        assert respond(server, max_output_tokens=2)["store"] is False
        assert_error(post(server, store=True), 400, param="store", code="unsupported_parameter")

    def test_one_too_large_for_the_store_says_so(self, serve: Serve) -> None:
        server = serve(FakeLoader(context_length=8000), response_store_bytes=5000)
        assert respond(server, max_output_tokens=2)["store"] is True
        assert respond(server, "x" * 5000, max_output_tokens=2)["store"] is False

    def test_the_store_is_bounded(self, serve: Serve) -> None:
        server = serve(response_store_max=2)
        first, second, third = (respond(server, max_output_tokens=1)["id"] for _ in range(3))
        assert [server.http.get(f"/v1/responses/{id}").status_code for id in (first, second, third)] == [404, 200, 200]

    def test_other_tokens_see_nothing(self, serve: Serve) -> None:
        server = serve(bearer_tokens=("one", "two"))
        response = respond(server, max_output_tokens=1)
        two = {"Authorization": "Bearer two"}
        path = f"/v1/responses/{response['id']}"
        assert_error(server.http.get(path, headers=two), 404)
        assert_error(server.http.delete(path, headers=two), 404)
        assert_error(server.http.get(f"{path}/input_items", headers=two), 404)
        body = {"model": MODEL, "input": [{"type": "item_reference", "id": response["output"][0]["id"]}]}
        assert_error(server.http.post("/v1/responses", json=body, headers=two), 400, param="input.[0].id")
        body = {"model": MODEL, "input": "x", "previous_response_id": response["id"]}
        assert_error(server.http.post("/v1/responses", json=body, headers=two), 400, code="previous_response_not_found")
        assert server.http.get(path).status_code == 200

    def test_cancelling_is_for_the_background(self, saying: LiveServer) -> None:
        error = assert_error(saying.http.post(f"/v1/responses/{respond(saying)['id']}/cancel"), 400)
        assert "background" in error["message"]

    def test_input_items(self, saying: LiveServer) -> None:
        given = [{"role": "user", "content": str(number), "id": f"msg_{number}"} for number in range(5)]
        path = f"/v1/responses/{respond(saying, given)['id']}/input_items"

        def listed(**query: Any) -> tuple[list[str], bool]:
            body = saying.http.get(path, params=query).json()
            ids = [item["id"] for item in body["data"]]
            assert (body["object"], body["first_id"], body["last_id"]) == ("list", ids[0], ids[-1]) if ids else True
            return ids, body["has_more"]

        ids = [item["id"] for item in given]
        assert listed() == (ids[::-1], False)
        assert listed(order="asc", limit=2) == (ids[:2], True)
        assert listed(order="asc", limit=2, after="msg_1") == (ids[2:4], True)
        assert listed(limit=2, after="msg_2") == (["msg_1", "msg_0"], False)
        assert listed(after="msg_0") == ([], False)
        for query, param in (({"limit": 0}, "limit"), ({"limit": "x"}, "limit"), ({"limit": 101}, "limit"),
                             ({"order": "up"}, "order"), ({"after": "msg_9"}, "after"), ({"include": "x"}, "include"),
                             ({"what": "x"}, "what")):  # fmt: skip
            assert_error(saying.http.get(path, params=query), 400, param=param)

    def test_reading_it_in_events_is_refused(self, saying: LiveServer) -> None:
        path = f"/v1/responses/{respond(saying)['id']}"
        assert saying.http.get(path, params={"stream": "false"}).status_code == 200
        for query in ({"stream": "true"}, {"starting_after": 3}, {"include[]": "message.output_text.logprobs"}, {"x": 1}):
            (name,) = query
            assert_error(saying.http.get(path, params=query), 400, param=name.removesuffix("[]"))


IMAGE = {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}
CALLED = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
HOSTED = ["web_search", "file_search", "code_interpreter", "computer_use_preview", "mcp", "image_generation", "custom"]


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_by_name(self, saying: LiveServer, name: str) -> None:
        assert_error(post(saying, **{name: {"id": "x"}}), 400, param=name, code="unsupported_parameter")
        assert post(saying, **{name: None}).status_code == 200

    @pytest.mark.parametrize("kind", HOSTED)
    def test_tools_of_the_server(self, saying: LiveServer, kind: str) -> None:
        error = assert_error(post(saying, tools=[{"type": kind}]), 400, param="tools.[0].type", code="unsupported_parameter")
        assert kind in error["message"]
        assert_error(post(saying, tools=[TOOL], tool_choice={"type": kind}), 400, param="tool_choice.type")

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"background": True}, "background"),
            ({"text": {"format": {"type": "poem"}}}, "text.format.type"),
            ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "poem"}}}}, "text.format"),
            ({"text": {"verbosity": "high"}}, "text.verbosity"),
            ({"text": {"other": 1}}, "text.other"),
            ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
            ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
            ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
            ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
            ({"reasoning": {"other": 1}}, "reasoning.other"),
            ({"include": ["reasoning.encrypted_content"]}, "include"),
            ({"include": ["what"]}, "include.[0]"),
            ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
            ({"stream_options": {}}, "stream_options"),
            ({"max_output_tokens": 0}, "max_output_tokens"),
            ({"max_tool_calls": 0}, "max_tool_calls"),
            ({"top_logprobs": 21}, "top_logprobs"),
            ({"temperature": 3}, "temperature"),
            ({"truncation": "some"}, "truncation"),
            ({"service_tier": "ultrafast"}, "service_tier"),
            ({"service_tier": "priority", "priority": 1}, "service_tier"),
            ({"metadata": {"a": 1}}, "metadata.[...]"),
            ({"unheard_of": 1}, "unheard_of"),
            ({"max_tokens": 3}, "max_tokens"),
            ({"messages": []}, "messages"),
            ({"tools": [{**TOOL, "defer_loading": True}]}, "tools.[0].defer_loading"),
            ({"tools": [{**TOOL, "other": 1}]}, "tools.[0].other"),
            ({"tools": [{**TOOL, "name": "a b"}]}, "tools.[0].name"),
            ({"tools": [TOOL, TOOL]}, "tools"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"tools": [TOOL], "tool_choice": "required"}, "tools"),
            ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
            ({"tools": [TOOL]}, "tools"),
            ({"input": [IMAGE]}, "input.[0].content.[0].type"),
            ({"input": [{"type": "computer_call"}]}, "input.[0].type"),
            ({"input": [{"role": "tool", "content": "x"}]}, "input.[0].role"),
            ({"input": [{"role": "user", "content": "x", "other": 1}]}, "input.[0].other"),
            ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.[0].content.[0].text"),
            ({"input": [{"role": "user"}]}, "input.[0].content"),
            ({"input": [{**CALLED, "arguments": "{"}]}, "input.[0].arguments"),
            ({"input": [{**CALLED, "arguments": "[]"}]}, "input.[0].arguments"),
            ({"input": [{**CALLED, "namespace": "n"}]}, "input.[0].namespace"),
            ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
            ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input.[0].encrypted_content"),
            ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input.[0].id"),
            ({"input": 5}, "input"),
            ({"input": None}, "input"),
            ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_by_value(self, saying: LiveServer, body: dict[str, Any], param: str) -> None:
        assert_error(post(saying, **body), 400, param=param)
        assert saying.is_idle()

    def test_what_can_not_matter_is_accepted(self, saying: LiveServer) -> None:
        response = respond(
            saying,
            background=False,
            include=["web_search_call.action.sources"],
            max_tool_calls=3,
            parallel_tool_calls=True,
            prompt_cache_key="k",
            prompt_cache_retention="24h",
            reasoning={"effort": None, "summary": "auto", "context": "auto"},
            service_tier="auto",
            stream=False,
            text={"format": {"type": "text"}, "verbosity": "medium"},
            tool_choice="auto",
        )
        assert (response["max_tool_calls"], response["prompt_cache_key"], response["service_tier"]) == (3, "k", "default")
        assert response["reasoning"] == {"effort": None, "summary": "auto"}

    def test_count_takes_what_makes_the_prompt_and_nothing_else(self, saying: LiveServer) -> None:
        def count(**body: Any) -> httpx.Response:
            return saying.http.post("/v1/responses/input_tokens", json={"model": MODEL, **body})

        assert_error(count(), 400, param="input")
        assert_error(count(input="x", temperature=1), 400, param="temperature", code="unknown_parameter")
        assert_error(count(input="x", personality="friendly"), 400, param="personality")
        assert_error(count(input="x", model="other"), 404, code="model_not_found")


class TestTools:
    def test_one_call_at_a_time(self, serve_template: ServeTemplate) -> None:
        server = serve_template(CALL + CALL)
        calls = [item["type"] for item in respond(server, tools=[TOOL])["output"]]
        assert calls == ["function_call"] * 2
        response = respond(server, tools=[TOOL], parallel_tool_calls=False)
        assert [item["type"] for item in response["output"]].count("function_call") == 1
        assert response["parallel_tool_calls"] is False

    def test_none(self, serve_template: ServeTemplate) -> None:
        server = serve_template(CALL)
        response = respond(server, tools=[TOOL], tool_choice="none")
        assert [item["type"] for item in response["output"]] == ["message"]
        assert (response["tool_choice"], len(response["tools"])) == ("none", 1)

    def test_allowed(self, serve_template: ServeTemplate) -> None:
        server = serve_template(CALL)
        choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}
        other = {**TOOL, "name": "other"}
        response = respond(server, tools=[TOOL, other], tool_choice=choice)
        assert (response["output"][0]["type"], response["tool_choice"]) == ("function_call", choice)
        choice = {**choice, "tools": [{"type": "function", "name": "other"}]}
        output = respond(server, tools=[TOOL, other], tool_choice=choice)["output"]
        assert {item["name"] for item in output if item["type"] == "function_call"} <= {"other"}

    @pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
    def test_forced(self, serve_template: ServeTemplate, choice: Any) -> None:
        server = serve_template("I would rather not.")
        parameters = {
            "type": "object",
            "properties": {"city": {"enum": ["Köln"]}},
            "required": ["city"],
            "additionalProperties": False,
        }
        tool = {**TOOL, "parameters": parameters, "strict": True}
        output = respond(server, tools=[tool], tool_choice=choice)["output"]
        calls = [item for item in output if item["type"] == "function_call"]
        assert calls and all((call["name"], json.loads(call["arguments"])) == ("weather", {"city": "Köln"}) for call in calls)


@pytest.mark.parametrize("stream", [False, True])
def test_the_text_is_held_to_its_format(saying: LiveServer, stream: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "name": "letters", "schema": schema}
    response = post(saying, text={"format": wanted}, stream=stream)
    assert response.status_code == 200, response.text
    body = response.json() if not stream else json.loads(response.text.rsplit("data: {", 1)[1].split("\n")[0].join(["{", ""]))
    body = body.get("response", body)
    assert json.loads(body["output"][0]["content"][0]["text"]) == {"a": "x"}
    assert wanted.items() <= body["text"]["format"].items()


class TestLeaving:
    def test_a_client_that_leaves_frees_its_place(self, serve: Serve) -> None:
        server = serve(FakeLoader(context_length=800_000))
        body = {"model": MODEL, "input": "a", "max_output_tokens": 700_000}
        with server.http.stream("POST", "/v1/responses", json={**body, "stream": True}) as response:
            assert any("delta" in line for line in response.iter_lines())
        eventually(server.is_idle)
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/v1/responses", json=body, timeout=0.3)
        eventually(server.is_idle)
