"""Owns the tests of /v1/embeddings: openai-python and raw HTTP against a live server, limits, errors, ends."""

import asyncio
import base64
import concurrent.futures
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI, BadRequestError, OpenAI

from app.api.schemas.embeddings import MAX_TOTAL_TOKENS
from app.config import ModelSettings, ModelType
from app.engine.sentence_files import SentenceFiles
from app.loading import load_model
from tests.api.conftest import Serve
from tests.support.fakes import FakeEmbeddingLoader, FakePoolingRunner, ids_of
from tests.support.live import MODEL, LiveServer, assert_error, eventually, live_server
from tests.support.tiny import EOS, VOCAB_SIZE, byte_tokenizer, tiny_encoder

PROMPTS = SentenceFiles(dimensions=3, prompts={"query": "Q: ", "passage": "P: "}, default_prompt_name="passage")


@contextmanager
def embedding_server(runner: FakePoolingRunner | None = None, **more: Any) -> Iterator[LiveServer]:
    config = {name: more.pop(name) for name in ("max_queue", "max_num_seqs", "bearer_tokens", "wait_ready") if name in more}
    loader: Any = FakeEmbeddingLoader(runner=runner or FakePoolingRunner(), **more)
    with live_server(loader, type=ModelType.EMBEDDING, **config) as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with embedding_server() as server:
        yield server


def embed(server: LiveServer, input: Any = "hello", **body: Any) -> httpx.Response:
    return server.http.post("/v1/embeddings", json={"model": MODEL, "input": input, **body})


def vectors(response: httpx.Response) -> list[list[float]]:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return [[round(number, 3) for number in item["embedding"]] for item in data]


def client(server: LiveServer, kind: Any = OpenAI) -> Any:
    return kind(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_the_whole_answer(server: LiveServer) -> None:
    assert embed(server, encoding_format="float").json() == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [5.0, float(ids_of("h")[0]), 0.10000000149011612]}],
        "model": MODEL,
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


@pytest.mark.parametrize(
    ("given_input", "expected"),
    [
        ("ab", [[2, "a"]]),
        (["ab", "b", "abc"], [[2, "a"], [1, "b"], [3, "a"]]),
        (["ab"], [[2, "a"]]),
        ([7, 8, 9], [[3, 7]]),
        ([[7], [8, 9]], [[1, 7], [2, 8]]),
        (["a"] * 2048, [[1, "a"]] * 2048),
    ],
    ids=["text", "texts", "one", "ids", "lists-of-ids", "many"],
)
def test_every_form_of_input(server: LiveServer, given_input: Any, expected: list[list[Any]]) -> None:
    wanted = [[length, first if isinstance(first, int) else ids_of(first)[0], 0.1] for length, first in expected]
    response = embed(server, given_input)
    assert vectors(response) == wanted
    assert response.json()["usage"]["prompt_tokens"] == sum(length for length, _ in expected)


def test_openai_python(server: LiveServer) -> None:
    """By default it asks for base64 and decodes that; with a format it gives the numbers as they came."""
    with client(server) as openai:
        default = openai.embeddings.create(model=MODEL, input=["ab", "c"])
        assert [[round(number, 3) for number in item.embedding] for item in default.data] == [
            [2, ids_of("a")[0], 0.1],
            [1, ids_of("c")[0], 0.1],
        ]
        assert (default.usage.prompt_tokens, default.usage.total_tokens, default.model) == (3, 3, MODEL)
        numbers = openai.embeddings.create(model=MODEL, input="ab", encoding_format="float").data[0].embedding
        assert numbers == pytest.approx(default.data[0].embedding)
        text = openai.embeddings.create(model=MODEL, input="ab", encoding_format="base64").data[0].embedding
        assert list(struct.unpack("<3f", base64.b64decode(text))) == numbers
        assert len(openai.embeddings.create(model=MODEL, input="ab", dimensions=2, user="me").data[0].embedding) == 2
        assert openai.models.retrieve(MODEL).model_extra["embedding_dimensions"] == 3
        with pytest.raises(BadRequestError) as caught:
            openai.embeddings.create(model=MODEL, input="ab", dimensions=4)
        assert caught.value.param == "dimensions" and "have 3" in str(caught.value)


async def test_openai_python_many_at_once(server: LiveServer) -> None:
    async with client(server, AsyncOpenAI) as openai:
        calls = [openai.embeddings.create(model=MODEL, input="a" * n) for n in range(1, 40)]
        assert [round(answer.data[0].embedding[0]) for answer in await asyncio.gather(*calls)] == list(range(1, 40))


