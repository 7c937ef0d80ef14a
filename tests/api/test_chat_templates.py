"""Owns the tests of what a chat request tells its template and scheduler, of formats by template, and of `functions`."""

import json
from typing import Any

import pytest

from app.engine.sequence import Sequence
from tests.api.conftest import ANSWER, Serve
from tests.api.test_chat import CALL, TOOLS, answer_of, assembled, message_of, streamed
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.live import LiveServer, assert_error
from tests.support.tiny import CHAT_TEMPLATE

# What the prompt has more of tells what the template was told.
EFFORT = "{{ 'x' * 10 if reasoning_effort == 'low' else 'x' * 20 if reasoning_effort == 'high' else '' }}"
SWITCH = "{{ '<think>' if enable_thinking is not defined or enable_thinking else '<think></think>' }}"
TURN = "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}{{ '</s>' }}\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<s>assistant: {% endif %}"
HERMES = CHAT_TEMPLATE + "{# <tool_call> arguments #}"


@pytest.fixture
def with_template(serve: Serve) -> Any:
    return lambda template, answer=ANSWER: serve(FakeLoader(runner=FakeRunner(answer=answer), chat_template=template))


def prompt_tokens(server: LiveServer, messages: Any = None, **body: Any) -> int:
    return int(answer_of(server, messages, **body)["usage"]["prompt_tokens"])


class TestVerbosity:
    def test_is_passed_to_a_template_that_reads_it(self, with_template: Any) -> None:
        server = with_template(TURN + "{{ 'x' * 10 if verbosity == 'low' else '' }}" + PROMPT)
        assert prompt_tokens(server, verbosity="low") == prompt_tokens(server) + 10
        assert prompt_tokens(server, verbosity="high") == prompt_tokens(server)
        assert_error(server.chat(verbosity="low", chat_template_kwargs={"verbosity": "high"}), 400, param="verbosity")
        body = {"model": server.model.name, "input": "hi"}
        answer = server.http.post("/v1/responses", json=body | {"text": {"verbosity": "low"}}).json()
        assert answer["text"]["verbosity"] == "low"
        plain = server.http.post("/v1/responses", json=body).json()
        assert plain["text"]["verbosity"] == "medium"
        assert answer["usage"]["input_tokens"] == plain["usage"]["input_tokens"] + 10

    def test_a_template_that_does_not_read_it_takes_the_middle_one_only(self, saying: LiveServer) -> None:
        assert message_of(saying, verbosity="medium")["content"] == ANSWER
        assert_error(saying.chat(verbosity="low"), 400, param="verbosity", code="unsupported_parameter")


class TestDocuments:
    def test_are_shown_to_a_template_that_reads_them(self, with_template: Any) -> None:
        server = with_template("{% for document in documents %}{{ document.text }}{% endfor %}" + TURN + PROMPT)
        assert prompt_tokens(server, documents=[{"title": "a", "text": "x" * 7}]) == prompt_tokens(server, documents=[]) + 7
        assert_error(server.chat(documents=[{"</s>": "a"}]), 400, param="documents")

    def test_no_other_template_gets_any(self, saying: LiveServer) -> None:
        assert_error(saying.chat(documents=[{"text": "a"}]), 400, param="documents", code="unsupported_parameter")


class TestReasoningEffort:
    def test_is_passed_to_a_template_that_reads_it(self, with_template: Any) -> None:
        server = with_template(TURN + EFFORT + PROMPT)
        base = prompt_tokens(server)
        assert prompt_tokens(server, reasoning_effort="low") == base + 10
        assert prompt_tokens(server, reasoning_effort="high") == base + 20
        assert prompt_tokens(server, reasoning_effort="medium") == base
        for effort in ("none", "minimal", "xhigh", "max"):
            error = assert_error(server.chat(reasoning_effort=effort), 400, code="unsupported_parameter")
            assert error["param"] == "reasoning_effort" and effort in error["message"]

    def test_efforts_that_the_template_names(self, with_template: Any) -> None:
        server = with_template(TURN + "{{ 'x' if reasoning_effort == 'none' else '' }}" + PROMPT)
        assert prompt_tokens(server, reasoning_effort="none") == prompt_tokens(server) + 1

    def test_switches_thinking(self, with_template: Any) -> None:
        server = with_template(TURN + PROMPT + SWITCH, "Four.")
        assert message_of(server) == {
            "role": "assistant",
            "content": "",
            "refusal": None,
            "reasoning_content": "Four.",
        }
        assert message_of(server, reasoning_effort="high")["reasoning_content"] == "Four."
        assert message_of(server, reasoning_effort="none") == {"role": "assistant", "content": "Four.", "refusal": None}
        assert message_of(server, chat_template_kwargs={"enable_thinking": False})["content"] == "Four."

    def test_a_model_that_does_not_reason_takes_none_only(self, saying: LiveServer) -> None:
        assert message_of(saying, reasoning_effort="none")["content"] == ANSWER
        assert_error(saying.chat(reasoning_effort="low"), 400, param="reasoning_effort", code="unsupported_parameter")

    def test_one_that_always_reasons_takes_nothing(self, with_template: Any) -> None:
        server = with_template(TURN + PROMPT + "<think>{# </think> #}")
        for effort in ("none", "low"):
            assert_error(server.chat(reasoning_effort=effort), 400, param="reasoning_effort", code="unsupported_parameter")

    def test_reasoning_is_counted(self, with_template: Any) -> None:
        server = with_template(TURN + PROMPT + SWITCH, "two and two</think>Four.")
        usage = answer_of(server)["usage"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] == len("two and two")
        *_, last = streamed(server, stream_options={"include_usage": True})
        assert last["usage"] == usage


