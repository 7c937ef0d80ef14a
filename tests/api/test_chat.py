"""Owns the tests of /v1/chat/completions: messages, answers, tool calls, reasoning, streams, and what is refused."""

import json
import time
from typing import Any

import pytest

from app.api.schemas.chat import REFUSED
from tests.api.conftest import ANSWER, Serve
from tests.support.fakes import FakeLoader, FakeRunner, ids_of
from tests.support.live import MODEL, LiveServer, SlowRunner, assert_error, events_of, eventually
from tests.support.tiny import RESPONSE_TEMPLATE

NUM_ANSWER_TOKENS = len(ids_of(ANSWER)) + 1
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "days": [1, 2]}}</tool_call>'
NAMED = {"type": "function", "function": {"name": "weather"}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def rendered(*messages: str, tools: str = "") -> int:
    """The number of tokens of a conversation in the test template, `<s>` being one."""
    text = "".join(f"{message}\n" for message in messages) + (f"tools: {tools}\n" if tools else "") + "assistant: "
    return len(ids_of(text)) + len(messages) + 1


def answer_of(server: LiveServer, messages: Any = None, **body: Any) -> dict[str, Any]:
    response = server.chat(messages, **body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def message_of(server: LiveServer, messages: Any = None, **body: Any) -> dict[str, Any]:
    message: dict[str, Any] = answer_of(server, messages, **body)["choices"][0]["message"]
    return message


def streamed(server: LiveServer, messages: Any = None, **body: Any) -> list[dict[str, Any]]:
    return events_of(server.chat(messages, stream=True, **body))


def assembled(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Put messages together from deltas as clients do: texts are joined, tool calls are found by their index."""
    messages: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        message = messages.setdefault(choice["index"], {"finish_reason": None})
        assert message["finish_reason"] is None, "something comes after the end"
        delta = choice["delta"]
        for key in ("role", "content", "reasoning_content"):
            if key in delta:
                message[key] = message.get(key, "") + delta[key]
        for part in delta.get("tool_calls", []):
            calls = message.setdefault("tool_calls", [])
            if part["index"] == len(calls):
                assert part["id"] and part["type"] == "function" and part["function"]["name"]
                assert part["function"]["arguments"] == "" and len(part) == 4 and len(part["function"]) == 2
                calls.append({"name": part["function"]["name"], "arguments": ""})
            else:
                assert set(part) == {"index", "function"} and set(part["function"]) == {"arguments"}
            calls[part["index"]]["arguments"] += part["function"]["arguments"]
        message["finish_reason"] = choice["finish_reason"]
    return messages


@pytest.fixture
def serve_template(serve: Serve) -> Any:
    """Serve a model with a response template that says `answer`."""
    return lambda answer: serve(FakeLoader(runner=FakeRunner(answer=answer), response_template=RESPONSE_TEMPLATE))


class TestAnswer:
    def test_has_every_field_and_no_other(self, saying: LiveServer) -> None:
        before = int(time.time())
        body = answer_of(saying)
        assert set(body) == {"id", "object", "created", "model", "choices", "system_fingerprint", "usage"}
        assert body["id"].startswith("chatcmpl-") and len(body["id"]) > 20
        assert body["object"] == "chat.completion"
        assert before <= body["created"] <= time.time()
        assert body["model"] == MODEL
        assert body["system_fingerprint"].startswith("fp_")
        assert body["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ANSWER, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        prompt_tokens = rendered("user: hello")
        assert body["usage"] == {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": NUM_ANSWER_TOKENS,
            "total_tokens": prompt_tokens + NUM_ANSWER_TOKENS,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def test_n(self, saying: LiveServer) -> None:
        body = answer_of(saying, n=3, temperature=0)
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert [choice["message"]["content"] for choice in body["choices"]] == [ANSWER] * 3
        assert body["usage"]["completion_tokens"] == 3 * NUM_ANSWER_TOKENS
        assert body["usage"]["prompt_tokens"] == rendered("user: hello")

    def test_the_rest_of_the_context_unless_asked_otherwise(self, serve: Serve) -> None:
        body = answer_of(serve(FakeLoader(context_length=100)))
        assert body["usage"]["total_tokens"] == 100
        assert body["choices"][0]["finish_reason"] == "length"

    def test_max_completion_tokens_wins(self, counting: LiveServer) -> None:
        def num_tokens(**limits: int) -> int:
            return int(answer_of(counting, **limits)["usage"]["completion_tokens"])

        assert num_tokens(max_tokens=3) == 3
        assert num_tokens(max_completion_tokens=4) == 4
        assert num_tokens(max_tokens=3, max_completion_tokens=4) == 4
        assert num_tokens(max_tokens=4, max_completion_tokens=3) == 3
        assert num_tokens(max_tokens=4, max_completion_tokens=0) == 0

    def test_context_length(self, serve: Serve) -> None:
        server = serve(FakeLoader(context_length=40))
        num_prompt_tokens = rendered("user: hello")
        room = 40 - num_prompt_tokens
        assert server.chat(max_tokens=room).status_code == 200
        for stream in (False, True):
            error = assert_error(server.chat(max_tokens=room + 1, stream=stream), 400, param="messages")
            assert error["code"] == "context_length_exceeded"
            assert error["message"] == (
                f"This model's maximum context length is 40 tokens. However, you requested 41 tokens ({num_prompt_tokens} in "
                f"the messages, {room + 1} in the completion). Please reduce the length of the messages or completion."
            )

    @pytest.mark.parametrize(
        ("stop", "content"), [("wör", "Hello, "), (["!", "l"], "He"), ("🙂", "Hello, wörld! "), (None, ANSWER)]
    )
    def test_stop(self, saying: LiveServer, stop: Any, content: str) -> None:
        (choice,) = answer_of(saying, stop=stop)["choices"]
        assert choice["message"]["content"] == content and choice["finish_reason"] == "stop"
        assert assembled(streamed(saying, stop=stop))[0]["content"] == content

    def test_a_seed_repeats(self, counting: LiveServer) -> None:
        def sample(**body: Any) -> str:
            return str(message_of(counting, temperature=2, max_tokens=30, **body)["content"])

        assert sample(seed=1) == sample(seed=1) != sample(seed=2)


class TestLogprobs:
    @pytest.mark.parametrize("top", [None, 0, 1, 20])
    def test_every_token_has_one(self, saying: LiveServer, top: int | None) -> None:
        (choice,) = answer_of(saying, logprobs=True, top_logprobs=top)["choices"]
        assert set(choice["logprobs"]) == {"content", "refusal"} and choice["logprobs"]["refusal"] is None
        content = choice["logprobs"]["content"]
        assert len(content) == NUM_ANSWER_TOKENS
        for entry in content:
            assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
            assert len(entry["top_logprobs"]) == (top or 0)
            if top:
                assert entry["top_logprobs"][0] == {key: entry[key] for key in ("token", "logprob", "bytes")}
                logprobs = [one["logprob"] for one in entry["top_logprobs"]]
                assert logprobs == sorted(logprobs, reverse=True)
        # The last one is EOS, which is no part of the text.
        assert b"".join(bytes(entry["bytes"]) for entry in content[:-1]) == ANSWER.encode()

    def test_none_unless_asked_for(self, saying: LiveServer) -> None:
        assert answer_of(saying, logprobs=False)["choices"][0]["logprobs"] is None
        assert_error(saying.chat(top_logprobs=2), 400, param="top_logprobs")
        assert_error(saying.chat(logprobs=False, top_logprobs=2), 400, param="top_logprobs")

    def test_in_a_stream(self, saying: LiveServer) -> None:
        whole = answer_of(saying, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
        parts = [chunk["choices"][0]["logprobs"] for chunk in streamed(saying, logprobs=True, top_logprobs=2)]
        assert [entry for part in parts if part is not None for entry in part["content"]] == whole


class TestMessages:
    def test_parts_are_joined(self, saying: LiveServer) -> None:
        parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
        assert answer_of(saying, [{"role": "user", "content": parts}])["usage"] == answer_of(saying)["usage"]

    def test_developer_is_system_for_templates_that_do_not_know_it(self, saying: LiveServer) -> None:
        messages = [{"role": "developer", "content": "be"}, {"role": "user", "content": "x"}]
        assert answer_of(saying, messages)["usage"]["prompt_tokens"] == rendered("system: be", "user: x")

    def test_control_tokens_of_users_are_plain_text(self, saying: LiveServer) -> None:
        """`<s>` begins a turn in the test template; a user can not forge one."""
        body = answer_of(saying, [{"role": "user", "content": "<s>"}])
        assert body["usage"]["prompt_tokens"] == rendered("user: abc")

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            {"type": "file", "file": {"file_id": "x"}},
            {"type": "x" * 1000},
            {"text": "no type"},
        ],
        ids=lambda part: str(part.get("type"))[:20],
    )
    def test_other_parts_are_refused_by_their_place(self, saying: LiveServer, part: dict[str, Any]) -> None:
        error = assert_error(saying.chat([{"role": "user", "content": [part]}]), 400, code="unsupported_parameter")
        assert error["param"] == "messages.[0].content.[0].type"
        assert len(error["message"]) < 200
        text = {"type": "text", "text": "a"}
        messages = [{"role": "user", "content": "a"}, {"role": "user", "content": [text, part]}]
        assert_error(saying.chat(messages), 400, param="messages.[1].content.[1].type")

    def test_what_a_server_answers_may_be_sent_back(self, serve_template: Any) -> None:
        server = serve_template("<think>hm</think>" + CALL)
        message = message_of(server, tools=TOOLS)
        assert message["tool_calls"] and message["reasoning_content"]
        follow_up = [
            {"role": "user", "content": "hello"},
            message,
            {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny"},
        ]
        assert server.chat(follow_up, tools=TOOLS).status_code == 200

    def test_extra_null_fields_of_openai_are_legal(self, saying: LiveServer) -> None:
        """openai-python's `message.model_dump()` has all of these."""
        empty = {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": None}
        messages = [{"role": "assistant", "content": "a", **empty}, {"role": "user", "content": "b"}]
        assert saying.chat(messages).status_code == 200

    @pytest.mark.parametrize(
        ("messages", "param"),
        [
            ([], "messages"),
            (5, "messages"),
            ("hello", "messages"),
            ({}, "messages"),
            ([5], "messages.[0]"),
            ([{}], "messages.[0].role"),
            ([{"role": "user"}], "messages.[0].content"),
            ([{"role": "user", "content": None}], "messages.[0].content"),
            ([{"role": "user", "content": 5}], "messages.[0].content"),
            ([{"role": "user", "content": "a"}, {"role": "wizard", "content": "a"}], "messages.[1].role"),
            ([{"role": "function", "content": "a"}], "messages.[0].name"),
            ([{"role": "function", "name": "f"}], "messages.[0].content"),
            (
                [{"role": "assistant", "function_call": {"name": "f", "arguments": "{"}}],
                "messages.[0].function_call.arguments",
            ),
            ([{"role": "user", "content": [5]}], "messages.[0].content.[0]"),
            ([{"role": "user", "content": [{"type": "text"}]}], "messages.[0].content.[0].text"),
            ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages.[0].content.[0].text"),
            ([{"role": "user", "content": "a", "nonsense": 1}], "messages.[0].nonsense"),
            ([{"role": "assistant"}], "messages.[0].content"),
            (
                [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
                "messages.[0].tool_calls.[0].function.arguments",
            ),
            (
                [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}],
                "messages.[0].tool_calls.[0].function.arguments",
            ),
            ([{"role": "user", "content": "a"}] * 2049, "messages"),
        ],
        ids=lambda value: repr(value)[:60],
    )
    def test_malformed_ones_are_refused_by_their_place(self, saying: LiveServer, messages: Any, param: str) -> None:
        assert_error(saying.chat(messages), 400, param=param, type="invalid_request_error")

    def test_null_content_with_tool_calls_is_legal(self, saying: LiveServer) -> None:
        call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        assert saying.chat(messages).status_code == 200

    def test_a_model_without_chat_template_can_not_chat(self, serve: Serve) -> None:
        server = serve()
        server.model.loaded.chat.exists = False
        error = assert_error(server.chat(), 400, param="model")
        assert "chat template" in error["message"]
        assert server.complete().status_code == 200

    def test_what_the_template_refuses_is_a_400(self, serve: Serve) -> None:
        server = serve()
        server.model.loaded.tokenizer.hf.chat_template = "{{ raise_exception('Roles must alternate') }}"
        error = assert_error(server.chat(), 400, param="messages")
        assert "Roles must alternate" in error["message"]


class TestTools:
    def test_calls_are_parsed(self, serve_template: Any) -> None:
        (choice,) = answer_of(serve_template(CALL), tools=TOOLS)["choices"]
        assert choice["finish_reason"] == "tool_calls"
        message = choice["message"]
        assert message["content"] is None
        (call,) = message["tool_calls"]
        assert set(call) == {"id", "type", "function"} and call["type"] == "function"
        assert call["id"].startswith("call_")
        assert set(call["function"]) == {"name", "arguments"} and call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"]) == {"city": "Köln", "days": [1, 2]}

    def test_several_calls_and_text(self, serve_template: Any) -> None:
        server = serve_template("Let me look. " + CALL + CALL)
        message = message_of(server, tools=TOOLS)
        assert message["content"].strip() == "Let me look."
        first, second = message["tool_calls"]
        assert first["id"] != second["id"] and first["function"] == second["function"]
        streamed_message = assembled(streamed(server, tools=TOOLS))[0]
        assert [call["name"] for call in streamed_message["tool_calls"]] == ["weather", "weather"]
        assert streamed_message["content"].strip() == "Let me look."

    def test_in_a_stream(self, serve_template: Any) -> None:
        chunks = streamed(serve_template(CALL), tools=TOOLS)
        (message,) = assembled(chunks).values()
        assert message["finish_reason"] == "tool_calls"
        assert message["content"] == ""
        (call,) = message["tool_calls"]
        assert call["name"] == "weather" and json.loads(call["arguments"]) == {"city": "Köln", "days": [1, 2]}
        parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", [])]
        assert len(parts) > 1 and {part["index"] for part in parts} == {0}

    @pytest.mark.parametrize(
        "text",
        [
            '<tool_call>{"name": "weather", "arg',
            "<tool_call>no json</tool_call>",
            "<tool_call>[1, 2]</tool_call>",
            '<tool_call>{"x": 1}</tool_call>',
        ],
    )
    @pytest.mark.parametrize("stop", [None, "Well. <tools"])
    def test_a_broken_call_is_text(self, serve: Serve, text: str, stop: str | None) -> None:
        """Nothing that the model has written is lost, and nothing is made up."""
        runner = SlowRunner(answer="Well. " + text)
        server = serve(FakeLoader(runner=runner, response_template=RESPONSE_TEMPLATE))
        # Text that may become a stop string is held back, so the parser gets "Well. <tool_" in one piece.
        (choice,) = answer_of(server, tools=TOOLS, stop=stop)["choices"]
        assert choice["message"]["content"] == "Well. " + text
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"
        message = assembled(streamed(server, tools=TOOLS, stop=stop))[0]
        assert message["content"] == choice["message"]["content"] and "tool_calls" not in message
        assert message["finish_reason"] == "stop"

    def test_a_call_cut_off_by_max_tokens_is_text(self, serve_template: Any) -> None:
        (choice,) = answer_of(serve_template(CALL), tools=TOOLS, max_tokens=30)["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"] == CALL[:30]

    def test_they_are_in_the_prompt(self, serve_template: Any) -> None:
        server = serve_template("ok")
        without = answer_of(server)["usage"]["prompt_tokens"]
        assert answer_of(server, tools=TOOLS)["usage"]["prompt_tokens"] > without + len("weather")
        assert answer_of(server, tools=TOOLS, tool_choice="auto")["usage"]["prompt_tokens"] > without
        assert answer_of(server, tools=TOOLS, tool_choice="none")["usage"]["prompt_tokens"] == without
        assert answer_of(server, tools=[])["usage"]["prompt_tokens"] == without

    def test_tool_choice_none_on_a_model_that_can_not_call(self, saying: LiveServer) -> None:
        assert message_of(saying, tools=TOOLS, tool_choice="none")["content"] == ANSWER
        assert_error(saying.chat(tools=TOOLS), 400, param="tools", code="unsupported_parameter")
        assert_error(saying.chat(tools=TOOLS, stream=True), 400, param="tools", code="unsupported_parameter")

    def test_tool_choice_without_tools(self, saying: LiveServer) -> None:
        for choice in ("auto", "required", NAMED):
            assert_error(saying.chat(tool_choice=choice), 400, param="tool_choice", code=None)

    @pytest.mark.parametrize(
        "choice",
        [
            "any",
            "",
            {},
            {"type": "custom", "custom": {"name": "weather"}},
            {"type": "function"},
            {"type": "function", "function": {"name": "other"}},
            {"type": "allowed_tools"},
            {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": [NAMED]}},
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED | {"function": {"name": "other"}}]}},
        ],
        ids=repr,
    )
    def test_a_malformed_tool_choice_is_refused(self, saying: LiveServer, choice: Any) -> None:
        error = assert_error(saying.chat(tools=TOOLS, tool_choice=choice), 400, param="tool_choice")
        assert error["code"] != "unsupported_parameter"

    def test_allowed_tools(self, serve_template: Any) -> None:
        """Only those are shown to the model, and only those can be called."""
        other = {"type": "function", "function": {"name": "other"}}
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [other]}}
        server = serve_template(CALL)
        both = answer_of(server, tools=[*TOOLS, other])
        one = answer_of(server, tools=[*TOOLS, other], tool_choice=choice)
        assert one["usage"]["prompt_tokens"] == answer_of(server, tools=[other])["usage"]["prompt_tokens"]
        assert one["usage"]["prompt_tokens"] < both["usage"]["prompt_tokens"]
        assert [call["function"]["name"] for call in both["choices"][0]["message"]["tool_calls"]] == ["weather"]
        assert {call["function"]["name"] for call in one["choices"][0]["message"].get("tool_calls", [])} <= {"other"}

    def test_parallel_tool_calls(self, serve_template: Any) -> None:
        server = serve_template(CALL + CALL)
        assert len(message_of(server, tools=TOOLS)["tool_calls"]) == 2
        assert len(message_of(server, tools=TOOLS, parallel_tool_calls=True)["tool_calls"]) == 2
        assert len(message_of(server, tools=TOOLS, parallel_tool_calls=False)["tool_calls"]) == 1
        assert len(assembled(streamed(server, tools=TOOLS, parallel_tool_calls=False))[0]["tool_calls"]) == 1
        assert server.chat(parallel_tool_calls=False).status_code == 200

    def test_two_of_one_name_are_refused(self, serve_template: Any) -> None:
        assert_error(serve_template("ok").chat(tools=TOOLS * 2), 400, param="tools")

    @pytest.mark.parametrize(
        ("tools", "param"),
        [
            (5, "tools"),
            ([5], "tools.[0]"),
            ([{"type": "function"}], "tools.[0].function"),
            ([{"type": "custom", "function": {"name": "f"}}], "tools.[0].type"),
            ([{"type": "function", "function": {}}], "tools.[0].function.name"),
            ([{"type": "function", "function": {"name": ""}}], "tools.[0].function.name"),
            ([{"type": "function", "function": {"name": "two words"}}], "tools.[0].function.name"),
            (
                [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "string"}}}],
                "tools.[0].function.parameters",
            ),
            ([{"type": "function", "function": {"name": "f", "nonsense": 1}}], "tools.[0].function.nonsense"),
            (TOOLS * 129, "tools"),
        ],
        ids=lambda value: repr(value)[:50],
    )
    def test_malformed_ones_are_refused(self, serve_template: Any, tools: Any, param: str) -> None:
        assert_error(serve_template("ok").chat(tools=tools), 400, param=param)


