"""Owns who waits, who runs and how many tokens each gets in a step. Plain ints: knows no torch, no threads, no text."""

import time
from collections import deque
from dataclasses import dataclass

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
    """Admits waiting sequences and retires finished ones at every step, first come first served.

    Running sequences come first in a batch, so a new prompt never delays a stream that is running by more than its share of
    the token budget. `chunked_prefill` False is for runners that compute a prompt in one piece: then at most one prompt
    exceeds what is left of the budget, and it is the last one of its batch.
    """

    def __init__(self, *, max_num_seqs: int, max_num_batched_tokens: int, chunked_prefill: bool) -> None:
        if max_num_seqs < 1 or max_num_batched_tokens < 1:
            raise ValueError("max_num_seqs and max_num_batched_tokens must be at least 1")
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.chunked_prefill = chunked_prefill
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)

    def schedule(self) -> list[ScheduledSequence]:
        """Return the next batch; empty only when there is no work.

        Calling it again without progress in between returns the same batch: nothing is counted as computed here.
        """
        batch: list[ScheduledSequence] = []
        budget = self.max_num_batched_tokens
        # Decode before prefill: those streams have a reader who waits for the next token.
        for seq in sorted(self.running, key=lambda seq: seq.num_new_tokens > 1):
            budget = self._take(seq, budget, batch)
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            seq = self.waiting.popleft()
            seq.status = SequenceStatus.RUNNING
            if seq.first_scheduled_time is None:
                seq.first_scheduled_time = time.monotonic()
            self.running.append(seq)
            budget = self._take(seq, budget, batch)
        return batch

    def _take(self, seq: Sequence, budget: int, batch: list[ScheduledSequence]) -> int:
        """Put what fits of `seq` into the batch; return what is left of the budget."""
        if budget <= 0:
            return 0
        num_new_tokens = min(seq.num_new_tokens, budget) if self.chunked_prefill else seq.num_new_tokens
        batch.append(ScheduledSequence(seq, num_new_tokens))
        return budget - num_new_tokens

    def abort(self, seq_id: int) -> Sequence | None:
        """Take a sequence out, wherever it is; None if it is not here (it may have finished just before)."""
        for seq in self.running:
            if seq.seq_id == seq_id:
                self.running.remove(seq)
                return seq
        for seq in self.waiting:
            if seq.seq_id == seq_id:
                self.waiting.remove(seq)
                return seq
        return None

    def retire(self) -> list[Sequence]:
        """Drop and return the running sequences that have finished."""
        finished = [seq for seq in self.running if seq.is_finished]
        if finished:
            self.running = [seq for seq in self.running if not seq.is_finished]
        return finished

    def drain(self) -> list[Sequence]:
        """Empty everything and return it: the engine is going away."""
        everything = [*self.running, *self.waiting]
        self.running = []
        self.waiting.clear()
        return everything
