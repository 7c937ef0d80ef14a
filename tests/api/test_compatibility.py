"""The table of parameters is true: each one is sent in a legal, a wrong and an out-of-range form, and meets its fate."""

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from openai.types import completion_create_params, decision_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_compact_params, response_create_params

from app.api.compatibility import ENDPOINTS, Endpoint, Fate, page
from app.api.schemas import anthropic, compaction, responses
from app.config import ModelType
from tests.api.conftest import Serve
from tests.support.fakes import FakeEmbeddingLoader, FakeLoader, FakePoolingRunner, FakeRunner
from tests.support.live import MODEL, LiveServer, assert_error, live_server

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
FUNCTION: dict[str, Any] = {"name": "f", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
RESPONSE_TOOL = {"type": "function", **FUNCTION}
ANTHROPIC_TOOL = {"name": "f", "input_schema": {"type": "object"}}
FORMAT = {"type": "json_schema", "schema": {"type": "object"}}
USER = {"role": "user", "content": "hello"}
# Reads tools and a variable of its own, so that there is something to send.
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if tools %}{{ tools }}<tool_call>arguments{% endif %}"
    "{% if shout is defined %}!{% endif %}{% if enable_thinking is defined %}?{% endif %}{{ documents }}"
)


class Case(typing.NamedTuple):
    """One parameter's legal value, values that are none, and what else has to be sent for it to mean anything."""

    legal: Any
    illegal: tuple[Any, ...]
    beside: Mapping[str, Any] = MappingProxyType({})


