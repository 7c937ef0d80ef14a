"""Owns what goes into an engine that makes vectors and what comes out: inputs, jobs, their errors. Knows no thread."""

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

from app.engine.engine import EngineSnapshot


@dataclass(frozen=True, slots=True)
class PoolingInput:
    """One text as ids. The first `num_prompt_tokens` are the model's own prompt; `dimensions` cuts the vector."""

    ids: tuple[int, ...]
    num_prompt_tokens: int = 0
    dimensions: int | None = None


class PoolingRunner(Protocol):
    """Computes vectors. `can_pad` is False for a model whose answer for one input depends on another one's length."""

    name: str
    can_pad: bool

    def forward(self, batch: SequenceOf[PoolingInput]) -> list[bytes | None]:
        """Return a vector of little-endian float32 for each input, None where it is not finite; may be called again."""
        ...


class PoolingFailedError(Exception):
    """The model failed on an input; `index` is its place in the job."""

    def __init__(self, index: int, cause: Exception) -> None:
        super().__init__(f"input {index}: {type(cause).__name__}: {cause}")
        self.index = index


class PoolingAbortedError(Exception):
    """The engine was stopped before the job was done."""


class PoolingJob:
    """The inputs of one request, which belongs to the event loop it was made on.

    `close()` is idempotent and drops what has not been computed. `on_done` is called once, on the loop, when the engine has
    confirmed the end.
    """

    def __init__(
        self, inputs: SequenceOf[PoolingInput], abort: Callable[["PoolingJob"], None], on_done: Callable[[], None]
    ) -> None:
        self.inputs = tuple(inputs)
        self.num_tokens = sum(len(one.ids) for one in inputs)
        self.is_done = False
        self._abort = abort
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[list[bytes]] = self._loop.create_future()
        # The engine thread's own: what is to be computed, longest last, and what has been.
        self.pending = sorted(range(len(self.inputs)), key=lambda index: len(self.inputs[index].ids))
        self.vectors: dict[int, bytes] = {}

    async def result(self) -> list[bytes]:
        """Return a vector per input, in their order; raise PoolingFailedError or PoolingAbortedError."""
        return await asyncio.shield(self._result)

    def close(self) -> None:
        if not self.is_done:
            self._abort(self)

    def finish(self, error: Exception | None) -> None:
        """Hand the job back to its loop; any thread."""
        try:
            self._loop.call_soon_threadsafe(self._finish, error)
        except RuntimeError:  # the loop is closed: nobody is left to read
            return

    def _finish(self, error: Exception | None) -> None:
        if self.is_done:
            return
        self.is_done = True
        self._on_done()
        if error is None:
            self._result.set_result([self.vectors[index] for index in range(len(self.inputs))])
        else:
            self._result.set_exception(error)
            self._result.exception()  # read, so that nobody warns of it when the client has left


class PoolingEngine(Protocol):
    """What the rest of tfoai sees of an engine that makes vectors."""

    def submit(self, inputs: SequenceOf[PoolingInput], on_done: Callable[[], None]) -> PoolingJob:
        """Queue a job; call on an event loop. Raise EngineDeadError if the engine has ended."""
        ...

    def snapshot(self) -> EngineSnapshot: ...

    @property
    def dead(self) -> Exception | None: ...

    def stop(self, seconds: float = 10) -> None:
        """End the thread after its present step; jobs that are still there end with PoolingAbortedError."""
        ...
