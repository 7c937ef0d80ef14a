"""Owns the thread that turns token ids into vectors: jobs in, batches by length, vectors out. Knows no torch and no HTTP.

One thread per model, as for text (engine.py), but without state between steps: an input is done in one forward pass.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from app.engine.engine import EngineDeadError, EngineSnapshot
from app.engine.pooling_job import PoolingAbortedError, PoolingFailedError, PoolingInput, PoolingJob, PoolingRunner
from app.engine.totals import Totals

logger = logging.getLogger("tfoai.engine")


class NotFiniteError(Exception):
    """The model gave no usable vector (NaN, or infinities)."""


# A step computes about this many tokens: enough for any machine to be busy, few enough that a short job waits briefly.
MAX_NUM_BATCHED_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class _Submit:
    job: PoolingJob


@dataclass(frozen=True, slots=True)
class _Abort:
    job: PoolingJob


class _Stop:
    pass


# An input in work: its job, and its place in the job.
_Place = tuple[PoolingJob, int]


class PoolingThread:
    """The one thread that touches its runner. A step takes one input from each waiting job in turn, so that a job of two
    thousand texts does not hold up a job of one.
    """

    def __init__(
        self,
        runner: PoolingRunner,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
        name: str = "pooling",
    ) -> None:
        self._runner = runner
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._inbox: queue.SimpleQueue[_Submit | _Abort | _Stop] = queue.SimpleQueue()
        self._jobs: deque[PoolingJob] = deque()
        self._dead: Exception | None = None
        # Plain numbers, so that other threads may read them at any time.
        self._num_waiting = self._num_running = 0
        self._totals = Totals()
        # Inputs that the thread has not seen yet; loops add to them, the thread takes from them.
        self._num_inbox = 0
        self._inbox_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # Any thread

    @property
    def dead(self) -> Exception | None:
        return self._dead

    def submit(self, inputs: SequenceOf[PoolingInput], on_done: Callable[[], None]) -> PoolingJob:
        if self._dead is not None:
            raise EngineDeadError(str(self._dead)) from self._dead
        job = PoolingJob(inputs, lambda job: self._inbox.put(_Abort(job)), on_done)
        with self._inbox_lock:
            self._num_inbox += len(job.inputs)
        self._inbox.put(_Submit(job))
        if self._dead is not None:  # it died between the check and the put: nobody will read the inbox
            self._end_inbox(self._dead)
        return job

    def stop(self, seconds: float = 10) -> None:
        self._inbox.put(_Stop())
        self._thread.join(timeout=seconds)

    def snapshot(self) -> EngineSnapshot:
        return EngineSnapshot(
            num_waiting=self._num_waiting + self._num_inbox,
            num_running=self._num_running,
            num_steps=self._totals.num_steps,
            num_prompt_tokens=self._totals.num_prompt_tokens,
            num_prompt_tokens_cached=0,
            num_generation_tokens=0,
            num_preemptions=0,
            kv_cache_usage=0.0,
            block_size=0,
            num_blocks=0,
            last_step_time=self._totals.last_step_time,
            step_errors=self._totals.step_errors,
            step_seconds=self._totals.step_seconds,
            step_tokens=self._totals.step_tokens,
        )

    # The engine's thread

    def _run(self) -> None:
        try:
            while self._take_inbox():
                self._step()
            self._end(EngineDeadError("the engine was stopped"), PoolingAbortedError())
        except BaseException as error:
            logger.exception("engine.failed", extra={"engine": self._thread.name})
            dead = EngineDeadError(f"{type(error).__name__}: {error}")
            self._end(dead, dead)

    def _take_inbox(self) -> bool:
        """Take every message there is, waiting for one when there is nothing to do; False when told to stop."""
        while True:
            try:
                message = self._inbox.get(block=not self._jobs)
            except queue.Empty:
                return True
            if isinstance(message, _Stop):
                return False
            if isinstance(message, _Submit):
                if not self._jobs:  # it was idle until now, and that is no stall
                    self._totals.last_step_time = time.monotonic()
                self._jobs.append(message.job)
                with self._inbox_lock:
                    self._num_inbox -= len(message.job.inputs)
            elif message.job in self._jobs:
                self._jobs.remove(message.job)
                message.job.finish(PoolingAbortedError())
            self._num_waiting = sum(len(job.pending) for job in self._jobs)

    def _step(self) -> None:
        start = time.monotonic()
        batch = self._next_batch()
        self._num_running = len(batch)
        for group in self._groups(batch):
            for (job, index), vector in self._forward(group):
                self._take_vector(job, index, vector)
        self._num_running = 0
        self._totals.count_step("prefill", time.monotonic() - start, sum(_length(place) for place in batch))

    def _next_batch(self) -> list[_Place]:
        batch: list[_Place] = []
        num_tokens = 0
        waiting = deque(self._jobs)
        while waiting and len(batch) < self._max_num_seqs:
            job = waiting.popleft()
            length = len(job.inputs[job.pending[-1]].ids)
            if batch and num_tokens + length > self._max_num_batched_tokens:
                waiting.appendleft(job)
                break
            batch.append((job, job.pending.pop()))
            num_tokens += length
            if job.pending:
                waiting.append(job)
        self._num_waiting -= len(batch)
        # Who was not served begins the next step; those that are all in work go behind, until their vectors are there.
        self._jobs = deque([*waiting, *(job for job in self._jobs if not job.pending)])
        return batch

    def _groups(self, batch: list[_Place]) -> list[list[_Place]]:
        """Split a batch into forwards, by length: no row of one is more than half padding."""
        groups: list[list[_Place]] = []
        longest = 0
        for place in sorted(batch, key=_length, reverse=True):
            fits = 2 * _length(place) >= longest if self._runner.can_pad else _length(place) == longest
            if not groups or not fits:
                groups.append([])
                longest = _length(place)
            groups[-1].append(place)
        return groups

    def _forward(self, group: list[_Place]) -> list[tuple[_Place, bytes | Exception | None]]:
        """Run a group; after an error run its halves, down to the one input that raises by itself, which is tried twice."""
        for attempt in range(2 if len(group) == 1 else 1):
            try:
                return list(zip(group, self._runner.forward([job.inputs[index] for job, index in group]), strict=True))
            except Exception as error:
                logger.warning("forward step failed for %d inputs: %s", len(group), error)
                if len(group) == 1 and attempt == 1:
                    return [(group[0], error)]
        middle = len(group) // 2
        return self._forward(group[:middle]) + self._forward(group[middle:])

    def _take_vector(self, job: PoolingJob, index: int, vector: bytes | Exception | None) -> None:
        if vector is None:
            vector = NotFiniteError("the vector is not finite")
        if isinstance(vector, Exception):
            self._totals.count_error(vector)
            logger.error("input.failed", exc_info=vector)
            self._drop(job, PoolingFailedError(index, vector))
            return
        self._totals.num_prompt_tokens += len(job.inputs[index].ids)
        job.vectors[index] = vector
        if len(job.vectors) == len(job.inputs):
            self._drop(job, None)

    def _drop(self, job: PoolingJob, error: Exception | None) -> None:
        """End a job; a second failure of the same one finds nothing left to end."""
        if job in self._jobs:
            self._jobs.remove(job)
            self._num_waiting -= len(job.pending)
            job.finish(error)

    def _end(self, dead: EngineDeadError, error: Exception) -> None:
        self._dead = dead
        for job in self._jobs:
            job.finish(error)
        self._jobs.clear()
        self._num_waiting = self._num_running = 0
        self._end_inbox(error)

    def _end_inbox(self, error: Exception) -> None:
        """Answer what was submitted to an engine that has ended; any thread."""
        while True:
            try:
                message = self._inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(message, _Submit):
                with self._inbox_lock:
                    self._num_inbox -= len(message.job.inputs)
                message.job.finish(error)


def _length(place: _Place) -> int:
    job, index = place
    return len(job.inputs[index].ids)
