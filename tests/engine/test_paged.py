"""Paged batches: which architectures run in them, and that their greedy text is `generate`'s whatever happens around it."""

import asyncio
import functools
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from app.engine.engine import EngineThread
from app.engine.kv_cache import BlockLedger
from app.engine.paged import PagedRunner, UnsuitableModelError
from app.engine.sampler import BatchSampler
from app.engine.scheduler import Scheduler
from app.engine.sequence import FinishReason, SamplingParams, StepOutput
from app.engine.verify import verify
from tests.support.tiny import EOS, VOCAB_SIZE, tiny_model

PAGED = [
    "llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt",
    "olmo2", "cohere", "starcoder2", "granite", "smollm3", "stablelm", "gpt_oss",
]  # fmt: skip
NOT_PAGED = ["falcon", "bloom", "mamba", "t5", "bart"]
MAX_TOKENS = 24


@functools.cache
def reference(kind: str) -> PreTrainedModel:
    """The model as transformers runs it; the paged one is another object with the same weights."""
    return tiny_model(kind)


@functools.cache
def expected(kind: str, prompt: tuple[int, ...], max_tokens: int = MAX_TOKENS) -> list[int]:
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        output = reference(kind).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
    return output[0, len(prompt) :].tolist()


def prompts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()) for length in (1, 5, 17, 60)]


class Served:
    def __init__(
        self,
        kind: str,
        *,
        num_blocks: int = 64,
        max_num_batched_tokens: int = 64,
        prefix_cache: bool = True,
        max_num_seqs: int = 8,
    ) -> None:
        model = tiny_model(kind)
        verified = verify(model)
        self.ledger = BlockLedger(num_blocks, verified.attention.block_size, prefix_cache=prefix_cache)
        self.scheduler = Scheduler(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, chunked_prefill=True, ledger=self.ledger
        )
        self.runner = PagedRunner(model, verified.attention, num_blocks, verified.memory)
        self.runner.record_decode_steps(max_num_seqs, 512)
        self.engine = EngineThread(self.runner, BatchSampler(), self.scheduler)

    async def run(self, prompt: tuple[int, ...], *, salt: str = "", **params: Any) -> StepOutput:
        wanted = {"max_tokens": MAX_TOKENS, "stop_token_ids": frozenset({EOS}), **params}
        stream = self.engine.submit(prompt, SamplingParams(**wanted), salt=salt)
        whole = StepOutput(stream.seq_id, [], logprobs=[], prompt_logprobs=[])
        async for output in stream:
            whole.token_ids += output.token_ids
            whole.logprobs += output.logprobs or []
            whole.prompt_logprobs += output.prompt_logprobs or []
            whole.finish_reason, whole.error = output.finish_reason, output.error
            whole.num_cached_tokens = output.num_cached_tokens
        assert whole.finish_reason in (FinishReason.STOP, FinishReason.LENGTH), whole.error
        return whole

    async def idle(self) -> None:
        """Wait for the end; every block must be free or cached then."""
        for _ in range(400):
            if not self.scheduler.has_work:
                break
            await asyncio.sleep(0.01)
        assert not self.scheduler.has_work
        self.ledger.check_integrity()
        assert self.ledger.num_available == self.ledger.num_blocks
        assert self.engine.dead is None
        self.engine.stop()


@pytest.mark.parametrize("kind", PAGED)
async def test_greedy_equals_generate_with_all_requests_at_once(kind: str) -> None:
    served = Served(kind)
    outputs = await asyncio.gather(*(served.run(prompt) for prompt in prompts()))
    assert [output.token_ids for output in outputs] == [expected(kind, prompt) for prompt in prompts()]
    await served.idle()


@pytest.mark.parametrize("kind", NOT_PAGED)
def test_architectures_that_can_not_are_told_apart_and_left_unchanged(kind: str) -> None:
    model = tiny_model(kind)
    before = model.config._attn_implementation
    with pytest.raises(UnsuitableModelError):
        verify(model)
    assert model.config._attn_implementation == before


def test_a_model_whose_logits_would_differ_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.engine import gather

    original = gather.attend_decode
    monkeypatch.setattr(gather, "attend_decode", lambda *args: original(*args) * 1.05)
    with pytest.raises(UnsuitableModelError, match="differ"):
        verify(tiny_model("llama"))


