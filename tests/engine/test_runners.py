"""The engine with real models: greedy and beam search output equals `model.generate`, token for token."""

import asyncio
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from app.engine.beam import BeamSearch
from app.engine.defaults import GenerationDefaults, SamplingRequest
from app.engine.engine import EngineThread
from app.engine.generation import ProcessorFactory, decoder_start_ids, generation_defaults, merged_generation_config
from app.engine.sampler import BatchSampler
from app.engine.scheduler import Scheduler
from app.engine.sequence import FinishReason, SamplingParams, StepOutput
from app.engine.sequential import SequentialRunner
from tests.support.tiny import EOS, VOCAB_SIZE, tiny_model

CAUSAL = ["llama", "qwen3", "gpt2", "opt", "mamba", "falcon", "bloom"]
SEQ2SEQ = ["t5", "bart", "pegasus"]
MAX_TOKENS = 24

# The options of the old project's example for a summarising model.
SUMMARY = {
    "min_length": 8, "no_repeat_ngram_size": 3, "early_stopping": True, "repetition_penalty": 3.5, "length_penalty": 0.2,
    "num_beams": 4,
}  # fmt: skip


def prompts(seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (1, 5, 17, 60)]


class Served:
    """A model with its engine, and `generate` beside it."""

    def __init__(self, model: PreTrainedModel, generate_config: dict[str, Any] | None = None, max_num_seqs: int = 8) -> None:
        self.model = model
        self.generate_config = generate_config or {}
        config = merged_generation_config(model, self.generate_config, "GENERATE_CONFIG")
        self.defaults: GenerationDefaults = generation_defaults(config)
        self.start_ids = decoder_start_ids(model, config, "GENERATE_CONFIG")
        factory = ProcessorFactory(model, config)
        self.runner = SequentialRunner(model, config)
        self.engine = EngineThread(
            self.runner,
            BatchSampler(factory, for_all=factory.needed),
            Scheduler(max_num_seqs=max_num_seqs, max_num_batched_tokens=64, chunked_prefill=False),
            decoder_start_ids=self.start_ids,
        )

    async def run(self, prompt: list[int], params: SamplingParams) -> StepOutput:
        stream = self.engine.submit(prompt, params)
        whole = StepOutput(stream.seq_id, [], logprobs=[], prompt_logprobs=[])
        async for output in stream:
            whole.token_ids += output.token_ids
            whole.logprobs += output.logprobs or []
            whole.prompt_logprobs += output.prompt_logprobs or []
            whole.finish_reason, whole.error = output.finish_reason, output.error
        return whole

    async def greedy(self, prompt: list[int], max_tokens: int = MAX_TOKENS) -> list[int]:
        output = await self.run(prompt, self.defaults.resolve(SamplingRequest(), max_tokens=max_tokens))
        assert output.finish_reason in (FinishReason.STOP, FinishReason.LENGTH), output.error
        return output.token_ids

    def expected(self, prompt: list[int], max_tokens: int = MAX_TOKENS) -> list[int]:
        with torch.inference_mode():
            ids = self.model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=max_tokens,
                do_sample=False,
                **self.generate_config,
            )[0].tolist()
        return ids[len(prompt) if self.start_ids is None else len(self.start_ids) :]


@pytest.mark.parametrize("kind", CAUSAL + SEQ2SEQ)
async def test_greedy_equals_generate_with_all_requests_at_once(kind: str) -> None:
    served = Served(tiny_model(kind))
    got = await asyncio.gather(*(served.greedy(prompt) for prompt in prompts()))
    assert got == [served.expected(prompt) for prompt in prompts()]
    assert len({tuple(ids) for ids in got}) > 1, "the prompts must matter"
    served.engine.stop()


