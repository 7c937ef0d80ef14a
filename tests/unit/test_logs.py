"""Log lines: one JSON object each, without what looks like a secret, and errors without the words that clients wrote."""

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator

import pytest

from app.logs import setup_logging, trace_of


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    setup_logging()
    yield stream
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def test_secrets_in_lines_of_libraries_are_taken_out(log: io.StringIO) -> None:
    logging.getLogger("some.library").warning("headers: {'authorization': 'Bearer sk-secret-1', 'x': 'y'}")
    logging.getLogger("huggingface_hub").error("401 for token hf_secretsecret", extra={"header": "bearer sk-secret-2"})
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert "secret" not in log.getvalue()
    assert lines[0]["msg"] == "headers: {'authorization': 'Bearer [redacted]', 'x': 'y'}"
    assert lines[1]["header"] == "bearer [redacted]"


def test_uvicorn_and_warnings_come_as_json_too(log: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("uvicorn.error").info("Started server process")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)  # after catch_warnings, which has put the printing back
        warnings.warn("something is old", stacklevel=1)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["logger"] for line in lines] == ["uvicorn.error", "py.warnings"]
    assert {"ts", "level", "logger", "msg"} <= lines[0].keys()


def test_trace_of_an_error_has_its_places_and_not_its_words() -> None:
    def inner() -> None:
        raise ValueError("the prompt was: my secret")

    try:
        inner()
    except ValueError as error:
        trace = trace_of(error)
    assert trace.startswith("ValueError < ")
    assert "test_logs.py" in trace and " inner < " in trace
    assert "secret" not in trace
