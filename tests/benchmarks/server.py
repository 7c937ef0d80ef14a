"""Owns `make bench`: tfoai beside `transformers serve`, plain and with continuous batching, over HTTP, in alternation.

`python -m tests.benchmarks.server [--rounds N] [--model 29M|0.2M|all] [--streams 1,8,32]`. All servers run on the same random
weights; whoever has no turn is stopped (SIGSTOP), so that it costs the others nothing. Ratios are of medians over the rounds.
"""

import argparse
import asyncio
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import torch
import transformers

from tests.benchmarks.load import Load, Target, closed_loop, quantile, stream
from tests.benchmarks.models import SHAPES, make_model, words
from tests.support.process import ServerProcess, free_port, serving

PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS_PER_STREAM = 64, 64, 2
PREFIX_TOKENS, LONG_PROMPT_TOKENS = 1_000, 3_000
PEERS = {
    "transformers serve": [],
    "transformers serve, continuous batching": ["--continuous-batching", "--attn-implementation", "sdpa"],
}
OURS = "tfoai"


class Contender:
    """A running server that can be put to sleep."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], target: Target) -> None:
        self.name, self.process, self.target = name, process, target

    @contextmanager
    def awake(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGSTOP)


@contextmanager
def peer(name: str, arguments: list[str], model: Path, log: Path) -> Iterator[Contender]:
    """Run `transformers serve` on a free port until the block ends."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        str(model),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), *arguments],
            stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended:\n{log.read_text()}")
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield Contender(name, process, Target(url, str(model)))
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@contextmanager
def contenders(name: str, directory: Path) -> Iterator[list[Contender]]:
    """Run tfoai and its peers on one model, each asleep."""
    source = directory / name
    model = make_model(name, source)
    print(f"\nmodel {name}: Qwen3-shaped, {model.num_parameters() / 1e6:.1f} M parameters, float32", flush=True)
    settings = {"NAME": str(source), "TYPE": "CausalLM", "MODEL_DEVICE": "cpu"}
    with ExitStack() as stack:
        server: ServerProcess = stack.enter_context(serving({"MODELS": {"m": settings}}, directory))
        server.wait_until_ready()
        (loaded,) = [event for event in server.events() if event.get("linear")]
        print(f"tfoai: {loaded['runner']} runner, linear layers (one row, more rows) by {loaded['linear']}", flush=True)
        running = [Contender(OURS, server.process, Target(server.url, "m"))]
        running += [stack.enter_context(peer(n, args, source, directory / f"{len(n)}.log")) for n, args in PEERS.items()]
        for contender in running:
            asyncio.run(closed_loop(contender.target, 2, 1, prompts(name, 10**6), 8))  # warm-up
            contender.process.send_signal(signal.SIGSTOP)
        yield running


def prompts(name: str, seed: int, count: int = PROMPT_TOKENS) -> Callable[[int], str]:
    """Return a function from the number of a request to a prompt that no other round has."""
    vocab_size: int = SHAPES[name]["vocab_size"]
    return lambda index: words(seed + index, count, vocab_size)


def alternate(running: list[Contender], rounds: int, work: Callable[[Contender, int], Load]) -> dict[str, list[Load]]:
    """Let each contender do each round's work, one after the other."""
    results: dict[str, list[Load]] = {contender.name: [] for contender in running}
    for turn in range(rounds):
        for contender in running:
            with contender.awake():
                results[contender.name].append(work(contender, turn))
    return results


def report(title: str, results: dict[str, list[Load]]) -> None:
    """Print medians of the rounds, the spread of the rates, and how far ahead tfoai is."""
    ours = statistics.median(load.rate for load in results[OURS])
    print(f"{title}\n  {'':42}{'tok/s':>8} {'(min-max)':>15} {'TTFT p50/p95 ms':>18} {'ITL p50/p99 ms':>17} {'tfoai is':>9}")
    for name, loads in results.items():
        rates = [load.rate for load in loads]
        whole = Load()
        for load in loads:
            whole.add(load)
        first = f"{quantile(whole.first, 0.5) * 1e3:.0f} / {quantile(whole.first, 0.95) * 1e3:.0f}"
        between = f"{quantile(whole.between, 0.5) * 1e3:.1f} / {quantile(whole.between, 0.99) * 1e3:.1f}"
        ratio = "" if name == OURS else f"{ours / statistics.median(rates):.2f}x"
        spread = f"({min(rates):.1f}-{max(rates):.1f})"
        print(f"  {name:42}{statistics.median(rates):>8.1f} {spread:>15} {first:>18} {between:>17} {ratio:>9}", flush=True)


