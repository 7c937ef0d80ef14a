"""Loading shows bars on a terminal and log lines elsewhere, and always a number."""

import fcntl
import json
import logging
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from transformers.utils.logging import tqdm

from app.engine.progress import ProgressHook
from tests.support.process import ROOT

PROGRAM = """
import time
from transformers.utils.logging import tqdm
from app.engine.progress import ProgressHook
from app.logs import setup_logging
setup_logging()
with ProgressHook("m", lambda share: None):
    for _ in tqdm(range(4), desc="Loading weights"):
        time.sleep(0.15)
"""


def test_the_share_is_reported_up_to_the_end() -> None:
    shares: list[float] = []
    with ProgressHook("m", shares.append):
        for _ in tqdm(range(3), desc="Loading weights"):
            pass
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_hook_is_taken_back() -> None:
    from transformers.utils import logging as transformers_logging

    before = transformers_logging._tqdm_hook
    with pytest.raises(RuntimeError), ProgressHook("m", lambda share: None):
        raise RuntimeError
    assert transformers_logging._tqdm_hook is before


def test_a_terminal_gets_a_bar() -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=child, stderr=child, stdin=child)
    os.close(child)
    output = b""
    while True:
        try:
            data = os.read(parent, 4096)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        output += data
    os.close(parent)
    assert process.wait(timeout=60) == 0
    assert b"m: Loading weights:  50%|" in output
    assert b"model.loading" not in output


def test_everything_else_gets_log_lines() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [event["percent"] for event in events] == sorted(event["percent"] for event in events)
    assert {event["msg"] for event in events} == {"model.loading"}
    assert events[-1]["percent"] == 100
    assert "|" not in result.stderr


def test_logs_of_libraries_go_the_common_way() -> None:
    from app.logs import adopt_library_logs

    logger = logging.getLogger("huggingface_hub")
    before = list(logger.handlers)
    try:
        adopt_library_logs()
        assert logger.handlers == []
        assert logger.propagate
    finally:
        logger.handlers = before