class TestTemplateVariables:
    def test_only_those_that_the_template_reads(self, with_template: Any) -> None:
        server = with_template(TURN + "{{ style }}{{ bos_token }}" + PROMPT)
        assert prompt_tokens(server, chat_template_kwargs={"style": "abc"}) == prompt_tokens(server) + 3
        for name in (
            "other",
            "messages",
            "tools",
            "tokenize",
            "chat_template",
            "bos_token",
            "add_generation_prompt",
            "x" * 200,
        ):
            response = server.chat(chat_template_kwargs={name: "x"})
            error = assert_error(response, 400, code="unsupported_parameter")
            assert error["param"] == f"chat_template_kwargs.{name[:100]}"
            assert "style" in error["message"]

    def test_can_not_forge_control_tokens(self, with_template: Any) -> None:
        server = with_template(TURN + "{{ style | tojson }}" + PROMPT)
        base = prompt_tokens(server, chat_template_kwargs={"style": ""})
        assert prompt_tokens(server, chat_template_kwargs={"style": "<s>"}) == base + 3
        response = server.chat(chat_template_kwargs={"style": {"a": [{"<s>": 1}]}})
        assert_error(response, 400, param="chat_template_kwargs")

    def test_contradiction(self, with_template: Any) -> None:
        server = with_template(TURN + PROMPT + SWITCH)
        body = {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}
        assert_error(server.chat(**body), 400, param="reasoning_effort")


class TestContinuation:
    MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "I th"}]  # noqa: RUF012

    def test_the_last_message_goes_on(self, with_template: Any) -> None:
        server = with_template(TURN + PROMPT, "ink so")
        text = "<s>user: a</s>\n<s>assistant: I th"
        body = answer_of(server, self.MESSAGES, continue_final_message=True)
        assert body["usage"]["prompt_tokens"] == len(text) - len("<s>") * 2 - len("</s>") + 3
        assert body["choices"][0]["message"]["content"] == "ink so"
        begun = prompt_tokens(server, self.MESSAGES)
        assert prompt_tokens(server, self.MESSAGES, add_generation_prompt=False) == begun - len("assistant: ") - 1

    def test_in_the_middle_of_reasoning(self, with_template: Any) -> None:
        server = with_template(TURN + PROMPT + "{# </think> #}", "ink so</think>Yes.")
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>I th"}]
        message = message_of(server, messages, continue_final_message=True)
        assert (message["reasoning_content"], message["content"]) == ("ink so", "Yes.")

    @pytest.mark.parametrize(
        "last",
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": ""},
            {"role": "assistant", "content": "x", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]},
        ],
        ids=repr,
    )
    def test_needs_a_text_of_the_assistant(self, saying: LiveServer, last: dict[str, Any]) -> None:
        response = saying.chat([{"role": "user", "content": "a"}, last], continue_final_message=True)
        assert_error(response, 400, param="continue_final_message")

    def test_not_with_a_new_message(self, saying: LiveServer) -> None:
        response = saying.chat(self.MESSAGES, continue_final_message=True, add_generation_prompt=True)
        assert_error(response, 400, param="add_generation_prompt")


class TestServiceTier:
    @pytest.mark.parametrize(
        ("tier", "served", "priority"),
        [
            ("auto", "default", 0),
            ("default", "default", 0),
            ("scale", "default", 0),
            ("flex", "flex", 100),
            ("priority", "priority", -100),
            ("fast", "priority", -100),
        ],
    )
    def test_is_a_priority_and_is_named(self, serve: Serve, tier: str, served: str, priority: int) -> None:
        seen: set[int] = set()

        def look(seq: Sequence) -> None:
            seen.add(seq.params.priority)

        server = serve(FakeLoader(runner=FakeRunner(answer=ANSWER, raises=look)))
        assert answer_of(server, service_tier=tier)["service_tier"] == served
        assert seen == {priority}
        assert {chunk["service_tier"] for chunk in streamed(server, service_tier=tier)} == {served}
        assert "service_tier" not in answer_of(server)

    def test_not_with_a_priority(self, saying: LiveServer) -> None:
        assert_error(saying.chat(service_tier="flex", priority=1), 400, param="service_tier")
        assert saying.chat(service_tier="auto", priority=1).status_code == 200


