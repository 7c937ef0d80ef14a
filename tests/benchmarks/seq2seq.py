"""Owns the figures of encoder-decoder models: all sequences in one forward, beside one forward for each, in alternation.

`python -m tests.benchmarks.seq2seq [--rounds 3]`. Engine only, without HTTP; both ways on one T5-shaped model.
"""

import argparse
import platform
import statistics
import time

import torch
import transformers
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from app.engine.cpus import limit_threads
from app.engine.generation import merged_generation_config
from app.engine.linear import quicken
from app.engine.runner import Runner
from app.engine.sampler import BatchSampler
from app.engine.scheduler import Scheduler
from app.engine.seq2seq import verify_seq2seq
from app.engine.sequence import SamplingParams, Sequence
from app.engine.sequential import SequentialRunner
from app.engine.step import Stepper

VOCAB_SIZE, SOURCE_TOKENS, OUTPUT_TOKENS = 8_192, 64, 64


def make_model() -> PreTrainedModel:
    """Return a T5 of 29 M parameters, six layers on each side."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCAB_SIZE, d_model=384, d_kv=64, d_ff=1_536, num_layers=6, num_heads=6, decoder_start_token_id=0
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def rate(runner: Runner, streams: int, turn: int) -> float:
    """Return output tokens per second of so many sequences that come in one step after the other."""
    scheduler = Scheduler(max_num_seqs=streams, max_num_batched_tokens=2_048, chunked_prefill=False)
    stepper = Stepper(runner, BatchSampler(), scheduler)
    generator = torch.Generator().manual_seed(turn)
    start = time.perf_counter()
    for number in range(streams):
        length = int(torch.randint(SOURCE_TOKENS // 2, 3 * SOURCE_TOKENS // 2, (1,), generator=generator))
        ids = torch.randint(1, VOCAB_SIZE, (length,), generator=generator).tolist()
        scheduler.add(Sequence(number, ids, SamplingParams(max_tokens=OUTPUT_TOKENS), decoder_start_ids=[0]))
        stepper.step()
    while scheduler.has_work:
        stepper.step()
    return streams * OUTPUT_TOKENS / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    limit_threads()
    model = make_model()
    config = merged_generation_config(model, {}, "GENERATE_CONFIG")
    print(f"machine: {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"T5-shaped, {model.num_parameters() / 1e6:.1f} M parameters, float32, linear layers by {quicken(model)}")
    ways: dict[str, Runner] = {
        "one forward for all": verify_seq2seq(model, config, [0]),
        "one for each": SequentialRunner(model, config),
    }
    for streams in (1, 8, 32):
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, runner in ways.items():
                rates[name].append(rate(runner, streams, turn))
        medians = {name: statistics.median(found[1:]) for name, found in rates.items()}  # the first round warms up
        for name, found in rates.items():
            print(f"  {streams:3} streams  {name:20} {medians[name]:7.1f} tok/s ({min(found[1:]):.1f}-{max(found[1:]):.1f})")
        print(f"  {'':12} ratio {medians['one forward for all'] / medians['one for each']:.2f}x", flush=True)


if __name__ == "__main__":
    main()
