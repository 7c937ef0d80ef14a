"""Owns the tests with OpenAI's own client library, sync and async, against a live server."""

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.api.conftest import ANSWER, Serve
from tests.support.fakes import FakeLoader, FakeRunner, ids_of
from tests.support.live import MODEL, LiveServer, SlowRunner, eventually
from tests.support.tiny import RESPONSE_TEMPLATE

MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]
NUM_ANSWER_TOKENS = len(ids_of(ANSWER)) + 1
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'

Connect = Callable[..., OpenAI]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Make clients that never retry and are closed when the test ends."""
    clients: list[OpenAI] = []

    def make(server: LiveServer, key: str = "unused", **options: Any) -> OpenAI:
        http = httpx.Client(trust_env=False, verify=False)
        client = OpenAI(
            base_url=f"{server.url}/v1", api_key=key, http_client=http, **{"max_retries": 0, "timeout": 10} | options
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
async def async_client(saying: LiveServer) -> AsyncIterator[AsyncOpenAI]:
    http = httpx.AsyncClient(trust_env=False, verify=False)
    async with AsyncOpenAI(base_url=f"{saying.url}/v1", api_key="x", http_client=http, max_retries=0, timeout=10) as client:
        yield client


class TestAnswers:
    def test_completion(self, saying: LiveServer, connect: Connect) -> None:
        completion = connect(saying).completions.create(model=MODEL, prompt="hello", max_tokens=50, logprobs=1)
        assert completion.choices[0].text == ANSWER
        assert completion.choices[0].finish_reason == "stop"
        assert completion.choices[0].logprobs is not None and completion.choices[0].logprobs.tokens is not None
        assert completion.usage is not None and completion.usage.completion_tokens == NUM_ANSWER_TOKENS
        assert completion._request_id is not None and completion._request_id.startswith("req_")

    def test_completion_stream(self, saying: LiveServer, connect: Connect) -> None:
        stream = connect(saying).completions.create(model=MODEL, prompt="hello", max_tokens=50, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == ANSWER

    def test_chat(self, saying: LiveServer, connect: Connect) -> None:
        completion = connect(saying).chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2)
        assert completion.choices[0].message.content == ANSWER
        assert completion.choices[0].logprobs is not None and completion.choices[0].logprobs.content is not None
        assert len(completion.choices[0].logprobs.content) == NUM_ANSWER_TOKENS

    def test_chat_stream(self, saying: LiveServer, connect: Connect) -> None:
        options: Any = {"include_usage": True}
        chunks = list(
            connect(saying).chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, stream_options=options)
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == NUM_ANSWER_TOKENS

    def test_chat_stream_helper(self, saying: LiveServer, connect: Connect) -> None:
        """The library puts the deltas together itself here, and checks their shape."""
        with connect(saying).chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        assert final.choices[0].message.content == ANSWER
        assert {"content.delta", "content.done"} <= kinds

    def test_tool_calls(self, serve: Serve, connect: Connect) -> None:
        client = connect(serve(FakeLoader(runner=FakeRunner(answer=CALL), response_template=RESPONSE_TEMPLATE)))
        message = client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=TOOLS).choices[0].message
        assert message.tool_calls is not None
        assert message.tool_calls[0].function.name == "weather"  # type: ignore[union-attr]
        with client.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=TOOLS) as stream:
            stream.until_done()
            final = stream.get_final_completion().choices[0]
        assert final.finish_reason == "tool_calls"
        assert final.message.tool_calls is not None
        assert final.message.tool_calls[0].function.arguments == '{"city": "Köln"}'
        # The conversation goes on with what the library makes of the message.
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
        follow_up: list[Any] = [*MESSAGES, message, result]
        assert client.chat.completions.create(model=MODEL, messages=follow_up, tools=TOOLS).choices

    def test_own_parameters_go_in_the_extra_body(self, saying: LiveServer, connect: Connect) -> None:
        extra = {"ignore_eos": True, "min_tokens": 2, "top_k": 5}
        completion = connect(saying).completions.create(model=MODEL, prompt="hello", max_tokens=30, extra_body=extra)
        assert completion.usage is not None and completion.usage.completion_tokens == 30

    def test_models(self, saying: LiveServer, connect: Connect) -> None:
        client = connect(saying)
        (model,) = client.models.list().data
        assert model.id == MODEL
        assert client.models.retrieve(MODEL) == model

    def test_leaving_a_stream_stops_the_model(self, serve: Serve, connect: Connect) -> None:
        server = serve(FakeLoader(context_length=800_000))
        stream = connect(server).chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        for _, _chunk in zip(range(3), stream, strict=False):
            pass
        assert server.snapshot.num_running == 1
        stream.close()
        eventually(server.is_idle)


class TestErrors:
    def test_bad_request(self, saying: LiveServer, connect: Connect) -> None:
        with pytest.raises(openai.BadRequestError) as info:
            connect(saying).completions.create(model=MODEL, prompt="hello", extra_body={"nonsense": 1})
        assert (info.value.status_code, info.value.code, info.value.param) == (400, "unknown_parameter", "nonsense")
        assert info.value.type == "invalid_request_error"
        assert info.value.request_id is not None and info.value.request_id.startswith("req_")

    def test_context_length(self, saying: LiveServer, connect: Connect) -> None:
        with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens") as info:
            connect(saying).chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=600, stream=True)
        assert info.value.code == "context_length_exceeded"

    def test_authentication(self, serve: Serve, connect: Connect) -> None:
        server = serve(bearer_tokens=("right",))
        with pytest.raises(openai.AuthenticationError) as info:
            connect(server, "wrong").models.list()
        assert (info.value.status_code, info.value.code) == (401, "invalid_api_key")
        assert connect(server, "right").models.list().data

    def test_not_found(self, saying: LiveServer, connect: Connect) -> None:
        client = connect(saying)
        with pytest.raises(openai.NotFoundError) as info:
            client.completions.create(model="nope", prompt="hello")
        assert (info.value.code, info.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nope")
        with pytest.raises(openai.NotFoundError) as info:
            client.moderations.create(model=MODEL, input="hello")
        assert info.value.type == "invalid_request_error"

    def test_rate_limit(self, serve: Serve, connect: Connect) -> None:
        server = serve(runner=FakeRunner(gate=threading.Event()), max_num_seqs=1, max_queue=1)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            pool.submit(server.complete, n=2, max_tokens=1)
            try:
                eventually(lambda: server.model.num_admitted == 2)
                with pytest.raises(openai.RateLimitError) as info:
                    connect(server).completions.create(model=MODEL, prompt="hello")
                assert info.value.code == "engine_overloaded"
            finally:
                server.loader.runner.gate.set()  # type: ignore[union-attr]

    def test_a_retry_comes_when_it_is_told_to(self, serve: Serve, connect: Connect) -> None:
        server = serve(runner=FakeRunner(answer="hi", gate=threading.Event()), max_num_seqs=1, max_queue=1)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            pool.submit(server.complete, n=2, max_tokens=1)
            eventually(lambda: server.model.num_admitted == 2)
            threading.Timer(0.2, server.loader.runner.gate.set).start()  # type: ignore[union-attr]
            completion = connect(server, max_retries=1).completions.create(model=MODEL, prompt="hello")
        assert completion.choices[0].text == "hi"

    def test_loading(self, serve: Serve, connect: Connect) -> None:
        server = serve(FakeLoader(gate=threading.Event()), wait_ready=False)
        with pytest.raises(openai.InternalServerError) as info:
            connect(server).completions.create(model=MODEL, prompt="hello")
        assert (info.value.status_code, info.value.code) == (503, "model_loading")

    def test_engine_failure(self, serve: Serve, connect: Connect) -> None:
        server = serve(runner=FakeRunner(raises=lambda seq: RuntimeError("secret inside")))
        with pytest.raises(openai.InternalServerError) as info:
            connect(server).completions.create(model=MODEL, prompt="hello")
        assert (info.value.status_code, info.value.code) == (500, "engine_error")
        assert "secret" not in str(info.value)

    def test_in_the_middle_of_a_stream(self, serve: Serve, connect: Connect) -> None:
        server = serve(runner=SlowRunner(raises=lambda seq: RuntimeError() if seq.num_generation_tokens == 4 else None))
        stream = connect(server).chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        chunks = []
        with pytest.raises(openai.APIError, match="The model failed on this request") as info:
            chunks.extend(stream)
        assert chunks and chunks[0].choices[0].delta.role == "assistant"
        assert info.value.code == "engine_error"


class TestAsync:
    async def test_completion(self, async_client: AsyncOpenAI) -> None:
        completion = await async_client.completions.create(model=MODEL, prompt="hello", max_tokens=50)
        assert completion.choices[0].text == ANSWER

    async def test_chat_stream(self, async_client: AsyncOpenAI) -> None:
        stream = await async_client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER

    async def test_many_at_once(self, async_client: AsyncOpenAI) -> None:
        async def one() -> str | None:
            completion = await async_client.chat.completions.create(model=MODEL, messages=MESSAGES)
            return completion.choices[0].message.content

        assert await asyncio.gather(*(one() for _ in range(20))) == [ANSWER] * 20

    async def test_models(self, async_client: AsyncOpenAI) -> None:
        assert [model.id async for model in async_client.models.list()] == [MODEL]
        assert (await async_client.models.retrieve(MODEL)).id == MODEL

    async def test_errors(self, async_client: AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as info:
            await async_client.completions.create(model=MODEL, prompt="hello", suffix="x")
        assert (info.value.code, info.value.param) == ("unsupported_parameter", "suffix")
        with pytest.raises(openai.NotFoundError):
            await async_client.chat.completions.create(model="nope", messages=MESSAGES)

    async def test_cancelling_stops_the_model(self, serve: Serve) -> None:
        server = serve(FakeLoader(context_length=800_000))
        http = httpx.AsyncClient(trust_env=False, verify=False)
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", http_client=http, max_retries=0) as client:
            task = asyncio.create_task(client.completions.create(model=MODEL, prompt="a", max_tokens=700_000))
            while server.snapshot.num_running == 0:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            eventually(server.is_idle)
