"""The engine's thread with a fake runner: admission, streaming, abort, and what happens when things break."""

import asyncio
import threading
import time

import pytest
import torch

from app.engine.engine import EngineDeadError, EngineThread
from app.engine.kv_cache import BlockLedger
from app.engine.sampler import BatchSampler
from app.engine.scheduler import Scheduler
from app.engine.sequence import FinishReason, SamplingParams, Sequence, StepOutput
from tests.support.fakes import FakeRunner, fake_engine
from tests.support.tiny import EOS


def params(max_tokens: int = 5, **kwargs: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, stop_token_ids=frozenset({EOS}), **kwargs)


async def read(engine: EngineThread, prompt: list[int], wanted: SamplingParams) -> StepOutput:
    stream = engine.submit(prompt, wanted)
    whole = StepOutput(stream.seq_id, [], prompt_logprobs=[])
    async for output in stream:
        whole.token_ids += output.token_ids
        whole.prompt_logprobs += output.prompt_logprobs or []
        whole.finish_reason, whole.error = output.finish_reason, output.error
    return whole


async def until(condition: object, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.005)


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def engine(runner: FakeRunner):
    engine = fake_engine(runner)
    yield engine
    engine.stop()


async def test_tokens_arrive_in_order_and_end_with_a_reason(engine: EngineThread) -> None:
    output = await read(engine, [9] * 4, params(5))
    assert output.token_ids == [3 + length for length in range(4, 9)]
    assert output.finish_reason is FinishReason.LENGTH


async def test_a_stop_token_ends_the_sequence_and_is_counted() -> None:
    engine = fake_engine(FakeRunner(answer="ab"))
    output = await read(engine, [9], params(10))
    assert len(output.token_ids) == 3
    assert output.token_ids[-1] == EOS
    assert output.finish_reason is FinishReason.STOP
    engine.stop()


async def test_max_tokens_zero_scores_the_prompt_and_generates_nothing(engine: EngineThread) -> None:
    output = await read(engine, [10, 11, 12], params(0, prompt_logprobs=1))
    assert output.token_ids == []
    assert output.finish_reason is FinishReason.LENGTH
    assert [entry and entry.token_id for entry in output.prompt_logprobs] == [None, 11, 12]


async def test_prompt_logprobs_are_whole_when_the_prompt_is_prefilled_in_chunks() -> None:
    engine = fake_engine(FakeRunner(), max_num_batched_tokens=4)
    prompt = list(range(20, 41))
    output = await read(engine, prompt, params(1, prompt_logprobs=0))
    assert [entry and entry.token_id for entry in output.prompt_logprobs] == [None, *prompt[1:]]
    engine.stop()


async def test_more_sequences_than_slots_all_finish_and_never_run_together(runner: FakeRunner) -> None:
    engine = fake_engine(runner, max_num_seqs=3)
    outputs = await asyncio.gather(*(read(engine, [9] * length, params(4)) for length in range(1, 20)))
    assert [output.token_ids[0] for output in outputs] == [3 + length for length in range(1, 20)]
    assert max(runner.batch_sizes) == 3
    engine.stop()


async def test_sequences_join_and_leave_a_running_batch(engine: EngineThread, runner: FakeRunner) -> None:
    runner.gate = threading.Event()
    long = asyncio.ensure_future(read(engine, [9], params(30)))
    short = [asyncio.ensure_future(read(engine, [9, 9], params(2))) for _ in range(3)]
    await asyncio.sleep(0.05)
    runner.gate.set()
    await asyncio.gather(long, *short)
    assert max(runner.batch_sizes) == 4
    assert runner.batch_sizes[-1] == 1