ONLY_SEQ2SEQ = {"forced_bos_token_id"}
NUMBER = ("x", [], {})
SAMPLING = {
    "model": Case(MODEL, (1, "", "x" * 513)),
    "n": Case(2, (*NUMBER, 0, 17, 1.5)),
    "temperature": Case(0.5, (*NUMBER, -0.1, 2.1)),
    "top_p": Case(0.5, (*NUMBER, 0, 1.1)),
    "frequency_penalty": Case(-2, (*NUMBER, -2.1, 2.1)),
    "presence_penalty": Case(2, (*NUMBER, -2.1, 2.1)),
    "logit_bias": Case({"65": -100}, (1, {"65": 101}, {"65": "x"}, {"word": 1}, {"99999": 1})),
    "seed": Case(-(2**63), (*NUMBER, 2**63, 1.5)),
    "stop": Case(["a", "b"], (1, {}, [1], "", ["a"] * 5, "x" * 257)),
    "stream": Case(True, (1, "true")),
    "stream_options": Case({"include_usage": True}, (1, {"include_usage": 1}, {"unknown": True}), {"stream": True}),
    "user": Case("me", (1, "x" * 4097)),
    "top_k": Case(5, (*NUMBER, -2, 1.5)),
    "min_p": Case(0.1, (*NUMBER, -0.1, 1.1)),
    "repetition_penalty": Case(1.1, (*NUMBER, 0, 10.1)),
    "min_tokens": Case(1, (*NUMBER, -1, 10_000)),
    "ignore_eos": Case(True, (1, "x")),
    "stop_token_ids": Case([65], (1, ["x"], [-1], [99999], [65] * 65)),
    "priority": Case(-1000, (*NUMBER, -1001, 1001)),
    "max_tokens": Case(3, (*NUMBER, -1, 2**31)),
    "structured_outputs": Case({"regex": "[ab]+"}, (1, {}, {"regex": "("}, {"json": {"type": "poem"}}, {"unknown": 1})),
    "guided_json": Case({"type": "integer"}, (1, {"type": "poem"}, {"patternProperties": {"a": {}}})),
    "guided_regex": Case("[ab]+", (1, "(")),
    "guided_choice": Case(["a", "b"], (1, [], [1])),
    "guided_grammar": Case('start: "a"', (1, "start: (", "start: missing")),
}
OUTPUT = {
    "num_beams": Case(2, (*NUMBER, 0, 9, 1.5)),
    "use_beam_search": Case(True, (1, "x"), {"num_beams": 2}),
    "length_penalty": Case(2.5, (*NUMBER, -11, 11), {"num_beams": 2}),
    "early_stopping": Case("never", (1, "always"), {"num_beams": 2}),
    "no_repeat_ngram_size": Case(2, (*NUMBER, -1, 1025, 1.5)),
    "encoder_no_repeat_ngram_size": Case(2, (*NUMBER, -1, 1025, 1.5)),
    "forced_bos_token_id": Case(65, (*NUMBER, -1, 99999)),
    "forced_eos_token_id": Case(65, (*NUMBER, -1, 99999)),
    "skip_special_tokens": Case(False, (1, "x")),
    "include_stop_str_in_output": Case(True, (1, "x"), {"stop": "a"}),
    "bad_words": Case(["damn"], (1, [1], [""], ["x"] * 65, ["x" * 257])),
    "allowed_token_ids": Case([65, 66], (1, [], ["x"], [-1], [99999])),
}
PROMPT = {
    "add_special_tokens": Case(True, (1, "x")),
    "truncate_prompt_tokens": Case(2, (*NUMBER, 0, -2, 513)),
    "truncation_side": Case("left", (1, "middle"), {"truncate_prompt_tokens": 2}),
    "return_token_ids": Case(True, (1, "x")),
    "return_tokens_as_token_ids": Case(True, (1, "x"), {"logprobs": True}),
    "prompt_logprobs": Case(2, (*NUMBER, -1, 21)),
}
ANTHROPIC_PROMPT = {
    "model": SAMPLING["model"],
    "messages": Case(
        [USER],
        (
            *(1, [], [1], [{"role": "king", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": []}]),
            [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}]}],
            [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "none"}]}],
        ),
    ),
    "system": Case([{"type": "text", "text": "x"}], (1, [1], [{"type": "image"}], [{"type": "text"}])),
    "tools": Case(
        [ANTHROPIC_TOOL],
        (1, [1], [{"type": "web_search_20250305", "name": "web_search"}], [{"name": "f"}], [ANTHROPIC_TOOL | {"name": "a b"}]),
    ),
    "tool_choice": Case(
        {"type": "auto", "disable_parallel_tool_use": True},
        (1, "auto", {"type": "maybe"}, {"type": "tool"}, {"type": "tool", "name": "g"}),
        {"tools": [ANTHROPIC_TOOL]},
    ),
    "thinking": Case(
        {"type": "disabled"},
        (
            *(1, {}, {"type": "enabled", "budget_tokens": 1023}, {"type": "between_tools"}),
            {"type": "adaptive", "display": "omitted"},
        ),
    ),
    "output_config": Case(
        {"format": FORMAT, "effort": "high"},
        (1, {"effort": "utmost"}, {"format": {"type": "poem"}}, {"unknown": 1}),
    ),
    "output_format": Case(FORMAT, (1, {"type": "json_schema"}, {"type": "poem"})),
    "cache_control": Case({"type": "ephemeral", "ttl": "1h"}, (1, {"type": "eternal"}, {"type": "ephemeral", "ttl": "1y"})),
    "speed": Case("standard", (1, "fast", "slow")),
}
PARAMETERS: dict[str, dict[str, Case]] = {
    "/v1/chat/completions": SAMPLING
    | OUTPUT
    | PROMPT
    | {
        "messages": Case([USER], (1, [], [1], [{"role": "king", "content": "x"}], [{"role": "user"}])),
        "max_completion_tokens": Case(3, (*NUMBER, -1, 2**31)),
        "logprobs": Case(True, (1, "x")),
        "top_logprobs": Case(20, (*NUMBER, -1, 21), {"logprobs": True}),
        "tools": Case(TOOLS, (1, [1], [{"type": "function"}], [{"type": "function", "function": {"name": "a b"}}])),
        "tool_choice": Case("auto", (1, "maybe", {"type": "function"}), {"tools": TOOLS}),
        "parallel_tool_calls": Case(False, (1, "x"), {"tools": TOOLS}),
        "functions": Case([FUNCTION], (1, [1], [{}])),
        "function_call": Case("auto", (1, {"name": ""}), {"functions": [FUNCTION]}),
        "response_format": Case({"type": "text"}, (1, {"type": "poem"})),
        "modalities": Case(["text"], (1, [1], ["audio"])),
        "store": Case(False, (1, True)),
        "metadata": Case({"a": "b"}, (1, {"a": 1})),
        "safety_identifier": Case("me", (1,)),
        "prompt_cache_key": Case("k", (1,)),
        "prompt_cache_retention": Case("in_memory", (1,)),
        "prompt_cache_options": Case({"mode": "implicit"}, (1,)),
        "service_tier": Case("flex", (1, "first class")),
        "prediction": Case({"type": "content", "content": "x"}, (1, {"type": "image", "content": "x"})),
        "reasoning_effort": Case("high", (1, "utmost")),
        "chat_template_kwargs": Case({"shout": True}, (1, {"messages": []}, {"unknown": 1})),
        "add_generation_prompt": Case(False, (1, "x")),
        "continue_final_message": Case(
            True, (1, "x"), {"messages": [USER, {"role": "assistant", "content": "I"}], "add_generation_prompt": False}
        ),
        "audio": Case({"format": "wav", "voice": "alloy"}, (1,)),
        "moderation": Case({"model": "m"}, (1,)),
        "verbosity": Case("medium", (1, "low", "loud")),
        "documents": Case([{"title": "a", "text": "b"}], (1, ["a"], {"a": 1})),
        "web_search_options": Case({}, (1,)),
    },
    "/v1/responses": {name: case for name, case in SAMPLING.items() if name not in ("n", "max_tokens")}
    | OUTPUT
    | {
        "n": Case(1, (1,)),
        "stream_options": Case({"include_obfuscation": True}, (1, {"include_usage": True}), {"stream": True}),
        "input": Case("hello", (1, {}, [1], [{"role": "king", "content": "x"}], [{"role": "user"}])),
        "instructions": Case("be brief", (1,)),
        "previous_response_id": Case(None, (1, "", "resp_unknown")),
        "tools": Case([RESPONSE_TOOL], (1, [1], [{"type": "web_search"}], [RESPONSE_TOOL | {"name": "a b"}])),
        "tool_choice": Case("auto", (1, "maybe", {"type": "function", "name": "g"}), {"tools": [RESPONSE_TOOL]}),
        "parallel_tool_calls": Case(False, (1, "x"), {"tools": [RESPONSE_TOOL]}),
        "max_tool_calls": Case(3, (*NUMBER, 0)),
        "max_output_tokens": Case(3, (*NUMBER, 0)),
        "reasoning": Case({"summary": "auto"}, (1, {"effort": "utmost"}, {"unknown": 1})),
        "text": Case({"format": {"type": "json_object"}}, (1, {"format": {"type": "poem"}}, {"verbosity": "high"})),
        "include": Case(["message.output_text.logprobs"], (1, ["everything"])),
        "top_logprobs": Case(20, (*NUMBER, -1, 21)),
        "truncation": Case("auto", (1, "some")),
        "store": Case(False, (1, "x")),
        "background": Case(False, (1, True)),
        "metadata": Case({"a": "b"}, (1, {"a": 1})),
        "safety_identifier": Case("me", (1,)),
        "prompt_cache_key": Case("k", (1,)),
        "prompt_cache_retention": Case("in_memory", (1, "for ever")),
        "prompt_cache_options": Case({"mode": "implicit"}, (1,)),
        "service_tier": Case("flex", (1, "first class")),
        **{name: Case({"id": "x"}, (1,)) for name in responses.REFUSED if name != "n"},
    },
    "/v1/responses/compact": {
        "model": SAMPLING["model"],
        "input": Case([USER], (1, {}, [1], [{"role": "king", "content": "x"}])),
        "instructions": Case("be brief", (1,)),
        "previous_response_id": Case(None, (1, "", "x" * 129, "resp_unknown")),
        "service_tier": Case("flex", (1, "first class")),
        "prompt_cache_key": Case("k", (1, "x" * 513)),
        "prompt_cache_retention": Case("in_memory", (1, "for ever")),
        "prompt_cache_options": Case({"mode": "implicit"}, (1,)),
        **{name: Case({"id": "x"}, (1,)) for name in compaction.REFUSED},
    },
    "/v1/responses/input_tokens": {
        "model": SAMPLING["model"],
        "input": Case("hello", (1, {}, [1])),
        "instructions": Case("be brief", (1,)),
        "previous_response_id": Case(None, (1, "", "resp_unknown")),
        "tools": Case([RESPONSE_TOOL], (1, [1], [{"type": "web_search"}])),
        "tool_choice": Case("auto", (1, "maybe"), {"tools": [RESPONSE_TOOL]}),
        "parallel_tool_calls": Case(False, (1, "x"), {"tools": [RESPONSE_TOOL]}),
        "reasoning": Case({"summary": "auto"}, (1, {"effort": "utmost"})),
        "text": Case({"format": {"type": "text"}}, (1, {"verbosity": "high"})),
        "truncation": Case("auto", (1, "some")),
        **{name: Case({"id": "x"}, (1,)) for name in responses.REFUSED_FOR_COUNT},
    },
    "/v1/messages": ANTHROPIC_PROMPT
    | {
        "max_tokens": Case(3, (*NUMBER, None, -1, 2**31)),
        "temperature": Case(0.5, (*NUMBER, -0.1, 1.1)),
        "top_p": SAMPLING["top_p"],
        "top_k": Case(5, (*NUMBER, -1, 1.5)),
        "stop_sequences": Case(["a", "b"], (1, "a", [1], [""], ["a"] * 5, ["x" * 257])),
        "stream": SAMPLING["stream"],
        "metadata": Case({"user_id": "me"}, (1, {"user_id": 1}, {"name": "me"})),
        "service_tier": Case("standard_only", (1, "first class")),
        **{name: Case({"id": "x"}, (1,)) for name in anthropic.REFUSED},
    },
    "/v1/messages/count_tokens": ANTHROPIC_PROMPT | {name: Case({"id": "x"}, (1,)) for name in anthropic.REFUSED_FOR_COUNT},
    "/v1/completions": SAMPLING
    | OUTPUT
    | PROMPT
    | {
        "return_tokens_as_token_ids": Case(True, (1, "x"), {"logprobs": 1}),
        "prompt": Case("hello", (1, {}, [], ["a", 1], [[]], [-1], [99999])),
        "best_of": Case(2, (*NUMBER, -1, 17)),
        "echo": Case(True, (1, "x")),
        "logprobs": Case(5, (*NUMBER, -1, 6, True)),
        "suffix": Case("the end", (1,)),
    },
    "/v1/decisions": {
        "model": SAMPLING["model"],
        "input": Case([USER | {"type": "message"}], (1, [], [1], [{"role": "king", "content": "x"}])),
        "questions": Case([{"type": "predicate", "instructions": "True?"}], (1, [], [1], [{"type": "riddle"}])),
        "prompt_cache_key": Case("k", (1,)),
        "prompt_cache_options": Case({"mode": "implicit", "ttl": "30m"}, (1, {"ttl": "1h"})),
        "safety_identifier": Case("me", (1, "x" * 129)),
    },
    "/v1/systemone": {
        "model": SAMPLING["model"],
        "state": Case({"message": "hello"}, (1,)),
        "questions": Case({"q": {"type": "noul", "instructions": "True?"}}, (1, {}, {"q": 1}, {"q": {"type": "riddle"}})),
        "assets": Case({"img": {}}, (1,)),
    },
    "/v1/embeddings": {
        "model": SAMPLING["model"],
        "input": Case("hello", (1, {}, [], "", ["a", 1], [[]], [99999])),
        "encoding_format": Case("base64", (1, "hex")),
        "dimensions": Case(2, (*NUMBER, 0, 4)),
        "user": SAMPLING["user"],
        "prompt_name": Case(None, (1, "unknown", "x" * 201)),
        "truncate_prompt_tokens": Case(-1, (*NUMBER, 0, -2, 10_000)),
    },
    "/tokenize": {
        "model": SAMPLING["model"],
        "prompt": Case("hello", (1, [1])),
        "add_special_tokens": Case(False, (1, "x")),
        "return_token_strs": Case(True, (1, "x")),
        "messages": Case([USER], (1, [], [{"role": "king", "content": "x"}]), {"prompt": None}),
        "tools": Case(TOOLS, (1, [1]), {"prompt": None, "messages": [USER]}),
        "add_generation_prompt": Case(False, (1, "x"), {"prompt": None, "messages": [USER]}),
        "continue_final_message": Case(False, (1, "x"), {"prompt": None, "messages": [USER]}),
        "chat_template_kwargs": Case({"shout": True}, (1, {"unknown": 1}), {"prompt": None, "messages": [USER]}),
        "chat_template": Case("{{ messages }}", (1,)),
        "media_io_kwargs": Case({}, (1,)),
        "mm_processor_kwargs": Case({}, (1,)),
    },
    "/detokenize": {"model": SAMPLING["model"], "tokens": Case([65], (1, ["x"], [-1], [99999]))},
}
NEEDED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [USER], "max_tokens": 2},
    "/v1/completions": {"prompt": "hello", "max_tokens": 2},
    "/v1/responses": {"input": "hello", "max_output_tokens": 2},
    "/v1/responses/compact": {"input": "hello"},
    "/v1/responses/input_tokens": {"input": "hello"},
    "/v1/messages": {"messages": [USER], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [USER]},
    "/v1/decisions": {"input": "hello", "questions": [{"type": "predicate", "instructions": "True?"}]},
    "/v1/systemone": {"state": "hello", "questions": {"q": {"type": "noul", "instructions": "True?"}}},
    "/v1/embeddings": {"input": "hello"},
    "/tokenize": {"prompt": "hello"},
    "/detokenize": {"tokens": [65]},
}
ROWS = [
    pytest.param(endpoint, parameter.name, parameter.fate, id=f"{endpoint.route}-{parameter.name}")
    for endpoint in ENDPOINTS
    for parameter in endpoint.parameters
]


