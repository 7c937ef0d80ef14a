"""The end of the process: not ready, serving on, refusing, finishing, aborting, exit; and what a second signal does."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.process import ServerProcess, serving
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = save_tiny("t5", tmp_path_factory.mktemp("models") / "t5")
    return {"NAME": str(path), "TYPE": "Seq2Seq", "MODEL_DEVICE": "cpu", "MAX_MODEL_LEN": 100_000}


class Stream:
    """A stream that runs in a thread; `lines` has what came so far."""

    def __init__(self, server: ServerProcess, max_tokens: int) -> None:
        self.lines: list[str] = []
        self.error: Exception | None = None
        body = {"model": "m", "prompt": "x", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
        self._thread = threading.Thread(target=self._read, args=(f"{server.url}/v1/completions", body))
        self._thread.start()
        end = time.monotonic() + 30
        while not self.lines:
            assert time.monotonic() < end and self.error is None, self.error
            time.sleep(0.005)

    def _read(self, url: str, body: dict[str, Any]) -> None:
        try:
            with httpx.stream("POST", url, json=body, timeout=60) as response:
                for line in response.iter_lines():
                    if line:
                        self.lines.append(line)
        except Exception as error:
            self.error = error

    @property
    def result(self) -> str:
        """ "finished", "aborted" (with an error event and [DONE]) or "cut"."""
        self._thread.join(timeout=60)
        if self.error is not None or self.lines[-1] != "data: [DONE]":
            return "cut"
        return "aborted" if '"error"' in self.lines[-2] else "finished"


@contextmanager
def ready(model: dict[str, Any], tmp_path: Path, **config: Any) -> Iterator[ServerProcess]:
    with serving({"MODELS": {"m": model}, **config}, tmp_path) as server:
        server.wait_until_ready()
        yield server


def until_status(url: str, status: int) -> httpx.Response:
    end = time.monotonic() + 10
    while (answer := httpx.get(url)).status_code != status:
        assert time.monotonic() < end
        time.sleep(0.01)
    return answer


def complete(server: ServerProcess) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json={"model": "m", "prompt": "x", "max_tokens": 1})


def test_sigterm_serves_on_then_refuses_then_finishes(model: dict[str, Any], tmp_path: Path) -> None:
    with ready(model, tmp_path, DRAIN_DELAY=0.6, DRAIN_TIMEOUT=60, METRICS_PORT=0) as server:
        streams = [Stream(server, 800) for _ in range(2)]
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        until_status(f"{server.url}/readyz", 503)
        assert time.monotonic() - start < 1, "at once"
        # Kubernetes may still send requests for a while: they are served, and their connections given up.
        late = complete(server)
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        streams.append(Stream(server, 800))
        end = time.monotonic() + 10
        while (refused := complete(server)).status_code == 200:
            assert time.monotonic() < end
        assert time.monotonic() - start >= 0.6, "not before the delay is over"
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert refused.headers["connection"] == "close" and int(refused.headers["retry-after"]) > 0
        assert httpx.get(f"{server.url}/livez").status_code == 200
        # The metrics port is there until the end.
        assert 'tfoai_model_state{model="m",state="draining"} 1.0' in httpx.get(f"{server.metrics_url}/metrics").text
        assert [stream.result for stream in streams] == ["finished"] * 3
        assert server.process.wait(timeout=20) == 0
        assert [event["msg"] for event in server.events() if event["msg"].startswith("drain")] == [
            "drain.started",
            "drain.finished",
        ]


def test_what_runs_longer_than_the_drain_timeout_ends_with_an_error_event(model: dict[str, Any], tmp_path: Path) -> None:
    with ready(model, tmp_path, DRAIN_TIMEOUT=0.5) as server:
        streams = [Stream(server, 90_000) for _ in range(2)]
        server.process.send_signal(signal.SIGTERM)
        assert [stream.result for stream in streams] == ["aborted"] * 2
        error = json.loads(streams[0].lines[-2].removeprefix("data: "))["error"]
        assert error["type"] == "service_unavailable"
        assert server.process.wait(timeout=5) == 0


def test_a_websocket_is_told_how_its_turn_ends_before_it_is_closed(model: dict[str, Any], tmp_path: Path) -> None:
    with ready(model, tmp_path, DRAIN_TIMEOUT=0.5) as server:
        url = server.url.replace("http", "ws") + "/v1/responses"
        with connect(url, proxy=None) as idle, connect(url, proxy=None) as websocket:
            body = {"model": "m", "input": "x", "max_output_tokens": 90_000, "ignore_eos": True}
            websocket.send(json.dumps({"type": "response.create", **body}))
            kinds = [json.loads(websocket.recv(timeout=30))["type"]]
            server.process.send_signal(signal.SIGTERM)
            for one in (websocket, idle):
                with suppress(ConnectionClosed):
                    while True:
                        kinds.append(json.loads(one.recv(timeout=30))["type"])
                assert one.close_code == 1012
        assert kinds[0] == "response.created" and kinds[-1] == "response.failed"
        assert server.process.wait(timeout=5) == 0


def test_ctrl_c_has_no_delay_and_a_second_one_no_patience(model: dict[str, Any], tmp_path: Path) -> None:
    with ready(model, tmp_path, DRAIN_DELAY=60, DRAIN_TIMEOUT=60) as server:
        stream = Stream(server, 90_000)
        server.process.send_signal(signal.SIGINT)
        end = time.monotonic() + 10
        while complete(server).status_code != 503:
            assert time.monotonic() < end
        assert server.process.poll() is None
        start = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert stream.result == "aborted"
        assert server.process.wait(timeout=10) == 128 + signal.SIGINT
        assert time.monotonic() - start < 6


def test_a_server_that_still_loads_ends_at_once(model: dict[str, Any], tmp_path: Path) -> None:
    with serving({"MODELS": {"m": model}, "DRAIN_DELAY": 60}, tmp_path) as server:
        server.wait_until_listening()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0