@pytest.mark.parametrize("when", ["waiting", "running"])
async def test_close_aborts_and_frees(engine: EngineThread, runner: FakeRunner, when: str) -> None:
    done: list[int] = []
    if when == "waiting":
        runner.gate = threading.Event()
        blockers = [engine.submit([9], params(10_000)) for _ in range(8)]
    stream = engine.submit([9], params(10_000), on_done=lambda: done.append(1))
    if when == "running":
        await anext(stream)
    stream.close()
    stream.close()
    if when == "waiting":
        runner.gate.set()
    await until(lambda: done == [1])
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    if when == "waiting":
        for blocker in blockers:
            blocker.close()
    await until(lambda: engine.snapshot().num_running == 0 and engine.snapshot().num_waiting == 0)
    assert stream.seq_id in runner.released
    assert done == [1]


async def test_abort_takes_effect_within_two_steps(engine: EngineThread, runner: FakeRunner) -> None:
    stream = engine.submit([9], params(100_000))
    await anext(stream)
    steps = runner.num_steps
    stream.close()
    await until(lambda: engine.snapshot().num_running == 0)
    # One step may be under way, and those between our reading of the counter and the close.
    assert runner.num_steps - steps < 50
    settled = runner.num_steps
    await asyncio.sleep(0.05)
    assert runner.num_steps == settled


async def test_aborting_a_finished_or_unknown_sequence_does_nothing(engine: EngineThread) -> None:
    stream = engine.submit([9], params(1))
    async for _ in stream:
        pass
    engine.abort(stream.seq_id)
    engine.abort(123456)
    assert (await read(engine, [9], params(2))).finish_reason is FinishReason.LENGTH


async def test_a_slow_reader_gets_everything_in_one_piece(engine: EngineThread) -> None:
    stream = engine.submit([9], params(50, logprobs=0))
    await until(lambda: engine.snapshot().num_running == 0 and engine.snapshot().num_generation_tokens == 50)
    await asyncio.sleep(0.05)
    output = await anext(stream)
    assert len(output.token_ids) == 50
    assert len(output.logprobs) == 50
    assert output.finish_reason is FinishReason.LENGTH


async def test_one_sequence_that_raises_is_the_only_one_that_fails() -> None:
    def raises(seq: Sequence) -> Exception | None:
        return RuntimeError("poison") if seq.prompt_ids == (66,) and seq.num_generation_tokens == 2 else None

    engine = fake_engine(FakeRunner(raises=raises))
    prompts = [[50 + index] * (index + 1) for index in range(4)] + [[66]] + [[60] * 6] * 3
    outputs = await asyncio.gather(*(read(engine, prompt, params(6)) for prompt in prompts))
    solo = fake_engine(FakeRunner())
    for prompt, output in zip(prompts, outputs, strict=True):
        if prompt == [66]:
            assert output.finish_reason is FinishReason.ERROR
            assert "poison" in str(output.error)
        else:
            assert output.token_ids == (await read(solo, prompt, params(6))).token_ids
    assert engine.dead is None
    assert engine.snapshot().step_errors == {"oom": 0, "nan": 0, "exception": 1}
    engine.stop()
    solo.stop()


@pytest.mark.parametrize("error", [RuntimeError("a hiccup"), torch.OutOfMemoryError("a hiccup of memory")], ids=repr)
async def test_a_step_that_fails_once_costs_nobody_anything(error: Exception) -> None:
    failures = [error]
    engine = fake_engine(FakeRunner(raises=lambda seq: failures.pop() if failures and seq.num_generation_tokens == 1 else None))
    outputs = await asyncio.gather(*(read(engine, [9] * 3, params(5)) for _ in range(4)))
    assert {tuple(output.token_ids) for output in outputs} == {(6, 7, 8, 9, 10)}
    engine.stop()


class _BadSampler(BatchSampler):
    """Fails as a whole for one prompt, in sampling or in scoring."""

    def sample(self, logits: torch.Tensor, sequences: list[Sequence], best: torch.Tensor | None = None) -> list[object]:
        if any(seq.prompt_ids == (66,) for seq in sequences):
            raise torch.OutOfMemoryError("too large")
        return super().sample(logits, sequences, best)

    def prompt_logprobs(self, seq: Sequence, logits: torch.Tensor) -> list[object]:
        if seq.prompt_ids == (67,):
            raise torch.OutOfMemoryError("too large")
        return super().prompt_logprobs(seq, logits)


