"""Owns what handlers share: the server's Context, and the RequestState that lives as long as one request. Knows no endpoint."""

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from app.api.generate import Generation
from app.config import Config
from app.errors import Draining, EngineDead, InvalidRequest, ModelLoading, QueueFull
from app.metrics import Metrics
from app.registry import Admission, Registry, ServedModel

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(slots=True)
class RequestState:
    """One request's own facts; the outermost middleware makes it, closes its generation and logs it."""

    request_id: str
    start: float = field(default_factory=time.monotonic)
    route: str = "other"
    salt: str = ""
    generation: Generation | None = None

    @classmethod
    def of(cls, scope: Any) -> "RequestState":
        state: RequestState = scope["tfoai"]
        return state

    @classmethod
    def new(cls, wanted_id: bytes | None) -> "RequestState":
        """Use the caller's x-request-id if it is harmless. Ids of engine sequences never come from here."""
        wanted = (wanted_id or b"").decode("latin-1")
        return cls(wanted if _REQUEST_ID.fullmatch(wanted) else "req_" + secrets.token_hex(12))


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
        generation = Generation(model, self._admit(model, num_sequences), self.metrics, operation, state.salt)
        state.generation = generation
        return generation

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