class TestReasoning:
    def test_is_apart_from_the_content(self, serve_template: Any) -> None:
        server = serve_template("<think>two and two</think>Four.")
        message = message_of(server)
        assert message["reasoning_content"] == "two and two" and message["content"] == "Four."
        chunks = assembled(streamed(server))[0]
        assert chunks["reasoning_content"] == "two and two" and chunks["content"] == "Four."

    def test_absent_when_there_is_none(self, serve_template: Any) -> None:
        assert "reasoning_content" not in message_of(serve_template("Four."))


class TestStream:
    @pytest.mark.parametrize("n", [1, 3])
    def test_is_the_whole_answer_in_pieces(self, saying: LiveServer, n: int) -> None:
        chunks = streamed(saying, n=n, temperature=0)
        expected = {"role": "assistant", "content": ANSWER, "finish_reason": "stop"}
        assert assembled(chunks) == dict.fromkeys(range(n), expected)

    @pytest.mark.parametrize("max_tokens", [0, 1, 17])
    def test_cut_off(self, saying: LiveServer, max_tokens: int) -> None:
        """17 tokens end inside the emoji."""
        whole = message_of(saying, max_tokens=max_tokens)["content"]
        message = assembled(streamed(saying, max_tokens=max_tokens))[0]
        assert message == {"role": "assistant", "content": whole, "finish_reason": "length"}

    def test_first_the_role_last_the_reason(self, saying: LiveServer) -> None:
        chunks = streamed(saying, n=2, temperature=0)
        for index in (0, 1):
            first, *middle, last = (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index)
            assert first["delta"] == {"role": "assistant", "content": ""}
            assert all("role" not in choice["delta"] for choice in middle)
            assert last["delta"] == {} and last["finish_reason"] == "stop"
            assert {choice["finish_reason"] for choice in (first, *middle)} == {None}

    def test_chunks_have_every_field_and_no_other(self, saying: LiveServer) -> None:
        chunks = streamed(saying)
        for chunk in chunks:
            assert set(chunk) == {"id", "object", "created", "model", "choices", "system_fingerprint"}
            assert chunk["object"] == "chat.completion.chunk" and chunk["model"] == MODEL
            (choice,) = chunk["choices"]
            assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}
        assert chunks[0]["id"].startswith("chatcmpl-")
        assert len({(chunk["id"], chunk["created"], chunk["system_fingerprint"]) for chunk in chunks}) == 1

    def test_usage_only_when_asked_for(self, saying: LiveServer) -> None:
        *chunks, last = streamed(saying, stream_options={"include_usage": True})
        assert chunks and all(chunk["choices"] and chunk["usage"] is None for chunk in chunks)
        assert last["choices"] == [] and last["usage"] == answer_of(saying)["usage"]
        assert all("usage" not in chunk for chunk in streamed(saying))

    def test_stream_options_without_stream(self, saying: LiveServer) -> None:
        assert_error(saying.chat(stream_options={"include_usage": True}), 400, param="stream_options")

    def test_a_text_that_could_become_a_call_is_not_held_back_for_ever(self, serve_template: Any) -> None:
        text = "1 < 2, <tool, <tool_cal"
        assert assembled(streamed(serve_template(text), tools=TOOLS))[0]["content"] == text


