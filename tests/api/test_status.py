"""Owns the tests of the probes: every state of a model and of the server against every probe."""

import concurrent.futures
import threading
import time
from typing import Any

import pytest

from app.api.completions import SHORT_PROMPTS
from tests.api.conftest import Serve
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.live import MODEL, LiveServer, assert_error, events_of, eventually

PROBES = ("/livez", "/readyz", "/startupz", "/health")


class DyingRunner(FakeRunner):
    """Kills its engine: no sequence can be blamed for what `forward` does not raise as an Exception."""

    def release(self, seq_id: int) -> None:
        raise SystemError("the device is gone")


def loading(serve: Serve) -> LiveServer:
    return serve(FakeLoader(gate=threading.Event()), wait_ready=False)


def ready(serve: Serve) -> LiveServer:
    return serve()


def leaving(serve: Serve) -> LiveServer:
    server = serve()
    server.on_loop(server.registry.leave)
    return server


def draining(serve: Serve) -> LiveServer:
    server = serve()
    server.on_loop(server.registry.drain)
    return server


def dead(serve: Serve) -> LiveServer:
    server = serve(runner=DyingRunner(answer="a"))
    server.complete()
    eventually(lambda: not server.registry.is_alive)
    return server


@pytest.mark.parametrize(
    ("make", "state", "codes"),
    [
        (loading, "loading", (200, 503, 503, 503)),
        (ready, "ready", (200, 200, 200, 200)),
        (leaving, "ready", (200, 503, 200, 503)),
        (draining, "draining", (200, 503, 200, 503)),
        (dead, "dead", (503, 503, 200, 503)),
    ],
    ids=["loading", "ready", "leaving", "draining", "dead"],
)
def test_states_and_probes(serve: Serve, make: object, state: str, codes: tuple[int, ...]) -> None:
    server = make(serve)  # type: ignore[operator]
    for path, code in zip(PROBES, codes, strict=True):
        response = server.http.get(path)
        assert response.status_code == code, path
        body = response.json()
        assert body["status"] == ("ok" if code == 200 else "unavailable")
        assert body["models"][MODEL]["state"] == state
        assert body["draining"] is (make in (leaving, draining))


@pytest.mark.parametrize(
    ("make", "code"),
    [(loading, "model_loading"), (draining, "draining"), (dead, "engine_dead")],
    ids=["loading", "draining", "dead"],
)
def test_requests_are_refused_until_ready(serve: Serve, make: object, code: str) -> None:
    server = make(serve)  # type: ignore[operator]
    for response in (server.complete(), server.chat(), server.complete(stream=True), server.chat(stream=True)):
        assert_error(response, 503, code=code, type="service_unavailable")
        assert 0 < int(response.headers["retry-after"]) <= 120
        assert int(response.headers["retry-after-ms"]) > 0
        # So that a load balancer's kept connection does not bring the next request here.
        assert (response.headers.get("connection") == "close") is (code == "draining")


def test_a_server_that_leaves_serves_on_and_gives_up_its_connections(serve: Serve) -> None:
    server = leaving(serve)
    for response in (server.complete(max_tokens=3), server.complete(max_tokens=3, stream=True), server.http.get("/v1/models")):
        assert response.status_code == 200
        assert response.headers["connection"] == "close"


def test_an_engine_without_progress_fails_liveness_and_an_idle_one_does_not(serve: Serve) -> None:
    server = serve(runner=FakeRunner(answer="a", gate=threading.Event()), stall_timeout=0.2)
    time.sleep(0.4)
    assert server.http.get("/livez").status_code == 200, "idle"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        request = pool.submit(server.complete)
        try:
            eventually(lambda: server.snapshot.num_running == 1)
            assert server.http.get("/livez").status_code == 200, "just begun, after a long rest"
            eventually(lambda: server.http.get("/livez").status_code == 503)
            assert server.http.get("/readyz").status_code == 200, "not what readiness is about"
        finally:
            server.loader.runner.gate.set()
        assert request.result().status_code == 200
    assert server.http.get("/livez").status_code == 200


def test_progress_is_shown(serve: Serve) -> None:
    server = loading(serve)
    eventually(lambda: server.model.progress > 0)
    assert server.http.get("/readyz").json()["models"] == {MODEL: {"state": "loading", "progress": 0.25}}
    assert "25%" in server.complete().json()["error"]["message"]
    server.loader.gate.set()
    eventually(lambda: server.http.get("/readyz").status_code == 200)
    assert server.http.get("/readyz").json()["models"] == {MODEL: {"state": "ready", "progress": 1.0}}


def test_one_of_two_models_is_not_enough(serve: Serve) -> None:
    """Ready means that every model can answer, so no request meets a replica that can not."""
    first_loaded = threading.Event()

    class SlowSecond(FakeLoader):
        def __call__(self, name, *args):  # type: ignore[no-untyped-def]
            if name == "second":
                first_loaded.wait(10)
            return super().__call__(name, *args)

    server = serve(SlowSecond(), names=("first", "second"), wait_ready=False)
    try:
        eventually(lambda: server.model.loaded_or_none is not None)
        assert [server.http.get(path).status_code for path in PROBES] == [200, 503, 503, 503]
        # The one that is there serves already.
        assert server.complete().status_code == 200
    finally:
        first_loaded.set()
    eventually(lambda: server.http.get("/readyz").status_code == 200)


def test_overload_fails_no_probe(serve: Serve) -> None:
    """Otherwise all replicas would leave the Service at the same moment."""
    server = serve(runner=FakeRunner(gate=threading.Event()), max_num_seqs=1, max_queue=1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        requests = [pool.submit(server.complete, max_tokens=1) for _ in range(2)]
        try:
            eventually(lambda: server.model.num_admitted == 2)
            assert server.complete().status_code == 429
            assert [server.http.get(path).status_code for path in PROBES] == [200] * 4
        finally:
            server.loader.runner.gate.set()
        assert [request.result().status_code for request in requests] == [200, 200]


@pytest.mark.parametrize(
    "body", [{}, {"stream": True}, {"echo": True, "logprobs": 1}, {"best_of": 2, "temperature": 0}], ids=repr
)
def test_draining_lets_running_requests_finish(serve: Serve, body: dict[str, Any]) -> None:
    server = serve(runner=FakeRunner(answer="answer", gate=threading.Event()))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        request = pool.submit(server.complete, **body)
        try:
            eventually(lambda: server.snapshot.num_running > 0)
            server.on_loop(server.registry.drain)
            assert server.complete().status_code == 503
        finally:
            server.loader.runner.gate.set()
        response = request.result()
    if "stream" in body:
        assert "".join(event["choices"][0]["text"] for event in events_of(response)) == "answer"
    else:
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["text"].endswith("answer")


def test_draining_lets_admitted_requests_finish(serve: Serve) -> None:
    """Tokenizing takes a moment; who was let in before the drain is not sent away after it."""
    server = serve(FakeLoader(runner=FakeRunner(answer="answer"), context_length=4000))
    tokenizer, gate, entered = server.model.loaded.tokenizer, threading.Event(), threading.Event()
    real = tokenizer.encode

    def slow(text: str, **options: bool) -> list[int]:
        entered.set()
        gate.wait(10)
        return real(text, **options)

    tokenizer.encode = slow  # type: ignore[method-assign]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        # Long enough to be encoded off the event loop.
        request = pool.submit(server.complete, "x" * 2 * SHORT_PROMPTS)
        try:
            assert entered.wait(10)
            server.on_loop(server.registry.drain)
        finally:
            gate.set()
        assert request.result().status_code == 200, request.result().text
