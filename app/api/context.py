"""Owns what handlers share: configuration, registry, metrics, and how a request for sequences begins and ends."""

import secrets
from dataclasses import dataclass, field
from typing import Any

from app.api.embed import EmbeddingWork
from app.api.generate import Generation
from app.api.request_state import RequestState
from app.api.response_store import Responses, ResponseStore
from app.config import Config
from app.metrics import Metrics
from app.registry import Registry

# The place in a request's scope of what its connection may go on from, where that is more than what is stored.
CONNECTION_RESPONSES = "tfoai.responses"
# What both kinds of models do.
_OF_ANY_KIND = frozenset({"tokenize", "detokenize"})


@dataclass(frozen=True, slots=True)
class Context:
    config: Config
    registry: Registry
    metrics: Metrics
    # Without one given, nothing is kept.
    responses: ResponseStore = field(default_factory=lambda: ResponseStore(0, 0, 0))

    @property
    def is_lenient(self) -> bool:
        return self.config.compatibility == "lenient"

    def responses_of(self, scope: Any) -> Responses:
        responses: Responses = scope.get(CONNECTION_RESPONSES, self.responses)
        return responses

    def begin(self, scope: Any, name: str, num_sequences: int, operation: str, *, reuses: bool = False) -> Generation:
        """Admit a request for `num_sequences` sequences of the model `name`; raise what refuses it.

        With `reuses` it may have more of them, and not more at a time.

        The generation is closed when the request is over, whatever happens in between.
        """
        model = self.registry.get(name)
        if operation not in _OF_ANY_KIND:
            model.check_kind(embeddings=False)
        state = RequestState.of(scope)
        state.model = model.name
        admission = model.admit(num_sequences, reuses=reuses)
        generation = Generation(
            model,
            admission,
            self.metrics,
            operation,
            request_id=state.request_id,
            salt=state.salt,
            limits=self.config.limits,
            max_queue_tokens=self.config.max_queue_tokens,
        )
        state.generation = generation
        self.registry.num_open_requests += 1
        model.num_open_requests += 1
        return generation

    def begin_embeddings(self, scope: Any, name: str) -> EmbeddingWork:
        """Admit a request for vectors, which takes one slot however many inputs it has; raise as `begin` does."""
        model = self.registry.get(name)
        model.check_kind(embeddings=True)
        state = RequestState.of(scope)
        state.model = model.name
        work = EmbeddingWork(model, model.admit(1), self.metrics, request_id=state.request_id)
        state.generation = work
        self.registry.num_open_requests += 1
        model.num_open_requests += 1
        return work

    def end(self, state: RequestState) -> None:
        """Close what `begin` has begun; the outermost middleware calls it at the end of every request."""
        if state.generation is not None:
            state.generation.close()
            self.registry.num_open_requests -= 1
            state.generation.model.num_open_requests -= 1


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(14)}"
