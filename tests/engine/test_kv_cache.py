"""The block ledger with the scheduler, by a state machine: no block is ever lost, doubled or shared with the wrong sequence."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.engine.kv_cache import BlockLedger, IntegrityError
from app.engine.scheduler import Scheduler
from app.engine.sequence import FinishReason, SamplingParams, Sequence

BLOCK = 4


def sequence(seq_id: int, tokens: list[int], salt: str = "") -> Sequence:
    return Sequence(seq_id, tokens, SamplingParams(max_tokens=100), salt=salt)


def computed(ledger: BlockLedger, seq: Sequence) -> Sequence:
    seq.num_computed_tokens = ledger.match_prefix(seq)
    assert ledger.allocate(seq, seq.num_tokens)
    seq.num_computed_tokens = seq.num_tokens
    ledger.commit(seq)
    return seq


def test_equal_beginnings_share_blocks() -> None:
    ledger = BlockLedger(10, BLOCK)
    first = computed(ledger, sequence(0, list(range(10))))
    second = sequence(1, [*range(8), 99, 98])
    assert ledger.match_prefix(second) == 8
    assert second.block_table == first.block_table[:2]
    ledger.check_integrity([first, second])
    ledger.release(first)
    ledger.release(second)
    assert ledger.num_available == 10
    ledger.check_integrity()


def test_the_last_token_is_always_left_to_compute() -> None:
    ledger = BlockLedger(10, BLOCK)
    ledger.release(computed(ledger, sequence(0, list(range(8)))))
    assert ledger.match_prefix(sequence(1, list(range(8)))) == 4


@pytest.mark.parametrize("other", [sequence(1, [0, 1, 2, 3, 4, 5, 6, 7, 8], "salt"), sequence(1, [9, 1, 2, 3, 4, 5, 6, 7, 8])])
def test_another_salt_or_another_first_token_shares_nothing(other: Sequence) -> None:
    ledger = BlockLedger(10, BLOCK)
    ledger.release(computed(ledger, sequence(0, list(range(9)))))
    assert ledger.match_prefix(other) == 0


def test_the_least_recently_used_goes_first() -> None:
    ledger = BlockLedger(4, BLOCK)
    for seq_id, start in ((0, 0), (1, 100)):
        ledger.release(computed(ledger, sequence(seq_id, list(range(start, start + 5)))))
    ledger.release(computed(ledger, sequence(2, list(range(5)))))  # the first is used again
    filler = sequence(3, [7] * 12)
    assert ledger.allocate(filler, 12)
    assert ledger.match_prefix(sequence(4, list(range(5)))) == 4
    assert ledger.match_prefix(sequence(5, list(range(100, 105)))) == 0


def test_running_out_changes_nothing() -> None:
    ledger = BlockLedger(2, BLOCK)
    seq = sequence(0, [1] * 9)
    assert not ledger.allocate(seq, 9)
    assert seq.block_table == []
    assert ledger.num_available == 2


def test_broken_books_are_noticed() -> None:
    ledger = BlockLedger(4, BLOCK)
    seq = computed(ledger, sequence(0, [1] * 5))
    ledger.check_integrity([seq])
    with pytest.raises(IntegrityError):
        ledger.check_integrity([])
    ledger._free.pop()
    with pytest.raises(IntegrityError):
        ledger.check_integrity([seq])


class LedgerMachine(RuleBasedStateMachine):
    """Submits, steps, finishes and aborts in every order, with few blocks and few tokens, so that all collide."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = BlockLedger(12, BLOCK)
        self.scheduler = Scheduler(max_num_seqs=4, max_num_batched_tokens=9, chunked_prefill=True, ledger=self.ledger)
        self.content: dict[int, tuple[int, ...]] = {}
        self.here: dict[int, Sequence] = {}
        self.count = 0

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=30), salt=st.sampled_from(["", "x"]))
    def add(self, tokens: list[int], salt: str) -> None:
        self.here[self.count] = sequence(self.count, tokens, salt)
        self.scheduler.add(self.here[self.count])
        self.count += 1

    @precondition(lambda self: self.here)
    @rule()
    def step(self) -> None:
        for seq in list(self.here.values()):
            if seq.num_tokens >= 12 * BLOCK - 1:  # the server's context limit keeps a sequence below all blocks
                self.abort(seq.seq_id)
        batch = self.scheduler.schedule()
        assert bool(batch) == bool(self.here)
        assert sum(scheduled.num_new_tokens for scheduled in batch) <= 9
        for scheduled in batch:
            seq = scheduled.seq
            end = seq.num_computed_tokens + scheduled.num_new_tokens
            # What is taken as computed must really be in the blocks: written by this sequence or by one that was equal so far.
            for position in range(seq.num_computed_tokens):
                block = self.content[seq.block_table[position // BLOCK]]
                assert block[position % BLOCK] == (seq.salt, *seq.token_ids[: position + 1])
            for position in range(seq.num_computed_tokens, end):
                number = seq.block_table[position // BLOCK]
                block = list(self.content.get(number, ((),) * BLOCK))
                block[position % BLOCK] = (seq.salt, *seq.token_ids[: position + 1])
                self.content[number] = tuple(block)
            completes = scheduled.completes
            seq.num_computed_tokens = end
            self.scheduler.commit(seq)
            if completes:
                seq.token_ids.append(len(seq.token_ids) % 2)

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.scheduler.running))
        seq.finish(FinishReason.STOP)
        self.scheduler.retire()
        del self.here[seq.seq_id]

    @rule(seq_id=st.integers(0, 20))
    def abort(self, seq_id: int) -> None:
        assert self.scheduler.abort(seq_id) is self.here.pop(seq_id, None)

    @invariant()
    def books_are_right(self) -> None:
        self.scheduler.check_integrity()
        assert sorted(seq.seq_id for seq in [*self.scheduler.running, *self.scheduler.waiting]) == sorted(self.here)
        assert all(not seq.block_table for seq in self.scheduler.waiting)
        if not self.here:
            assert self.ledger.num_available == 12


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
