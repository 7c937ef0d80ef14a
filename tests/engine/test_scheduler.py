"""The scheduler's promises, by a state machine that does everything in every order."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.engine.kv_cache import BlockLedger
from app.engine.scheduler import ScheduledSequence, Scheduler
from app.engine.sequence import FinishReason, SamplingParams, Sequence, SequenceStatus


def sequence(seq_id: int, length: int, priority: int = 0) -> Sequence:
    return Sequence(seq_id, [seq_id] * length, SamplingParams(max_tokens=10, priority=priority))


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


def test_prompts_take_only_their_share_of_a_step_that_streams_wait_for() -> None:
    scheduler = Scheduler(max_num_seqs=4, max_num_batched_tokens=100, chunked_prefill=True)
    scheduler.max_num_prompt_tokens = 6
    for seq_id in range(2):
        scheduler.add(sequence(seq_id, 40))
    assert [scheduled.num_new_tokens for scheduled in scheduler.schedule()] == [40, 40], "nobody waits yet"
    advance(scheduler.schedule())
    for seq_id in range(2, 4):
        scheduler.add(sequence(seq_id, 4))
    batch = scheduler.schedule()
    assert [scheduled.num_new_tokens for scheduled in batch] == [1, 1, 4, 2]


def test_lower_priority_numbers_come_first() -> None:
    scheduler = Scheduler(max_num_seqs=2, max_num_batched_tokens=100, chunked_prefill=True)
    for seq_id, priority in enumerate((5, 0, 5, -1, 0)):
        scheduler.add(sequence(seq_id, 3, priority))
    assert [seq.seq_id for seq in scheduler.waiting] == [3, 1, 4, 0, 2]
    assert [scheduled.seq.seq_id for scheduled in scheduler.schedule()] == [3, 1]


def test_the_least_urgent_that_came_last_is_preempted_and_waits_before_its_equals() -> None:
    ledger = BlockLedger(6, 2, prefix_cache=False)
    scheduler = Scheduler(max_num_seqs=4, max_num_batched_tokens=100, chunked_prefill=True, ledger=ledger)
    for seq_id, priority in enumerate((0, 3, 3)):
        scheduler.add(sequence(seq_id, 4, priority))
    advance(scheduler.schedule())
    scheduler.add(sequence(3, 2, 3))
    scheduler.add(sequence(4, 2, 0))
    batch = scheduler.schedule()
    assert [scheduled.seq.seq_id for scheduled in batch[:2]] == [0, 1]
    assert scheduler.num_preemptions == 1
    assert [seq.seq_id for seq in scheduler.waiting] == [4, 2, 3]


@pytest.mark.parametrize("limits", [(0, 8), (4, 0)])
def test_limits_must_allow_progress(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Scheduler(max_num_seqs=limits[0], max_num_batched_tokens=limits[1], chunked_prefill=True)


class SchedulerMachine(RuleBasedStateMachine):
    """Every sequence that is added is either here or was handed back once; no limit is ever exceeded; none of the most
    urgent starves."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_num_seqs=3, max_num_batched_tokens=6, chunked_prefill=True)
        self.here: dict[int, Sequence] = {}
        self.count = 0

    @rule(length=st.integers(1, 20), priority=st.sampled_from([0, 0, 0, 1, 2]))
    def add(self, length: int, priority: int) -> None:
        seq = sequence(self.count, length, priority)
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
        if len(self.scheduler.running) < 3 and self.scheduler.waiting:
            assert sum(scheduled.num_new_tokens for scheduled in batch) == 6, "who waits could have run"
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
        order = [(seq.params.priority, seq.seq_id) for seq in self.scheduler.waiting]
        assert order == sorted(order), "by priority, then first come, first served"
        assert len(self.scheduler.running) <= 3


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
