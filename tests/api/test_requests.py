"""Owns the tests of clients that leave: whatever they were waiting for stops, and its slots come back."""

import gc
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app.engine.kv_cache import BlockLedger
from tests.api.conftest import Serve
from tests.support.fakes import FakeLoader, FakeRunner, SteppedRunner
from tests.support.live import MODEL, LiveServer, eventually

# As far as the model of these tests can count: for ever, compared with the time a test has.
ENDLESS = 400_000


class Leaving:
    """A client on a bare socket, so that the moment it leaves is exact."""

    def __init__(self, server: LiveServer, path: str, body: dict[str, Any]) -> None:
        content = json.dumps({"model": MODEL, **body}).encode()
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        self._socket.sendall(head.encode() + content)

    def read(self) -> bytes:
        return self._socket.recv(4096)

    def leave(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Leaving":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


def completion(**body: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/completions", {"prompt": "hello", **body}


def chat(**body: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], **body}


REQUESTS = [
    completion(max_tokens=ENDLESS),
    completion(max_tokens=ENDLESS, stream=True),
    completion(max_tokens=ENDLESS, n=3),
    completion(max_tokens=ENDLESS, n=3, stream=True),
    completion(max_tokens=ENDLESS, best_of=3),
    chat(),
    chat(stream=True),
    chat(n=3),
    chat(n=3, stream=True),
]


def describe(request: tuple[str, dict[str, Any]]) -> str:
    path, body = request
    return "-".join(
        [
            path.split("/")[-2],
            *(f"{key}{body[key]}" for key in ("n", "best_of") if key in body),
            *(["stream"] if body.get("stream") else []),
        ]
    )


def num_of(request: tuple[str, dict[str, Any]]) -> int:
    return int(request[1].get("n") or request[1].get("best_of") or 1)


def assert_serves_on(server: LiveServer) -> None:
    """Everything is free again, and the engine does not compute for nobody."""
    eventually(server.is_idle)
    steps = server.snapshot.num_steps
    time.sleep(0.02)
    assert server.snapshot.num_steps == steps
    assert server.complete(max_tokens=1).status_code == 200


@pytest.fixture
def endless(serve: Serve) -> LiveServer:
    return serve(FakeLoader(context_length=2 * ENDLESS))


@pytest.mark.parametrize("request_", REQUESTS, ids=describe)
def test_while_it_generates(endless: LiveServer, request_: tuple[str, dict[str, Any]]) -> None:
    with Leaving(endless, *request_) as client:
        eventually(lambda: endless.snapshot.num_running == num_of(request_) and endless.snapshot.num_generation_tokens > 5)
        if request_[1].get("stream"):
            assert client.read().startswith(b"HTTP/1.1 200 OK")
    assert_serves_on(endless)


@pytest.mark.parametrize("request_", REQUESTS, ids=describe)
def test_while_its_prompt_is_computed(serve: Serve, request_: tuple[str, dict[str, Any]]) -> None:
    gate = threading.Event()
    server = serve(FakeLoader(runner=FakeRunner(gate=gate), context_length=2 * ENDLESS))
    with Leaving(server, *request_):
        eventually(lambda: server.model.num_admitted == num_of(request_) and server.snapshot.num_running > 0)
    # The step can not be interrupted; its end is the first moment at which anything is free.
    time.sleep(0.05)
    assert server.model.num_admitted == num_of(request_)
    gate.set()
    assert_serves_on(server)


@pytest.mark.parametrize("request_", REQUESTS, ids=describe)
def test_while_it_waits_in_the_queue(serve: Serve, request_: tuple[str, dict[str, Any]]) -> None:
    server = serve(FakeLoader(context_length=2 * ENDLESS), max_num_seqs=1)
    with Leaving(server, *completion(max_tokens=ENDLESS)):
        eventually(lambda: server.snapshot.num_running == 1)
        with Leaving(server, *request_):
            eventually(lambda: server.snapshot.num_waiting == num_of(request_))
        eventually(lambda: server.snapshot.num_waiting == 0 and server.model.num_admitted == 1)
        assert server.snapshot.num_running == 1, "the one that stayed goes on"
    assert_serves_on(server)


class TestWithinTwoSteps:
    """The engine makes a step only when the test allows it, so it is known how many it took to be rid of a client."""

    LONG = "x" * 1500  # prefilled in six steps

    @pytest.fixture
    def runner(self) -> Iterator[SteppedRunner]:
        runner = SteppedRunner()
        yield runner
        runner.permits.release(10_000)

    @pytest.fixture
    def server(self, serve: Serve, runner: SteppedRunner) -> LiveServer:
        return serve(FakeLoader(runner=runner, context_length=4000, ledger=BlockLedger(1000, 16)), max_num_seqs=4)

    def leaves(self, server: LiveServer, client: Leaving, num_left: int, num_blocks: int = 0) -> None:
        """Let a client go: what it held is free after two steps at most, and `num_left` sequences are still there."""
        runner, ledger = server.loader.runner, server.loader.ledger
        assert isinstance(runner, SteppedRunner) and ledger is not None
        before = runner.num_steps
        num_open = server.registry.num_open_requests
        client.leave()
        eventually(lambda: server.registry.num_open_requests == num_open - 1)
        runner.permits.release(2)
        eventually(lambda: server.model.num_admitted == num_left)
        assert runner.num_steps <= before + 2
        eventually(lambda: round(ledger.usage * ledger.num_blocks) <= num_blocks)
        assert server.snapshot.num_running + server.snapshot.num_waiting == num_left

    @pytest.mark.parametrize("body", [{}, {"stream": True}, {"n": 3}, {"n": 3, "stream": True}, {"best_of": 3}], ids=repr)
    def test_while_it_generates(self, server: LiveServer, runner: SteppedRunner, body: dict[str, Any]) -> None:
        with Leaving(server, *completion(max_tokens=2000, **body)) as client:
            runner.permits.release(9)
            eventually(lambda: runner.num_steps == 9 and server.snapshot.num_generation_tokens > 5)
            assert server.snapshot.kv_cache_usage > 0
            self.leaves(server, client, 0)

    @pytest.mark.parametrize("body", [{}, {"stream": True}, {"n": 3}, {"echo": True, "logprobs": 1}], ids=repr)
    def test_in_the_middle_of_its_prompt(self, server: LiveServer, runner: SteppedRunner, body: dict[str, Any]) -> None:
        with Leaving(server, *completion(max_tokens=2000, **body | {"prompt": self.LONG})) as client:
            runner.permits.release(2)
            eventually(lambda: runner.num_steps == 2)
            self.leaves(server, client, 0)
            assert server.snapshot.num_generation_tokens == 0

    @pytest.mark.parametrize("body", [{}, {"stream": True}], ids=repr)
    def test_in_the_queue(self, server: LiveServer, runner: SteppedRunner, body: dict[str, Any]) -> None:
        with Leaving(server, *completion(max_tokens=2000, n=4)):
            eventually(lambda: server.snapshot.num_running > 0)
            with Leaving(server, *completion(max_tokens=2000, **body)) as client:
                eventually(lambda: server.model.num_admitted == 5)
                self.leaves(server, client, 4, num_blocks=4)

    def test_in_the_middle_of_its_questions(self, server: LiveServer, runner: SteppedRunner) -> None:
        questions = [{"type": "predicate", "instructions": str(number)} for number in range(20)]
        with Leaving(server, "/v1/decisions", {"input": "hello", "questions": questions}) as client:
            runner.permits.release(2)
            # How many of the second wave are in the step that is held up depends on when they came.
            eventually(lambda: runner.num_steps == 2 and server.snapshot.num_running + server.snapshot.num_waiting > 0)
            self.leaves(server, client, 0)


def test_others_go_on(endless: LiveServer) -> None:
    with Leaving(endless, *completion(max_tokens=ENDLESS, stream=True)) as stays:
        with Leaving(endless, *completion(max_tokens=ENDLESS, stream=True)) as leaves:
            assert leaves.read() and stays.read()
        eventually(lambda: endless.model.num_admitted == 1)
        before = endless.snapshot.num_generation_tokens
        for _ in range(20):
            assert stays.read()
        eventually(lambda: endless.snapshot.num_generation_tokens > before + 5)
    assert_serves_on(endless)


def test_many_at_once(serve: Serve) -> None:
    server = serve(FakeLoader(context_length=2 * ENDLESS), max_num_seqs=4)
    clients = [Leaving(server, *REQUESTS[index % len(REQUESTS)]) for index in range(27)]
    eventually(lambda: server.model.num_admitted == 3 * sum(map(num_of, REQUESTS)))
    for client in clients:
        client.leave()
    assert_serves_on(server)


def test_before_the_body_is_there(endless: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", endless.port)) as client:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        client.sendall(head)
        time.sleep(0.05)
    assert_serves_on(endless)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_request_leaves_no_coroutine(
    endless: LiveServer, monkeypatch: pytest.MonkeyPatch, path: str, stream: bool
) -> None:
    """Python would warn in the log, at each such request, of a coroutine that was never awaited."""
    warnings: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: warnings.append(str(unraisable.exc_value)))
    messages = [{"role": "user", "content": "a"}]
    body = {"model": MODEL, "stop_token_ids": [999], "stream": stream} | ({"messages": messages} if "chat" in path else {})
    assert endless.http.post(path, json=body).status_code == 400
    gc.collect()
    assert warnings == []


def test_it_is_counted_and_logged(endless: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tfoai.access")
    assert endless.http.post("/v1/completions", json={"model": MODEL, "prompt": "a", "max_tokens": 1}).status_code == 200
    with Leaving(endless, *completion(max_tokens=ENDLESS)):
        eventually(lambda: endless.snapshot.num_running == 1)
    with Leaving(endless, *chat(stream=True)) as client:
        assert client.read()
    eventually(endless.is_idle)

    def text() -> str:
        return endless.http.get("/metrics").text

    eventually(lambda: f'tfoai_client_disconnects_total{{model="{MODEL}"}} 2.0' in text())
    assert f'tfoai_requests_total{{finish_reason="abort",model="{MODEL}",operation="text_completion"}} 1.0' in text()
    assert f'tfoai_requests_total{{finish_reason="abort",model="{MODEL}",operation="chat"}} 1.0' in text()
    lines = [vars(record) for record in caplog.records if record.name == "tfoai.access"]
    assert [line.get("disconnected") for line in lines if "completion_tokens" in line] == [None, True, True]
