"""Owns one request's generation, common to all endpoints: admission, submission, reading the streams, usage, metrics.

Knows neither the shape of requests nor that of answers.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from app.api.limits import check_request_tokens
from app.api.schemas.common import PromptTokensDetails, Usage
from app.config_limits import Limits
from app.engine.grammar import GrammarError
from app.engine.sequence import FinishReason, NothingAllowedError, SamplingParams, StepOutput, TokenLogprobs
from app.engine.stream import TokenStream
from app.errors import EngineError, InvalidRequest, Unavailable
from app.metrics import Metrics
from app.registry import RETRY_QUEUE, Admission, ServedModel
from app.text.output import PLAIN_OUTPUT, OutputOptions, OutputProcessor, TextDelta

logger = logging.getLogger("tfoai.api")


@dataclass(frozen=True, slots=True)
class Prompt:
    """An encoded prompt with its text as the client sent it (or as its ids decode)."""

    ids: list[int]
    text: str


@dataclass(slots=True)
class Candidate:
    """One continuation of one prompt, from its stream to its text."""

    index: int
    prompt: Prompt
    stream: TokenStream
    output: OutputProcessor
    text: str = ""
    # All that are counted: those that are not shown, and those whose text is still held back, too.
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    sum_logprob: float = 0.0
    asked_logprobs: tuple[float, ...] = ()
    num_cached_tokens: int = 0
    first_token_time: float | None = None
    last_token_time: float | None = None
    scheduled_time: float | None = None


class Generation:
    """The candidates of one request. Whoever makes it closes it: what still runs is then aborted and slots are returned."""

    def __init__(
        self,
        model: ServedModel,
        admission: Admission,
        metrics: Metrics,
        operation: str,
        *,
        request_id: str,
        salt: str,
        limits: Limits | None = None,
        max_queue_tokens: int | None = None,
    ) -> None:
        self.model = model
        self._limits = limits or Limits()
        self._max_queue_tokens = max_queue_tokens
        self.candidates: list[Candidate] = []
        self._admission = admission
        self._metrics = metrics
        self.operation = operation
        self._request_id = request_id
        self.salt = salt
        self._start = time.monotonic()
        self._closed = False
        # Looked up once: it is observed for every token.
        self._inter_token_latency = metrics.inter_token_latency.labels(model.name)

    def check_tokens(self, num_prompt_tokens: int, num_completion_tokens: int, param: str) -> None:
        """Call before the first sequence, with the sums over all of them; raise InvalidRequest or QueueFull for too many."""
        check_request_tokens(num_prompt_tokens + num_completion_tokens, self._limits, param)
        if self._max_queue_tokens is not None:
            self.model.check_prompt_tokens(num_prompt_tokens, self._max_queue_tokens, param)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        options: OutputOptions = PLAIN_OUTPUT,
        *,
        kept_special_ids: frozenset[int] = frozenset(),
    ) -> Candidate:
        loaded = self.model.loaded
        output = OutputProcessor(
            loaded.tokenizer,
            # A decoder-only model continues its prompt's text; an encoder-decoder model starts a text of its own.
            context_ids=() if loaded.is_encoder_decoder else tuple(prompt.ids),
            options=options,
            stop_token_ids=params.stop_token_ids,
            kept_special_ids=kept_special_ids,
        )
        stream = self._admission.submit(prompt.ids, params, salt=self.salt)
        candidate = Candidate(len(self.candidates), prompt, stream, output)
        self.candidates.append(candidate)
        return candidate

    async def deltas(self, candidates: Sequence[Candidate] | None = None) -> AsyncIterator[tuple[Candidate, TextDelta]]:
        """Yield what the engine produces, from all candidates (or some) as it comes; raise when a sequence fails."""
        candidates = self.candidates if candidates is None else candidates
        if len(candidates) == 1:
            # The usual case, without a task per token.
            (only,) = candidates
            async for output in only.stream:
                delta = self._process(only, output)
                if only.output.is_done:
                    only.stream.close()
                yield only, delta
            return
        readers = {asyncio.ensure_future(anext(candidate.stream)): candidate for candidate in candidates}
        try:
            while readers:
                done, _ = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: readers[task].index):
                    candidate = readers.pop(task)
                    delta = self._process(candidate, task.result())
                    if candidate.output.is_done:
                        candidate.stream.close()
                    else:
                        readers[asyncio.ensure_future(anext(candidate.stream))] = candidate
                    yield candidate, delta
        finally:
            for task in readers:
                task.cancel()

    def _process(self, candidate: Candidate, output: StepOutput) -> TextDelta:
        if output.finish_reason is FinishReason.ERROR:
            candidate.finish_reason = output.finish_reason
            if isinstance(output.error, GrammarError):
                raise InvalidRequest(f"The text could not be held to its grammar: {output.error}", code="grammar_failed")
            if isinstance(output.error, NothingAllowedError):
                raise InvalidRequest(str(output.error), param="allowed_token_ids", code="nothing_allowed")
            # What went wrong inside is for the log; the client gets a fixed sentence.
            request_id = self._request_id
            logger.error(
                "request.failed", extra={"request_id": request_id, "model": self.model.name, "error": str(output.error)}
            )
            raise EngineError(f"The model failed on this request. Its operator can find it as {request_id} in the log.")
        if output.finish_reason is FinishReason.ABORT:
            candidate.finish_reason = output.finish_reason
            raise Unavailable("The server stopped before the answer was complete.", retry_after=RETRY_QUEUE)
        self._observe_tokens(candidate, len(output.token_ids))
        candidate.num_cached_tokens = output.num_cached_tokens
        candidate.scheduled_time = output.scheduled_time
        if output.prompt_logprobs:
            candidate.prompt_logprobs += output.prompt_logprobs
        num_before = candidate.output.num_tokens
        delta = candidate.output.process(output)
        candidate.token_ids += output.token_ids[: candidate.output.num_tokens - num_before]
        if output.logprobs:
            # Tokens behind a stop string do not count; how many there are depends on how outputs were merged.
            counted = output.logprobs[: candidate.output.num_tokens - num_before]
            candidate.sum_logprob += sum(entry.logprob for entry in counted)
            candidate.asked_logprobs = output.logprobs[-1].asked
        candidate.text += delta.text
        if delta.finish_reason is not None:
            candidate.finish_reason = delta.finish_reason
        return delta

    def _observe_tokens(self, candidate: Candidate, num_tokens: int) -> None:
        if num_tokens == 0:
            return
        now = time.monotonic()
        if candidate.first_token_time is None or candidate.last_token_time is None:
            candidate.first_token_time = now
            self._metrics.time_to_first_token.labels(self.model.name).observe(now - self._start)
        else:
            self._inter_token_latency.observe((now - candidate.last_token_time) / num_tokens, num_tokens)
        candidate.last_token_time = now

    def usage(self) -> Usage:
        """Count each prompt once, and every candidate's tokens: also those of candidates that are not returned."""
        # The first candidate of each prompt: the others find their prompt in the cache because of it.
        first = {id(candidate.prompt): candidate for candidate in reversed(self.candidates)}.values()
        prompt_tokens = sum(len(candidate.prompt.ids) for candidate in first)
        completion_tokens = sum(candidate.output.num_tokens for candidate in self.candidates)
        cached = PromptTokensDetails(sum(candidate.num_cached_tokens for candidate in first))
        return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, cached)

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from request accepted to its first token."""
        times = [candidate.first_token_time for candidate in self.candidates if candidate.first_token_time is not None]
        return min(times) - self._start if times else None

    def close(self) -> None:
        """Abort what still runs, return unused slots, record the end; idempotent."""
        if self._closed:
            return
        self._closed = True
        for candidate in self.candidates:
            candidate.stream.close()
        self._admission.close()
        self._record()

    def _record(self) -> None:
        name = self.model.name
        metrics = self._metrics
        for candidate in self.candidates:
            reason = candidate.finish_reason or FinishReason.ABORT
            metrics.requests.labels(name, self.operation, str(reason)).inc()
            scheduled, first, last = candidate.scheduled_time, candidate.first_token_time, candidate.last_token_time
            if scheduled is not None:
                metrics.queue_time.labels(name).observe(max(0.0, scheduled - self._start))
            if scheduled is not None and first is not None:
                metrics.prefill_time.labels(name).observe(max(0.0, first - scheduled))
            if first is not None and last is not None:
                metrics.decode_time.labels(name).observe(last - first)
                if candidate.output.num_tokens > 1:
                    metrics.time_per_output_token.labels(name).observe((last - first) / (candidate.output.num_tokens - 1))
        if self.candidates:
            usage = self.usage()
            metrics.prompt_tokens.labels(name).observe(usage.prompt_tokens)
            metrics.generation_tokens.labels(name).observe(usage.completion_tokens)
            metrics.request_duration.labels(name, self.operation).observe(time.monotonic() - self._start)
            metrics.legacy.add(name, usage.prompt_tokens, usage.completion_tokens)
