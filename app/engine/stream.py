"""Owns TokenStream, where one sequence's outputs meet the event loop. Knows no engine but how to abort."""

import asyncio
from collections import deque
from collections.abc import Callable

from app.engine.sequence import FinishReason, StepOutput


class TokenStream:
    """The tokens of one sequence, as an async iterator of StepOutput that ends after the one with a finish reason.

    It belongs to the event loop it was made on. Outputs that arrive while nobody reads are merged, so a slow reader costs
    memory for its tokens only; an end by error or abort stays apart, so that what came before it can still be given out.
    `close()` is idempotent and aborts a sequence that still runs. `on_done` is called once, on the loop, when the engine has
    confirmed the end: only then are its resources free.
    """

    def __init__(self, abort: Callable[[int], None], seq_id: int, on_done: Callable[[], None] | None = None) -> None:
        self.seq_id = seq_id
        self.loop = asyncio.get_running_loop()
        self._abort = abort
        self._on_done = on_done
        self._pending: deque[StepOutput] = deque()
        # What the reader waits for. A plain future: an event would cost each token twice as much.
        self._arrived: asyncio.Future[None] | None = None
        self._delivered_last = False
        self._closed = False
        self.is_done = False

    def put(self, output: StepOutput) -> None:
        """Take one output from the engine; runs on the loop."""
        if self.is_done:
            return
        if output.finish_reason is not None:
            self.is_done = True
            if self._on_done is not None:
                self._on_done()
        if self._closed:
            return
        if self._pending and output.finish_reason not in (FinishReason.ERROR, FinishReason.ABORT):
            _merge(self._pending[-1], output)
        else:
            self._pending.append(output)
        self._wake()

    def __aiter__(self) -> "TokenStream":
        return self

    async def __anext__(self) -> StepOutput:
        if self._delivered_last or self._closed:
            raise StopAsyncIteration
        while not self._pending:
            self._arrived = self.loop.create_future()
            await self._arrived
            if self._closed:
                raise StopAsyncIteration
        output = self._pending.popleft()
        self._delivered_last = output.finish_reason is not None
        return output

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._pending.clear()
        self._wake()
        if not self.is_done:
            self._abort(self.seq_id)

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)


def _merge(first: StepOutput, second: StepOutput) -> None:
    """Add `second` to `first`."""
    first.token_ids += second.token_ids
    if second.logprobs is not None:
        first.logprobs = (first.logprobs or []) + second.logprobs
    if second.prompt_logprobs is not None:
        first.prompt_logprobs = (first.prompt_logprobs or []) + second.prompt_logprobs
    first.finish_reason = second.finish_reason
    first.error = second.error
