"""Owns what handlers share: configuration, registry, metrics, and how a request for sequences begins and ends."""

import secrets
from dataclasses import dataclass
from typing import Any

from app.api.generate import Generation
from app.api.request_state import RequestState
from app.config import Config
from app.errors import Draining, EngineDead, InvalidRequest, ModelLoading, QueueFull
from app.metrics import Metrics
from app.registry import Admission, Registry, ServedModel


@dataclass(frozen=True, slots=True)
class Context:
    config: Config
    registry: Registry
    metrics: Metrics

    def begin(self, scope: Any, name: str, num_sequences: int, operation: str) -> Generation:
        """Admit a request for `num_sequences` sequences of the model `name`; raise what refuses it, and count that.

        The generation is closed when the request is over, whatever happens in between.
        """
        model = self.registry.get(name)
        state = RequestState.of(scope)
        admission = self._admit(model, num_sequences)
        generation = Generation(model, admission, self.metrics, operation, request_id=state.request_id, salt=state.salt)
        state.generation = generation
        self.registry.num_open_requests += 1
        return generation

    def end(self, state: RequestState) -> None:
        """Close what `begin` has begun; the outermost middleware calls it at the end of every request."""
        if state.generation is not None:
            state.generation.close()
            self.registry.num_open_requests -= 1

    def _admit(self, model: ServedModel, num_sequences: int) -> Admission:
        reasons = {
            Draining: "draining",
            ModelLoading: "loading",
            EngineDead: "dead",
            QueueFull: "queue_full",
            InvalidRequest: "invalid",
        }
        try:
            return model.admit(num_sequences)
        except tuple(reasons) as error:
            self.metrics.rejected.labels(model.name, reasons[type(error)]).inc()
            raise


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(14)}"
