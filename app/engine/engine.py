"""Owns the engine's thread: inbox -> step -> outbox. Knows no torch, no text, no HTTP."""

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from app.engine.runner import ForwardOutput, Runner, Sampled, Sampler
from app.engine.scheduler import ScheduledSequence, Scheduler
from app.engine.sequence import FinishReason, SamplingParams, Sequence, StepOutput, TokenLogprobs
from app.engine.stream import TokenStream

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("tfoai.engine")


class EngineDeadError(Exception):
    """The engine thread has ended; nothing submitted to it will ever be answered."""


class SequenceFailedError(Exception):
    """The engine could not continue this one sequence; others are not affected."""


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """Plain numbers for metrics and probes; totals count from the start of the engine, aborted work included."""

    num_waiting: int
    num_running: int
    num_steps: int
    num_prompt_tokens: int
    num_generation_tokens: int
    num_step_errors: int
    num_preemptions: int
    num_prompt_tokens_cached: int
    kv_cache_usage: float
    last_step_time: float


class Engine(Protocol):
    """What the rest of tfoai sees of an engine."""

    def submit(
        self,
        prompt_ids: SequenceOf[int],
        params: SamplingParams,
        on_done: Callable[[], None] | None = None,
        *,
        salt: str = "",
    ) -> TokenStream:
        """Queue one sequence; call on an event loop. Raise EngineDeadError if the engine has ended.

        Sequences share cached prompts only under the same `salt`.
        """
        ...

    def abort(self, seq_id: int) -> None:
        """Ask for the end of a sequence; any thread, any number of times, finished or unknown ids included."""
        ...

    def snapshot(self) -> EngineSnapshot: ...

    @property
    def dead(self) -> Exception | None:
        """What ended the engine, or None while it lives."""
        ...

    def stop(self) -> None:
        """End the thread; sequences that are still there finish with ABORT."""
        ...


@dataclass(frozen=True, slots=True)
class _Submit:
    seq: Sequence
    stream: TokenStream


@dataclass(frozen=True, slots=True)
class _Abort:
    seq_id: int


class _Stop:
    pass


