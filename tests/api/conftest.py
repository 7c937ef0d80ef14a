"""Live servers for the API tests."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import pytest

from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.live import LiveServer, join_stopped, live_server

ANSWER = "Hello, wörld! 🙂"


class Serve(Protocol):
    def __call__(
        self, loader: FakeLoader | None = None, *, runner: FakeRunner | None = None, wait_ready: bool = True, **config: Any
    ) -> LiveServer: ...


@pytest.fixture(scope="module", autouse=True)
def _join_servers() -> Iterator[None]:
    """Leave no thread behind that could fail somebody else's test."""
    yield
    join_stopped()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers that are stopped when the test ends."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(live_server(*args, **kwargs))


@pytest.fixture(scope="module")
def counting() -> Iterator[LiveServer]:
    """A server whose model counts for ever; shared, so its tests must leave nothing running."""
    with live_server(max_num_seqs=32) as server:
        yield server


@pytest.fixture(scope="module")
def saying() -> Iterator[LiveServer]:
    """A server whose model says "Hello, wörld! 🙂" and stops."""
    with live_server(runner=FakeRunner(answer=ANSWER), max_num_seqs=32) as server:
        yield server
