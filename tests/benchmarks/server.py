"""Output tokens per second over HTTP beside plain `model.generate`, in alternation, on the same random model.

`python -m tests.benchmarks.server [--rounds N] [--streams 1,8,32]`. Closed loop: a stream sends its next request when its last
one has ended. Figures for docs/benchmarks.md are the printed medians, with the printed machine and versions.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
import transformers

from tests.support.process import serving
from tests.support.tiny import BOS, EOS, PAD, byte_tokenizer

PROMPT_TOKENS = 64
OUTPUT_TOKENS = 64
REQUESTS_PER_STREAM = 2


@dataclass
class Load:
    """What one round measured; times in seconds."""

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def make_model(directory: Path) -> None:
    """A Qwen3-shaped model of random parameters, whose every token has text, with a tokenizer of one token per byte."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=259, hidden_size=384, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=2, head_dim=64,
        intermediate_size=1024, max_position_embeddings=4096, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config)
    print(f"model: Qwen3-shaped, {model.num_parameters() / 1e6:.0f} M parameters, float32")
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)


def prompt(index: int) -> list[int]:
    generator = torch.Generator().manual_seed(index)
    return torch.randint(3, 259, (PROMPT_TOKENS,), generator=generator).tolist()


async def one_request(client: httpx.AsyncClient, index: int, load: Load) -> None:
    body = {
        "model": "m",
        "prompt": prompt(index),
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "logprobs": 0,
    }
    start = last = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now = time.perf_counter()
            # A chunk may hold several tokens, or text that waited for the rest of a character: logprobs count them.
            tokens = len(json.loads(line[6:])["choices"][0]["logprobs"]["tokens"])
            if last == start:
                load.first.append(now - start)
            else:
                load.between += [(now - last) / max(tokens, 1)] * tokens
            load.tokens += tokens
            last = now


async def closed_loop(url: str, streams: int) -> Load:
    load = Load()
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=streams)) as client:

        async def stream(number: int) -> None:
            for turn in range(REQUESTS_PER_STREAM):
                await one_request(client, number * REQUESTS_PER_STREAM + turn, load)

        start = time.perf_counter()
        await asyncio.gather(*(stream(number) for number in range(streams)))
        load.seconds = time.perf_counter() - start
    return load


def plain_generate(model: transformers.PreTrainedModel, requests: int) -> Load:
    """The same requests, one after the other, without a server."""
    load = Load()
    start = time.perf_counter()
    with torch.inference_mode():
        for index in range(requests):
            ids = torch.tensor([prompt(index)])
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=OUTPUT_TOKENS, do_sample=False, eos_token_id=None
            )
            load.tokens += OUTPUT_TOKENS
    load.seconds = time.perf_counter() - start
    return load


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", default="1,8,32")
    arguments = parser.parse_args()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"machine: {os.cpu_count()} cores, {platform.machine()}, {versions}")
    with tempfile.TemporaryDirectory() as name:
        directory, source = Path(name), Path(name) / "model"
        make_model(source)
        model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
        with serving({"MODELS": {"m": {"NAME": str(source), "TYPE": "CausalLM", "MODEL_DEVICE": "cpu"}}}, directory) as server:
            server.wait_until_ready()
            asyncio.run(closed_loop(server.url, 1))  # warm-up
            plain_generate(model, 1)
            print(f"{'streams':>7} {'tfoai tok/s':>12} {'generate tok/s':>15} {'ratio':>6} "
                  f"{'TTFT p50/p95 ms':>17} {'ITL p50/p99 ms':>16}")  # fmt: skip
            for streams in map(int, arguments.streams.split(",")):
                ours: list[Load] = []
                plain: list[Load] = []
                for _ in range(arguments.rounds):
                    ours.append(asyncio.run(closed_loop(server.url, streams)))
                    plain.append(plain_generate(model, 4))
                rate = statistics.median(load.rate for load in ours)
                base = statistics.median(load.rate for load in plain)
                first = [value * 1000 for load in ours for value in load.first]
                between = [value * 1000 for load in ours for value in load.between]
                print(f"{streams:>7} {rate:>12.1f} {base:>15.1f} {rate / base:>6.2f} "
                      f"{quantile(first, 0.5):>8.0f}/{quantile(first, 0.95):<8.0f} "
                      f"{quantile(between, 0.5):>7.1f}/{quantile(between, 0.99):<8.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