OPTIONAL = (
    *("n", "temperature", "top_p", "frequency_penalty", "presence_penalty", "logit_bias", "seed", "stop", "stream"),
    *(
        "stream_options",
        "user",
        "top_k",
        "min_p",
        "repetition_penalty",
        "min_tokens",
        "ignore_eos",
        "stop_token_ids",
        "priority",
    ),
    *("max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls"),
    *("response_format", "modalities", "store", "metadata", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "service_tier", "functions", "function_call", "prediction", "reasoning_effort"),
    *("chat_template_kwargs", "add_generation_prompt", "continue_final_message", *REFUSED),
)


class TestParameters:
    def test_null_is_as_good_as_absent(self, saying: LiveServer) -> None:
        for name in OPTIONAL:
            response = saying.chat(**{name: None})
            assert response.status_code == 200, (name, response.text)
            assert response.json()["choices"][0]["message"]["content"] == ANSWER

    @pytest.mark.parametrize(
        "body",
        [
            {"store": False},
            {"metadata": {"a": "b"}},
            {"safety_identifier": "x", "prompt_cache_key": "y", "prompt_cache_retention": "24h", "user": "z"},
            {"service_tier": "auto"},
            {"service_tier": "default"},
            {"prediction": {"type": "content", "content": "Hello"}},
            {"prediction": {"type": "content", "content": [{"type": "text", "text": "Hello"}]}},
            {"reasoning_effort": "none"},
            {"chat_template_kwargs": {}},
            {"add_generation_prompt": True, "continue_final_message": False},
            {"functions": [], "function_call": "none"},
            {"response_format": {"type": "text"}},
            {"modalities": ["text"]},
        ],
        ids=repr,
    )
    def test_what_can_not_change_an_answer_is_accepted(self, saying: LiveServer, body: dict[str, Any]) -> None:
        assert message_of(saying, **body)["content"] == ANSWER

    @pytest.mark.parametrize("name", REFUSED)
    def test_documented_but_not_honoured_is_refused(self, saying: LiveServer, name: str) -> None:
        for value in ("x", {"a": 1}, False):
            error = assert_error(saying.chat(**{name: value}), 400, param=name, code="unsupported_parameter")
            assert name in error["message"]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("store", True),
            ("modalities", ["text", "audio"]),
            ("modalities", []),
        ],
        ids=repr,
    )
    def test_values_that_are_not_honoured_are_refused(self, saying: LiveServer, name: str, value: Any) -> None:
        assert_error(saying.chat(**{name: value}), 400, param=name, code="unsupported_parameter")

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("max_tokens", [-1, "1", 1.5, True]),
            ("max_completion_tokens", [-1, "1", 1.5, True]),
            ("logprobs", [1, "true", 0]),
            ("top_logprobs", [-1, 21, "1", True]),
            ("tool_choice", [5, []]),
            ("parallel_tool_calls", [1, "true"]),
            ("response_format", [5, "json_object", [], {}, {"type": "xml"}, {"type": "json_schema"}, {"type": "text", "x": 1}]),
            ("modalities", [5, "text", [5]]),
            ("store", [1, "true"]),
            ("metadata", [5, [], {"a": 1}]),
            ("service_tier", ["slow", 5]),
            ("reasoning_effort", ["much", 1, True]),
            ("prediction", [5, "x", {"type": "x", "content": "x"}, {"type": "content"}, {"type": "content", "content": 5}]),
            ("chat_template_kwargs", [5, []]),
            ("continue_final_message", [1, "true"]),
            ("add_generation_prompt", [1, "true"]),
            ("functions", [5, [5], [{}]]),
            ("function_call", [5, {}, "none of them"]),
            ("n", [0, 17, "1"]),
            ("temperature", [-1, 3, "1"]),
        ],
    )
    def test_wrong_types_and_ranges_are_refused(self, saying: LiveServer, name: str, values: list[Any]) -> None:
        for value in values:
            error = assert_error(saying.chat(**{"logprobs": True} | {name: value}), 400, type="invalid_request_error")
            param = error["param"] or ""
            assert param == name or param.startswith(f"{name}."), (value, error)

    @pytest.mark.parametrize("name", ["nonsense", "prompt", "echo", "best_of", "suffix"])
    def test_an_unknown_one_is_named(self, saying: LiveServer, name: str) -> None:
        assert_error(saying.chat(**{name: 1}), 400, code="unknown_parameter", param=name)

    @pytest.mark.parametrize("name", ["model", "messages"])
    def test_required(self, saying: LiveServer, name: str) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
        del body[name]
        response = saying.http.post("/v1/chat/completions", json=body)
        assert_error(response, 400, param=name, code="missing_required_parameter")

    def test_an_unknown_model(self, saying: LiveServer) -> None:
        body = {"model": "nope", "messages": [{"role": "user", "content": "a"}]}
        response = saying.http.post("/v1/chat/completions", json=body)
        assert_error(response, 404, param="model", code="model_not_found")


def test_refused_requests_leave_nothing_behind(saying: LiveServer) -> None:
    eventually(saying.is_idle)
    for body in ({"stop_token_ids": [999]}, {"max_tokens": 5000}, {"tools": TOOLS}):
        assert saying.chat(**body).status_code == 400
        eventually(saying.is_idle)
