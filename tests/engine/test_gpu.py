"""The CUDA path, on a CUDA device: kernels, graphs, memory. `make test-gpu` runs these; elsewhere they are skipped."""

import asyncio

import pytest
import torch
from transformers import PreTrainedModel

from app.engine.engine import EngineThread
from app.engine.kv_cache import BlockLedger
from app.engine.memory import kv_cache_blocks
from app.engine.paged import PagedRunner
from app.engine.runner import Sampled
from app.engine.sampler import BatchSampler
from app.engine.scheduler import Scheduler
from app.engine.sequence import SamplingParams, Sequence
from app.engine.varlen import varlen_attention
from app.engine.verify import verify
from app.engine.warmup import largest_step_bytes
from app.text.constraint import Constraint
from app.text.grammar import GrammarCompiler
from app.text.tokenizer import Tokenizer
from tests.benchmarks.gpu import greedy_share
from tests.support.tiny import EOS, VOCAB_SIZE, byte_tokenizer, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
# Head sizes that the flash kernels take; gemma2 has soft-capping and gpt_oss sinks, which they do not.
FLASH = ["llama", "qwen3", "mistral", "phi3", "olmo2", "starcoder2", "granite", "smollm3"]
GATHERED = ["gemma2", "gpt_oss"]


def on_gpu(kind: str, dtype: torch.dtype) -> PreTrainedModel:
    return tiny_model(kind).to(device="cuda", dtype=dtype)


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB_SIZE, (5 + 7 * index,), generator=generator).tolist() for index in range(count)]


async def generate(runner: PagedRunner, ids: list[list[int]], max_tokens: int, num_blocks: int) -> list[list[int]]:
    ledger = BlockLedger(num_blocks, runner.attention.block_size)
    scheduler = Scheduler(max_num_seqs=8, max_num_batched_tokens=64, chunked_prefill=True, ledger=ledger)
    engine = EngineThread(runner, BatchSampler(), scheduler)

    async def one(prompt: list[int]) -> list[int]:
        tokens: list[int] = []
        async for output in engine.submit(prompt, SamplingParams(max_tokens=max_tokens)):
            assert output.error is None
            tokens += output.token_ids
        return tokens

    answers = await asyncio.gather(*(one(prompt) for prompt in ids))
    engine.stop()
    ledger.check_integrity()
    return answers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_there_is_a_block_size_that_the_flash_kernels_take(dtype: torch.dtype) -> None:
    assert varlen_attention(torch.device("cuda"), dtype) is not None


@pytest.mark.parametrize("kind", FLASH + GATHERED)
async def test_greedy_in_half_precision_is_what_plain_forwards_find_best(kind: str) -> None:
    model = on_gpu(kind, torch.bfloat16)
    before = model.config._attn_implementation
    verified = verify(model)
    assert verified.attention.name == ("varlen" if kind in FLASH else "gather")
    runner = PagedRunner(model, verified.attention, 64, verified.memory)
    runner.record_decode_steps(8, 512)
    assert (runner._recorded is not None) == (kind in FLASH)
    answers = await generate(runner, prompts(12), 40, 64)
    model.set_attn_implementation(before)
    assert greedy_share(model, prompts(12), answers) == 1.0


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
async def test_greedy_in_float32_equals_generate(kind: str) -> None:
    model, reference = on_gpu(kind, torch.float32), on_gpu(kind, torch.float32)
    verified = verify(model)
    assert verified.attention.name == "gather"
    answers = await generate(PagedRunner(model, verified.attention, 64, verified.memory), prompts(6), 24, 64)
    for prompt, answer in zip(prompts(6), answers, strict=True):
        ids = torch.tensor([prompt], device="cuda")
        with torch.inference_mode():
            expected = reference.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=None
            )
        assert answer == expected[0, len(prompt) :].tolist()


async def test_graphs_and_plain_steps_give_the_same_tokens() -> None:
    model = on_gpu("qwen3", torch.bfloat16)
    verified = verify(model)
    with_graphs = PagedRunner(model, verified.attention, 64, verified.memory)
    with_graphs.record_decode_steps(8, 512)
    plain = PagedRunner(model, verified.attention, 64, verified.memory)
    assert with_graphs._recorded is not None
    assert await generate(with_graphs, prompts(8), 60, 64) == await generate(plain, prompts(8), 60, 64)


async def test_preemption_with_little_memory() -> None:
    model = on_gpu("llama", torch.bfloat16)
    before = model.config._attn_implementation
    verified = verify(model)
    blocks = max(8, 2 * 512 // verified.attention.block_size)
    runner = PagedRunner(model, verified.attention, blocks, verified.memory)
    runner.record_decode_steps(8, 512)
    answers = await generate(runner, prompts(8), 120, blocks)
    model.set_attn_implementation(before)
    assert greedy_share(model, prompts(8), answers) == 1.0


def test_kv_memory_leaves_room_for_the_largest_step() -> None:
    model = on_gpu("llama", torch.bfloat16)
    verified = verify(model)
    needed = largest_step_bytes(model, verified, max_num_batched_tokens=2048, max_num_seqs=64, vocab_size=VOCAB_SIZE)
    assert needed > 2048 * 32 * 2
    free, _ = torch.cuda.mem_get_info()
    blocks = kv_cache_blocks(
        model.device, verified.memory.bytes_per_block, max_num_seqs=10**9, blocks_per_seq=10**3, fraction=0.9, step_bytes=needed
    )
    assert 0.5 * free < blocks * verified.memory.bytes_per_block < 0.95 * free


def test_masks_are_the_same_on_the_device() -> None:
    grammar = GrammarCompiler(Tokenizer(byte_tokenizer()), VOCAB_SIZE, frozenset({EOS})).compile_here(
        Constraint("json_object", None, "p")
    )
    logits = torch.randn(6, VOCAB_SIZE + 13, generator=torch.Generator().manual_seed(1))

    def draw(device: str) -> list[list[int]]:
        params = SamplingParams(max_tokens=9, temperature=1.0, seed=1, grammar=grammar, stop_token_ids=frozenset({EOS}))
        rows = [Sequence(index, [5], params) for index in range(6)]
        results = BatchSampler().sample(logits.to(device), rows)
        return [result.token_ids for result in results if isinstance(result, Sampled)]

    assert draw("cuda") == draw("cpu") and len(draw("cuda")) == 6
