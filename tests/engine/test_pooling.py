"""The pooling thread: every job gets its own vectors in order, jobs share steps, one bad input costs nobody else."""

import asyncio
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.engine import EngineDeadError
from app.engine.pooling import PoolingThread
from app.engine.pooling_job import PoolingAbortedError, PoolingFailedError, PoolingInput, PoolingJob
from tests.support.fakes import FakePoolingRunner, vector_of

BAD = 99


def inputs(*lengths: int, first: int = 1) -> list[PoolingInput]:
    return [PoolingInput((first,) * length) for length in lengths]


async def run(
    runner: FakePoolingRunner, jobs: Sequence[Sequence[PoolingInput]], *, max_num_seqs: int = 4, budget: int = 64
) -> list[list[bytes] | BaseException]:
    """Submit all jobs while the runner is held back, then let it go; return what became of each."""
    runner.gate = threading.Event()
    engine = PoolingThread(runner, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)
    num_done = 0

    def done() -> None:
        nonlocal num_done
        num_done += 1

    # The first step takes whatever is there; a job of its own makes the rest arrive together.
    first = engine.submit(inputs(1), done)
    while not runner.num_calls:
        await asyncio.sleep(0.001)
    submitted = [engine.submit(job, done) for job in jobs]
    runner.gate.set()
    results = await asyncio.gather(*(job.result() for job in submitted), return_exceptions=True)
    await first.result()
    assert num_done == len(jobs) + 1
    await asyncio.to_thread(engine.stop)
    snapshot = engine.snapshot()
    assert (snapshot.num_waiting, snapshot.num_running) == (0, 0)
    return results


def expected(job: Sequence[PoolingInput]) -> list[bytes]:
    return [vector_of(one) for one in job]


async def test_vectors_come_in_the_order_of_the_inputs() -> None:
    job = [PoolingInput((n,) * (1 + n * 7 % 20)) for n in range(1, 30)]
    assert await run(FakePoolingRunner(), [job]) == [expected(job)]


@settings(max_examples=60, deadline=None)
@given(
    jobs=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=9), min_size=1, max_size=5),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(1, 80),
    can_pad=st.booleans(),
)
async def test_batches_keep_their_limits(jobs: list[list[int]], max_num_seqs: int, budget: int, can_pad: bool) -> None:
    runner = FakePoolingRunner(can_pad=can_pad)
    made = [
        [PoolingInput((10 * number + place,) * length) for place, length in enumerate(job)] for number, job in enumerate(jobs)
    ]
    assert await run(runner, made, max_num_seqs=max_num_seqs, budget=budget) == [expected(job) for job in made]
    for batch in runner.batches:
        lengths = [len(one.ids) for one in batch]
        assert len(lengths) <= max_num_seqs
        assert sum(lengths) <= budget or len(lengths) == 1
        assert 2 * min(lengths) >= max(lengths) if can_pad else min(lengths) == max(lengths)


async def test_a_small_job_does_not_wait_for_a_large_one() -> None:
    runner = FakePoolingRunner()
    engine = PoolingThread(runner, max_num_seqs=4)
    runner.gate = threading.Event()
    large = engine.submit(inputs(*([3] * 400)), lambda: None)
    while not runner.num_calls:
        await asyncio.sleep(0.001)
    small = engine.submit(inputs(3, first=7), lambda: None)
    runner.gate.set()
    await asyncio.gather(small.result(), large.result())
    assert {one.ids[0] for one in runner.batches[1]} == {1, 7}, "they share the next step"
    await asyncio.to_thread(engine.stop)


async def test_jobs_of_one_take_turns_when_a_step_is_small() -> None:
    runner = FakePoolingRunner()
    jobs = [[PoolingInput((number,))] * 2 for number in range(1, 6)]
    await run(runner, jobs, max_num_seqs=2)
    order = [one.ids[0] for batch in runner.batches[1:] for one in batch]
    assert set(order[:5]) == {1, 2, 3, 4, 5}, "everybody's first before anybody's second"