@pytest.fixture(scope="module")
def text_server() -> Iterator[LiveServer]:
    with live_server(FakeLoader(chat_template=TEMPLATE, fim_template="[P]{prefix}[S]{suffix}[M]")) as server:
        yield server


@pytest.fixture(scope="module")
def summing_server() -> Iterator[LiveServer]:
    with live_server(FakeLoader(runner=FakeRunner(answer="A greeting."), chat_template=TEMPLATE)) as server:
        yield server


@pytest.fixture(scope="module")
def seq2seq_server() -> Iterator[LiveServer]:
    with live_server(FakeLoader(chat_template=TEMPLATE), type=ModelType.SEQ2SEQ) as server:
        yield server


@pytest.fixture(scope="module")
def embedding_server() -> Iterator[LiveServer]:
    loader: Any = FakeEmbeddingLoader(runner=FakePoolingRunner())
    with live_server(loader, type=ModelType.EMBEDDING) as server:
        yield server


@pytest.mark.parametrize(("endpoint", "name", "fate"), ROWS)
def test_fate(
    endpoint: Endpoint,
    name: str,
    fate: Fate,
    text_server: LiveServer,
    seq2seq_server: LiveServer,
    embedding_server: LiveServer,
    summing_server: LiveServer,
) -> None:
    server = embedding_server if "embeddings" in endpoint.route else text_server
    server = summing_server if endpoint.route == "/v1/responses/compact" else server
    server = seq2seq_server if name in ONLY_SEQ2SEQ else server
    case = PARAMETERS[endpoint.route][name]
    needed = {"model": MODEL} | NEEDED[endpoint.route] | dict(case.beside)

    legal = server.http.post(endpoint.route, json=needed | {name: case.legal})
    if fate is Fate.REFUSED:
        assert_error(legal, 400, param=name, code="unsupported_parameter")
    else:
        assert legal.status_code == 200, legal.text

    for value in case.illegal:
        response = server.http.post(endpoint.route, json=needed | {name: value})
        if name == "model" and isinstance(value, str):
            assert response.status_code in (400, 404), response.text
            continue
        param = assert_error(response, 400)["param"]
        assert param is not None and param.split(".")[0] == name, (value, response.text)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.route)
