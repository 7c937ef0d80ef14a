"""A steady load on the API, open loop: requests start by the clock, whatever the others do. Every failure is kept.

The requests are short, so that one pod on half of a slow machine can bear them while the other is away. Each has an id of its
own, by which the server's log tells what became of it.
"""

import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

COMPLETION = {"model": "tfoai-demo", "prompt": "The port", "max_tokens": 8}
CHAT = {"model": "tfoai-demo", "messages": [{"role": "user", "content": "What is tfoai?"}], "stream": True, "max_tokens": 12}


@dataclass(frozen=True)
class Failure:
    """`is_cut`: the answer began, with status 200, and stopped short of its end."""

    request_id: str
    when: str
    what: str
    is_cut: bool = False

    def __str__(self) -> str:
        return f"{self.when} {self.request_id} {self.what}"


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
    failures: list[Failure] = field(default_factory=list)

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
        request_id = f"load-{uuid.uuid4().hex}"
        headers = {**self.headers, "Authorization": f"Bearer {self.token}", "X-Request-Id": request_id}
        is_cut = False
        try:
            problem, is_cut = self._chat(headers) if is_stream else (self._complete(headers), False)
        except httpx.HTTPError as error:
            problem = repr(error)
        with self._lock:
            self.done += 1
            self.streams += is_stream
            self.slowest = max(self.slowest, time.monotonic() - started)
            if problem:
                self.failures.append(Failure(request_id, time.strftime("%X"), problem, is_cut))

    def _complete(self, headers: dict[str, str]) -> str:
        answer = self._client.post("/v1/completions", json=COMPLETION, headers=headers)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text[:200]}"
        choice = answer.json()["choices"][0]
        return "" if choice["text"] and choice["finish_reason"] in ("stop", "length") else f"no answer: {choice}"

    def _chat(self, headers: dict[str, str]) -> tuple[str, bool]:
        events: list[str] = []
        with self._client.stream("POST", "/v1/chat/completions", json=CHAT, headers=headers) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code} {answer.read()[:200]!r}", False
            try:
                events += [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
            except httpx.RemoteProtocolError as error:
                return f"a stream was cut: {error!r}", True
        if not events or events[-1] != "[DONE]":
            return f"a stream was cut after {len(events)} events: {events[-1:]}", True
        return next((event for event in events if "error" in json.loads(event if event != "[DONE]" else "{}")), ""), False
