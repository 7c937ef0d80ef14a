"""Owns `make bench-gpu`: tfoai's engine on a CUDA device beside transformers' own continuous batching and beside the memory.

`python -m tests.benchmarks.gpu [--shapes 0.6B,8B] [--batches 1,32,256] [--rounds 3]`. Models of random bfloat16 weights are
made on the device. Printed for each shape and batch: greedy tokens against plain forwards, output tokens per second of both
engines and their ratio, and the decode step beside its floor: the time in which the device can read weights, keys and
values, by a measured copy. `--device cpu --shapes tiny` runs the same on a CPU, to see that the script works.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from app.engine.cpus import limit_threads
from app.engine.kv_cache import BlockLedger
from app.engine.linear import quicken
from app.engine.memory import kv_cache_blocks
from app.engine.paged import PagedRunner
from app.engine.sampler import BatchSampler
from app.engine.scheduler import Scheduler
from app.engine.sequence import SamplingParams, Sequence
from app.engine.step import Stepper
from app.engine.verify import verify
from app.engine.warmup import largest_step_bytes

SHAPES = {
    "0.6B": {"hidden_size": 1_024, "intermediate_size": 3_072, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4_096, "intermediate_size": 12_288, "num_hidden_layers": 36, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": False},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "tie_word_embeddings": True},
}  # fmt: skip
MAX_NUM_BATCHED_TOKENS = 8_192


@dataclass
class Round:
    """One run of a batch; seconds."""

    seconds: float
    decode_steps: list[float] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)


def make_model(shape: str, device: torch.device) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPES[shape], max_position_embeddings=4_096, eos_token_id=None, bos_token_id=None, pad_token_id=0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device, default_dtype(dtype):
        return Qwen3ForCausalLM(config).eval()


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def prompts(batch: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocab_size, (batch, length), generator=generator).tolist()


class Engine:
    """Runner, scheduler and sampler as a server has them, driven step by step in this thread."""

    def __init__(self, model: PreTrainedModel, batch: int, length: int) -> None:
        verified = verify(model)
        block_size = verified.attention.block_size
        vocab_size: int = model.config.get_text_config().vocab_size
        num_blocks = kv_cache_blocks(
            model.device,
            verified.memory.bytes_per_block,
            max_num_seqs=batch,
            blocks_per_seq=-(-length // block_size) + 1,
            fraction=0.8,
            step_bytes=largest_step_bytes(
                model, verified, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS, max_num_seqs=batch, vocab_size=vocab_size
            ),
        )
        self.runner = PagedRunner(model, verified.attention, num_blocks, verified.memory)
        self.runner.record_decode_steps(batch, length)
        self.scheduler = Scheduler(
            max_num_seqs=batch,
            max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
            chunked_prefill=True,
            ledger=BlockLedger(num_blocks, block_size, prefix_cache=False),
        )
        self.stepper = Stepper(self.runner, BatchSampler(), self.scheduler)

    def run(self, ids: list[list[int]], output: int) -> Round:
        sequences = [Sequence(index, prompt, SamplingParams(max_tokens=output)) for index, prompt in enumerate(ids)]
        for seq in sequences:
            self.scheduler.add(seq)
        synchronize(self.runner)
        start = time.perf_counter()
        round_ = Round(0.0)
        while self.scheduler.has_work:
            decodes = not self.scheduler.waiting and all(seq.num_new_tokens == 1 for seq in self.scheduler.running)
            begun = time.perf_counter()
            # Each step ends with reading its tokens, so the device is done with it.
            self.stepper.step()
            if decodes:
                round_.decode_steps.append(time.perf_counter() - begun)
        round_.seconds = time.perf_counter() - start
        round_.token_ids = [seq.generation_ids for seq in sequences]
        return round_


def synchronize(runner: PagedRunner) -> None:
    if any(keys.is_cuda for keys, _ in runner.memory.layers.values()):
        torch.cuda.synchronize()


def manager_seconds(model: PreTrainedModel, ids: list[list[int]], output: int) -> float:
    """Return how long transformers' ContinuousBatchingManager takes, with what it chooses for itself."""
    config = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0)
    start = time.perf_counter()
    results = model.generate_batch(ids, generation_config=config, persistent_manager=True)
    seconds = time.perf_counter() - start
    lengths = {len(result.generated_tokens) for result in results.values()}
    if lengths != {output}:
        raise RuntimeError(f"transformers' manager gave {lengths} tokens, not {output}")
    return seconds


