"""Everything countable has a limit that the configuration sets, and a message with the limit and the value."""

import concurrent.futures
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from app.api.compatibility import ENDPOINTS
from app.api.limits import RULES
from app.config import ModelType
from app.config_limits import Limits
from tests.api.conftest import Serve
from tests.support.fakes import FakeEmbeddingLoader, FakeRunner, SteppedRunner
from tests.support.live import MODEL, LiveServer, assert_error, eventually, live_server

USER = {"role": "user", "content": "x"}
QUESTION = {"type": "predicate", "instructions": "?"}
TOOL = {"type": "function", "function": {"name": "f"}}
SMALL = Limits(
    n=2, prompts=3, inputs=3, messages=2, items=2, tools=1, questions=2, text_characters=10, prompt_tokens=8, request_tokens=60,
    stop=2, stop_characters=3, stop_token_ids=2, logit_bias=2, template_variables=1, allowed_token_ids=2, bad_words=1, beams=2,
)  # fmt: skip
COMPLETION, CHAT, DECISION = "/v1/completions", "/v1/chat/completions", "/v1/decisions"
RESPONSE = "/v1/responses"
NEEDED: dict[str, dict[str, Any]] = {
    COMPLETION: {"prompt": "a", "max_tokens": 1},
    CHAT: {"messages": [USER], "max_tokens": 1},
    DECISION: {"input": "x", "questions": [QUESTION]},
    RESPONSE: {"input": "x", "max_output_tokens": 1},
    "/v1/messages": {"messages": [USER], "max_tokens": 1},
    "/v1/systemone": {"state": "x", "questions": {"q": {"type": "noul"}}},
    "/v1/embeddings": {"input": "x"},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [65]},
}
# What is too much by one, and what is just right.
CASES: list[tuple[str, str, Any, Any]] = [
    (COMPLETION, "n", 3, 2),
    (COMPLETION, "best_of", 3, 2),
    (COMPLETION, "prompt", ["a"] * 4, ["a"] * 3),
    (COMPLETION, "prompt", [[65]] * 4, [[65]] * 3),
    (COMPLETION, "prompt", "x" * 11, "x" * 10),
    (COMPLETION, "prompt", ["a", "x" * 11], ["a", "x" * 10]),
    (COMPLETION, "prompt", [65] * 9, [65] * 8),
    (COMPLETION, "prompt", [[65], [65] * 9], [[65], [65] * 8]),
    (COMPLETION, "stop", ["a"] * 3, ["a"] * 2),
    (COMPLETION, "stop", "xxxx", "xxx"),
    (COMPLETION, "stop", ["a", "xxxx"], ["a", "xxx"]),
    (COMPLETION, "stop_token_ids", [65] * 3, [65] * 2),
    (COMPLETION, "logit_bias", {"5": 1, "6": 1, "7": 1}, {"5": 1, "6": 1}),
    (COMPLETION, "num_beams", 3, 2),
    (COMPLETION, "allowed_token_ids", [65] * 3, [65] * 2),
    (COMPLETION, "bad_words", ["a", "b"], ["a"]),
    (COMPLETION, "bad_words", ["aaaa"], ["aaa"]),
    (CHAT, "n", 3, 2),
    (CHAT, "messages", [USER] * 3, [USER] * 2),
    (CHAT, "tools", [TOOL] * 2, None),
    (CHAT, "functions", [TOOL["function"]] * 2, None),
    (CHAT, "documents", [{"text": "x"}] * 3, None),
    (CHAT, "chat_template_kwargs", {"a": 1, "b": 1}, None),
    (DECISION, "questions", [QUESTION] * 3, None),
    (DECISION, "input", [USER] * 3, None),
    (RESPONSE, "input", [USER] * 3, [USER] * 2),
    (RESPONSE, "input", "x" * 11, "x" * 10),
    (RESPONSE, "tools", [{"type": "function", "name": "f"}] * 2, None),
    ("/v1/messages", "stop_sequences", ["x"] * 3, ["x"] * 2),
    ("/v1/messages", "system", [{"type": "text", "text": "x"}] * 3, [{"type": "text", "text": "x"}] * 2),
    (DECISION, "input", "x" * 11, None),
    ("/v1/systemone", "questions", {name: {"type": "noul"} for name in "abc"}, None),
    ("/v1/systemone", "state", "x" * 11, None),
    ("/v1/embeddings", "input", ["x"] * 4, ["x"] * 3),
    ("/v1/embeddings", "input", "x" * 11, "x" * 10),
    ("/v1/embeddings", "input", [65] * 9, [65] * 8),
    ("/tokenize", "prompt", "x" * 11, "x" * 10),
    ("/detokenize", "tokens", [65] * 9, [65] * 8),
]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(limits=SMALL) as server:
        yield server


