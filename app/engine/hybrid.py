"""Owns running beam searches beside batches on one model. Knows neither how batches nor how beams are computed.

A beam search has a cache of its own, which its beams share out among each other at every step; blocks and rows can not do that.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from transformers import PreTrainedModel

from app.engine.runner import ForwardOutput, Runner
from app.engine.scheduler import ScheduledSequence


@contextmanager
def attending(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Let a model attend in another way; only the engine's thread uses it, so nobody else is surprised."""
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        yield
    finally:
        model.set_attn_implementation(before or "eager")


class HybridRunner:
    """Gives sequences with beams to `sequential`, within what `attending` enters, and the others to `batched`."""

    def __init__(
        self, batched: Runner, sequential: Runner, attending: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.name = batched.name
        self.supports_chunked_prefill = batched.supports_chunked_prefill
        self.batched = batched
        self._sequential = sequential
        self._attending = attending

    def forward(self, batch: SequenceOf[ScheduledSequence]) -> ForwardOutput:
        searches = [scheduled for scheduled in batch if scheduled.seq.is_beam_search]
        if not searches:
            return self.batched.forward(batch)
        with self._attending():
            beams = self._sequential.forward(searches)
        others = [scheduled for scheduled in batch if not scheduled.seq.is_beam_search]
        if not others:
            return beams
        batched = self.batched.forward(others)
        # Both have their rows in the batch's order; each row has its place among the two.
        order: list[int] = []
        beam, single = 0, beams.logits.shape[0]
        for scheduled in batch:
            if scheduled.seq.is_beam_search:
                order += range(beam, beam + scheduled.seq.num_rows)
                beam += scheduled.seq.num_rows
            elif scheduled.completes:
                order.append(single)
                single += 1
        return ForwardOutput(torch.cat([beams.logits, batched.logits.float()])[order], batched.prompt_logits)

    def release(self, seq_id: int) -> None:
        self._sequential.release(seq_id)
        self.batched.release(seq_id)