class TestFunctions:
    FUNCTIONS = [TOOLS[0]["function"]]  # noqa: RUF012

    def test_are_answered_as_their_clients_expect(self, with_template: Any) -> None:
        call = CALL.replace("<tool_call>", "<tool_call>\n").replace("</", "\n</")  # as Hermes' and Qwen's templates spell it
        server = with_template(HERMES, "Let me see. " + call + call)
        (choice,) = answer_of(server, functions=self.FUNCTIONS)["choices"]
        assert choice["finish_reason"] == "function_call"
        message = choice["message"]
        assert "tool_calls" not in message
        assert message["function_call"]["name"] == "weather"
        assert json.loads(message["function_call"]["arguments"]) == {"city": "Köln", "days": [1, 2]}
        # There is one call in this old shape, and the answer ends with it.
        assert message["content"].strip() == "Let me see."
        chunks = streamed(server, functions=self.FUNCTIONS, function_call="auto")
        first, *rest = [
            chunk["choices"][0]["delta"]["function_call"] for chunk in chunks if "function_call" in chunk["choices"][0]["delta"]
        ]
        assert first == {"name": "weather", "arguments": ""} and rest
        assert all(set(part) == {"arguments"} for part in rest)
        assert "".join(part["arguments"] for part in rest) == message["function_call"]["arguments"]
        assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"

    def test_the_conversation_goes_on(self, with_template: Any) -> None:
        template = (
            "{% for message in messages %}<s>{{ message.role }}{% for call in message.tool_calls %}{{ call.id }}{% endfor %}"
            "{{ message.tool_call_id }}{% endfor %}"
        )
        server = with_template(template)
        messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
            {"role": "function", "name": "weather", "content": "sunny"},
        ]
        assert prompt_tokens(server, messages) == 3 + len("user" + "assistant" + "call00001" + "tool" + "call00001")

    def test_none_of_them(self, with_template: Any) -> None:
        server = with_template(HERMES, CALL)
        assert message_of(server, functions=self.FUNCTIONS, function_call="none")["content"] == CALL
        assert prompt_tokens(server, functions=self.FUNCTIONS, function_call="none") == prompt_tokens(server)

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"functions": FUNCTIONS, "tools": TOOLS}, "functions"),
            ({"functions": FUNCTIONS, "tool_choice": "auto"}, "functions"),
            ({"functions": FUNCTIONS * 2}, "functions"),
            ({"function_call": "auto"}, "function_call"),
            ({"functions": FUNCTIONS, "function_call": {"name": "other"}}, "function_call"),
            ({"functions": [{"name": "f", "strict": True}]}, "functions.[0].strict"),
        ],
        ids=repr,
    )
    def test_contradictions_are_refused(self, saying: LiveServer, body: dict[str, Any], param: str) -> None:
        assert_error(saying.chat(**body), 400, param=param)


class TestFormats:
    def test_a_template_shows_its_format(self, with_template: Any) -> None:
        server = with_template(HERMES, "Well. " + CALL)
        message = message_of(server, tools=TOOLS)
        assert message["content"] == "Well." and message["tool_calls"][0]["function"]["name"] == "weather"
        (call,) = assembled(streamed(server, tools=TOOLS))[0]["tool_calls"]
        assert call["arguments"] == message["tool_calls"][0]["function"]["arguments"]

    def test_without_tools_a_call_is_text(self, with_template: Any) -> None:
        server = with_template(HERMES, CALL)
        assert message_of(server)["content"] == CALL
        assert message_of(server, tools=TOOLS, tool_choice="none")["content"] == CALL

    def test_a_call_that_is_cut_off(self, with_template: Any) -> None:
        server = with_template(HERMES, CALL)
        for limit in ({"max_tokens": 60}, {"stop": "Köl"}):
            (choice,) = answer_of(server, tools=TOOLS, **limit)["choices"]
            assert choice["finish_reason"] == ("length" if "max_tokens" in limit else "stop")
            arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
            assert arguments and '{"city": "Köln", "days": [1, 2]}'.startswith(arguments)
            message = assembled(streamed(server, tools=TOOLS, **limit))[0]
            assert message["tool_calls"][0]["arguments"] == arguments
            assert message["finish_reason"] == choice["finish_reason"]

    def test_several_choices(self, with_template: Any) -> None:
        server = with_template(HERMES, CALL)
        choices = answer_of(server, tools=TOOLS, n=3, temperature=0)["choices"]
        assert len({choice["message"]["tool_calls"][0]["id"] for choice in choices}) == 3
        assert all(choice["finish_reason"] == "tool_calls" for choice in choices)

    def test_logprobs_cover_what_was_sampled(self, with_template: Any) -> None:
        server = with_template(HERMES, CALL)
        whole = answer_of(server, tools=TOOLS, logprobs=True)["choices"][0]["logprobs"]["content"]
        assert b"".join(bytes(entry["bytes"]) for entry in whole[:-1]).decode() == CALL
        parts = [chunk["choices"][0]["logprobs"] for chunk in streamed(server, tools=TOOLS, logprobs=True)]
        assert [entry for part in parts if part is not None for entry in part["content"]] == whole
