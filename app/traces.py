"""Owns the W3C trace context of a request (https://www.w3.org/TR/trace-context): reading it. Makes no spans."""

import re
from typing import NamedTuple

# Later versions may append fields; version ff is forbidden.
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[ -~]*)?")
_MAX_BYTES = 256


class TraceContext(NamedTuple):
    """Where a request belongs. `header` is what the client sent."""

    trace_id: str
    span_id: str
    header: bytes


def trace_context(header: bytes | None) -> TraceContext | None:
    """Return the context of a `traceparent` header, None if there is none or it is not valid: it is then to be ignored."""
    if header is None or len(header) > _MAX_BYTES:
        return None
    match = _TRACEPARENT.fullmatch(header)
    if match is None or (match[1] == b"00" and match[4]):
        return None
    trace_id, span_id = match[2].decode(), match[3].decode()
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceContext(trace_id, span_id, header)
