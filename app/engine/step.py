"""Owns one step: schedule, forward, sample, commit, and who pays when something of it fails. Knows no threads, no streams."""

import logging
import time
from typing import TYPE_CHECKING

from app.engine.grammar import GrammarError
from app.engine.pace import PrefillPace
from app.engine.runner import ForwardOutput, Runner, Sampled, Sampler
from app.engine.scheduler import ScheduledSequence, Scheduler
from app.engine.sequence import FinishReason, NothingAllowedError, Sequence, StepOutput, TokenLogprobs
from app.engine.totals import Totals

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("tfoai.engine")

INTEGRITY_CHECK_SECONDS = 5.0


class SequenceFailedError(Exception):
    """The engine could not continue this one sequence; others are not affected."""


class Stepper:
    """Moves a scheduler's sequences on, one step at a time, and says what came out for each."""

    def __init__(self, runner: Runner, sampler: Sampler, scheduler: Scheduler) -> None:
        self._runner = runner
        self._sampler = sampler
        self._scheduler = scheduler
        self._outputs: list[StepOutput] = []
        self._next_check = 0.0
        self._pace = PrefillPace(scheduler.max_num_batched_tokens)
        self.totals = Totals()

    def step(self) -> list[StepOutput]:
        """Compute and commit one batch."""
        start = time.monotonic()
        batch = self._scheduler.schedule()
        if not batch:
            self._fail_first_waiting()
            return self.take()
        for part, output in self._forward(batch):
            if isinstance(output, Exception):
                self._fail(part[0].seq, output, "forward")
            else:
                self._commit(part, output)
        for seq in self._scheduler.retire():
            self._runner.release(seq.seq_id)
        self._note(batch, time.monotonic() - start)
        self._check_when_idle()
        return self.take()

    def _note(self, batch: list[ScheduledSequence], seconds: float) -> None:
        num_streams = sum(1 for scheduled in batch if scheduled.num_new_tokens == 1)
        num_tokens = sum(scheduled.num_new_tokens for scheduled in batch)
        self.totals.count_step("decode" if num_tokens == num_streams else "prefill", seconds, num_tokens)
        self._pace.observe(seconds, num_streams, num_tokens - num_streams)
        self._scheduler.max_num_prompt_tokens = self._pace.budget

    def _fail_first_waiting(self) -> None:
        """Nobody runs, and still the first in line has no room: it is longer than all KV memory."""
        seq = self._scheduler.abort(self._scheduler.waiting[0].seq_id)
        assert seq is not None
        self._runner.release(seq.seq_id)
        self._fail(seq, MemoryError(f"{seq.num_tokens} tokens are more than KV memory holds"), "scheduler")

    def _check_when_idle(self) -> None:
        """Look for lost blocks when there is nothing to do, but not after each of many short requests."""
        now = self.totals.last_step_time
        if not self._scheduler.has_work and now >= self._next_check:
            self._next_check = now + INTEGRITY_CHECK_SECONDS
            self._scheduler.check_integrity()

    def take(self) -> list[StepOutput]:
        """Return what is not yet handed out; after a step that broke, that is what it had done so far."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def abort(self, seq_id: int) -> StepOutput | None:
        """End a sequence, wherever it is; None if it is not here."""
        seq = self._scheduler.abort(seq_id)
        if seq is None:
            return None
        seq.finish(FinishReason.ABORT)
        self._runner.release(seq_id)
        return StepOutput(seq_id, [], FinishReason.ABORT)

    def _forward(self, batch: list[ScheduledSequence]) -> list[tuple[list[ScheduledSequence], ForwardOutput | Exception]]:
        """Run the batch; after an error run its halves, down to the one sequence that raises by itself.

        So one bad sequence costs the others a few repeated steps, never their answer. A batch of one is tried twice, because
        an error may have been another sequence's doing.
        """
        try:
            return [(batch, self._runner.forward(batch))]
        except Exception as error:
            logger.warning("forward step failed for %d sequences: %s", len(batch), error)
            if len(batch) > 1:
                middle = len(batch) // 2
                return self._forward(batch[:middle]) + self._forward(batch[middle:])
        try:
            return [(batch, self._runner.forward(batch))]
        except Exception as error:
            return [(batch, error)]

    def _commit(self, batch: list[ScheduledSequence], output: ForwardOutput) -> None:
        completed = [scheduled.seq for scheduled in batch if scheduled.completes]
        sampled = iter(self._sample(output.logits, completed, output.best) if completed else [])
        for scheduled in batch:
            seq, completes = scheduled.seq, scheduled.completes
            result = next(sampled) if completes else Sampled([])
            prompt_logprobs = None
            if seq.seq_id in output.prompt_logits and not isinstance(result, Exception):
                try:
                    prompt_logprobs = self._new_prompt_logprobs(seq, output.prompt_logits[seq.seq_id])
                except Exception as error:
                    result = error
            if seq.matcher is not None and isinstance(result, Sampled):
                try:
                    _advance(seq, result)
                except Exception as error:
                    result = error
            if isinstance(result, Exception):
                self._fail(seq, result, "sampler")
                continue
            if completes and seq.num_generation_tokens == 0:
                # For an encoder-decoder model the prompt is what the encoder read.
                self.totals.num_prompt_tokens += len(seq.prompt_ids)
                self.totals.num_prompt_tokens_cached += seq.num_cached_tokens
            seq.num_computed_tokens += scheduled.num_new_tokens
            self._scheduler.commit(seq)
            if seq.params.max_tokens == 0 and completes:
                result = Sampled([], done=True)
            self._append(seq, result)
            reason = _finish_reason(seq, result)
            if reason is not None:
                seq.finish(reason)
            if result.token_ids or prompt_logprobs or reason is not None:
                cached = seq.num_cached_tokens
                self._outputs.append(
                    StepOutput(
                        seq.seq_id,
                        result.token_ids,
                        reason,
                        result.logprobs,
                        prompt_logprobs,
                        num_cached_tokens=cached,
                        scheduled_time=seq.scheduled_time,
                    )
                )

    def _sample(
        self, logits: "torch.Tensor", sequences: list[Sequence], best: "torch.Tensor | None" = None
    ) -> list[Sampled | Exception]:
        """Sample all sequences at once; if that fails as a whole, one by one, so that only the culprit pays."""
        try:
            return self._sampler.sample(logits, sequences, best)
        except Exception as error:
            if len(sequences) == 1:
                return [error]
            logger.warning("sampling failed for %d sequences: %s", len(sequences), error)
        results: list[Sampled | Exception] = []
        row = 0
        for seq in sequences:
            results += self._sample(logits[row : row + seq.num_rows], [seq])
            row += seq.num_rows
        return results

    def _new_prompt_logprobs(self, seq: Sequence, logits: "torch.Tensor") -> list[TokenLogprobs | None]:
        """Score this step's part of the prompt; leave out what was given out before a preemption."""
        entries = self._sampler.prompt_logprobs(seq, logits)
        first = seq.num_computed_tokens + 1 if seq.num_computed_tokens else 0
        entries = entries[max(0, seq.num_scored_tokens - first) :]
        seq.num_scored_tokens += len(entries)
        return entries

    def _append(self, seq: Sequence, result: Sampled) -> None:
        if seq.beam_search is None:
            seq.token_ids += result.token_ids
        else:
            # Until beam search is done, the sequence wears its best beam, so that its length is always right.
            seq.token_ids[seq.num_decoder_prompt_tokens :] = result.token_ids if result.done else seq.beam_search.best_ids
        self.totals.num_generation_tokens += len(result.token_ids)

    def _fail(self, seq: Sequence, error: Exception, where: str) -> None:
        self.totals.count_error(error)
        logger.error("sequence.failed", exc_info=error, extra={"seq_id": seq.seq_id, "where": where})
        is_the_clients = isinstance(error, (GrammarError, NothingAllowedError))
        failure = error if is_the_clients else SequenceFailedError(f"{type(error).__name__}: {error}")
        seq.finish(FinishReason.ERROR)
        self._outputs.append(StepOutput(seq.seq_id, [], FinishReason.ERROR, error=failure))


def _advance(seq: Sequence, result: Sampled) -> None:
    """Move the sequence's matcher on by what was sampled; the token that ends a sequence is no part of its text."""
    for token_id in result.token_ids:
        if token_id not in seq.params.stop_token_ids:
            seq.matcher.accept(token_id)


def _finish_reason(seq: Sequence, result: Sampled) -> FinishReason | None:
    if seq.beam_search is not None and not result.done:
        return None
    if result.token_ids and result.token_ids[-1] in seq.params.stop_token_ids:
        return FinishReason.STOP
    if seq.matcher is not None and seq.matcher.is_complete:
        return FinishReason.STOP
    if result.done or seq.num_generation_tokens >= seq.params.max_tokens:
        return FinishReason.LENGTH
    return None
