"""Owns which shape an error has: OpenAI's, or Anthropic's below /v1/messages. Knows no handler and no framework.

Anthropic's (docs.claude.com, API reference, Errors; anthropic-sdk-python reads `error.type` and `error.details.error_code`):
`type` follows from the status. `details` has the code and the parameter that OpenAI's object has beside the message.
"""

from typing import Any

import msgspec

from app.api.request_state import new_request_id
from app.errors import RequestError, UnsupportedParameter

_ROUTE = "/v1/messages"
# By which the client's own loops know to send the whole conversation instead (anthropic-sdk-python: lib/threads).
_NO_THREADS = "thread_unsupported_request"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def speaks_anthropic(path: str) -> bool:
    """Return whether what is at a path, be it there or not, is Anthropic's API."""
    return path == _ROUTE or path.startswith(_ROUTE + "/")


def error_body(path: str, error: RequestError, request_id: str) -> dict[str, Any]:
    """Return the body of an error's response on the route at `path`."""
    return anthropic_error(error, request_id) if speaks_anthropic(path) else error.body()


def anthropic_error(error: RequestError, request_id: str) -> dict[str, Any]:
    kind = _TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    told: dict[str, Any] = {"type": kind, "message": str(error)}
    code = _NO_THREADS if error.param == "thread" and isinstance(error, UnsupportedParameter) else error.code
    details = {"error_code": code, "param": error.param}
    if any(details.values()):
        told["details"] = {name: value for name, value in details.items() if value is not None}
    return {"type": "error", "error": told, "request_id": request_id}


def connection_refusal(path: str, status: int, reason: str, words: str) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return body and headers of what is refused before it is a request that anybody has looked at."""
    error = RequestError(words, code=reason)
    error.status = status  # type: ignore[misc]  # the reasons have no classes of their own
    error.type = "service_unavailable" if status == 503 else "invalid_request_error"  # type: ignore[misc]
    if not speaks_anthropic(path):
        return msgspec.json.encode(error.body()), []
    request_id = new_request_id()
    ids = [(name, request_id.encode()) for name in (b"request-id", b"x-request-id")]
    return msgspec.json.encode(anthropic_error(error, request_id)), ids