class EngineThread:
    """One thread per model, the only one that touches its runner.

    `decoder_start_ids` makes it an encoder-decoder engine: prompts go to the encoder, decoding starts from these tokens.
    """

    def __init__(
        self,
        runner: Runner,
        sampler: Sampler,
        scheduler: Scheduler,
        *,
        decoder_start_ids: SequenceOf[int] | None = None,
        name: str = "engine",
    ) -> None:
        self._runner = runner
        self._sampler = sampler
        self._scheduler = scheduler
        self._decoder_start_ids = decoder_start_ids
        self._inbox: queue.SimpleQueue[_Submit | _Abort | _Stop] = queue.SimpleQueue()
        self._streams: dict[int, TokenStream] = {}
        self._outbox: list[tuple[TokenStream, StepOutput]] = []
        self._ids = itertools.count()
        self._dead: Exception | None = None
        self._num_steps = self._num_prompt_tokens = self._num_generation_tokens = self._num_step_errors = 0
        self._num_prompt_tokens_cached = 0
        self._last_step_time = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # Any thread

    @property
    def dead(self) -> Exception | None:
        return self._dead

    def submit(
        self,
        prompt_ids: SequenceOf[int],
        params: SamplingParams,
        on_done: Callable[[], None] | None = None,
        *,
        salt: str = "",
    ) -> TokenStream:
        if self._dead is not None:
            raise EngineDeadError(str(self._dead)) from self._dead
        seq = Sequence(next(self._ids), prompt_ids, params, decoder_start_ids=self._decoder_start_ids, salt=salt)
        stream = TokenStream(self.abort, seq.seq_id, on_done)
        self._inbox.put(_Submit(seq, stream))
        if self._dead is not None:  # it died between the check and the put: nobody will read the inbox
            self._fail_inbox()
        return stream

    def abort(self, seq_id: int) -> None:
        self._inbox.put(_Abort(seq_id))

    def stop(self) -> None:
        self._inbox.put(_Stop())
        self._thread.join(timeout=10)

    def snapshot(self) -> EngineSnapshot:
        return EngineSnapshot(
            num_waiting=len(self._scheduler.waiting) + self._inbox.qsize(),
            num_running=len(self._scheduler.running),
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generation_tokens=self._num_generation_tokens,
            num_step_errors=self._num_step_errors,
            num_preemptions=self._scheduler.num_preemptions,
            num_prompt_tokens_cached=self._num_prompt_tokens_cached,
            kv_cache_usage=0.0 if self._scheduler.ledger is None else self._scheduler.ledger.usage,
            last_step_time=self._last_step_time,
        )

    # The engine's thread

    def _run(self) -> None:
        try:
            while self._take_inbox():
                self.step()
                self._deliver()
            self._end(FinishReason.ABORT, None, EngineDeadError("the engine was stopped"))
        except BaseException as error:
            logger.exception("engine.failed", extra={"engine": self._thread.name})
            dead = EngineDeadError(f"{type(error).__name__}: {error}")
            self._end(FinishReason.ERROR, dead, dead)

    def _take_inbox(self) -> bool:
        """Take every message there is, waiting for one when there is nothing to do; False when told to stop."""
        block = not self._scheduler.has_work
        while True:
            try:
                message = self._inbox.get(block=block)
            except queue.Empty:
                return True
            if isinstance(message, _Stop):
                return False
            if isinstance(message, _Submit):
                self._streams[message.seq.seq_id] = message.stream
                self._scheduler.add(message.seq)
            else:
                seq = self._scheduler.abort(message.seq_id)
                if seq is not None:
                    self._finish(seq, FinishReason.ABORT)
                    self._deliver()
            block = not self._scheduler.has_work

    def step(self) -> None:
        """Compute and commit one batch."""
        batch = self._scheduler.schedule()
        for part, output in self._forward(batch):
            if isinstance(output, Exception):
                self._num_step_errors += 1
                logger.error("sequence failed in the forward step", exc_info=output)
                self._finish(part[0].seq, FinishReason.ERROR, SequenceFailedError(f"{type(output).__name__}: {output}"))
            else:
                self._commit(part, output)
        for seq in self._scheduler.retire():
            self._runner.release(seq.seq_id)
        if not self._scheduler.has_work:
            self._scheduler.check_integrity()
        self._num_steps += 1
        self._last_step_time = time.monotonic()

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
        sampled = iter(self._sampler.sample(output.logits, completed) if completed else [])
        for scheduled in batch:
            seq = scheduled.seq
            prompt_logprobs = None
            if seq.seq_id in output.prompt_logits:
                prompt_logprobs = self._new_prompt_logprobs(seq, output.prompt_logits[seq.seq_id])
            completes = scheduled.completes
            if completes and seq.num_generation_tokens == 0:
                # For an encoder-decoder model the prompt is what the encoder read.
                self._num_prompt_tokens += len(seq.prompt_ids)
                self._num_prompt_tokens_cached += seq.num_cached_tokens
            seq.num_computed_tokens += scheduled.num_new_tokens
            self._scheduler.commit(seq)
            result = next(sampled) if completes else Sampled([])
            if isinstance(result, Exception):
                self._num_step_errors += 1
                logger.error("sequence failed in the sampler", exc_info=result)
                self._finish(seq, FinishReason.ERROR, SequenceFailedError(str(result)))
                continue
            if seq.params.max_tokens == 0 and completes:
                result = Sampled([], done=True)
            self._append(seq, result)
            reason = self._finish_reason(seq, result)
            if reason is not None:
                seq.finish(reason)
            if result.token_ids or prompt_logprobs or reason is not None:
                self._emit(
                    seq,
                    StepOutput(
                        seq.seq_id,
                        result.token_ids,
                        reason,
                        result.logprobs,
                        prompt_logprobs,
                        num_cached_tokens=seq.num_cached_tokens,
                    ),
                )

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
            self._num_generation_tokens += len(result.token_ids)
        else:
            # Until beam search is done, the sequence wears its best beam, so that its length is always right.
            seq.token_ids[seq.num_decoder_prompt_tokens :] = result.token_ids if result.done else seq.beam_search.best_ids
            self._num_generation_tokens += len(result.token_ids)

    @staticmethod
    def _finish_reason(seq: Sequence, result: Sampled) -> FinishReason | None:
        if seq.beam_search is not None and not result.done:
            return None
        if result.token_ids and result.token_ids[-1] in seq.params.stop_token_ids:
            return FinishReason.STOP
        if result.done or seq.num_generation_tokens >= seq.params.max_tokens:
            return FinishReason.LENGTH
        return None

    def _finish(self, seq: Sequence, reason: FinishReason, error: Exception | None = None) -> None:
        seq.finish(reason, error)
        self._runner.release(seq.seq_id)
        self._emit(seq, StepOutput(seq.seq_id, [], reason, error=error))

    def _emit(self, seq: Sequence, output: StepOutput) -> None:
        stream = self._streams.pop(seq.seq_id) if output.finish_reason is not None else self._streams[seq.seq_id]
        self._outbox.append((stream, output))

    def _deliver(self) -> None:
        """Hand over everything the step produced, with one wake-up per event loop."""
        if not self._outbox:
            return
        outbox, self._outbox = self._outbox, []
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[TokenStream, StepOutput]]] = {}
        for stream, output in outbox:
            by_loop.setdefault(stream.loop, []).append((stream, output))
        for loop, outputs in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, outputs)
            except RuntimeError:  # the loop is closed: nobody is left to read
                for stream, output in outputs:
                    if output.finish_reason is None:
                        self.abort(stream.seq_id)

    def _end(self, reason: FinishReason, error: Exception | None, dead: EngineDeadError) -> None:
        self._dead = dead
        for seq in self._scheduler.drain():
            seq.finish(reason, error)
            if seq.seq_id in self._streams:
                self._emit(seq, StepOutput(seq.seq_id, [], reason, error=error))
        self._deliver()
        self._fail_inbox()

    def _fail_inbox(self) -> None:
        """Answer what was submitted to an engine that has ended; any thread."""
        while True:
            try:
                message = self._inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(message, _Submit):
                output = StepOutput(message.seq.seq_id, [], FinishReason.ERROR, error=self._dead)
                message.stream.loop.call_soon_threadsafe(message.stream.put, output)


def _put_all(outputs: list[tuple[TokenStream, StepOutput]]) -> None:
    for stream, output in outputs:
        stream.put(output)