@pytest.fixture(scope="module")
def embedding_server() -> Iterator[LiveServer]:
    loader: Any = FakeEmbeddingLoader()
    with live_server(loader, type=ModelType.EMBEDDING, limits=SMALL) as server:
        yield server


@pytest.mark.parametrize(("route", "name", "bad", "good"), CASES, ids=lambda value: repr(value)[:30])
def test_one_too_many(server: LiveServer, embedding_server: LiveServer, route: str, name: str, bad: Any, good: Any) -> None:
    target = embedding_server if "embeddings" in route else server
    body = {"model": MODEL} | NEEDED[route]
    error = assert_error(target.http.post(route, json=body | {name: bad}), 400, param=name, code="invalid_value")
    assert "LIMITS." in error["message"]
    assert sum(character.isdigit() for character in error["message"]) >= 2, "the value and the limit"
    if good is not None:
        response = target.http.post(route, json=body | {name: good})
        assert response.status_code == 200, response.text
    eventually(target.is_idle)


def test_tokens_of_a_request(server: LiveServer) -> None:
    assert server.complete("aaa", n=2, temperature=0, max_tokens=27).status_code == 200
    error = assert_error(server.complete("aaa", n=2, max_tokens=28), 400, param="prompt")
    assert "62" in error["message"] and "60" in error["message"] and "LIMITS.REQUEST_TOKENS" in error["message"]
    assert_error(server.chat(max_tokens=60), 400, param="messages")
    decision = {"model": MODEL, "input": "x", "questions": [QUESTION]}
    assert_error(server.http.post(DECISION, json=decision), 400, param="questions")
    eventually(server.is_idle)


def test_every_list_of_a_request_has_a_rule() -> None:
    """A parameter that holds many of something, and is not bounded by its type, is in the table."""
    bounded_otherwise = {"metadata", "modalities", "guided_choice", "guided_json", "include", "assets"}
    ruled = {rule.parameter for rule in RULES}
    for endpoint in ENDPOINTS:
        for info in msgspec.structs.fields(endpoint.request):
            schema = msgspec.json.schema(info.type)
            kinds = [schema, *schema.get("anyOf", [])]
            if any(kind.get("type") == "array" and "maxItems" not in kind for kind in kinds):
                assert info.encode_name in ruled | bounded_otherwise, (endpoint.route, info.encode_name)


def test_every_limit_limits_something() -> None:
    assert {rule.limit for rule in RULES} | {"request_tokens", "json_depth"} == {
        info.name for info in msgspec.structs.fields(Limits)
    }


