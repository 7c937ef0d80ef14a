"""Owns the tests of /v1/messages with Anthropic's own client library, sync and async, against a live server."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import MessageCountTokensParams, RawMessageStreamEvent, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_create_params
from pydantic import TypeAdapter

from app.api.compatibility import ENDPOINTS
from tests.api.conftest import ANSWER, Serve
from tests.api.test_errors import failing
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.live import MODEL, LiveServer, SlowRunner, eventually
from tests.support.tiny import RESPONSE_TEMPLATE

CALL = '<think>hm</think>Yes.<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
TOOLS: list[Any] = [{"name": "weather", "input_schema": {"type": "object"}}]
ASK: list[Any] = [{"role": "user", "content": "hello"}]
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
# What the client sends as headers.
HEADERS = {"betas", "user_profile_id", "workspace_id"}

Connect = Callable[..., Anthropic]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Make clients that never retry and are closed when the test ends."""
    clients: list[Anthropic] = []

    def make(server: LiveServer, **more: Any) -> Anthropic:
        http = anthropic.DefaultHttpxClient(trust_env=False, verify=False)
        options = {"api_key": "x", "max_retries": 0} | more
        clients.append(Anthropic(base_url=server.url, http_client=http, timeout=10, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def calling(serve: Serve) -> LiveServer:
    return serve(FakeLoader(runner=SlowRunner(answer=CALL), response_template=RESPONSE_TEMPLATE))


def test_create(saying: LiveServer, connect: Connect) -> None:
    client = connect(saying)
    message = client.messages.create(model=MODEL, max_tokens=100, messages=ASK, system="Be brief")
    assert message.content[0].type == "text" and message.content[0].text == ANSWER
    assert (message.stop_reason, message.role, message.model) == ("end_turn", "assistant", MODEL)
    assert message._request_id is not None and message._request_id.startswith("req_")
    count = client.messages.count_tokens(model=MODEL, messages=ASK, system="Be brief")
    assert count.input_tokens == message.usage.input_tokens


def test_stop_sequences(saying: LiveServer, connect: Connect) -> None:
    message = connect(saying).messages.create(model=MODEL, max_tokens=100, messages=ASK, stop_sequences=["wör"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "wör")


def test_events_are_the_clients(calling: LiveServer, connect: Connect) -> None:
    client = connect(calling)
    with client.messages.create(model=MODEL, max_tokens=200, messages=ASK, tools=TOOLS, stream=True) as stream:
        for event in stream:
            EVENT.validate_python(event.model_dump())


def test_stream_helper(calling: LiveServer, connect: Connect) -> None:
    """What the client puts together of the stream is what it gets without one."""
    client = connect(calling)
    with client.messages.stream(model=MODEL, max_tokens=200, messages=ASK, tools=TOOLS) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_message()
    assert {"text", "thinking", "signature", "input_json", "message_stop"} <= kinds
    whole = client.messages.create(model=MODEL, max_tokens=200, messages=ASK, tools=TOOLS)
    different = {"id", "content"}
    assert streamed.model_dump(exclude=different) == whole.model_dump(exclude=different)
    thinking, text, use = streamed.content
    assert thinking == whole.content[0] and thinking.type == "thinking" and thinking.thinking == "hm"
    assert text.type == whole.content[1].type == "text" and text.text == whole.content[1].text == "Yes."
    assert use.type == whole.content[2].type == "tool_use" and use.input == whole.content[2].input == {"city": "Köln"}


def test_answering_a_call(calling: LiveServer, connect: Connect) -> None:
    client = connect(calling)
    with client.messages.stream(model=MODEL, max_tokens=200, messages=ASK, tools=TOOLS) as stream:
        streamed = stream.get_final_message()
    for first in (client.messages.create(model=MODEL, max_tokens=200, messages=ASK, tools=TOOLS), streamed):
        use = first.content[-1]
        assert use.type == "tool_use" and first.stop_reason == "tool_use"
        result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
        for turn in (first.to_param(), {"role": "assistant", "content": first.content}):
            history: Any = [*ASK, turn, {"role": "user", "content": [result]}]
            count = client.messages.count_tokens(model=MODEL, messages=history, tools=TOOLS)
            again = client.messages.create(model=MODEL, max_tokens=1, messages=history, tools=TOOLS)
            assert again.usage.input_tokens == count.input_tokens


async def test_async(saying: LiveServer) -> None:
    http = anthropic.DefaultAsyncHttpxClient(trust_env=False, verify=False)
    async with AsyncAnthropic(base_url=saying.url, api_key="x", http_client=http, max_retries=0, timeout=10) as client:
        async with client.messages.stream(model=MODEL, max_tokens=100, messages=ASK) as stream:
            assert "".join([text async for text in stream.text_stream]) == ANSWER
        message = await client.messages.create(model=MODEL, max_tokens=100, messages=ASK)
        assert message.content[0].type == "text" and message.content[0].text == ANSWER


@pytest.mark.parametrize("way", ["api_key", "auth_token"])
def test_tokens(serve: Serve, connect: Connect, way: str) -> None:
    server = serve(runner=FakeRunner(answer=ANSWER), bearer_tokens=("secret",))
    keys: Any = {"api_key": None, "auth_token": None}
    good, bad = connect(server, **keys | {way: "secret"}), connect(server, **keys | {way: "wrong"})
    assert good.messages.create(model=MODEL, max_tokens=1, messages=ASK).usage.output_tokens == 1
    with pytest.raises(anthropic.AuthenticationError):
        bad.messages.create(model=MODEL, max_tokens=1, messages=ASK)


def test_errors(saying: LiveServer, connect: Connect) -> None:
    messages = connect(saying).messages
    with pytest.raises(anthropic.BadRequestError) as bad:
        messages.create(model=MODEL, max_tokens=1, messages=ASK, thinking={"type": "enabled", "budget_tokens": 5})
    assert bad.value.type == "invalid_request_error" and "thinking.budget_tokens" in str(bad.value)
    assert bad.value.request_id and bad.value.request_id.startswith("req_")
    with pytest.raises(anthropic.NotFoundError) as missing:
        messages.create(model="nope", max_tokens=1, messages=ASK)
    assert (missing.value.type, missing.value.error_code) == ("not_found_error", "model_not_found")


def test_errors_that_are_tried_again(serve: Serve, connect: Connect) -> None:
    server = serve(runner=FakeRunner(answer=ANSWER, gate=threading.Event()), max_num_seqs=1, max_queue=1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(server.complete, n=2, max_tokens=1)
        eventually(lambda: server.model.num_admitted == 2)
        with pytest.raises(anthropic.RateLimitError) as full:
            connect(server).messages.create(model=MODEL, max_tokens=1, messages=ASK)
        assert full.value.type == "rate_limit_error" and int(full.value.response.headers["retry-after"]) >= 1
        assert server.loader.runner.gate is not None
        server.loader.runner.gate.set()
        assert waiting.result().status_code == 200
    loading = serve(FakeLoader(gate=threading.Event()), wait_ready=False)
    with pytest.raises(anthropic.APIStatusError) as busy:
        connect(loading).messages.create(model=MODEL, max_tokens=1, messages=ASK)
    assert (busy.value.status_code, busy.value.type) == (503, "overloaded_error")


def test_an_error_in_the_middle_of_a_stream(serve: Serve, connect: Connect) -> None:
    server = serve(runner=failing(after=3))
    texts = []
    with (
        pytest.raises(anthropic.APIStatusError) as failed,
        connect(server).messages.stream(model=MODEL, max_tokens=100, messages=ASK) as stream,
    ):
        texts += stream.text_stream
    assert failed.value.type == "api_error"


@pytest.mark.parametrize(
    ("route", "parameters"),
    [
        ("/v1/messages", message_create_params.MessageCreateParamsBase),
        ("/v1/messages", beta_create_params.MessageCreateParamsBase),
        ("/v1/messages/count_tokens", MessageCountTokensParams),
        ("/v1/messages/count_tokens", beta_count_params.MessageCountTokensParams),
    ],
)
def test_the_table_has_all_that_anthropic_documents(route: str, parameters: type) -> None:
    (endpoint,) = (endpoint for endpoint in ENDPOINTS if endpoint.route == route)
    assert set(parameters.__annotations__) - HEADERS <= {parameter.name for parameter in endpoint.parameters}
