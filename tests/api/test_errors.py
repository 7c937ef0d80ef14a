"""Owns the tests of what every answer has: the error object, and the headers."""

import concurrent.futures
import re
import threading
from typing import Any

import pytest

from tests.api.conftest import Serve
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.live import MODEL, LiveServer, SlowRunner, assert_error, events_of, eventually


def failing(message: str = "secret inside", after: int = 0) -> FakeRunner:
    """Raise for every sequence that has `after` tokens; the ones before reach the client first."""
    return SlowRunner(raises=lambda seq: RuntimeError(message) if seq.num_generation_tokens >= after else None)


class TestErrorObject:
    """`assert_error` checks for exactly the four keys."""

    def test_400(self, counting: LiveServer) -> None:
        assert_error(counting.complete(n="x"), 400, type="invalid_request_error", param="n")

    def test_401(self, serve: Serve) -> None:
        server = serve(bearer_tokens=("x",))
        assert_error(server.http.get("/v1/models", headers={"Authorization": "Bearer y"}), 401, code="invalid_api_key")

    @pytest.mark.parametrize(
        "path", ["/nope", "/v1/nope", "/v1", "/v1/completions/x", "/v1/chat", "/index.html", "/favicon.ico"]
    )
    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    def test_404(self, counting: LiveServer, method: str, path: str) -> None:
        assert_error(counting.http.request(method, path), 404, type="invalid_request_error")

    def test_404_of_the_root(self, counting: LiveServer) -> None:
        response = counting.http.get("/")
        if response.status_code != 200:  # a page there is fine as well
            assert_error(response, 404)

    def test_404_of_an_asset(self, counting: LiveServer) -> None:
        assert_error(counting.http.get("/docs/assets/nope.js"), 404)
        assert_error(counting.http.get("/docs/assets/..%2f..%2fsetup.py"), 404)

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/completions"),
            ("PUT", "/v1/chat/completions"),
            ("POST", "/v1/models"),
            ("DELETE", "/v1/models/x"),
            ("POST", "/livez"),
        ],
    )
    def test_405(self, counting: LiveServer, method: str, path: str) -> None:
        response = counting.http.request(method, path)
        assert_error(response, 405, type="invalid_request_error", code="method_not_allowed")

    def test_405_names_what_is_allowed(self, counting: LiveServer) -> None:
        """RFC 9110, 15.5.6: the answer must have the header."""
        assert "POST" in counting.http.get("/v1/completions").headers["allow"]

    def test_413(self, serve: Serve) -> None:
        server = serve(max_body_bytes=1024)
        assert_error(server.complete("x" * 2000), 413, type="invalid_request_error")
        assert_error(server.chat([{"role": "user", "content": "x" * 2000}]), 413, type="invalid_request_error")

    def test_415(self, counting: LiveServer) -> None:
        assert_error(counting.http.post("/v1/chat/completions", content=b"{}"), 415, type="invalid_request_error")

    def test_429(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(gate=threading.Event()), max_num_seqs=1, max_queue=1)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            pool.submit(server.complete, n=2, max_tokens=1)
            eventually(lambda: server.model.num_admitted == 2)
            for response in (server.complete(), server.chat(stream=True)):
                assert_error(response, 429, type="rate_limit_error", code="engine_overloaded")
                assert 1 <= int(response.headers["retry-after"]) <= 120
                assert 0 < int(response.headers["retry-after-ms"]) <= 120_000
            server.loader.runner.gate.set()

    @pytest.mark.parametrize("stream", [False, True])
    def test_500_of_the_engine(self, serve: Serve, stream: bool) -> None:
        server = serve(runner=failing())
        for response in (server.complete(stream=stream), server.chat(stream=stream), server.complete(n=3, stream=stream)):
            error = assert_error(response, 500, type="server_error", code="engine_error")
            assert "secret" not in response.text and "RuntimeError" not in response.text
            assert error["param"] is None
        eventually(server.is_idle)

    def test_500_of_the_server(self, serve: Serve) -> None:
        server = serve()

        def broken(*_: Any) -> None:
            raise ZeroDivisionError("secret inside")

        server.model.loaded.chat.render = broken
        response = server.chat()
        error = assert_error(response, 500, type="server_error")
        assert "secret" not in response.text and "ZeroDivision" not in response.text and "Traceback" not in response.text
        assert response.headers["x-request-id"] in error["message"]
        eventually(server.is_idle)

    def test_503(self, serve: Serve) -> None:
        server = serve(FakeLoader(gate=threading.Event()), wait_ready=False)
        response = server.complete()
        assert_error(response, 503, type="service_unavailable", code="model_loading")
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert 0 < int(response.headers["retry-after-ms"]) <= 120_000

    @pytest.mark.parametrize("n", [1, 2])
    def test_in_the_middle_of_a_stream(self, serve: Serve, n: int) -> None:
        """The status is gone by then: an event says it, and the stream still ends as it should."""
        server = serve(runner=failing(after=3))
        for response in (
            server.complete(stream=True, n=n, stream_options={"include_usage": True}),
            server.chat(stream=True, n=n, stream_options={"include_usage": True}),
        ):
            *events, last = events_of(response)
            assert events and all("choices" in event for event in events)
            assert set(last) == {"error"} and set(last["error"]) == {"message", "type", "param", "code"}
            assert last["error"]["type"] == "server_error"
            assert "secret" not in response.text
        eventually(server.is_idle)

    def test_a_bad_neighbour_costs_nobody_else_an_answer(self, serve: Serve) -> None:
        runner = FakeRunner(answer="fine", raises=lambda seq: RuntimeError("bad") if len(seq.prompt_ids) == 7 else None)
        server = serve(runner=runner)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            prompts = ["x" * 7 if index % 2 else "x" * 5 for index in range(8)]
            responses = list(pool.map(server.complete, prompts))
        assert [response.status_code for response in responses] == [200, 500] * 4
        assert {response.json()["choices"][0]["text"] for response in responses[::2]} == {"fine"}

    def test_logits_that_are_nan_are_a_500(self, serve: Serve) -> None:
        assert_error(serve(runner=FakeRunner(nan_for=lambda seq: True)).complete(logprobs=1), 500, code="engine_error")

    def test_what_the_engine_leaves_when_the_server_stops(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(gate=threading.Event()))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            request = pool.submit(server.complete)
            eventually(lambda: server.snapshot.num_running == 1)
            stopping = pool.submit(server.registry.stop)
            server.loader.runner.gate.set()
            stopping.result(10)
            assert_error(request.result(10), 503, type="service_unavailable")

    def test_what_is_quoted_is_short(self, counting: LiveServer) -> None:
        """An answer much larger than its request would help whoever wants to fill a network."""
        for body in (
            {"x" * 20_000: 1},
            {"stop": [["x" * 20_000]]},
            {"logit_bias": {"x" * 20_000: 1}},
            {"service_tier": "x" * 20_000},
        ):
            assert len(assert_error(counting.complete(**body), 400)["message"]) < 600