async def test_a_sampler_that_breaks_costs_only_the_culprits() -> None:
    scheduler = Scheduler(max_num_seqs=8, max_num_batched_tokens=256, chunked_prefill=True)
    engine = EngineThread(FakeRunner(), _BadSampler(), scheduler)
    outputs = await asyncio.gather(*(read(engine, [prompt], params(5, prompt_logprobs=0)) for prompt in (9, 66, 67, 9)))
    assert [output.finish_reason for output in outputs] == [
        FinishReason.LENGTH, FinishReason.ERROR, FinishReason.ERROR, FinishReason.LENGTH,
    ]  # fmt: skip
    assert engine.dead is None
    engine.stop()


async def test_nan_fails_its_row_only() -> None:
    engine = fake_engine(FakeRunner(nan_for=lambda seq: seq.prompt_ids == (66,)))
    good, bad = await asyncio.gather(read(engine, [9], params(3)), read(engine, [66], params(3)))
    assert bad.finish_reason is FinishReason.ERROR
    assert bad.token_ids == []
    assert good.finish_reason is FinishReason.LENGTH
    engine.stop()


class _Broken(FakeRunner):
    """Breaks where the engine does not expect it."""

    def release(self, seq_id: int) -> None:
        raise SystemError("the runner's books are wrong")


async def test_a_dead_engine_answers_everybody_and_takes_nothing_more() -> None:
    runner = _Broken(gate=threading.Event())
    engine = fake_engine(runner)
    readers = [asyncio.ensure_future(read(engine, [9], params(length))) for length in (30, 20, 3)]
    await until(lambda: engine.snapshot().num_running + engine.snapshot().num_waiting == 3)
    runner.gate.set()
    outputs = await asyncio.gather(*readers)
    # The one that ended in the fatal step has its answer; the others get the error. Nobody waits.
    assert [output.finish_reason for output in outputs] == [FinishReason.ERROR, FinishReason.ERROR, FinishReason.LENGTH]
    assert isinstance(outputs[0].error, EngineDeadError)
    await until(lambda: engine.dead is not None)
    with pytest.raises(EngineDeadError):
        engine.submit([9], params(1))


async def test_stop_ends_what_runs_with_abort(runner: FakeRunner) -> None:
    engine = fake_engine(runner)
    stream = engine.submit([9], params(1_000_000))
    await anext(stream)
    await asyncio.to_thread(engine.stop)
    outputs = [output async for output in stream]
    assert outputs[-1].finish_reason is FinishReason.ABORT
    with pytest.raises(EngineDeadError):
        engine.submit([9], params(1))


async def test_snapshot_counts_prompt_and_generation_tokens(engine: EngineThread) -> None:
    await asyncio.gather(read(engine, [9] * 7, params(3)), read(engine, [9] * 2, params(4)))
    await until(lambda: engine.snapshot().num_running == 0)
    snapshot = engine.snapshot()
    assert (snapshot.num_prompt_tokens, snapshot.num_generation_tokens) == (9, 7)


async def test_what_is_longer_than_all_kv_memory_fails_alone() -> None:
    ledger = BlockLedger(4, 2, prefix_cache=False)
    scheduler = Scheduler(max_num_seqs=4, max_num_batched_tokens=100, chunked_prefill=True, ledger=ledger)
    runner = FakeRunner()
    runner.supports_chunked_prefill = True
    engine = EngineThread(runner, BatchSampler(), scheduler)
    try:
        grows, prompt, fits = await asyncio.gather(
            read(engine, [9] * 4, params(20)), read(engine, [9] * 9, params(2)), read(engine, [9] * 3, params(2))
        )
        for failed in (grows, prompt):
            assert failed.finish_reason is FinishReason.ERROR and "KV memory" in str(failed.error)
        assert fits.finish_reason is FinishReason.LENGTH
        assert engine.dead is None and ledger.num_available == 4
    finally:
        engine.stop()
