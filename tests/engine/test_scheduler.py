"""The scheduler's promises, by a state machine that does everything in every order."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.engine.scheduler import ScheduledSequence, Scheduler
from app.engine.sequence import FinishReason, SamplingParams, Sequence, SequenceStatus


def sequence(seq_id: int, length: int) -> Sequence:
    return Sequence(seq_id, [5] * length, SamplingParams(max_tokens=10))


def advance(batch: list[ScheduledSequence]) -> None:
    """Do what a step does: count as computed, and add a token where the prompt is complete."""
    for scheduled in batch:
        completes = scheduled.completes
        scheduled.seq.num_computed_tokens += scheduled.num_new_tokens
        if completes:
            scheduled.seq.token_ids.append(7)


def test_decode_comes_before_prefill_and_keeps_its_share() -> None:
    scheduler = Scheduler(max_num_seqs=4, max_num_batched_tokens=8, chunked_prefill=True)
    scheduler.add(sequence(0, 3))
    advance(scheduler.schedule())
    scheduler.add(sequence(1, 100))
    batch = scheduler.schedule()
    assert [(scheduled.seq.seq_id, scheduled.num_new_tokens) for scheduled in batch] == [(0, 1), (1, 7)]
    advance(batch)
    assert [(scheduled.seq.seq_id, scheduled.num_new_tokens) for scheduled in scheduler.schedule()] == [(0, 1), (1, 7)]


def test_a_prompt_that_can_not_be_chunked_goes_whole() -> None:
    scheduler = Scheduler(max_num_seqs=4, max_num_batched_tokens=8, chunked_prefill=False)
    for seq_id, length in enumerate((5, 100, 5)):
        scheduler.add(sequence(seq_id, length))
    assert [scheduled.num_new_tokens for scheduled in scheduler.schedule()] == [5, 100]


def test_what_the_encoder_reads_costs_budget_too() -> None:
    scheduler = Scheduler(max_num_seqs=8, max_num_batched_tokens=100, chunked_prefill=False)
    for seq_id in range(5):
        scheduler.add(Sequence(seq_id, [5] * 60, SamplingParams(max_tokens=3), decoder_start_ids=[0]))
    assert len(scheduler.schedule()) == 2


def test_scheduling_twice_without_progress_gives_the_same_batch() -> None:
    scheduler = Scheduler(max_num_seqs=4, max_num_batched_tokens=8, chunked_prefill=True)
    for seq_id in range(3):
        scheduler.add(sequence(seq_id, 5))
    assert scheduler.schedule() == scheduler.schedule()


@pytest.mark.parametrize("limits", [(0, 8), (4, 0)])
def test_limits_must_allow_progress(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Scheduler(max_num_seqs=limits[0], max_num_batched_tokens=limits[1], chunked_prefill=True)


class SchedulerMachine(RuleBasedStateMachine):
    """Every sequence that is added is either here or was handed back once; no limit is ever exceeded; nobody starves."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_num_seqs=3, max_num_batched_tokens=6, chunked_prefill=True)
        self.here: dict[int, Sequence] = {}
        self.count = 0

    @rule(length=st.integers(1, 20))
    def add(self, length: int) -> None:
        seq = sequence(self.count, length)
        self.scheduler.add(seq)
        self.here[self.count] = seq
        self.count += 1

    @precondition(lambda self: self.here)
    @rule()
    def step(self) -> None:
        batch = self.scheduler.schedule()
        assert batch, "there is work, so there is a batch"
        assert sum(scheduled.num_new_tokens for scheduled in batch) <= 6
        assert len({scheduled.seq.seq_id for scheduled in batch}) == len(batch) <= 3
        oldest = min(self.here)
        assert self.here[oldest] in self.scheduler.running, "first come, first served"
        advance(batch)

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.scheduler.running))
        seq.finish(FinishReason.STOP)
        assert self.scheduler.retire() == [seq]
        del self.here[seq.seq_id]

    @rule(seq_id=st.integers(0, 30))
    def abort(self, seq_id: int) -> None:
        assert self.scheduler.abort(seq_id) is self.here.pop(seq_id, None)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        ids = [seq.seq_id for seq in [*self.scheduler.running, *self.scheduler.waiting]]
        assert sorted(ids) == sorted(self.here)
        assert self.scheduler.has_work == bool(self.here)

    @invariant()
    def who_waits_waits(self) -> None:
        assert all(seq.status is SequenceStatus.WAITING for seq in self.scheduler.waiting)
        assert len(self.scheduler.running) <= 3


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
