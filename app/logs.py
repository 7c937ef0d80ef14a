"""Owns log lines: JSON for machines, short lines for people at a terminal. Knows no requests; logs no prompt and no token."""

import logging
import re
import sys
import traceback

from pythonjsonlogger.msgspec import MsgspecFormatter

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
# Libraries that log request contents or their own access lines.
_QUIET = ("transformers", "httpx", "httpcore", "asyncio", "litestar", "uvicorn", "filelock")


# What could be a secret in a message that a library wrote: a header's value, a token of the hub.
_SECRET = re.compile(r"(?i)(\bbearer\s+)[^\s\"',;]+|\bhf_[a-z0-9]{8,}")


class _Redacted(logging.Formatter):
    """Another formatter's lines without what looks like a secret. Our own lines have none; those of libraries are not ours."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return _SECRET.sub(lambda match: f"{match[1] or ''}[redacted]", self._inner.format(record))


class _TerminalFormatter(logging.Formatter):
    """`12:00:01 model.ready model=tfoai-demo`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        text = f"{self.formatTime(record, '%H:%M:%S')} {record.getMessage()}"
        text += "".join(f" {key}={value}" for key, value in fields.items() if value is not None)
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def trace_of(error: BaseException) -> str:
    """Return an exception's type and the lines it came through, without its message: that can quote what a client sent."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(
        [type(error).__qualname__, *(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))]
    )


def setup_logging(level: int = logging.INFO) -> None:
    """Send every log line to stderr: readable on a terminal, one JSON object a line elsewhere."""
    handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        handler.setFormatter(_Redacted(_TerminalFormatter()))
    else:
        json_formatter = MsgspecFormatter(
            ["timestamp", "levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "message": "msg", "timestamp": "ts"},
            timestamp=True,
        )
        handler.setFormatter(_Redacted(json_formatter))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def adopt_library_logs() -> None:
    """Take the handlers off libraries that print by themselves, once they are imported: their lines go the common way."""
    for name in ("transformers", "huggingface_hub"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
