"""W3C trace context: what is taken and what is ignored (https://www.w3.org/TR/trace-context/#traceparent-header)."""

import pytest

from app.traces import trace_context

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize("header", [VALID, f"00-{TRACE}-{SPAN}-00", f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-more"])
def test_valid(header: str) -> None:
    context = trace_context(header.encode())
    assert context is not None
    assert (context.trace_id, context.span_id, context.header) == (TRACE, SPAN, header.encode())


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"{VALID}-more",
        f"cc-{TRACE}-{SPAN}-01more",
        f"cc-{TRACE}-{SPAN}-01-\r\nX: y",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 300}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f" {VALID}",
    ],
)
def test_ignored(header: str | None) -> None:
    assert trace_context(None if header is None else header.encode()) is None