def throughput(name: str, running: list[Contender], streams: int, rounds: int) -> None:
    """Prompts that share nothing."""

    def work(contender: Contender, turn: int) -> Load:
        prompt = prompts(name, 10_000 * (turn + 1) + 100 * streams)
        return asyncio.run(closed_loop(contender.target, streams, REQUESTS_PER_STREAM, prompt, OUTPUT_TOKENS))

    report(f"{streams} streams, {PROMPT_TOKENS} tokens in, {OUTPUT_TOKENS} out", alternate(running, rounds, work))


def shared_prefix(name: str, running: list[Contender], rounds: int) -> None:
    """Requests that begin with the same long text, such as a system prompt."""
    streams = 8

    def work(contender: Contender, turn: int) -> Load:
        prefix = prompts(name, 7_000_000 + turn, PREFIX_TOKENS)(0)
        ends = prompts(name, 8_000_000 + 1_000 * turn, 16)
        return asyncio.run(
            closed_loop(contender.target, streams, REQUESTS_PER_STREAM, lambda index: f"{prefix} {ends(index)}", 16)
        )

    report(f"{streams} streams, a shared prefix of {PREFIX_TOKENS} tokens + 16 in, 16 out", alternate(running, rounds, work))


def long_prompt_beside(name: str, running: list[Contender], rounds: int) -> None:
    """Streams that run while a long prompt comes in: how much longer is their worst wait between tokens?"""
    streams = 8

    def work(contender: Contender, turn: int, disturbed: bool) -> Load:
        async def load_of_both() -> Load:
            prompt = prompts(name, 9_000_000 + 10_000 * turn + 1_000 * disturbed)
            steady = asyncio.ensure_future(closed_loop(contender.target, streams, 1, prompt, 128))
            if disturbed:
                await asyncio.sleep(0.8)
                await stream(contender.target, prompts(name, 9_900_000 + turn, LONG_PROMPT_TOKENS)(0), 4, Load())
            return await steady

        return asyncio.run(load_of_both())

    quiet: list[Load] = []
    disturbed: list[Load] = []
    with running[0].awake():
        for turn in range(rounds):
            quiet.append(work(running[0], turn, False))
            disturbed.append(work(running[0], turn, True))
    print(f"tfoai, {streams} streams of 128 tokens while a prompt of {LONG_PROMPT_TOKENS} tokens comes in")
    worst = []
    for label, loads in (("without", quiet), ("with", disturbed)):
        p99 = statistics.median(quantile(load.between, 0.99) for load in loads)
        worst.append(p99)
        most = max(max(load.between) for load in loads)
        middle = statistics.median(quantile(load.between, 0.5) for load in loads)
        print(f"  {label:8} ITL p50 {middle * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, longest {most * 1e3:.1f} ms")
    print(f"  ITL p99 is {worst[1] / worst[0]:.2f}x", flush=True)


def endurance(name: str, ours: Contender, requests: int) -> None:
    """32 streams before and after many requests: does anything grow?"""
    streams, figures = 32, []
    with ours.awake():
        for phase in ("before", "after"):
            if phase == "after":
                prompt = prompts(name, 20_000_000, 20)
                asyncio.run(closed_loop(ours.target, streams, requests // streams, prompt, 6))
            loads = [
                asyncio.run(
                    closed_loop(ours.target, streams, REQUESTS_PER_STREAM, prompts(name, 30_000_000 + 1_000 * turn), 64)
                )
                for turn in range(6)
            ]
            rate = statistics.median(load.rate for load in loads[1:])
            resident = psutil.Process(ours.process.pid).memory_info().rss / 2**20
            figures.append((rate, resident))
            print(f"tfoai {phase} {requests} requests: 32 streams {rate:.0f} tok/s, resident {resident:.0f} MB", flush=True)
        text = httpx.get(f"{ours.target.url}/metrics").text
    used = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith("tfoai_kv_cache_usage_ratio{")]
    (before, megabytes), (after, megabytes_after) = figures
    print(f"  time per token x{before / after:.2f}, resident {megabytes_after - megabytes:+.0f} MB, KV memory in use {used}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--streams", default="1,8,32")
    arguments = parser.parse_args()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"machine: {os.cpu_count()} cores, {platform.machine()}, {versions}")
    for name in SHAPES if arguments.model == "all" else [arguments.model]:
        with tempfile.TemporaryDirectory() as directory, contenders(name, Path(directory)) as running:
            for streams in map(int, arguments.streams.split(",")):
                throughput(name, running, streams, arguments.rounds)
            if name == "0.2M":
                endurance(name, running[0], 10_000)
            else:
                shared_prefix(name, running, arguments.rounds)
                long_prompt_beside(name, running, arguments.rounds)


if __name__ == "__main__":
    main()
