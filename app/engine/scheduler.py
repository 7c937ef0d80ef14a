"""Owns who waits, who runs and how many tokens each gets in a step. Plain ints: knows no torch, no threads, no text."""

import time
from collections import deque
from dataclasses import dataclass

from app.engine.kv_cache import BlockLedger
from app.engine.sequence import Sequence, SequenceStatus


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """One sequence's part of a batch: its next `num_new_tokens` tokens that are not yet computed."""

    seq: Sequence
    num_new_tokens: int

    @property
    def completes(self) -> bool:
        """True if this step reaches the sequence's last token, so that a new one can be sampled."""
        return self.seq.num_computed_tokens + self.num_new_tokens == self.seq.num_tokens


class Scheduler:
    """Admits waiting sequences and retires finished ones at every step: lower `priority` first, then first come first served.

    Running sequences come first in a batch, so a new prompt never delays a stream that is running by more than its share of
    the token budget. `chunked_prefill` False is for runners that compute a prompt in one piece: then at most one prompt
    exceeds what is left of the budget, and it is the last one of its batch.

    With a `ledger`, a sequence runs only while it has blocks for its tokens. When they run out, of those with the highest
    `priority` number the one that came last is preempted: its blocks are taken, and it waits, first of its priority, to be
    computed again. It never fails for that. A beam search has no blocks, and its prompt is computed in one piece.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        chunked_prefill: bool,
        ledger: BlockLedger | None = None,
    ) -> None:
        if max_num_seqs < 1 or max_num_batched_tokens < 1:
            raise ValueError("max_num_seqs and max_num_batched_tokens must be at least 1")
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.chunked_prefill = chunked_prefill
        self.ledger = ledger
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        # Tokens of prompts in a step that other streams wait for; the stepper sets it by what steps take.
        self.max_num_prompt_tokens = max_num_batched_tokens

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, seq: Sequence) -> None:
        """Put a sequence behind those that wait with the same priority, before those with a higher number."""
        place = len(self.waiting)
        while place and self.waiting[place - 1].params.priority > seq.params.priority:
            place -= 1
        self.waiting.insert(place, seq)

    def schedule(self) -> list[ScheduledSequence]:
        """Return the next batch; empty only when there is no work.

        Calling it again without progress in between returns the same batch: nothing is counted as computed here.
        """
        batch: list[ScheduledSequence] = []
        budget = self.max_num_batched_tokens
        # Decode before prefill: those streams have a reader who waits for the next token.
        for seq in [seq for seq in self.running if seq.num_new_tokens == 1]:
            budget -= self._continue(seq, budget, batch)
        if batch:
            budget = min(budget, self.max_num_prompt_tokens)
        for seq in [seq for seq in self.running if seq.num_new_tokens > 1]:
            budget -= self._continue(seq, budget, batch)
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs and self._admit(self.waiting[0]):
            budget -= self._take(self.running[-1], budget, batch)
        return batch

    def commit(self, seq: Sequence) -> None:
        """Take note that more of a sequence's tokens are computed."""
        if self.ledger is not None and not seq.is_beam_search:
            self.ledger.commit(seq)

    def abort(self, seq_id: int) -> Sequence | None:
        """Take a sequence out, wherever it is; None if it is not here (it may have finished just before)."""
        for place in (self.running, self.waiting):
            for seq in place:
                if seq.seq_id == seq_id:
                    place.remove(seq)
                    self._release(seq)
                    return seq
        return None

    def retire(self) -> list[Sequence]:
        """Drop and return the running sequences that have finished."""
        finished = [seq for seq in self.running if seq.is_finished]
        if finished:
            self.running = [seq for seq in self.running if not seq.is_finished]
            for seq in finished:
                self._release(seq)
        return finished

    def drain(self) -> list[Sequence]:
        """Empty everything and return it: the engine is going away."""
        everything = [*self.running, *self.waiting]
        for seq in everything:
            self._release(seq)
        self.running = []
        self.waiting.clear()
        return everything

    def check_integrity(self) -> None:
        """Raise IntegrityError if a block is lost or owned twice."""
        if self.ledger is not None:
            self.ledger.check_integrity([*self.running, *self.waiting])

    def _continue(self, seq: Sequence, budget: int, batch: list[ScheduledSequence]) -> int:
        """Put a running sequence's next tokens into the batch, if there is room and nobody preempted it; return its cost."""
        if budget <= 0 or seq.status is not SequenceStatus.RUNNING or not self._make_room(seq, self._share(seq, budget), batch):
            return 0
        return self._take(seq, budget, batch)

    def _share(self, seq: Sequence, budget: int) -> int:
        in_pieces = self.chunked_prefill and not seq.is_beam_search
        return min(seq.num_new_tokens, budget) if in_pieces else seq.num_new_tokens

    def _take(self, seq: Sequence, budget: int, batch: list[ScheduledSequence]) -> int:
        """Put what fits of `seq` into the batch; return what it costs: its tokens, and those that the encoder has to read."""
        num_new_tokens = self._share(seq, budget)
        batch.append(ScheduledSequence(seq, num_new_tokens))
        reads = seq.encoder_ids is not None and seq.num_computed_tokens == 0
        return num_new_tokens + (len(seq.encoder_ids or ()) if reads else 0)

    def _admit(self, seq: Sequence) -> bool:
        """Move the first waiting sequence to the running ones, if its whole prompt has room."""
        if self.ledger is not None and not seq.is_beam_search:
            if any(_computes_the_prompt_of(other, seq) for other in self.running):
                return False  # one step later its blocks can be shared
            seq.num_computed_tokens = self.ledger.match_prefix(seq)
            if self.ledger.num_missing(seq, seq.num_tokens) > self.ledger.num_available:
                self._release(seq)
                return False
            self.ledger.allocate(seq, seq.num_tokens)
        self.waiting.popleft()
        seq.status = SequenceStatus.RUNNING
        if seq.scheduled_time is None:
            seq.scheduled_time = time.monotonic()
            seq.num_cached_tokens = seq.num_computed_tokens
        self.running.append(seq)
        return True

    def _make_room(self, seq: Sequence, num_new_tokens: int, batch: list[ScheduledSequence]) -> bool:
        """Get blocks for the next tokens of a running sequence; False if it had to be preempted itself."""
        if self.ledger is None or seq.is_beam_search:
            return True
        while not self.ledger.allocate(seq, seq.num_computed_tokens + num_new_tokens):
            scheduled = {scheduled.seq.seq_id for scheduled in batch}
            candidates = [one for one in reversed(self.running) if one.seq_id not in scheduled and not one.is_beam_search]
            victim = max(candidates, key=lambda other: other.params.priority)  # the first of equals: the one that came last
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._release(seq)
        seq.status = SequenceStatus.WAITING
        place = 0
        while place < len(self.waiting) and self.waiting[place].params.priority < seq.params.priority:
            place += 1
        self.waiting.insert(place, seq)
        self.num_preemptions += 1

    def _release(self, seq: Sequence) -> None:
        if self.ledger is not None:
            self.ledger.release(seq)
            seq.num_computed_tokens = 0


def _computes_the_prompt_of(running: Sequence, waiting: Sequence) -> bool:
    """True while a running sequence is still at the prompt that a waiting one has too (choices of one request, say)."""
    return (
        running.num_computed_tokens < len(running.prompt_ids)
        and running.prompt_ids == waiting.prompt_ids
        and running.salt == waiting.salt
        and waiting.params.prompt_logprobs is None
        and waiting.num_computed_tokens == 0
    )
