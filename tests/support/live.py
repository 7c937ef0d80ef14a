"""A real server on a free port in a thread of the test process, with fakes behind it."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from app.api.app import create_app
from app.config import Config, ModelSettings, ModelType
from app.engine.engine import EngineSnapshot
from app.engine.runner import ForwardOutput
from app.engine.scheduler import ScheduledSequence
from app.metrics import Metrics
from app.registry import Registry, ServedModel
from app.server import uvicorn_config
from tests.support.fakes import FakeLoader, FakeRunner

MODEL = "fake/model"
TIMEOUT = 10.0


def make_config(
    *, type: ModelType = ModelType.CAUSAL_LM, max_num_seqs: int = 8, names: tuple[str, ...] = (MODEL,), **more: Any
) -> Config:
    models = {name: ModelSettings(name=name, type=type, max_num_seqs=max_num_seqs) for name in names}
    return Config(models=models, **more)


class SlowRunner(FakeRunner):
    """Slow enough that a reader on the event loop gets each token by itself."""

    def forward(self, batch: Sequence[ScheduledSequence]) -> ForwardOutput:
        time.sleep(0.005)
        return super().forward(batch)


class _Uvicorn(uvicorn.Server):
    async def main_loop(self) -> None:
        """Look for the end more often than every 0.1 s: the tests start a server for nearly each of them."""
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 100
            await asyncio.sleep(0.01)


class LiveServer:
    """Talk to it with `http` (httpx); look behind it with `registry`, `model` and `loader`."""

    def __init__(self, config: Config, loader: FakeLoader) -> None:
        self.config = config
        self.loader = loader
        self.registry = Registry(config, load=loader)
        self.metrics = Metrics(config.metrics_aliases)
        self.app = create_app(config, self.registry, self.metrics)
        self.load_errors: list[Exception] = []
        # With its protocol named, as from getaddrinfo: asyncio switches off Nagle's delays (40 ms a request) only then.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        settings = uvicorn_config(self.app, config, self.metrics)
        settings.timeout_graceful_shutdown = 1
        self._uvicorn = _Uvicorn(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="live-server", daemon=True)
        token = (config.bearer_tokens or (None,))[0]
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # `trust_env` would send the requests through the proxy of whoever runs the tests; `verify` would take 30 ms to read
        # certificates that plain HTTP does not need.
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=False, verify=False)

    @property
    def model(self) -> ServedModel:
        return next(iter(self.registry.models.values()))

    @property
    def snapshot(self) -> EngineSnapshot:
        return self.model.any_loaded.engine.snapshot()

    def _run(self) -> None:
        # The loop that the server has in production too.
        with asyncio.Runner(loop_factory=self._uvicorn.config.get_loop_factory()) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.registry.start(self.load_errors.append)
        await self._uvicorn.serve(sockets=[self._socket])

    def start(self, *, wait_ready: bool) -> None:
        self._thread.start()
        eventually(lambda: self._uvicorn.started)
        if wait_ready:
            eventually(lambda: self.registry.is_ready)

    def stop(self) -> None:
        for gate in (self.loader.gate, self.loader.runner.gate):
            if gate is not None:
                gate.set()
        self.http.close()
        self._uvicorn.should_exit = True
        # A model that was still loading when the test ended: its engine is there only afterwards.
        if self.registry._thread is not None:
            self.registry._thread.join(TIMEOUT)
        self.registry.stop()

    def join(self) -> None:
        """Wait for the end of a server that was stopped; uvicorn takes 0.1 s for it, so nobody waits for each one."""
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), "the server does not stop"
        self._socket.close()

    def on_loop(self, function: Callable[[], Any]) -> None:
        """Run something that belongs to the event loop there, and wait for it."""
        assert self._loop is not None
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(TIMEOUT)

    def complete(self, prompt: Any = "hello", **body: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json={"model": self.model.name, "prompt": prompt, **body})

    def chat(self, messages: Any = None, **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "hello"}] if messages is None else messages
        return self.http.post("/v1/chat/completions", json={"model": self.model.name, "messages": messages, **body})

    def is_idle(self) -> bool:
        snapshot = self.snapshot
        return (snapshot.num_running, snapshot.num_waiting, self.model.num_admitted) == (0, 0, 0)


@contextmanager
def live_server(
    loader: FakeLoader | None = None,
    *,
    runner: FakeRunner | None = None,
    wait_ready: bool = True,
    **config: Any,
) -> Iterator[LiveServer]:
    loader = loader or FakeLoader(runner=runner or FakeRunner())
    server = LiveServer(make_config(**config), loader)
    server.start(wait_ready=wait_ready)
    try:
        yield server
    finally:
        server.stop()
        _stopped.append(server)


_stopped: list[LiveServer] = []


def join_stopped() -> None:
    while _stopped:
        _stopped.pop().join()


def eventually(condition: Callable[[], bool], *, timeout: float = TIMEOUT) -> None:
    """Wait until `condition` holds; fail if it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the JSON of each event of a whole event stream; check its framing to the byte."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    body = response.content
    assert b"\r" not in body
    assert body.endswith(b"\n\n")
    events = body.removesuffix(b"\n\n").split(b"\n\n")
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events), events
    assert events[-1] == b"data: [DONE]"
    return [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]


def openai_error(body: dict[str, Any]) -> dict[str, Any]:
    """Check an error of Anthropic's; return the OpenAI error that says the same."""
    assert list(body) == ["type", "error", "request_id"] and body["type"] == "error"
    error = body["error"]
    assert {"type", "message"} <= set(error) <= {"type", "message", "details"}
    (kind,) = (openai for openai, types in _ANTHROPIC_TYPES.items() if error["type"] in types)
    details = error.get("details", {"error_code": None})
    assert details and set(details) <= {"error_code", "param"}
    code = details.get("error_code")
    if code == "thread_unsupported_request":  # the one word for it that clients look for
        code = "unsupported_parameter"
    return {"message": error["message"], "type": kind, "param": details.get("param"), "code": code}


# What stands for them in Anthropic's errors.
_ANTHROPIC_TYPES = {
    "invalid_request_error": {
        *("invalid_request_error", "authentication_error", "permission_error", "not_found_error", "request_too_large")
    },
    "rate_limit_error": {"rate_limit_error"},
    "server_error": {"api_error"},
    "service_unavailable": {"overloaded_error"},
}


def assert_error(response: httpx.Response, status: int, **expected: Any) -> dict[str, Any]:
    """Check for an OpenAI error object with exactly its four keys; return it.

    Below /v1/messages it is Anthropic's, and is returned as the OpenAI error that says the same.
    """
    assert response.status_code == status, response.text
    assert response.headers["content-type"].partition(";")[0] == "application/json", response.headers
    body = response.json()
    if response.request.url.path.startswith("/v1/messages"):
        assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
        body = {"error": openai_error(body)}
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str) and error["type"]
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert {key: error[key] for key in expected} == expected
    return error
