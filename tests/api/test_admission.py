"""Owns the tests of admission: how many sequences may be there, and that no slot is lost."""

import concurrent.futures
import threading
from collections.abc import Iterator

import pytest

from tests.api.conftest import Serve
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.live import LiveServer, assert_error, eventually


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(16) as executor:
        yield executor


@pytest.fixture
def full(serve: Serve, pool: concurrent.futures.ThreadPoolExecutor) -> Iterator[LiveServer]:
    """A server with places for 2 + 3 sequences, whose model stands still until the test sets its gate."""
    server = serve(runner=FakeRunner(gate=threading.Event()), max_num_seqs=2, max_queue=3)
    yield server
    assert server.loader.runner.gate is not None
    server.loader.runner.gate.set()


def test_slots_are_counted_and_come_back(full: LiveServer, pool: concurrent.futures.ThreadPoolExecutor) -> None:
    admitted = [pool.submit(full.complete, max_tokens=2) for _ in range(5)]
    eventually(lambda: full.model.num_admitted == 5)
    assert_error(full.complete(), 429, type="rate_limit_error")
    assert full.model.num_admitted == 5
    assert full.loader.runner.gate is not None
    full.loader.runner.gate.set()
    assert [future.result().status_code for future in admitted] == [200] * 5
    eventually(full.is_idle)
    assert full.complete(n=5, max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    "body",
    [{"n": 3}, {"best_of": 3}, {"prompt": ["a", "b", "c"]}, {"prompt": [[5], [6], [7]]}, {"stream": True, "n": 3}],
    ids=repr,
)
def test_every_sequence_needs_one(
    full: LiveServer, pool: concurrent.futures.ThreadPoolExecutor, body: dict[str, object]
) -> None:
    first = pool.submit(full.complete, **{"max_tokens": 1} | body)
    eventually(lambda: full.model.num_admitted == 3)
    # All of a request's sequences or none: 3 + 3 are more than 5, 3 + 2 are not.
    assert_error(full.complete(**body), 429)
    second = pool.submit(full.complete, n=2, max_tokens=1)
    eventually(lambda: full.model.num_admitted == 5)
    assert full.loader.runner.gate is not None
    full.loader.runner.gate.set()
    assert first.result().status_code == second.result().status_code == 200
    eventually(full.is_idle)


def test_chat_counts_as_well(full: LiveServer, pool: concurrent.futures.ThreadPoolExecutor) -> None:
    first = pool.submit(full.chat, n=4, max_tokens=1)
    eventually(lambda: full.model.num_admitted == 4)
    assert_error(full.chat(n=2), 429)
    assert full.loader.runner.gate is not None
    full.loader.runner.gate.set()
    assert first.result().status_code == 200


@pytest.mark.parametrize("body", [{"n": 6}, {"best_of": 6}, {"prompt": ["a"] * 6}, {"prompt": ["a", "b"], "n": 3}], ids=repr)
def test_what_can_never_fit_is_the_senders_error(serve: Serve, body: dict[str, object]) -> None:
    """A 429 would make clients try it again for ever."""
    server = serve(max_num_seqs=2, max_queue=3)
    error = assert_error(server.complete(**body), 400, type="invalid_request_error")
    assert "5" in error["message"]
    assert server.model.num_admitted == 0


def test_refused_requests_keep_none(serve: Serve) -> None:
    server = serve(FakeLoader(context_length=50))
    for body in ({"prompt": "x" * 60}, {"prompt": ["a", "x" * 60], "n": 2}, {"stop_token_ids": [999]}, {"prompt": [999]}):
        for stream in (False, True):
            assert server.complete(**body, stream=stream).status_code == 400
            eventually(server.is_idle)


def test_failed_requests_keep_none(serve: Serve) -> None:
    server = serve(runner=FakeRunner(raises=lambda seq: RuntimeError() if seq.num_generation_tokens == 3 else None))
    for stream in (False, True):
        server.complete(n=3, stream=stream)
        server.chat(n=3, stream=stream)
        eventually(server.is_idle)


def test_models_do_not_share_their_places(serve: Serve, pool: concurrent.futures.ThreadPoolExecutor) -> None:
    class OneBlocked(FakeLoader):
        def __call__(self, name, *args):  # type: ignore[no-untyped-def]
            self.runner = FakeRunner(gate=gate) if name == "blocked" else FakeRunner()
            return super().__call__(name, *args)

    gate = threading.Event()
    server = serve(OneBlocked(), names=("blocked", "free"), max_num_seqs=1, max_queue=1)
    try:
        pool.submit(server.complete, n=2, max_tokens=1)
        eventually(lambda: server.model.num_admitted == 2)
        assert_error(server.complete(), 429)
        response = server.http.post("/v1/completions", json={"model": "free", "n": 2, "max_tokens": 1})
        assert response.status_code == 200
    finally:
        gate.set()
