"""A running server follows its mounted files: tokens and models change under load, and no request notices."""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.mounts import mount
from tests.support.process import ServerProcess
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.e2e


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


class Load:
    """Requests without a pause, half of them streams; `answers` has the outcomes."""

    def __init__(self, url: str, token: str) -> None:
        self.answers: list[str] = []
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(stream,)) for stream in (False, True)]
        for thread in self._threads:
            thread.start()

    def _run(self, stream: bool) -> None:
        body = {"model": "m", "prompt": "x", "max_tokens": 20, "stream": stream, "ignore_eos": True}
        with httpx.Client(timeout=30, headers=self._headers) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(f"{self._url}/v1/completions", json=body)
                    whole = answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text
                    self.answers.append("ok" if answer.status_code == 200 and (whole or not stream) else answer.text)
                except httpx.HTTPError as error:
                    self.answers.append(repr(error))

    def stop(self) -> list[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
        return self.answers


def test_tokens_and_models_follow_the_files(tmp_path: Path) -> None:
    paths = {kind: save_tiny(kind, tmp_path / kind) for kind in ("opt", "gpt2")}

    def config(kind: str, **more: Any) -> dict[str, str]:
        models = {"m": {"NAME": str(paths[kind]), "TYPE": "CausalLM", "MODEL_DEVICE": "cpu"}}
        keys = {"PORT": 0, "METRICS_PORT": 0, "DRAIN_DELAY": 0, "RELOAD_INTERVAL": 0.1, "BEARER_TOKENS_DIR": str(tokens)}
        return {"config.json": json.dumps({"MODELS": models, **keys, **more})}

    tokens = mount(tmp_path / "tokens", {"alice": "sk-canary-1\n", "load": "sk-canary-load"})
    file = mount(tmp_path / "config", config("opt")) / "config.json"
    server = ServerProcess(file)
    try:
        server.wait_until_ready()

        def status(token: str) -> int:
            return httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code

        def metric(line: str) -> bool:
            return line in httpx.get(f"{server.metrics_url}/metrics").text

        assert status("sk-canary-1") == 200 and status("sk-canary-2") == 401
        # The metrics have moved to their port, where nobody needs a token; probes are on both.
        assert httpx.get(f"{server.url}/metrics", headers={"Authorization": "Bearer sk-canary-1"}).status_code == 404
        for path in ("/livez", "/readyz", "/startupz"):
            assert httpx.get(server.url + path).status_code == httpx.get(server.metrics_url + path).status_code == 200
        assert httpx.get(f"{server.metrics_url}/v1/models").status_code == 404

        load = Load(server.url, "sk-canary-load")
        mount(tokens, {"alice": "sk-canary-2", "load": "sk-canary-load"})
        until(lambda: status("sk-canary-2") == 200)
        assert status("sk-canary-1") == 401
        mount(tokens, {"alice": "sk canary", "load": "sk-canary-load"})
        until(lambda: metric('tfoai_config_last_reload_successful{source="tokens"} 0.0'))
        assert status("sk-canary-2") == 200
        mount(tokens, {"alice": "sk-canary-3", "load": "sk-canary-load"})
        until(lambda: status("sk-canary-3") == 200)

        mount(file.parent, config("gpt2", PORT=1))
        until(lambda: metric(f'source="{paths["gpt2"]}"'))
        assert metric("tfoai_config_restart_required 1.0")
        mount(file.parent, {"config.json": "{"})
        until(lambda: metric('tfoai_config_last_reload_successful{source="config"} 0.0'))
        assert metric(f'source="{paths["gpt2"]}"')
        mount(file.parent, config("opt"))
        until(lambda: metric(f'source="{paths["opt"]}"'))
        assert metric('tfoai_config_last_reload_successful{source="config"} 1.0')
        until(lambda: sum(event["msg"] == "model.removed" for event in server.events()) == 2)

        server.process.send_signal(signal.SIGHUP)
        until(lambda: sum(event["msg"] == "config.reloaded" for event in server.events()) == 3)
        answers = load.stop()
        assert len(answers) > 4 and set(answers) == {"ok"}, set(answers)
        assert server.stop() == 0
        assert "canary" not in server.log
        events = server.events()
        (failed,) = [event for event in events if event["msg"] == "config.reload_failed"]
        assert "invalid JSON" in failed["error"]
        assert [event["changed"] for event in events if event["msg"] == "tokens.reloaded"] == ["alice", "alice"]
        assert {event["client"] for event in events if event["msg"] == "request.finished" and event["status"] == 200} == {
            "alice", "load",
        }  # fmt: skip
    finally:
        server.kill()