ALL_KINDS = [
    ("GET", "/v1/models", 200),
    ("GET", "/livez", 200),
    ("GET", "/nope", 404),
    ("GET", "/v1/completions", 405),
    ("POST", "/v1/completions", 415),
]


class TestHeaders:
    @pytest.mark.parametrize(("method", "path", "status"), ALL_KINDS)
    def test_every_answer_has_them(self, counting: LiveServer, method: str, path: str, status: int) -> None:
        response = counting.http.request(method, path)
        assert response.status_code == status
        assert re.fullmatch(r"req_[0-9a-f]{24}", response.headers["x-request-id"])
        assert int(response.headers["openai-processing-ms"]) >= 0
        assert response.headers["openai-version"] == "2020-10-01"

    def test_streams_too(self, counting: LiveServer) -> None:
        assert counting.complete(stream=True, max_tokens=1).headers["x-request-id"].startswith("req_")

    @pytest.mark.parametrize("wanted", ["abc", "A-b_c.9", "x" * 128])
    def test_a_harmless_id_of_the_caller_is_kept(self, counting: LiveServer, wanted: str) -> None:
        for path in ("/v1/models", "/nope"):
            assert counting.http.get(path, headers={"x-request-id": wanted}).headers["x-request-id"] == wanted

    @pytest.mark.parametrize("wanted", ["", "x" * 129, "a b", "a/b", "<script>", "a\tb", "ümlaut", 'a"b', "a;b"])
    def test_any_other_is_replaced(self, counting: LiveServer, wanted: str) -> None:
        response = counting.http.get("/v1/models", headers=[(b"x-request-id", wanted.encode())])
        assert re.fullmatch(r"req_[0-9a-f]{24}", response.headers["x-request-id"])

    def test_ids_differ(self, counting: LiveServer) -> None:
        ids = {counting.http.get("/livez").headers["x-request-id"] for _ in range(20)}
        assert len(ids) == 20

    def test_the_time_is_the_requests(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(gate=threading.Event()))
        threading.Timer(0.15, server.loader.runner.gate.set).start()
        assert int(server.complete(max_tokens=1).headers["openai-processing-ms"]) >= 100


def test_the_name_of_a_model_is_quoted_in_full_up_to_a_limit(counting: LiveServer) -> None:
    response = counting.http.post("/v1/completions", json={"model": "x" * 300})
    assert len(assert_error(response, 404)["message"]) < 300
    assert MODEL not in response.text  # what else is served is not told here
