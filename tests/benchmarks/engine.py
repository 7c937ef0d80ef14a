"""Owns the engine's own figures, without HTTP: decode steps beside their floor, by batch and by context, and after long use.

`python -m tests.benchmarks.engine [--requests 10000]`. The floor of a step is the time of the model's linear layers alone for
as many rows, computed as the engine computes them; above it are attention, the small operators between, and the engine.
"""

import argparse
import gc
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from app.engine.cpus import limit_threads
from app.engine.kv_cache import BlockLedger
from app.engine.linear import quicken
from app.engine.paged import PagedRunner
from app.engine.sampler import BatchSampler
from app.engine.scheduler import Scheduler
from app.engine.sequence import SamplingParams, Sequence
from app.engine.step import Stepper
from app.engine.verify import verify
from tests.benchmarks.models import SHAPES, make_model

NUM_BLOCKS = 4_096
STEPS = 40


class Engine:
    """A server's engine, driven step by step in this thread."""

    def __init__(self, model: PreTrainedModel, max_num_seqs: int = 64) -> None:
        verified = verify(model)
        self.ledger = BlockLedger(NUM_BLOCKS, verified.attention.block_size)
        self.scheduler = Scheduler(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=2_048, chunked_prefill=True, ledger=self.ledger
        )
        runner = PagedRunner(model, verified.attention, NUM_BLOCKS, verified.memory)
        runner.record_decode_steps(max_num_seqs, 4_096)
        self.stepper = Stepper(runner, BatchSampler(), self.scheduler)
        self._count = 0

    def add(self, length: int, max_tokens: int, vocab_size: int) -> None:
        self._count += 1
        generator = torch.Generator().manual_seed(self._count)
        ids = torch.randint(1, vocab_size, (length,), generator=generator).tolist()
        self.scheduler.add(Sequence(self._count, ids, SamplingParams(max_tokens=max_tokens)))

    def decode_step(self, batch: int, context: int, vocab_size: int) -> float:
        """Return the median seconds of a step of `batch` sequences with about `context` tokens each."""
        for _ in range(batch):
            self.add(context, STEPS + 20, vocab_size)
        while self.scheduler.waiting or any(seq.num_new_tokens > 1 for seq in self.scheduler.running):
            self.stepper.step()
        times = []
        for _ in range(STEPS):
            start = time.perf_counter()
            self.stepper.step()
            times.append(time.perf_counter() - start)
        while self.scheduler.has_work:
            self.stepper.step()
        return statistics.median(times)


@torch.inference_mode()
def linear_floor(model: PreTrainedModel, rows: int) -> float:
    """Return the median seconds of all linear layers alone."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    inputs = {layer.in_features: torch.randn(rows, layer.in_features) for layer in layers}
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        for layer in layers:
            layer(inputs[layer.in_features])
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def resident_mb() -> float:
    """Return the megabytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def steps(name: str, model: PreTrainedModel) -> None:
    vocab_size = SHAPES[name]["vocab_size"]
    engine = Engine(model)
    print(f"{'batch':>6} {'context':>8} {'step ms':>8} {'floor ms':>9} {'tok/s':>8}")
    for batch, context in ((1, 64), (8, 64), (32, 64), (8, 256), (8, 512), (8, 1_024), (8, 2_048)):
        seconds = engine.decode_step(batch, context, vocab_size)
        floor = linear_floor(model, batch)
        print(f"{batch:>6} {context:>8} {seconds * 1e3:>8.2f} {floor * 1e3:>9.2f} {batch / seconds:>8.0f}", flush=True)


def long_use(name: str, model: PreTrainedModel, requests: int) -> None:
    """Compare a decode step of 32 streams, memory and blocks before and after many requests."""
    vocab_size = SHAPES[name]["vocab_size"]
    engine = Engine(model, max_num_seqs=32)
    engine.decode_step(32, 64, vocab_size)
    figures = []
    for phase in ("before", "after"):
        if phase == "after":
            done = 0
            while done < requests:
                while len(engine.scheduler.waiting) < 8 and done < requests:
                    engine.add(20 + done % 50, 4 + done % 9, vocab_size)
                    done += 1
                engine.stepper.step()
            while engine.scheduler.has_work:
                engine.stepper.step()
        gc.collect()
        # The smallest of a few medians: what else runs on the machine only ever adds.
        seconds = min(engine.decode_step(32, 64, vocab_size) for _ in range(5))
        engine.ledger.check_integrity()
        available = engine.ledger.num_available
        figures.append((seconds, resident_mb()))
        print(
            f"{phase} {requests} requests: step of 32 streams {seconds * 1e3:.2f} ms, resident {resident_mb():.0f} MB, "
            f"{available} of {NUM_BLOCKS} blocks available",
            flush=True,
        )
    (before, megabytes), (after, megabytes_after) = figures
    print(f"step x{after / before:.2f}, resident {megabytes_after - megabytes:+.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    arguments = parser.parse_args()
    threads = limit_threads()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"machine: {os.cpu_count()} cores, {threads} threads, {platform.machine()}, {versions}")
    with tempfile.TemporaryDirectory() as directory:
        for name in SHAPES:
            model = make_model(name, Path(directory) / name)
            print(f"\nmodel {name}, linear layers by {quicken(model)}")
            steps(name, model)
        long_use(name, make_model(name, Path(directory) / name), arguments.requests)


if __name__ == "__main__":
    main()