def test_every_parameter_of_the_table_has_a_case(endpoint: Endpoint) -> None:
    assert set(PARAMETERS[endpoint.route]) == {parameter.name for parameter in endpoint.parameters}
    fields = {info.encode_name for info in msgspec.structs.fields(endpoint.request)}
    assert endpoint.no_effect.keys() <= fields and endpoint.notes.keys() <= fields


@pytest.mark.parametrize(
    ("route", "parameters"),
    [
        ("/v1/chat/completions", chat_create_params.CompletionCreateParamsBase),
        ("/v1/completions", completion_create_params.CompletionCreateParamsBase),
        ("/v1/responses", response_create_params.ResponseCreateParamsBase),
        ("/v1/responses/compact", response_compact_params.ResponseCompactParams),
        ("/v1/embeddings", embedding_create_params.EmbeddingCreateParams),
        ("/v1/decisions", decision_create_params.DecisionCreateParams),
    ],
)
def test_the_table_has_all_that_openai_documents(route: str, parameters: type) -> None:
    (endpoint,) = (endpoint for endpoint in ENDPOINTS if endpoint.route == route)
    assert set(parameters.__annotations__) <= {parameter.name for parameter in endpoint.parameters}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "python -m app.api.compatibility > docs/compatibility.md"


class TestLenient:
    def test_what_is_refused_is_left_out_and_named(self, serve: Serve) -> None:
        server = serve(compatibility="lenient")
        response = server.complete(max_tokens=2, suffix="x", unknown_name=1, stream_options={"include_usage": True}, user="me")
        assert response.status_code == 200
        assert response.headers["x-tfoai-ignored"].split(", ") == ["unknown_name", "stream_options", "suffix"]
        assert server.is_idle()

    def test_what_means_nothing_beside_the_others(self, serve: Serve) -> None:
        server = serve(FakeLoader(fim_template="[P]{prefix}[S]{suffix}[M]"), compatibility="lenient")
        response = server.complete(max_tokens=2, suffix="x", echo=True, logprobs=0)
        assert response.status_code == 200
        assert response.headers["x-tfoai-ignored"] == "echo"

    def test_a_place_deep_inside(self, serve: Serve) -> None:
        server = serve(FakeLoader(chat_template=TEMPLATE), compatibility="lenient")
        tools = [{"type": "function", "function": FUNCTION | {"flavour": "sweet"}}]
        response = server.chat(max_tokens=2, tools=tools, verbosity="low")
        assert response.status_code == 200
        assert sorted(response.headers["x-tfoai-ignored"].split(", ")) == ["tools.[0].function.flavour", "verbosity"]

    def test_wrong_values_and_what_the_request_is_about_stay_errors(self, serve: Serve) -> None:
        server = serve(compatibility="lenient")
        assert_error(server.complete(temperature=3), 400, param="temperature")
        part = {"type": "image_url", "image_url": {"url": "data:"}}
        error = assert_error(server.chat([{"role": "user", "content": [part]}]), 400)
        assert error["param"].startswith("messages.")

    def test_many_unknown_names_come_to_an_end(self, serve: Serve) -> None:
        server = serve(compatibility="lenient")
        response = server.complete(**{f"unknown_{number}": 1 for number in range(100)})
        assert_error(response, 400, code="unknown_parameter")

    def test_strict_names_nothing(self, serve: Serve) -> None:
        server = serve()
        assert "x-tfoai-ignored" not in server.complete(max_tokens=2).headers
        assert_error(server.complete(suffix="x"), 400, param="suffix")
