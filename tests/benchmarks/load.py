"""Owns the load of the server benchmarks: a closed loop of streaming completions and what a reader of them sees.

The client is plain asyncio, because it shares the machine's cores with the server it measures: it looks for the ends of events
and parses only the last one. It works with every server that sends `usage` in its last event.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Load:
    """What one round measured; times in seconds. `between` has the time since the stream's last token for each later one."""

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Output tokens per second, all streams together."""
        return self.tokens / self.seconds

    def add(self, other: "Load") -> None:
        """Take in another round's tokens and times."""
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.first += other.first
        self.between += other.between


def quantile(values: list[float], share: float) -> float:
    """Return the value below which `share` of the values lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


@dataclass(frozen=True)
class Target:
    """A server under test."""

    url: str
    model: str

    def request(self, prompt: str, max_tokens: int) -> bytes:
        """Return the bytes of one streaming completion request, connection and all."""
        body = json.dumps(
            {
                "model": self.model,
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": 0,
                "stream": True,
                # Peers send usage unasked; those that follow OpenAI want to be asked.
                "stream_options": {"include_usage": True},
            }
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {urlsplit(self.url).netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body


async def stream(target: Target, prompt: str, max_tokens: int, load: Load) -> None:
    """Send one request and note when its tokens came; raise RuntimeError if the answer is not a whole stream."""
    address = urlsplit(target.url)
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**20)
    writer.write(target.request(prompt, max_tokens))
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"{head.decode()} {(await reader.read()).decode()}")
    tail, last, seen = b"", start, 0
    while chunk := await reader.read(2**16):
        now = time.perf_counter()
        # Every token of these models is a word of its own, so an event with text is a token; the texts are "w..." or " w...".
        tokens = chunk.count(b'"text":"w') + chunk.count(b'"text":" w')
        if tokens and not seen:
            load.first.append(now - start)
            tokens -= 1
            seen, last = 1, now
        if tokens:
            load.between += [(now - last) / tokens] * tokens
            seen, last = seen + tokens, now
        tail = (tail + chunk)[-4_096:]
    writer.close()
    usages = [json.loads(line[6:]).get("usage") for line in tail.splitlines()[1:] if line.startswith(b"data: {")]
    usage = next((usage for usage in reversed(usages) if usage), None)
    if usage is None or usage["completion_tokens"] != max_tokens:
        raise RuntimeError(f"not a whole answer: {usage} of {max_tokens} tokens, the end is {tail[-600:]!r}")
    load.tokens += max_tokens


async def closed_loop(
    target: Target, streams: int, requests_per_stream: int, prompt: Callable[[int], str], max_tokens: int
) -> Load:
    """Keep `streams` requests under way until each stream has sent its share."""
    load = Load()

    async def one(number: int) -> None:
        for turn in range(requests_per_stream):
            await stream(target, prompt(number * requests_per_stream + turn), max_tokens, load)

    start = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(streams)))
    load.seconds = time.perf_counter() - start
    return load
