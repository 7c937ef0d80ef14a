"""Owns the tests of structured output on the wire: every parameter, both endpoints, streams, choices, refusals."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Annotated, Any, Literal

import httpx
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from app.config import ModelType
from app.engine.defaults import GenerationDefaults
from tests.api.conftest import Serve
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.hostile import HOSTILE
from tests.support.live import MODEL, LiveServer, assert_error, events_of, eventually, live_server
from tests.support.schemas import validate
from tests.support.tiny import CHAT_TEMPLATE, EOS, RESPONSE_TEMPLATE

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
        "age": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 120}, {"type": "null"}]},
    },
    "required": ["name", "tags", "age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "description": "A person", "schema": SCHEMA, "strict": True}}


def is_person(text: str) -> bool:
    validate(json.loads(text), SCHEMA)
    return True


def is_object(text: str) -> bool:
    return isinstance(json.loads(text), dict)


LARK = 'start: "<" inner ">"\ninner: NUMBER | %json {"enum": ["x", "y"]}\nNUMBER: /[0-9]{2}/'
# What both endpoints take, with what the answer then is.
EXTRAS: list[tuple[dict[str, Any], Any]] = [
    ({"structured_outputs": {"json": SCHEMA}}, is_person),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, is_person),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        lambda text: is_person(text) and "\n" not in text,
    ),
    ({"structured_outputs": {"regex": r"[a-c]{2}\d{3}"}}, re.compile(r"[a-c]{2}\d{3}").fullmatch),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, ["yes", "no"].__contains__),
    ({"structured_outputs": {"grammar": LARK}}, re.compile(r'<([0-9]{2}|"[xy]")>').fullmatch),
    ({"guided_json": SCHEMA}, is_person),
    ({"guided_json": json.dumps(SCHEMA)}, is_person),
    ({"guided_regex": "(a|b)c"}, ["ac", "bc"].__contains__),
    ({"guided_choice": ["ä", 'q"\\\n']}, ["ä", 'q"\\\n'].__contains__),
    ({"guided_grammar": LARK}, re.compile(r'<([0-9]{2}|"[xy]")>').fullmatch),
]
SAMPLED = {"temperature": 1, "max_tokens": 300}


@pytest.fixture(scope="module")
def flat() -> Iterator[LiveServer]:
    """A server whose model has hardly a preference."""
    with live_server(runner=FlatRunner(), max_num_seqs=32) as server:
        yield server


class FlatRunner(FakeRunner):
    def _logits(self, seq: Any, length: int) -> Any:
        return super()._logits(seq, length) * 0.1


class TestBothEndpoints:
    @pytest.mark.parametrize(("body", "is_right"), EXTRAS, ids=lambda value: str(value)[:40])
    def test_extras(self, flat: LiveServer, body: dict[str, Any], is_right: Any) -> None:
        for seed in range(3):
            chat = flat.chat(**body, **SAMPLED, seed=seed).json()["choices"][0]
            assert chat["finish_reason"] == "stop" and is_right(chat["message"]["content"]), chat
            completion = flat.complete(**body, **SAMPLED, seed=seed).json()["choices"][0]
            assert completion["finish_reason"] == "stop" and is_right(completion["text"]), completion

    def test_greedy(self, counting: LiveServer) -> None:
        assert counting.complete(guided_choice=["yes", "no"], max_tokens=9).json()["choices"][0]["text"] in ("yes", "no")
        assert is_person(counting.chat(response_format=FORMAT, max_tokens=300).json()["choices"][0]["message"]["content"])

    @pytest.mark.parametrize("strict", [True, False, None])
    def test_response_format(self, flat: LiveServer, strict: bool | None) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA, "strict": strict}}
        assert is_person(flat.chat(response_format=wanted, **SAMPLED).json()["choices"][0]["message"]["content"])

    def test_json_object_without_a_limit_is_an_object_so_far(self, flat: LiveServer) -> None:
        for wanted in ({"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "any"}}):
            for seed in range(6):
                choice = flat.chat(response_format=wanted, **SAMPLED, seed=seed).json()["choices"][0]
                content = choice["message"]["content"]
                assert content.startswith("{")
                assert choice["finish_reason"] == "length" or is_object(content)

    def test_text_is_not_constrained(self, saying: LiveServer) -> None:
        choice = saying.chat(response_format={"type": "text"}, max_tokens=50).json()["choices"][0]
        assert choice["message"]["content"].startswith("Hello")

    def test_streams_give_the_same_text(self, flat: LiveServer) -> None:
        chunks = events_of(flat.chat(response_format=FORMAT, stream=True, n=2, seed=5, **SAMPLED))
        texts = ["", ""]
        reasons: list[Any] = [None, None]
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            texts[choice["index"]] += choice["delta"].get("content") or ""
            reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
        assert reasons == ["stop", "stop"] and all(map(is_person, texts))
        whole = flat.chat(response_format=FORMAT, n=2, seed=5, **SAMPLED).json()
        assert [choice["message"]["content"] for choice in whole["choices"]] == texts

    def test_choices_and_prompts_have_matchers_of_their_own(self, flat: LiveServer) -> None:
        body = flat.complete(["a", "b"], n=4, best_of=5, guided_json=SCHEMA, seed=1, **SAMPLED).json()
        texts = [choice["text"] for choice in body["choices"]]
        assert len(texts) == 8 and all(map(is_person, texts)) and len(set(texts[:4])) == 4

    def test_max_tokens_in_the_middle(self, flat: LiveServer) -> None:
        choice = flat.complete(guided_regex="[a-c]{50}", temperature=1, max_tokens=20).json()["choices"][0]
        assert choice["finish_reason"] == "length" and re.fullmatch("[a-c]{20}", choice["text"])

    def test_a_stop_text_still_cuts(self, flat: LiveServer) -> None:
        choice = flat.complete(guided_choice=["one, two"], stop=",", max_tokens=20).json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("one", "stop")

    def test_echo_and_logprobs(self, flat: LiveServer) -> None:
        body = flat.complete("hello ", guided_choice=["yes"], echo=True, logprobs=2, max_tokens=9).json()["choices"][0]
        assert body["text"] == "hello yes"
        assert body["logprobs"]["tokens"][-3:] == ["y", "e", "s"]
        assert all(len(top) >= 2 for top in body["logprobs"]["top_logprobs"][-3:])

    def test_encoder_decoder_models(self, serve: Serve) -> None:
        server = serve(runner=FlatRunner(), type=ModelType.SEQ2SEQ)
        assert is_person(server.complete(guided_json=SCHEMA, **SAMPLED).json()["choices"][0]["text"])
        assert is_person(server.chat(response_format=FORMAT, **SAMPLED).json()["choices"][0]["message"]["content"])


class Tag(BaseModel):
    kind: Literal["color", "size"]
    value: Annotated[str, Field(max_length=6)]


class Item(BaseModel):
    name: Annotated[str, Field(pattern=r"^[A-Z][a-z]{1,5}$")]
    price: Annotated[float, Field(ge=0, le=100)]
    amount: int | None
    tags: Annotated[list[Tag], Field(max_length=2)]
    due: date


class TestOpenAIClient:
    @pytest.fixture
    def client(self, flat: LiveServer) -> Iterator[OpenAI]:
        http = httpx.Client(trust_env=False, verify=False)
        with OpenAI(base_url=f"{flat.url}/v1", api_key="x", http_client=http, max_retries=0, timeout=10) as client:
            yield client

    def test_parse(self, client: OpenAI) -> None:
        messages: Any = [{"role": "user", "content": "hello"}]
        for seed in range(3):
            completion = client.chat.completions.parse(
                model=MODEL, messages=messages, response_format=Item, temperature=1, seed=seed, max_tokens=450
            )
            assert isinstance(completion.choices[0].message.parsed, Item)

    def test_a_stream_with_a_model(self, client: OpenAI) -> None:
        messages: Any = [{"role": "user", "content": "hello"}]
        with client.chat.completions.stream(
            model=MODEL, messages=messages, response_format=Item, temperature=1, seed=1, max_tokens=450
        ) as stream:
            assert isinstance(stream.get_final_completion().choices[0].message.parsed, Item)

    def test_extra_body(self, client: OpenAI) -> None:
        completion = client.completions.create(model=MODEL, prompt="hello", extra_body={"guided_choice": ["yes", "no"]})
        assert completion.choices[0].text in ("yes", "no")


class TestReasoning:
    """The model says what is in `answer` as far as its grammar allows."""

    ANSWER = "<think>It is {this} or that.</think>\n\n{}"

    def test_a_model_that_may_reason_does_so_before_its_answer(self, serve: Serve) -> None:
        runner = FakeRunner(answer=self.ANSWER)
        server = serve(FakeLoader(runner=runner, response_template=RESPONSE_TEMPLATE))
        body: dict[str, Any] = {"guided_regex": r"\{\}", "max_tokens": 100}
        message = server.chat(**body).json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("It is {this} or that.", "{}")
        deltas = [choice["delta"] for chunk in events_of(server.chat(**body, stream=True)) for choice in chunk["choices"]]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "It is {this} or that."
        assert "".join(delta.get("content", "") for delta in deltas) == "{}"

    def test_a_prompt_that_opens_the_block(self, serve: Serve) -> None:
        loader = FakeLoader(runner=FakeRunner(answer=self.ANSWER.removeprefix("<think>")))
        # With both markers in it, a template shows how its model reasons.
        loader.chat_template = "{# </think> #}" + CHAT_TEMPLATE.replace("<s>assistant: ", "<s>assistant: <think>\n")
        server = serve(loader)
        choice = server.chat(guided_regex=r"\{\}", max_tokens=100).json()["choices"][0]
        assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("It is {this} or that.", "{}")
        assert choice["finish_reason"] == "stop"

    def test_content_is_never_read_as_a_tool_call(self, serve: Serve) -> None:
        text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
        server = serve(FakeLoader(runner=FakeRunner(answer=text), response_template=RESPONSE_TEMPLATE))
        message = server.chat(guided_choice=[text], max_tokens=100).json()["choices"][0]["message"]
        assert message["content"] == text and "tool_calls" not in message


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"guided_json": {"type": "string"}, "guided_regex": "a"}, "guided_regex"),
            ({"guided_choice": ["a"], "structured_outputs": {"regex": "a"}}, "guided_choice"),
            ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
            ({"structured_outputs": {}}, "structured_outputs"),
            ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
            ({"structured_outputs": {"regex": "a", "disable_any_whitespace": True}}, "structured_outputs"),
            ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
            ({"structured_outputs": {"json": {}, "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
            ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
            ({"guided_decoding_backend": "x"}, "guided_decoding_backend"),
            ({"guided_choice": []}, "guided_choice"),
            ({"guided_choice": ["a", ""]}, "guided_choice"),
            ({"guided_choice": [1]}, "guided_choice.[0]"),
            ({"guided_choice": ["a"] * 2001}, "guided_choice"),
            ({"guided_regex": "("}, "guided_regex"),
            ({"guided_regex": "(?=a)b"}, "guided_regex"),
            ({"guided_regex": ""}, "guided_regex"),
            ({"guided_regex": "a" * 200_000}, "guided_regex"),
            ({"guided_grammar": "root ::= x"}, "guided_grammar"),
            ({"guided_grammar": 'start: %json {"not": {}}'}, "guided_grammar"),
            ({"guided_grammar": "start: %json {"}, "guided_grammar"),
            ({"guided_grammar": 'start: a\na[temperature=2]: "b"'}, "guided_grammar"),
            ({"guided_json": "{"}, "guided_json"),
            ({"guided_json": {"type": "string", "pattern": "("}}, "guided_json"),
            ({"guided_json": False}, "guided_json"),
            ({"guided_choice": ["a"], "min_tokens": 2}, "min_tokens"),
            ({"guided_choice": ["a"], "ignore_eos": True}, "ignore_eos"),
        ],
        ids=lambda value: str(value)[:50],
    )
    def test_on_both_endpoints(self, flat: LiveServer, body: dict[str, Any], param: str) -> None:
        for response in (flat.chat(**body), flat.complete(**body)):
            error = assert_error(response, 400, param=param, type="invalid_request_error")
            assert len(error["message"]) < 600
        assert flat.is_idle()

    def test_response_format_and_another(self, flat: LiveServer) -> None:
        assert_error(flat.chat(response_format=FORMAT, guided_regex="a"), 400, param="guided_regex")
        assert flat.chat(response_format={"type": "text"}, guided_choice=["a"], max_tokens=3).status_code == 200

    def test_a_keyword_that_is_not_enforced_is_named_with_its_place(self, flat: LiveServer) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
        error = assert_error(
            flat.chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
            400,
            param="response_format",
            code="unsupported_json_schema",
        )
        assert "`uniqueItems`" in error["message"] and "$.properties.a.uniqueItems" in error["message"]

    def test_tools_that_may_be_called(self, flat: LiveServer) -> None:
        tool = {"type": "function", "function": {"name": "f"}}
        body = {"tools": [tool], "response_format": FORMAT}
        # How this model would write calls is not known.
        assert_error(flat.chat(**body), 400, param="tools", code="unsupported_parameter")
        assert is_person(flat.chat(**body, tool_choice="none", **SAMPLED).json()["choices"][0]["message"]["content"])

    def test_beam_search(self, serve: Serve) -> None:
        defaults = GenerationDefaults(eos_token_ids=frozenset({EOS}), num_beams=2)
        server = serve(FakeLoader(runner=FlatRunner(), defaults=defaults))
        assert_error(server.complete(guided_choice=["a"]), 400, param="guided_choice", code="unsupported_parameter")
        assert server.complete(guided_choice=["a"], temperature=1).json()["choices"][0]["text"] == "a"

    def test_the_default_min_new_tokens_yields(self, serve: Serve) -> None:
        defaults = GenerationDefaults(eos_token_ids=frozenset({EOS}), min_new_tokens=10)
        server = serve(FakeLoader(runner=FlatRunner(), defaults=defaults))
        assert server.complete(guided_choice=["a"], max_tokens=20).json()["choices"][0]["text"] == "a"


class TestFailures:
    def test_hostile_sources_beside_healthy_streams(self, serve: Serve) -> None:
        server = serve(runner=FlatRunner(), max_num_seqs=8)
        with ThreadPoolExecutor(9) as pool:
            healthy = [pool.submit(server.complete, max_tokens=400, ignore_eos=True) for _ in range(7)]
            for kind, make in HOSTILE.values():
                body: dict[str, Any] = {"json_schema": "guided_json", "regex": "guided_regex", "lark": "guided_grammar"}
                response = server.complete(**{body[kind]: make()}, max_tokens=5)
                assert response.status_code in (200, 400), response.text
            assert all(future.result().status_code == 200 for future in healthy)
        eventually(server.is_idle)

    def test_a_grammar_too_complex_at_some_step_is_the_senders_affair(self, flat: LiveServer) -> None:
        # As long as only `a` comes, thousands of alternatives stay open.
        body = {
            "guided_grammar": "start: "
            + " | ".join(f'"a" r{i}' for i in range(1500))
            + "\n"
            + "\n".join(f'r{i}: "b"* "c{i}"' for i in range(1500))
        }
        response = flat.complete(**body, max_tokens=50)
        error = assert_error(response, 400)
        assert "grammar" in error["message"]
        assert flat.complete(guided_choice=["a"], max_tokens=3).status_code == 200