@pytest.mark.parametrize(
    "runner",
    [
        FakePoolingRunner(raises=lambda one: ValueError("bad") if BAD in one.ids else None),
        FakePoolingRunner(nan_for=lambda one: BAD in one.ids),
    ],
    ids=["raises", "nan"],
)
async def test_one_bad_input_fails_its_job_only(runner: FakePoolingRunner) -> None:
    good = [inputs(2, 3), inputs(3), inputs(2, 2, 2)]
    bad = [PoolingInput((1, 1)), PoolingInput((BAD, 1)), PoolingInput((BAD, 1, 1))]
    *results, failed = await run(runner, [*good, bad], max_num_seqs=32)
    assert results == [expected(job) for job in good]
    assert isinstance(failed, PoolingFailedError) and failed.index in (1, 2)


async def test_an_error_that_does_not_come_back_costs_nobody_anything() -> None:
    runner = FakePoolingRunner(raises=lambda one: RuntimeError() if runner.num_calls == 2 else None)
    jobs = [inputs(2), inputs(3)]
    assert await run(runner, jobs) == [expected(job) for job in jobs]


async def test_closing_drops_what_is_not_computed() -> None:
    runner = FakePoolingRunner()
    runner.gate = threading.Event()
    done: list[bool] = []
    engine = PoolingThread(runner, max_num_seqs=2)
    job = engine.submit(inputs(*([2] * 100)), lambda: done.append(True))
    while not runner.num_calls:
        await asyncio.sleep(0.001)
    job.close()
    job.close()
    runner.gate.set()
    with pytest.raises(PoolingAbortedError):
        await job.result()
    job.close()
    assert done == [True] and runner.num_calls == 1
    other = engine.submit(inputs(2), lambda: None)
    assert await other.result() == expected(inputs(2)), "the engine goes on"
    assert engine.snapshot().num_waiting == 0
    await asyncio.to_thread(engine.stop)


async def test_stopping_ends_every_job() -> None:
    runner = FakePoolingRunner()
    runner.gate = threading.Event()
    engine = PoolingThread(runner, max_num_seqs=2)
    jobs = [engine.submit(inputs(2, 2, 2), lambda: None) for _ in range(3)]
    while not runner.num_calls:
        await asyncio.sleep(0.001)
    stopping = asyncio.create_task(asyncio.to_thread(engine.stop))
    await asyncio.sleep(0.01)
    runner.gate.set()
    await stopping
    for job in jobs:
        with pytest.raises(PoolingAbortedError):
            await job.result()
    with pytest.raises(EngineDeadError):
        engine.submit(inputs(1), lambda: None)


async def test_a_thread_that_dies_answers_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakePoolingRunner()
    runner.gate = threading.Event()
    engine = PoolingThread(runner, max_num_seqs=1)
    jobs = [engine.submit(inputs(2), lambda: None) for _ in range(3)]
    while not runner.num_calls:
        await asyncio.sleep(0.001)

    def broken(*args: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(engine, "_take_vector", broken)
    runner.gate.set()
    for job in jobs:
        with pytest.raises(EngineDeadError, match="no more"):
            await job.result()
    assert engine.dead is not None


async def test_the_numbers_of_a_snapshot() -> None:
    runner = FakePoolingRunner()
    runner.gate = threading.Event()
    engine = PoolingThread(runner, max_num_seqs=2)
    job = engine.submit(inputs(2, 2, 2, 2, 2), lambda: None)
    while not runner.num_calls:
        await asyncio.sleep(0.001)
    snapshot = engine.snapshot()
    assert (snapshot.num_running, snapshot.num_waiting) == (2, 3)
    runner.gate.set()
    await job.result()
    await asyncio.to_thread(engine.stop)
    snapshot = engine.snapshot()
    assert (snapshot.num_prompt_tokens, snapshot.num_steps, snapshot.num_generation_tokens) == (10, 3, 0)


def test_a_job_whose_loop_is_gone_harms_nobody() -> None:
    runner = FakePoolingRunner()
    runner.gate = threading.Event()
    engine = PoolingThread(runner, max_num_seqs=1)

    async def leave() -> PoolingJob:
        return engine.submit(inputs(2), lambda: None)

    asyncio.run(leave())
    runner.gate.set()
    assert asyncio.run(_one(engine)) == expected(inputs(3))
    engine.stop()


async def _one(engine: PoolingThread) -> list[bytes]:
    return await engine.submit(inputs(3), lambda: None).result()
