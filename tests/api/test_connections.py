"""Owns the tests of what a connection may do: slow heads, slow bodies, readers that do not read, too many, too large.

Real sockets, since clients that behave can not do this. The limits are short here; a healthy stream beside each attack goes on.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.conftest import Serve
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.live import MODEL, LiveServer, SlowRunner, assert_error, eventually, openai_error

LIMITS = {"header_timeout": 0.4, "body_timeout": 0.4, "write_timeout": 0.4, "max_header_bytes": 2048}


@contextlib.contextmanager
def connection(server: LiveServer, **options: int) -> Iterator[socket.socket]:
    with socket.socket() as sock:
        for option, value in options.items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", server.port))
        yield sock


def read_all(sock: socket.socket) -> bytes:
    """Read until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


def refused(server: LiveServer, reason: str) -> float:
    return server.metrics.connections_refused.labels(reason)._value.get()


def error_of(answer: bytes, status: int) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in head
    assert b"content-length: %d" % len(body) in head
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_head_that_comes_byte_by_byte_is_cut_off_and_a_stream_is_not(serve: Serve) -> None:
    server = serve(runner=SlowRunner(), **LIMITS)
    with (
        connection(server) as sock,
        server.http.stream(
            "POST", "/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 200, "stream": True}
        ) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):  # it is closed in the middle of this
            for byte in b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"y" * 40:
                sock.send(bytes([byte]))
                time.sleep(0.03)
                if refused(server, "header_timeout"):
                    break
        assert 0.3 < time.monotonic() - start < 1.2
        assert error_of(read_all(sock), 408)["code"] == "header_timeout"
        assert "data: [DONE]" in list(lines), "it takes a second, longer than any limit"
    assert refused(server, "header_timeout") == 1


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"G", b"GET / HTTP/1.1\r\n"], ids=repr)
def test_a_head_that_never_ends_is_cut_off(serve: Serve, sent: bytes) -> None:
    server = serve(**LIMITS)
    with connection(server) as sock:
        sock.send(sent)
        answer = read_all(sock)
        if sent:
            assert error_of(answer, 408)["code"] == "header_timeout"
        else:  # nothing was asked, so nothing is answered
            assert answer == b""


def test_the_second_head_on_a_connection_has_a_deadline_too(serve: Serve) -> None:
    server = serve(**LIMITS)
    with connection(server) as sock:
        sock.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(0.6)  # idle is not slow: that is what connections are kept for
        sock.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        sock.send(b"GET /li")
        assert error_of(read_all(sock), 408)["code"] == "header_timeout"


@pytest.mark.parametrize("head", [b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"], ids=["length", "chunked"])
def test_a_body_that_never_ends_is_cut_off_and_leaves_nothing(serve: Serve, head: bytes) -> None:
    server = serve(**LIMITS)
    with connection(server) as sock:
        sock.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + head + b"\r\n")
        sock.send(b'5\r\n{"pro\r\n' if b"chunked" in head else b'{"pro')
        assert error_of(read_all(sock), 408)["code"] == "body_timeout"
    eventually(lambda: not server._uvicorn.server_state.tasks)
    assert refused(server, "body_timeout") == 1
    assert server.complete(max_tokens=1).status_code == 200


def test_a_head_that_is_too_large_is_refused_at_the_limit(serve: Serve) -> None:
    server = serve(**LIMITS)
    assert server.http.get("/livez", headers={"X-Large": "x" * 1600}).status_code == 200
    large = server.http.get("/livez", headers={"X-Large": "x" * 2048})
    assert_error(large, 431, code="header_too_large")
    assert server.http.get("/" + "p" * 3000).status_code == 431
    with connection(server) as sock:
        with contextlib.suppress(ConnectionError):
            for _ in range(100):  # one value without an end
                sock.send((b"GET / HTTP/1.1\r\nX: " if _ == 0 else b"") + b"x" * 1000)
                time.sleep(0.001)
        answer = read_all(sock)
        assert answer == b"" or error_of(answer, 431)
    assert refused(server, "header_too_large") >= 3


def test_bytes_that_are_not_http_get_an_error_object(serve: Serve) -> None:
    server = serve(**LIMITS)
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"\0" * 100):
        with connection(server) as sock:
            sock.send(sent)
            assert error_of(read_all(sock), 400)["code"] == "malformed"


