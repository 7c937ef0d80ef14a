"""Owns what is known of one HTTP request from its first byte to its last. Knows no endpoint."""

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.api.embed import EmbeddingWork
from app.api.generate import Generation
from app.traces import TraceContext, trace_context

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(slots=True)
class RequestState:
    """One request's own facts; the outermost middleware makes it, closes its generation and logs it."""

    request_id: str
    start: float = field(default_factory=time.monotonic)
    route: str = "other"
    salt: str = ""
    # The name of the token's client, never the token.
    client: str | None = None
    trace: TraceContext | None = None
    # The served name, once it is known to be one.
    model: str = ""
    generation: Generation | EmbeddingWork | None = None
    # Places of parameters that are left out of the body (COMPATIBILITY "lenient").
    ignored: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, scope: Any) -> "RequestState":
        state: RequestState = scope["tfoai"]
        return state

    @classmethod
    def new(cls, headers: Mapping[bytes, bytes]) -> "RequestState":
        """Use the caller's x-request-id if it is harmless. Ids of engine sequences never come from here."""
        wanted = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = wanted if _REQUEST_ID.fullmatch(wanted) else new_request_id()
        return cls(request_id, trace=trace_context(headers.get(b"traceparent")))


def new_request_id() -> str:
    return "req_" + secrets.token_hex(12)
