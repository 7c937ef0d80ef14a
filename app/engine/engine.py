"""Owns the engine's thread: inbox -> step -> outbox. Knows no torch, no text, no HTTP."""

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

from app.engine.runner import Runner, Sampler
from app.engine.scheduler import Scheduler
from app.engine.sequence import FinishReason, SamplingParams, Sequence, StepOutput
from app.engine.step import Stepper
from app.engine.stream import TokenStream
from app.tally import Tally

logger = logging.getLogger("tfoai.engine")


class EngineDeadError(Exception):
    """The engine thread has ended; nothing submitted to it will ever be answered."""


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """Plain numbers for metrics and probes; totals count from the start of the engine, aborted work included.

    `step_errors` is by reason ("oom", "nan", "exception"), `step_seconds` by phase ("prefill", "decode"). `last_step_time` is
    on the monotonic clock: when the last step ended, or when work came to an idle engine. `block_size` and `num_blocks` are 0
    for a runner without blocks.
    """

    num_waiting: int
    num_running: int
    num_steps: int
    num_prompt_tokens: int
    num_prompt_tokens_cached: int
    num_generation_tokens: int
    num_preemptions: int
    kv_cache_usage: float
    block_size: int
    num_blocks: int
    last_step_time: float
    step_errors: Mapping[str, int]
    step_seconds: Mapping[str, Tally]
    step_tokens: Tally


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

    def stop(self, seconds: float = 10) -> None:
        """End the thread after its present step; sequences that are still there finish with ABORT.

        Waits for that, at most `seconds`: call it off the event loop.
        """
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
    `on_start` is called first in the thread, for settings that belong to one.
    """

    def __init__(
        self,
        runner: Runner,
        sampler: Sampler,
        scheduler: Scheduler,
        *,
        decoder_start_ids: SequenceOf[int] | None = None,
        on_start: Callable[[], None] | None = None,
        name: str = "engine",
    ) -> None:
        self._stepper = Stepper(runner, sampler, scheduler)
        self._scheduler = scheduler
        self._decoder_start_ids = decoder_start_ids
        self._on_start = on_start
        self._inbox: queue.SimpleQueue[_Submit | _Abort | _Stop] = queue.SimpleQueue()
        self._streams: dict[int, TokenStream] = {}
        self._outbox: list[tuple[TokenStream, StepOutput]] = []
        self._ids = itertools.count()
        self._dead: Exception | None = None
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

    def stop(self, seconds: float = 10) -> None:
        self._inbox.put(_Stop())
        self._thread.join(timeout=seconds)

    def snapshot(self) -> EngineSnapshot:
        totals, ledger = self._stepper.totals, self._scheduler.ledger
        return EngineSnapshot(
            num_waiting=len(self._scheduler.waiting) + self._inbox.qsize(),
            num_running=len(self._scheduler.running),
            num_steps=totals.num_steps,
            num_prompt_tokens=totals.num_prompt_tokens,
            num_prompt_tokens_cached=totals.num_prompt_tokens_cached,
            num_generation_tokens=totals.num_generation_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            kv_cache_usage=0.0 if ledger is None else ledger.usage,
            block_size=0 if ledger is None else ledger.block_size,
            num_blocks=0 if ledger is None else ledger.num_blocks,
            last_step_time=totals.last_step_time,
            step_errors=totals.step_errors,
            step_seconds=totals.step_seconds,
            step_tokens=totals.step_tokens,
        )

    # The engine's thread

    def _run(self) -> None:
        try:
            if self._on_start is not None:
                self._on_start()
            while self._take_inbox():
                self._emit(self._stepper.step())
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
            if block:  # it was idle until now, and that is no stall
                self._stepper.totals.last_step_time = time.monotonic()
            if isinstance(message, _Submit):
                self._streams[message.seq.seq_id] = message.stream
                self._scheduler.add(message.seq)
            else:
                output = self._stepper.abort(message.seq_id)
                if output is not None:
                    self._emit([output])
                    self._deliver()
            block = not self._scheduler.has_work

    def _emit(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            ended = output.finish_reason is not None
            stream = self._streams.pop(output.seq_id) if ended else self._streams[output.seq_id]
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
        self._emit(self._stepper.take())
        for seq in self._scheduler.drain():
            seq.finish(reason)
            if seq.seq_id in self._streams:
                self._emit([StepOutput(seq.seq_id, [], reason, error=error)])
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