def test_a_client_that_does_not_read_its_stream_is_dropped(serve: Serve) -> None:
    """It costs memory for its tokens only, and after the deadline nothing: its sequence is aborted, its slot free."""
    # So large that no socket buffer holds it; each event has the logprobs of 20 tokens.
    server = serve(FakeLoader(FakeRunner(), context_length=100_000), write_timeout=0.4)
    body = json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 90_000,
         "logprobs": True, "top_logprobs": 20, "stream": True}
    ).encode()  # fmt: skip
    with connection(server, SO_RCVBUF=4096) as sock:
        sock.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        eventually(lambda: refused(server, "write_timeout") == 1)
        eventually(server.is_idle)
        eventually(lambda: not server._uvicorn.server_state.connections)
    assert server.registry.num_open_requests == 0
    assert server.complete(max_tokens=1).status_code == 200


def test_refusals_have_the_shape_of_their_routes(serve: Serve) -> None:
    """Anthropic's clients look for another error object than OpenAI's."""
    server = serve(**LIMITS, max_connections=1)
    with connection(server) as sock:
        head = (
            b"POST /v1/messages?beta=true HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
        )
        sock.send(head + b"{")
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        error = json.loads(body)
        assert b"\r\nrequest-id: " + error["request_id"].encode() in head
        assert openai_error(error)["code"] == "body_timeout"
    eventually(lambda: not server._uvicorn.server_state.connections)
    with connection(server):
        eventually(lambda: len(server._uvicorn.server_state.connections) == 1)
        above = httpx.post(f"{server.url}/v1/messages", trust_env=False)
        assert_error(above, 503, code="too_many_connections")
        assert above.json()["error"]["type"] == "overloaded_error" and int(above.headers["retry-after"]) > 0


def test_a_slow_reader_is_served_to_the_end(serve: Serve) -> None:
    server = serve(runner=FakeRunner(), write_timeout=0.5)
    request = {"model": MODEL, "prompt": "x", "max_tokens": 300, "logprobs": 5, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=request) as stream:
        size = 0
        for part in stream.iter_raw(chunk_size=4096):
            size += len(part)
            time.sleep(0.01)
            end = part
    assert end.endswith(b"data: [DONE]\n\n")
    assert size > 65536, "more than is buffered"


def test_connections_above_the_limit_get_503_and_others_go_on(serve: Serve) -> None:
    server = serve(runner=SlowRunner(), max_connections=3)
    request = {"model": MODEL, "prompt": "x", "max_tokens": 100, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=request) as stream, connection(server), connection(server):
        eventually(lambda: len(server._uvicorn.server_state.connections) == 3)
        assert httpx.get(f"{server.url}/livez", trust_env=False).status_code == 200, "overload fails no probe"
        above = httpx.get(f"{server.url}/v1/models", trust_env=False)
        assert_error(above, 503, code="too_many_connections", type="service_unavailable")
        assert above.headers["connection"] == "close" and int(above.headers["retry-after"]) > 0
        with contextlib.ExitStack() as stack:
            many = [stack.enter_context(connection(server)) for _ in range(8)]
            # Beyond twice the limit not even an answer.
            eventually(lambda: len(server._uvicorn.server_state.connections) <= 6)
            assert read_all(many[-1]) == b""
        assert "data: [DONE]" in list(stream.iter_lines())
    eventually(lambda: httpx.get(f"{server.url}/v1/models", trust_env=False).status_code == 200)


def test_an_upgrade_that_is_not_offered_is_an_ordinary_request(serve: Serve) -> None:
    """curl --http2 and gRPC probes send this; the connection goes on in HTTP/1.1, and no deadline is left running."""
    server = serve(**LIMITS)
    with connection(server) as sock:
        for _ in range(2):
            sock.send(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(0.6)


def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    """The deadline of a body does not run while the server itself does not read."""
    server = serve(runner=SlowRunner(), **LIMITS)
    body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 150}).encode()
    one = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    with connection(server) as sock:
        sock.send(
            one % (len(body), body) + (one % (len(body), body)) + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        answer = read_all(sock)
    assert answer.count(b"HTTP/1.1 200") == 3, answer