@pytest.mark.parametrize(
    "conditions",
    [
        {"num_blocks": 8},
        {"max_num_batched_tokens": 16, "prefix_cache": False},
        {"num_blocks": 8, "max_num_batched_tokens": 7, "max_num_seqs": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", PAGED)
async def test_nothing_around_a_request_changes_its_text(kind: str, conditions: dict[str, Any]) -> None:
    """Little memory (preemption), chunks of a few tokens, with and without a prefix cache, the same prompt several times, and
    neighbours that leave."""
    served = Served(kind, **conditions)
    kept = [asyncio.ensure_future(served.run(prompt)) for prompt in prompts() * 3]
    for turn in range(4):
        stream = served.engine.submit(prompts()[turn], SamplingParams(max_tokens=400))
        if turn % 2:
            await anext(stream)
        stream.close()
    outputs = await asyncio.gather(*kept)
    assert [output.token_ids for output in outputs] == [expected(kind, prompt) for prompt in prompts()] * 3
    if conditions.get("num_blocks") == 8:
        assert served.scheduler.num_preemptions > 0
    await served.idle()


async def test_neighbours_that_leave_change_nothing() -> None:
    served = Served("qwen3", num_blocks=12)
    kept = [asyncio.ensure_future(served.run(prompt)) for prompt in prompts()]
    for turn in range(12):
        stream = served.engine.submit(prompts()[turn % 4][:-1] or (7,), SamplingParams(max_tokens=400))
        if turn % 2:
            await anext(stream)
        stream.close()
    outputs = await asyncio.gather(*kept)
    assert [output.token_ids for output in outputs] == [expected("qwen3", prompt) for prompt in prompts()]
    await served.idle()


async def test_a_prompt_is_computed_once_for_all_its_choices() -> None:
    served = Served("llama")
    prompt = prompts()[3]
    outputs = await asyncio.gather(*(served.run(prompt) for _ in range(4)))
    assert all(output.token_ids == expected("llama", prompt) for output in outputs)
    assert sorted(output.num_cached_tokens for output in outputs) == [0, 48, 48, 48]
    await served.idle()


async def test_the_prefix_cache_serves_the_same_salt_only() -> None:
    served = Served("llama")
    prompt = prompts()[3]
    for salt, cached in (("a", 0), ("a", 48), ("b", 0), ("b", 48)):
        output = await served.run(prompt, salt=salt)
        assert output.num_cached_tokens == cached
        assert output.token_ids == expected("llama", prompt)
    longer = (*prompt[:33], 5, 6, 7)
    output = await served.run(longer, salt="a")
    assert output.num_cached_tokens == 32
    assert output.token_ids == expected("llama", longer)
    await served.idle()


@pytest.mark.parametrize("conditions", [{}, {"num_blocks": 8, "max_num_batched_tokens": 16}], ids=str)
async def test_prompt_logprobs_are_whole_whatever_happens(conditions: dict[str, Any]) -> None:
    served = Served("llama", **conditions)
    outputs = await asyncio.gather(
        *(served.run(prompt, prompt_logprobs=1, logprobs=1) for prompt in prompts()),
        *(served.run(prompts()[3]) for _ in range(4)),
    )
    for prompt, output in zip(prompts(), outputs[:4], strict=True):
        with torch.inference_mode():
            logprobs = reference("llama")(torch.tensor([[*prompt, *output.token_ids]])).logits[0].log_softmax(-1)
        entries = output.prompt_logprobs + output.logprobs
        assert len(entries) == len(prompt) + len(output.token_ids)
        assert entries[0] is None
        for position, entry in enumerate(entries[1:]):
            target = (*prompt, *output.token_ids)[position + 1]
            assert entry.token_id == target
            assert entry.logprob == pytest.approx(logprobs[position, target].item(), abs=1e-3)
    await served.idle()


async def test_seeded_rows_repeat_alone_and_among_neighbours() -> None:
    served = Served("llama", num_blocks=40)
    alone = (await served.run(prompts()[2], temperature=1.0, seed=5)).token_ids
    outputs = await asyncio.gather(
        *(served.run(prompts()[index % 4], temperature=1.2, seed=index, top_p=0.9) for index in range(8)),
        served.run(prompts()[2], temperature=1.0, seed=5),
    )
    assert outputs[-1].token_ids == alone
    await served.idle()
