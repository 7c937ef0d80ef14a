"""A real server process, as a user starts it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """Return a port that nothing listens on now, for programs that can not choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class ServerProcess:
    """`python -m app CONFIG` on a free port; `url` and `metrics_url` are known once it listens."""

    def __init__(self, config: Path, *, env: dict[str, str] | None = None) -> None:
        self.started = time.monotonic()
        self._log = config.with_suffix(".log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", str(config)],
                cwd=ROOT,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.url = ""
        self.metrics_url = ""

    @property
    def log(self) -> str:
        return self._log.read_text()

    def events(self) -> list[dict[str, Any]]:
        """The log lines; each must be a JSON object."""
        return [json.loads(line) for line in self.log.splitlines()]

    def wait_until_listening(self, seconds: float = 30) -> float:
        """Return the seconds it took from the start of the process."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log
            for line in self.log.splitlines():
                if '"server.listening"' in line:
                    event = json.loads(line)
                    self.url, self.metrics_url = event["url"], event.get("metrics_url", "")
                    return time.monotonic() - self.started
            time.sleep(0.01)
        raise AssertionError(f"it does not listen:\n{self.log}")

    def wait_until_ready(self, seconds: float = 120) -> None:
        if not self.url:
            self.wait_until_listening()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log
            if httpx.get(f"{self.url}/readyz").status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"it does not get ready:\n{self.log}")

    def stop(self, seconds: float = 30) -> int:
        """Send SIGTERM; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=seconds)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def serving(config: dict[str, Any], directory: Path, **kwargs: Any) -> Iterator[ServerProcess]:
    """Run a server on a free port until the block ends; without a drain delay, unless `config` says otherwise."""
    path = directory / "config.json"
    path.write_text(json.dumps({"PORT": 0, "DRAIN_DELAY": 0, **config}))
    server = ServerProcess(path, **kwargs)
    try:
        yield server
    finally:
        server.kill()