class TestQueueOfTokens:
    @pytest.fixture
    def server(self, serve: Serve) -> Iterator[LiveServer]:
        """Standing still until its gate is set; it has room for 100 tokens of prompts."""
        server = serve(runner=FakeRunner(gate=threading.Event()), max_num_seqs=2, max_queue=50, max_queue_tokens=100)
        yield server
        assert server.loader.runner.gate is not None
        server.loader.runner.gate.set()

    def test_what_is_too_much_now_comes_back_later(self, server: LiveServer) -> None:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            first = pool.submit(server.complete, "x" * 45, n=2, temperature=0, max_tokens=1)
            eventually(lambda: server.model.num_prompt_tokens == 90)
            assert server.complete([65] * 11).status_code == 429
            refused = server.chat(n=2)
            error = assert_error(refused, 429, code="engine_overloaded")
            assert "90" in error["message"] and "100" in error["message"]
            assert int(refused.headers["retry-after"]) >= 1
            second = pool.submit(server.complete, "x" * 10, max_tokens=1)
            eventually(lambda: server.model.num_prompt_tokens == 100)
            assert server.loader.runner.gate is not None
            server.loader.runner.gate.set()
            assert first.result().status_code == second.result().status_code == 200
        eventually(server.is_idle)
        assert server.model.num_prompt_tokens == 0
        assert server.complete("x" * 100, max_tokens=1).status_code == 200

    def test_what_can_never_be_is_the_senders_error(self, server: LiveServer) -> None:
        error = assert_error(server.complete(["x" * 51, "x" * 50]), 400, param="prompt")
        assert "101" in error["message"] and "MAX_QUEUE_TOKENS" in error["message"]
        eventually(server.is_idle)


def test_retry_after_is_what_the_server_has_measured(serve: Serve) -> None:
    """Four sequences have ended in about two seconds of a clock that the test moves, so four more take two seconds again."""
    runner = SteppedRunner()
    server = serve(runner=runner, max_num_seqs=1, max_queue=5)
    rate = server.model.drain_rate
    now = 0.0
    rate._clock = lambda: now
    server.on_loop(rate.begin)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = [pool.submit(server.complete, max_tokens=1) for _ in range(6)]
        eventually(lambda: server.model.num_admitted == 6)
        assert server.complete().headers["retry-after"] == "1"
        for done in range(1, 3):
            now += 5.0
            runner.permits.release()
            eventually(lambda done=done: server.model.num_admitted == 6 - done)
        futures += [pool.submit(server.complete, max_tokens=1) for _ in range(2)]
        eventually(lambda: server.model.num_admitted == 6)
        assert server.complete().headers["retry-after"] == "5"
        response = server.complete(n=4)
        assert_error(response, 429)
        assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("20", "20000")
        runner.permits.release(20)
        assert [future.result().status_code for future in futures] == [200] * 8


@pytest.mark.parametrize("depth", [99, 128, 500, 900, 970, 100_000])
def test_how_deep_a_body_is(server: LiveServer, depth: int) -> None:
    """Templates and grammars write it out again, by functions that follow it as deep as it goes."""
    deep = "[" * (depth - 4) + "]" * (depth - 4)
    parameters = f'{{"a": {deep}}}'
    tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {parameters}}}}}'
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": parameters}}
    said = msgspec.json.encode({"role": "assistant", "tool_calls": [call]}).decode()
    for more in (
        f'"messages": [{{"role": "user", "content": "x"}}], "tools": [{tool}]',
        f'"messages": [{said}, {{"role": "user", "content": "x"}}]',
        f'"messages": [{{"role": "user", "content": "x"}}], "metadata": {parameters}',
    ):
        body = f'{{"model": "{MODEL}", "max_tokens": 1, {more}}}'
        response = server.http.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert response.status_code in ((200, 400) if depth <= 128 else (400,)), response.text
    eventually(server.is_idle)


def test_the_openapi_document_says_them(server: LiveServer) -> None:
    schemas = server.http.get("/openapi.json").json()["components"]["schemas"]
    completion = schemas["CompletionRequest"]["properties"]
    assert completion["n"]["anyOf"][0]["maximum"] == completion["best_of"]["anyOf"][0]["maximum"] == SMALL.n
    text, several = completion["stop"]["anyOf"][:2]
    assert (text["maxLength"], several["maxItems"]) == (SMALL.stop_characters, SMALL.stop)
    assert completion["logit_bias"]["anyOf"][0]["maxProperties"] == SMALL.logit_bias
    assert schemas["DecisionRequest"]["properties"]["questions"]["maxItems"] == SMALL.questions
    assert schemas["ChatRequest"]["properties"]["messages"]["maxItems"] == SMALL.messages