@pytest.mark.parametrize(
    "options",
    [
        SUMMARY,
        {"num_beams": 3},
        {"num_beams": 3, "length_penalty": 2.0},
        {"num_beams": 2, "early_stopping": "never", "length_penalty": -1.0},
        {"num_beams": 4, "early_stopping": "never", "length_penalty": 1.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart", "pegasus"])
async def test_beam_search_equals_generate_with_all_requests_at_once(kind: str, options: dict[str, Any]) -> None:
    if kind in SEQ2SEQ and options is SUMMARY:
        options = options | {"encoder_no_repeat_ngram_size": 3}
    served = Served(tiny_model(kind, seed=3), options)
    got = await asyncio.gather(*(served.greedy(prompt) for prompt in prompts()))
    assert got == [served.expected(prompt) for prompt in prompts()]
    served.engine.stop()


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.7},
        {"min_new_tokens": 10},
        {"bad_words_ids": [[7], [8, 9]]},
        {"forced_eos_token_id": EOS},
        {"suppress_tokens": [10, 11, 12], "begin_suppress_tokens": [13]},
        {"exponential_decay_length_penalty": (5, 1.5)},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["llama", "bart"])
async def test_generation_options_equal_generate(kind: str, options: dict[str, Any]) -> None:
    served = Served(tiny_model(kind, seed=5), options)
    got = await asyncio.gather(*(served.greedy(prompt) for prompt in prompts()))
    assert got == [served.expected(prompt) for prompt in prompts()]
    served.engine.stop()


async def test_logprobs_are_those_of_a_plain_forward() -> None:
    served = Served(tiny_model("llama"))
    prompt = prompts()[2]
    params = SamplingParams(max_tokens=6, logprobs=3, prompt_logprobs=2, stop_token_ids=frozenset({EOS}))
    output = await served.run(prompt, params)
    with torch.inference_mode():
        logits = served.model(torch.tensor([prompt + output.token_ids])).logits[0].float()
    expected = logits.log_softmax(-1)
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(prompt)
    for position, entry in enumerate(output.prompt_logprobs[1:] + output.logprobs):
        target = (prompt + output.token_ids)[position + 1]
        assert entry is not None
        assert entry.token_id == target
        assert entry.logprob == pytest.approx(expected[position, target].item(), abs=1e-4)
        assert len(entry.top) == (2 if position < len(prompt) - 1 else 3)
        best = expected[position].topk(len(entry.top))
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    served.engine.stop()


async def test_a_seed_gives_the_same_tokens_alone_and_among_neighbours() -> None:
    served = Served(tiny_model("qwen3"))
    params = SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, seed=11)
    alone = (await served.run(prompts()[1], params)).token_ids
    others = [SamplingParams(max_tokens=20, temperature=1.3, seed=seed, top_k=seed) for seed in range(6)]
    outputs = await asyncio.gather(
        *(served.run(prompts()[2], other) for other in others[:3]),
        served.run(prompts()[1], params),
        *(served.run(prompts()[3], other) for other in others[3:]),
    )
    assert outputs[3].token_ids == alone
    assert len({tuple(output.token_ids) for output in outputs}) == len(outputs)
    served.engine.stop()


async def test_a_sequence_that_fails_twice_leaves_the_others_their_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner raises for one sequence in mid-answer: it gets an error, its neighbours what they would get alone."""
    served = Served(tiny_model("llama"))
    bad = prompts()[2]
    original = SequentialRunner._forward_one

    def evil(self: SequentialRunner, seq: Any) -> torch.Tensor:
        if list(seq.prompt_ids) == bad and seq.num_generation_tokens == 3:
            raise RuntimeError("a poisoned sequence")
        return original(self, seq)

    monkeypatch.setattr(SequentialRunner, "_forward_one", evil)
    params = served.defaults.resolve(SamplingRequest(), max_tokens=MAX_TOKENS)
    outputs = await asyncio.gather(*(served.run(prompt, params) for prompt in prompts()))
    assert outputs[2].finish_reason is FinishReason.ERROR
    for index in (0, 1, 3):
        assert outputs[index].token_ids == served.expected(prompts()[index])
    assert (await served.greedy(prompts()[0])) == served.expected(prompts()[0])
    served.engine.stop()


async def test_a_lost_cache_is_computed_again() -> None:
    """`forward` is repeatable: without its states the runner starts over, for beams too."""
    for options in ({}, {"num_beams": 3}):
        served = Served(tiny_model("bart", seed=2), options)
        runner = served.runner
        original = runner.forward

        def forgetful(batch: Any, runner: Any = runner, original: Any = original) -> Any:
            if runner.calls % 3 == 2:
                runner._states.clear()
            runner.calls += 1
            return original(batch)

        runner.calls = 0
        runner.forward = forgetful
        assert await served.greedy(prompts()[2]) == served.expected(prompts()[2])
        assert runner.calls > 4
        served.engine.stop()


async def test_states_are_dropped_when_sequences_end() -> None:
    served = Served(tiny_model("gpt2"))
    await asyncio.gather(*(served.greedy(prompt) for prompt in prompts()))
    stream = served.engine.submit(prompts()[0], SamplingParams(max_tokens=400))
    await anext(stream)
    stream.close()
    for _ in range(200):
        if not served.runner._states:
            break
        await asyncio.sleep(0.01)
    assert served.runner._states == {}
    served.engine.stop()


def test_beam_search_with_fewer_candidates_than_beams() -> None:
    """A vocabulary smaller than the beams must not raise."""
    from app.engine.sequence import Sequence

    seq = Sequence(0, [1], SamplingParams(max_tokens=3, num_beams=4, stop_token_ids=frozenset({2})))
    search = BeamSearch(seq, [])
    while not search.is_done:
        search.advance(torch.zeros(4, 3))
    assert 1 <= len(search.result) <= 3