def test_the_legacy_path(serve: Serve) -> None:
    loader: Any = FakeEmbeddingLoader()
    server = serve(loader, type=ModelType.EMBEDDING, names=("m",))
    path = "/v1/engines/m/embeddings"
    assert vectors(server.http.post(path, json={"input": "ab"})) == [[2, ids_of("a")[0], 0.1]]
    assert vectors(server.http.post(path, json={"input": "ab", "model": "m"}))
    assert_error(server.http.post(path, json={"input": "ab", "model": "x"}), 400, param="model")
    assert_error(server.http.post("/v1/engines/x/embeddings", json={"input": "a"}), 404, code="model_not_found")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input.[1]"),
        ({"input": [[1], []]}, "input.[1]"),
        ({"input": None}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [[1]] * 2049}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 4}, "dimensions"),
        ({"input": "a", "prompt_name": "query"}, "prompt_name"),
        ({"input": [1], "prompt_name": "query"}, "prompt_name"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"input": "a", "truncate_prompt_tokens": 65}, "truncate_prompt_tokens"),
        ({"input": "a", "nonsense": 1}, "nonsense"),
        ({"input": "a", "stream": True}, "stream"),
        ({}, "input"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(server: LiveServer, body: dict[str, Any], param: str) -> None:
    response = server.http.post("/v1/embeddings", json={"model": MODEL, **body})
    assert_error(response, 400, type="invalid_request_error", param=param)
    eventually(server.is_idle)


@pytest.mark.parametrize(("given_input", "param"), [([-1], "input"), ([[5], [5, VOCAB_SIZE]], "input.[1]"), ([10**6], "input")])
def test_foreign_ids_point_to_the_setting_that_sends_them(server: LiveServer, given_input: Any, param: str) -> None:
    error = assert_error(embed(server, given_input), 400, param=param)
    assert "check_embedding_ctx_length=False" in error["message"]


def test_too_long_inputs(server: LiveServer) -> None:
    assert vectors(embed(server, "a" * 64))[0][0] == 64
    error = assert_error(embed(server, ["a", "a" * 65]), 400, param="input.[1]", code="context_length_exceeded")
    assert error["message"].startswith("This model's maximum context length is 64 tokens. However, `input.[1]` has 65 tokens.")
    assert_error(embed(server, "a" * 65), 400, param="input", code="context_length_exceeded")
    assert_error(embed(server, [5] * 65), 400, param="input", code="context_length_exceeded")
    first = ids_of("a")[0]
    assert vectors(embed(server, "a" * 65, truncate_prompt_tokens=-1))[0][0] == 64
    assert vectors(embed(server, ["a" * 65, "ab"], truncate_prompt_tokens=10)) == [[10, first, 0.1], [2, first, 0.1]]
    assert vectors(embed(server, [5] * 65, truncate_prompt_tokens=10)) == [[10, 5, 0.1]]


def test_too_many_tokens_together() -> None:
    with embedding_server(context_length=100_000) as server:
        at_most = [[5] * (MAX_TOTAL_TOKENS // 4)] * 4
        assert embed(server, at_most).json()["usage"]["total_tokens"] == MAX_TOTAL_TOKENS
        assert_error(embed(server, [*at_most, [5]]), 400, param="input", code="max_tokens_per_request")


def test_prompts_special_tokens_and_lower_case() -> None:
    with embedding_server(files=PROMPTS, append_eos=True) as server:
        # Length with prompt and end token, first id, where the prompt ends.
        assert vectors(embed(server, "ab")) == [[6, ids_of("P")[0], 3.1]]
        assert vectors(embed(server, "ab", prompt_name="query")) == [[6, ids_of("Q")[0], 3.1]]
        assert vectors(embed(server, [ids_of("ab")])) == [[2, ids_of("a")[0], 0.1]], "ids are taken as they are"
        error = assert_error(embed(server, "ab", prompt_name="x"), 400, param="prompt_name")
        assert "it has passage, query." in error["message"]
        assert server.http.post("/tokenize", json={"prompt": "a"}).json()["tokens"] == [*ids_of("a"), EOS]
        assert server.http.get("/tokenizer_info").json()["model_max_length"] == 64
    with embedding_server(files=SentenceFiles(dimensions=3, do_lower_case=True)) as server:
        assert vectors(embed(server, "AB")) == [[2, ids_of("a")[0], 0.1]]
    with embedding_server(files=SentenceFiles(dimensions=2)) as server:
        assert len(vectors(embed(server))[0]) == 2
        assert len(vectors(embed(server, dimensions=3))[0]) == 3


def test_the_other_kind_of_model_says_what_it_does(server: LiveServer, counting: LiveServer) -> None:
    for response in (server.complete(), server.chat(), server.http.post(f"/v1/engines/{MODEL}/completions", json={})):
        if response.status_code != 404:  # the legacy path has no room for a name with a slash
            error = assert_error(response, 400, param="model", code="unsupported_model")
            assert "/v1/embeddings" in error["message"]
    error = assert_error(embed(counting), 400, param="model", code="unsupported_model")
    assert "/v1/chat/completions" in error["message"]
    assert_error(server.http.post("/v1/embeddings", json={"model": "x", "input": "a"}), 404, code="model_not_found")
    model = server.http.get("/v1/models").json()["data"][0]
    assert (model["type"], model["embedding_dimensions"], model["pooling"]) == ("Embedding", 3, "mean")
    assert "pooling" not in counting.http.get("/v1/models").json()["data"][0]


def test_a_failing_input_fails_its_request_only() -> None:
    runner = FakePoolingRunner(nan_for=lambda one: one.ids[0] == 99, gate=threading.Event())
    with embedding_server(runner) as server, concurrent.futures.ThreadPoolExecutor() as pool:
        answers = [pool.submit(embed, server, [[n], [n + 1, 5]]) for n in (97, 98, 100, 101)]
        eventually(lambda: server.model.num_admitted == 4)
        runner.gate.set()  # type: ignore[union-attr]
        statuses = [answer.result().status_code for answer in answers]
        assert statuses == [200, 500, 200, 200]
        error = assert_error(answers[1].result(), 500, type="server_error", code="engine_error", param="input.[1]")
        assert "finite" not in error["message"]
        eventually(server.is_idle)
        assert server.http.get("/readyz").status_code == 200
        metrics = server.http.get("/metrics").text
        labels = f'finish_reason="%s",model="{MODEL}",operation="embeddings"'
        assert f"tfoai_requests_total{{{labels % 'stop'}}} 6.0" in metrics
        assert f"tfoai_requests_total{{{labels % 'error'}}} 2.0" in metrics


def test_loading_and_full_and_draining(serve: Serve) -> None:
    loader: Any = FakeEmbeddingLoader(gate=threading.Event())
    loading = serve(loader, type=ModelType.EMBEDDING, wait_ready=False)
    assert_error(embed(loading), 503, code="model_loading")
    assert_error(loading.complete(), 400, code="unsupported_model")
    runner = FakePoolingRunner(gate=threading.Event())
    with embedding_server(runner, max_num_seqs=1, max_queue=1) as server, concurrent.futures.ThreadPoolExecutor() as pool:
        running = [pool.submit(embed, server, ["a"] * 50) for _ in range(2)]
        eventually(lambda: server.model.num_admitted == 2 and server.snapshot.num_waiting == 99)
        response = embed(server)
        assert_error(response, 429, code="engine_overloaded")
        assert response.headers["retry-after"]
        assert server.http.get("/v1/models").status_code == 200
        server.on_loop(server.registry.drain)
        assert_error(embed(server), 503, code="draining")
        runner.gate.set()  # type: ignore[union-attr]
        assert [answer.result().status_code for answer in running] == [200, 200]
        eventually(server.is_idle)


def test_a_client_that_leaves_frees_its_slot() -> None:
    runner = FakePoolingRunner(gate=threading.Event())
    with embedding_server(runner, max_num_seqs=1) as server:
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/v1/embeddings", json={"model": MODEL, "input": ["a"] * 500}, timeout=0.5)
        eventually(lambda: server.registry.num_open_requests == 0)
        assert server.model.num_admitted == 1, "until the engine has let go of it"
        runner.gate.set()  # type: ignore[union-attr]
        eventually(server.is_idle)
        assert runner.num_calls < 10
        assert embed(server).status_code == 200
        assert f'tfoai_client_disconnects_total{{model="{MODEL}"}} 1.0' in server.http.get("/metrics").text


def test_stopping_answers_what_runs() -> None:
    runner = FakePoolingRunner(gate=threading.Event())
    with embedding_server(runner, max_num_seqs=1) as server, concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(embed, server, ["a"] * 5)
        eventually(lambda: runner.num_calls == 1)
        stopping = pool.submit(server.registry.stop)
        runner.gate.set()  # type: ignore[union-attr]
        stopping.result()
        assert running.result().status_code in (200, 503)
        assert_error(embed(server), 503, code="engine_dead")
        assert server.http.get("/livez").status_code == 503


def test_numbers_of_a_scrape(server: LiveServer) -> None:
    metrics = server.http.get("/metrics").text
    info = (
        f'tfoai_model_info{{device="cpu",dtype="float32",model="{MODEL}",revision="",runner="fake",source="{MODEL}",'
        'type="Embedding"} 1.0'
    )
    assert info in metrics
    for name in ("tfoai_prompt_tokens_total", "tfoai_engine_steps_total", "tfoai_requests_waiting", "tfoai_requests_running"):
        assert f'{name}{{model="{MODEL}"}}' in metrics
    assert f'tfoai_request_duration_seconds_count{{model="{MODEL}",operation="embeddings"}}' in metrics
    assert server.http.get("/v1/metrics").json()["model_metrics"][MODEL]["total_completion_tokens"] == 0


@dataclass
class RealLoader:
    """Loads a model from disk, as the server does."""

    source: Path
    gate: None = None
    runner: FakePoolingRunner = field(default_factory=FakePoolingRunner)

    def __call__(self, name: str, settings: ModelSettings, path: str, on_progress: Any) -> Any:
        settings = ModelSettings(name=str(self.source), type=ModelType.EMBEDDING, model_device="cpu")
        return load_model(name, settings, path, on_progress)


def test_a_real_model(tmp_path: Path) -> None:
    tiny_encoder("bert").save_pretrained(tmp_path)
    byte_tokenizer(append_eos=True).save_pretrained(tmp_path)
    loader: Any = RealLoader(tmp_path)
    with live_server(loader, type=ModelType.EMBEDDING) as server, client(server) as openai:
        texts = ["a", "Grüße", "x" * 100]
        together = openai.embeddings.create(model=MODEL, input=texts)
        assert openai.models.retrieve(MODEL).model_extra["runner"] == "encoder"
        for text, item in zip(texts, together.data, strict=True):
            alone = openai.embeddings.create(model=MODEL, input=text, encoding_format="float").data[0].embedding
            assert alone == pytest.approx(item.embedding, abs=1e-5)
            assert sum(number**2 for number in alone) == pytest.approx(1, abs=1e-5)
            tokens = server.http.post("/tokenize", json={"prompt": text}).json()["tokens"]
            assert openai.embeddings.create(model=MODEL, input=tokens).data[0].embedding == pytest.approx(alone, abs=1e-5)
        shorter = openai.embeddings.create(model=MODEL, input="a", dimensions=8).data[0].embedding
        assert sum(number**2 for number in shorter) == pytest.approx(1, abs=1e-5)
        assert shorter[0] / shorter[1] == pytest.approx(together.data[0].embedding[0] / together.data[0].embedding[1], rel=1e-3)
        assert_error(embed(server, "x" * 512), 400, code="context_length_exceeded")
        assert together.usage.prompt_tokens == sum(len(text.encode()) + 1 for text in texts)


@pytest.mark.parametrize("raw", [r'"\ud800"', r'["a\udfff", "b"]', "[1e30]", "[" + "9" * 30 + "]", "[[3.5]]", "[true]"])
def test_odd_values(server: LiveServer, raw: str) -> None:
    content = f'{{"model": "{MODEL}", "input": {raw}}}'.encode()
    response = server.http.post("/v1/embeddings", content=content, headers={"content-type": "application/json"})
    assert_error(response, 400, type="invalid_request_error")


ITEMS = st.one_of(st.text(max_size=5), st.integers(-2, 300), st.lists(st.integers(-1, 260), max_size=4), st.none(), st.floats())


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    given_input=st.one_of(st.text(max_size=8), st.lists(ITEMS, max_size=4), st.lists(st.text(max_size=3), max_size=3), ITEMS),
    more=st.fixed_dictionaries(
        {},
        optional={
            "dimensions": st.integers(-1, 5),
            "encoding_format": st.sampled_from(["float", "base64", "x", None]),
            "truncate_prompt_tokens": st.integers(-2, 70),
            "prompt_name": st.text(max_size=3),
            "user": st.text(max_size=3),
        },
    ),
)
def test_odd_bodies(server: LiveServer, given_input: Any, more: dict[str, Any]) -> None:
    content = json.dumps({"model": MODEL, "input": given_input, **more}).encode()
    response = server.http.post("/v1/embeddings", content=content, headers={"content-type": "application/json"})
    if response.status_code != 200:
        assert_error(response, 400, type="invalid_request_error")
