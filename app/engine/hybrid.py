"""Owns running beam searches beside paged batches on one model. Knows neither how paged batches nor how beams are computed.

A beam search has a cache of its own, which its beams share out among each other at every step; blocks can not do that.
"""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from app.engine.paged import PagedRunner
from app.engine.runner import ForwardOutput
from app.engine.scheduler import ScheduledSequence
from app.engine.sequential import SequentialRunner


class HybridRunner:
    """Gives sequences with beams to `sequential`, for which the model attends as `attention` says, the others to `paged`."""

    supports_chunked_prefill = True

    def __init__(self, model: PreTrainedModel, paged: PagedRunner, sequential: SequentialRunner, attention: str) -> None:
        self.name = paged.name
        self.paged = paged
        self._model = model
        self._sequential = sequential
        self._attention = attention

    def forward(self, batch: SequenceOf[ScheduledSequence]) -> ForwardOutput:
        searches = [scheduled for scheduled in batch if scheduled.seq.is_beam_search]
        if not searches:
            return self.paged.forward(batch)
        with self._attending():
            beams = self._sequential.forward(searches)
        others = [scheduled for scheduled in batch if not scheduled.seq.is_beam_search]
        if not others:
            return beams
        paged = self.paged.forward(others)
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
        return ForwardOutput(torch.cat([beams.logits, paged.logits.float()])[order], paged.prompt_logits)

    def release(self, seq_id: int) -> None:
        self._sequential.release(seq_id)
        self.paged.release(seq_id)

    @contextmanager
    def _attending(self) -> Iterator[None]:
        """Let the model attend as transformers does; only the engine's thread uses it, so nobody else is surprised."""
        paged = self._model.config._attn_implementation
        self._model.set_attn_implementation(self._attention)
        try:
            yield
        finally:
            self._model.set_attn_implementation(paged)
