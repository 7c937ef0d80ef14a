"""A steady load on the API, open loop: requests start by the clock, whatever the others do. Every failure is kept.

The requests are short, so that one pod on half of a slow machine can bear them while the other is away.
"""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

COMPLETION = {"model": "tfoai-demo", "prompt": "The port", "max_tokens": 8}
CHAT = {"model": "tfoai-demo", "messages": [{"role": "user", "content": "What is tfoai?"}], "stream": True, "max_tokens": 12}


@dataclass
class Load:
    """Every second request is a stream. `token` may be replaced while it runs."""

    url: str
    headers: dict[str, str]
    token: str
    per_second: float = 20
    done: int = 0
    streams: int = 0
    slowest: float = 0
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=20)
        self._client = httpx.Client(base_url=self.url, timeout=60, limits=limits)
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> "Load":
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        with ThreadPoolExecutor(200) as pool:
            start, number = time.monotonic(), 0
            while not self._stop.wait(max(0.0, start + number / self.per_second - time.monotonic())):
                pool.submit(self._request, number % 2 == 1)
                number += 1

    def _request(self, is_stream: bool) -> None:
        started = time.monotonic()
        try:
            problem = self._chat() if is_stream else self._complete()
        except httpx.HTTPError as error:
            problem = repr(error)
        with self._lock:
            self.done += 1
            self.streams += is_stream
            self.slowest = max(self.slowest, time.monotonic() - started)
            if problem:
                self.failures.append(f"{time.strftime('%X')} {problem}")

    @property
    def _headers(self) -> dict[str, str]:
        return {**self.headers, "Authorization": f"Bearer {self.token}"}

    def _complete(self) -> str:
        answer = self._client.post("/v1/completions", json=COMPLETION, headers=self._headers)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text[:200]}"
        choice = answer.json()["choices"][0]
        return "" if choice["text"] and choice["finish_reason"] in ("stop", "length") else f"no answer: {choice}"

    def _chat(self) -> str:
        with self._client.stream("POST", "/v1/chat/completions", json=CHAT, headers=self._headers) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code} {answer.read()[:200]!r}"
            events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        if not events or events[-1] != "[DONE]":
            return f"a stream was cut after {len(events)} events: {events[-1:]}"
        return next((event for event in events if "error" in json.loads(event if event != "[DONE]" else "{}")), "")
