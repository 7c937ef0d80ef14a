"""Owns one request for vectors from its slot to its metrics: submission, result, errors, end. Knows no wire shape."""

import logging
import time
from collections.abc import Sequence

from app.engine.pooling_job import PoolingAbortedError, PoolingFailedError, PoolingInput, PoolingJob
from app.engine.sequence import FinishReason
from app.errors import EngineError, Unavailable
from app.metrics import Metrics
from app.registry import RETRY_QUEUE, Admission, ServedModel

logger = logging.getLogger("tfoai.api")

OPERATION = "embeddings"


class EmbeddingWork:
    """The inputs of one request. Whoever makes it closes it: what still runs is then aborted and the slot is returned."""

    def __init__(self, model: ServedModel, admission: Admission, metrics: Metrics, *, request_id: str) -> None:
        self.model = model
        self.job: PoolingJob | None = None
        self.finish_reason: FinishReason | None = None
        self._admission = admission
        self._metrics = metrics
        self._request_id = request_id
        self._start = time.monotonic()
        self._closed = False

    async def vectors(self, inputs: Sequence[PoolingInput]) -> list[bytes]:
        """Return a vector of little-endian float32 per input; raise EngineError or Unavailable."""
        self.job = self._admission.submit_inputs(inputs)
        try:
            vectors = await self.job.result()
        except PoolingFailedError as error:
            self.finish_reason = FinishReason.ERROR
            self._log(error)
            raise EngineError(
                f"The model failed on input {error.index} of this request. Its operator can find it as {self._request_id} in "
                "the log.",
                param=f"input.[{error.index}]",
            ) from error
        except PoolingAbortedError as error:
            self.finish_reason = FinishReason.ABORT
            raise Unavailable("The server stopped before the answer was complete.", retry_after=RETRY_QUEUE) from error
        except Exception as error:  # the engine has died
            self.finish_reason = FinishReason.ERROR
            self._log(error)
            raise EngineError(
                f"The model failed on this request. Its operator can find it as {self._request_id} in the log."
            ) from error
        self.finish_reason = FinishReason.STOP
        return vectors

    def _log(self, error: Exception) -> None:
        logger.error("request.failed", extra={"request_id": self._request_id, "model": self.model.name, "error": str(error)})

    def close(self) -> None:
        """Abort what still runs, return an unused slot, record the end; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._admission.close()
        if self.job is None:
            return
        self.job.close()
        name, metrics, num_tokens = self.model.name, self._metrics, self.job.num_tokens
        reason = self.finish_reason or FinishReason.ABORT
        metrics.requests.labels(name, OPERATION, str(reason)).inc(len(self.job.inputs))
        metrics.prompt_tokens.labels(name).observe(num_tokens)
        metrics.request_duration.labels(name, OPERATION).observe(time.monotonic() - self._start)
        metrics.legacy.add(name, num_tokens, 0)