@torch.inference_mode()
def greedy_share(model: PreTrainedModel, ids: list[list[int]], generated: list[list[int]]) -> float:
    """Return the share of tokens that a plain forward over the same text finds best, within the rounding of the dtype.

    In half precision two ways to compute one logit differ in the last bits, and random models have close races: a token counts
    if its logit is within 2 % of the row's range of the best one. In float32 it must be the best.
    """
    slack = 0.02 if model.dtype != torch.float32 else 1e-5
    good = total = 0
    for prompt, answer in zip(ids[:4], generated[:4], strict=True):
        text = torch.tensor([prompt + answer], device=model.device)
        logits = model(input_ids=text, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        best = logits.max(dim=-1).values
        own = logits.gather(-1, torch.tensor(answer, device=model.device).unsqueeze(-1)).squeeze(-1)
        good += int((own >= best - slack * (best - logits.min(dim=-1).values)).sum())
        total += len(answer)
    return good / total


def bandwidth(device: torch.device) -> float:
    """Return the bytes per second that a copy reads and writes."""
    source = torch.empty((2**31 if device.type == "cuda" else 2**27) // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def step_bytes(model: PreTrainedModel, runner: PagedRunner, batch: int, length: float) -> float:
    """Return what a decode step has to read: all weights but an embedding that is only looked up, and keys and values."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if not model.config.get_text_config().tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.nbytes
    return weights + batch * length * runner.memory.bytes_per_block / runner.attention.block_size


def measure(shape: str, batches: list[int], rounds: int, device: torch.device, prompt: int, output: int) -> None:
    """Print one shape's lines."""
    model = make_model(shape, device)
    model_way = model.config._attn_implementation
    quicken(model)
    speed = bandwidth(device)
    vocab_size = SHAPES[shape]["vocab_size"]
    print(f"\n{shape}: {model.num_parameters() / 1e9:.2f} B parameters, {model.dtype}, copy {speed / 1e9:.0f} GB/s", flush=True)
    for batch in batches:
        engine = Engine(model, batch, prompt + output)
        way = engine.runner.attention
        engine.run(prompts(batch, 16, vocab_size, 1), 4)  # warm-up
        ours = [engine.run(prompts(batch, prompt, vocab_size, 10 + number), output) for number in range(rounds)]
        step = statistics.median(seconds for round_ in ours for seconds in round_.decode_steps)
        floor = step_bytes(model, engine.runner, batch, prompt + output / 2) / speed
        graphs = engine.runner._recorded is not None
        del engine
        model.set_attn_implementation(model_way)
        share = greedy_share(model, prompts(batch, prompt, vocab_size, 10), ours[0].token_ids)
        theirs: list[float] = []
        if device.type == "cuda":
            torch.cuda.empty_cache()
            manager_seconds(model, prompts(batch, 16, vocab_size, 1), 4)  # warm-up
            theirs = [manager_seconds(model, prompts(batch, prompt, vocab_size, 10 + n), output) for n in range(rounds)]
            model.destroy_cached_continuous_batching_manager()
            model.set_attn_implementation(model_way)
            torch.cuda.empty_cache()
        rate = batch * output / statistics.median(round_.seconds for round_ in ours)
        beside = (
            f"{rate / (batch * output / statistics.median(theirs)):.2f}x transformers' manager"
            if theirs
            else "no manager on a CPU"
        )
        print(
            f"batch {batch:>3}: {way.name} attention, blocks of {way.block_size}, graphs {graphs}; {rate:.0f} tok/s, {beside}; "
            f"decode step {step * 1e3:.2f} ms, floor {floor * 1e3:.2f} ms = {100 * floor / step:.0f} %; "
            f"greedy {100 * share:.2f} %",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="0.6B,8B")
    parser.add_argument("--batches", default="1,32,256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--output", type=int, default=128)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    limit_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    for shape in arguments.shapes.split(","):
        measure(
            shape,
            [int(batch) for batch in arguments.batches.split(",")],
            arguments.rounds,
            device,
            arguments.prompt,
            arguments.output,
        )


if __name__ == "__main__":
    main()
