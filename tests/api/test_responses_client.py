"""Owns the tests of /v1/responses with OpenAI's own client library, sync and async, against a live server."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.api.conftest import ANSWER, Serve
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.live import MODEL, LiveServer, SlowRunner, eventually
from tests.support.tiny import RESPONSE_TEMPLATE

CALL = '<think>hm</think>Yes.<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
TOOLS: list[Any] = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}]

Connect = Callable[[LiveServer], OpenAI]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Make clients that never retry and are closed when the test ends."""
    clients: list[OpenAI] = []

    def make(server: LiveServer) -> OpenAI:
        http = httpx.Client(trust_env=False, verify=False)
        clients.append(OpenAI(base_url=f"{server.url}/v1", api_key="x", http_client=http, max_retries=0, timeout=10))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
async def async_client(saying: LiveServer) -> AsyncIterator[AsyncOpenAI]:
    http = httpx.AsyncClient(trust_env=False, verify=False)
    async with AsyncOpenAI(base_url=f"{saying.url}/v1", api_key="x", http_client=http, max_retries=0, timeout=10) as client:
        yield client


def test_create_retrieve_delete(saying: LiveServer, connect: Connect) -> None:
    responses = connect(saying).responses
    response = responses.create(model=MODEL, input="hello", instructions="Be brief", metadata={"a": "b"})
    assert (response.output_text, response.status, response.metadata) == (ANSWER, "completed", {"a": "b"})
    assert response.usage is not None and response.usage.input_tokens_details.cached_tokens == 0
    again = responses.retrieve(response.id)
    assert again.output_text == ANSWER
    (item,) = responses.input_items.list(response.id)
    assert item.type == "message" and item.role == "user"
    responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(response.id)


def test_going_on(saying: LiveServer, connect: Connect) -> None:
    responses = connect(saying).responses
    first = responses.create(model=MODEL, input="hello")
    second = responses.create(model=MODEL, input="more", previous_response_id=first.id)
    by_hand = responses.create(
        model=MODEL, input=[{"role": "user", "content": "hello"}, *first.output, {"role": "user", "content": "more"}]
    )  # type: ignore[misc, list-item]
    assert second.usage is not None and by_hand.usage is not None
    assert second.usage.input_tokens == by_hand.usage.input_tokens
    count = responses.input_tokens.count(model=MODEL, input="more", previous_response_id=first.id)
    assert count.input_tokens == second.usage.input_tokens


def test_events(saying: LiveServer, connect: Connect) -> None:
    text = ""
    with connect(saying).responses.create(model=MODEL, input="hello", stream=True) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.completed":
                assert event.response.output_text == ANSWER
    assert text == ANSWER


def test_stream_helper_with_tools(serve: Serve, connect: Connect) -> None:
    server = serve(FakeLoader(runner=SlowRunner(answer=CALL), response_template=RESPONSE_TEMPLATE))
    with connect(server).responses.stream(model=MODEL, input="weather?", tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert {"response.reasoning_text.delta", "response.function_call_arguments.delta"} < set(kinds)
    reasoning, message, call = response.output
    assert reasoning.type == "reasoning" and reasoning.content is not None and reasoning.content[0].text == "hm"
    assert message.type == "message" and response.output_text == "Yes."
    assert call.type == "function_call" and (call.name, call.arguments) == ("weather", '{"city": "Köln"}')


def test_answering_a_call(serve: Serve, connect: Connect) -> None:
    server = serve(FakeLoader(runner=FakeRunner(answer=CALL), response_template=RESPONSE_TEMPLATE))
    responses = connect(server).responses
    first = responses.create(model=MODEL, input="weather?", tools=TOOLS)
    call = first.output[-1]
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    stored = responses.create(model=MODEL, input=[result], tools=TOOLS, previous_response_id=first.id)
    history: list[Any] = [{"role": "user", "content": "weather?"}, *first.output, result]
    stateless = responses.create(model=MODEL, input=history, tools=TOOLS, store=False)
    assert stored.usage is not None and stateless.usage is not None
    assert stored.usage.input_tokens == stateless.usage.input_tokens


def test_errors(saying: LiveServer, connect: Connect) -> None:
    responses = connect(saying).responses
    with pytest.raises(openai.BadRequestError) as info:
        responses.create(model=MODEL, input="hello", background=True)
    assert (info.value.code, info.value.param) == ("unsupported_parameter", "background")
    with pytest.raises(openai.NotFoundError):
        responses.cancel("resp_unknown")


def test_a_failure_in_the_middle_raises(serve: Serve, connect: Connect) -> None:
    server = serve(runner=SlowRunner(raises=lambda seq: RuntimeError() if seq.num_generation_tokens == 4 else None))
    stream = connect(server).responses.create(model=MODEL, input="hello", stream=True)
    kinds = []
    with pytest.raises(openai.APIError, match="The model failed on this request"):
        kinds.extend(event.type for event in stream)
    assert stream.response.is_success
    eventually(server.is_idle)


async def test_async(async_client: AsyncOpenAI) -> None:
    response = await async_client.responses.create(model=MODEL, input="hello")
    assert response.output_text == ANSWER
    async with async_client.responses.stream(model=MODEL, input="hello") as stream:
        assert (await stream.get_final_response()).output_text == ANSWER
