"""Owns the tests of /v1/responses as a WebSocket: turns, what they go on from, and what ends a connection."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import openai
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from app.connections import MAX_FRAGMENTS
from tests.api.conftest import ANSWER, Serve
from tests.api.test_connections import read_all, refused
from tests.api.test_responses import text_of
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.live import MODEL, LiveServer, SlowRunner, assert_error, eventually
from tests.support.response_events import check_events, check_response, named_events

TERMINAL = ("response.completed", "response.incomplete", "response.failed", "error")


@contextmanager
def connection(server: LiveServer, path: str = "/v1/responses", **options: Any) -> Iterator[ClientConnection]:
    url = server.url.replace("http", "ws") + path
    with connect(url, proxy=None, open_timeout=10, close_timeout=1, **options) as websocket:
        yield websocket


def ask(websocket: ClientConnection, input: Any = "hello", **body: Any) -> None:
    websocket.send(json.dumps({"type": "response.create", "model": MODEL, "input": input, **body}))


def events(websocket: ClientConnection) -> list[dict[str, Any]]:
    """Return the events of a turn."""
    result: list[dict[str, Any]] = []
    while not result or result[-1]["type"] not in TERMINAL:
        result.append(json.loads(websocket.recv(timeout=10)))
    return result


def turn(websocket: ClientConnection, input: Any = "hello", **body: Any) -> dict[str, Any]:
    """Return the response of a turn that succeeds."""
    ask(websocket, input, **body)
    return check_events(events(websocket))


def failure(websocket: ClientConnection, input: Any = "hello", **body: Any) -> dict[str, Any]:
    """Return the error event of a turn that fails at once."""
    ask(websocket, input, **body)
    (event,) = events(websocket)
    assert event["type"] == "error" and isinstance(event["error"]["code"], str) and event["error"]["message"]
    return event


def close_code(websocket: ClientConnection) -> int:
    """Return the code with which the server closes; nothing may come before it."""
    with pytest.raises(ConnectionClosed) as closed:
        websocket.recv(timeout=10)
    assert closed.value.rcvd is not None, closed.value
    return int(closed.value.rcvd.code)


def error_of(websocket: ClientConnection, **body: Any) -> tuple[int, str | None, str]:
    event = failure(websocket, **body)
    return event["status"], event["error"]["param"], event["error"]["code"]


class TestTurns:
    def test_events_are_those_of_the_stream(self, saying: LiveServer) -> None:
        body = {"model": MODEL, "input": "hello", "temperature": 0, "stream": True}
        streamed = named_events(saying.http.post("/v1/responses", json=body))
        with connection(saying) as websocket:
            ask(websocket, temperature=0)
            sent = events(websocket)
        check_events(sent)
        assert [event["type"] for event in sent if "delta" not in event["type"]] == [
            event["type"] for event in streamed if "delta" not in event["type"]
        ]
        assert set(sent[-1]["response"]) == set(streamed[-1]["response"])
        assert text_of(sent[-1]["response"]) == ANSWER

    def test_several_on_one_connection(self, saying: LiveServer) -> None:
        with connection(saying) as websocket:
            ids = {turn(websocket)["id"] for _ in range(3)}
        assert len(ids) == 3
        eventually(saying.is_idle)

    def test_what_is_sent_at_once_is_answered_in_turn(self, saying: LiveServer) -> None:
        with connection(saying) as websocket:
            for number in range(4):
                ask(websocket, metadata={"number": str(number)})
            for number in range(4):
                assert check_events(events(websocket))["metadata"] == {"number": str(number)}

    def test_each_is_a_request(self, saying: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
        """With an id, a line in the log and metrics of its own."""
        count = saying.metrics.http_requests.labels("POST", "/v1/responses", "200")._value.get
        before = count()
        caplog.set_level("INFO", "tfoai.access")
        with connection(saying) as websocket:
            turn(websocket)
            turn(websocket)
        eventually(lambda: count() == before + 2)
        lines = [record.__dict__ for record in caplog.records if record.message == "request.finished"]
        assert len({line["request_id"] for line in lines}) == 2
        assert {(line["route"], line["operation"], line["status"]) for line in lines} == {("/v1/responses", "response", 200)}

    # Raised in openai-python, which has its own context manager around it.
    @pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")
    def test_openai_client(self, saying: LiveServer) -> None:
        client = openai.OpenAI(base_url=f"{saying.url}/v1", api_key="none")
        with client.responses.connect() as websocket:
            for _ in range(2):
                websocket.response.create(model=MODEL, input="hello", store=False)
                kinds = []
                for event in websocket:
                    kinds.append(event.type)
                    if event.type == "response.completed":
                        assert event.response.output_text == ANSWER
                        break
                assert kinds[0] == "response.created"

    def test_binary_messages_are_read_too(self, saying: LiveServer) -> None:
        with connection(saying) as websocket:
            websocket.send(json.dumps({"type": "response.create", "model": MODEL, "input": "x"}).encode())
            check_events(events(websocket))


class TestContinuation:
    def test_of_what_is_not_stored(self, serve: Serve) -> None:
        """On the connection that made it; nobody else has it."""
        server = serve(FakeLoader(runner=FakeRunner(answer=ANSWER)), response_store_max=0)
        with connection(server) as websocket:
            first = turn(websocket, store=False)
            second = turn(websocket, "and?", store=False, previous_response_id=first["id"])
            third = turn(websocket, "and then?", store=False, previous_response_id=second["id"])
            assert first["usage"]["input_tokens"] < second["usage"]["input_tokens"] < third["usage"]["input_tokens"]
            assert not first["store"] and third["previous_response_id"] == second["id"]
            with connection(server) as other:
                code = "previous_response_not_found"
                assert error_of(other, previous_response_id=third["id"]) == (400, "previous_response_id", code)
            # Only the latest is kept.
            assert error_of(websocket, previous_response_id=first["id"])[2] == code

    def test_the_whole_conversation_is_shown(self, saying: LiveServer) -> None:
        with connection(saying) as websocket:
            first = turn(websocket, store=False)
            second = turn(websocket, "and?", store=False, previous_response_id=first["id"])
        items = [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": "and?"},
        ]
        count = saying.http.post("/v1/responses/input_tokens", json={"model": MODEL, "input": items}).json()["input_tokens"]
        assert second["usage"]["input_tokens"] == count

    def test_of_what_is_stored(self, saying: LiveServer) -> None:
        """Wherever it was made; and what the connection made can be read anywhere."""
        made = saying.http.post("/v1/responses", json={"model": MODEL, "input": "hello"}).json()
        with connection(saying) as websocket:
            second = turn(websocket, "and?", previous_response_id=made["id"])
            unstored = turn(websocket, "so?", previous_response_id=second["id"], store=False)
            third = turn(websocket, "then?", previous_response_id=unstored["id"])
            assert turn(websocket, "again", previous_response_id=second["id"])["status"] == "completed"
        assert saying.http.get(f"/v1/responses/{second['id']}").json() == second
        assert saying.http.get(f"/v1/responses/{unstored['id']}").status_code == 404
        check_response(saying.http.get(f"/v1/responses/{third['id']}").json())

    def test_items_can_be_referred_to(self, saying: LiveServer) -> None:
        with connection(saying) as websocket:
            first = turn(websocket, store=False)
            reference = {"type": "item_reference", "id": first["output"][0]["id"]}
            assert turn(websocket, [{"role": "user", "content": "x"}, reference, {"role": "user", "content": "y"}], store=False)

    def test_a_turn_that_fails_takes_what_it_went_on_from_with_it(self, saying: LiveServer) -> None:
        output = [{"type": "function_call_output", "call_id": "call_unknown", "output": "x"}]
        with connection(saying) as websocket:
            first = turn(websocket, store=False)
            assert failure(websocket, output, store=False, previous_response_id=first["id"])["status"] == 400
            code = "previous_response_not_found"
            assert error_of(websocket, store=False, previous_response_id=first["id"])[2] == code
            # What is stored stays.
            stored = turn(websocket)
            assert failure(websocket, output, previous_response_id=stored["id"])["status"] == 400
            assert turn(websocket, previous_response_id=stored["id"])

    def test_more_than_a_body_may_have_is_not_kept(self, serve: Serve) -> None:
        server = serve(FakeLoader(runner=FakeRunner(answer=ANSWER), context_length=8000), max_body_bytes=4000)
        with connection(server) as websocket:
            first = turn(websocket, "x" * 1000, store=False)
            second = turn(websocket, "x" * 1000, store=False, previous_response_id=first["id"])
            assert failure(websocket, store=False, previous_response_id=second["id"])["status"] == 400


class TestErrors:
    def test_cost_the_connection_nothing(self, saying: LiveServer) -> None:
        with connection(saying) as websocket:
            for message in ("", "{", "[]", '"x"', "null", '{"a": ' + "[" * 5000, b"\xff"):
                websocket.send(message)
                (event,) = events(websocket)
                assert (event["type"], event["status"]) == ("error", 400)
            assert error_of(websocket, type="session.update")[:2] == (400, "type")
            assert error_of(websocket, type=None)[:2] == (400, "type")
            assert error_of(websocket, model="unknown") == (404, "model", "model_not_found")
            assert error_of(websocket, temperature=9)[:2] == (400, "temperature")
            assert error_of(websocket, unknown=1) == (400, "unknown", "unknown_parameter")
            assert error_of(websocket, stream=False) == (400, "stream", "unsupported_parameter")
            assert error_of(websocket, background=True) == (400, "background", "unsupported_parameter")
            assert error_of(websocket, generate=False) == (400, "generate", "unsupported_parameter")
            assert turn(websocket, stream=True, background=False, generate=True)["status"] == "completed"

    def test_a_failure_in_the_middle_is_one_terminal_event(self, serve: Serve) -> None:
        """A second one would be taken for the next turn's."""
        fails = RuntimeError("broken")
        runner = FakeRunner(answer=ANSWER, raises=lambda seq: fails if seq.num_generation_tokens == 4 else None)
        server = serve(runner=runner)
        with connection(server) as websocket:
            ask(websocket)
            sent = events(websocket)
            assert sent[0]["type"] == "response.created" and sent[-1]["type"] == "response.failed"
            runner.raises = lambda seq: None
            assert turn(websocket)["status"] == "completed"

    def test_says_when_to_come_back(self, serve: Serve) -> None:
        server = serve(runner=SlowRunner(), max_num_seqs=1, max_queue=0)
        with connection(server) as one, connection(server) as other:
            ask(one, max_output_tokens=300)
            assert json.loads(one.recv())["type"] == "response.created"
            event = failure(other)
            assert event["status"] == 429 and int(event["headers"]["retry-after"]) > 0 and event["headers"]["x-request-id"]

    def test_lenient_names_what_was_left_out(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(answer=ANSWER), compatibility="lenient")
        with connection(server) as websocket:
            ask(websocket, unknown=1)
            sent = events(websocket)
        assert sent[0]["type"] == "response.created" and sent[0]["headers"] == {"x-tfoai-ignored": "unknown"}
        assert not any("headers" in event for event in sent[1:])

    def test_while_the_server_goes_down(self, serve: Serve) -> None:
        """Every turn is answered, and then the connection given up: the next one finds another replica."""
        server = serve(runner=FakeRunner(answer=ANSWER))
        with connection(server) as late, connection(server) as later:
            turn(late)
            turn(later)
            eventually(lambda: server.registry.num_open_requests == 0)
            server.on_loop(server.registry.leave)
            assert turn(late)["status"] == "completed"
            assert close_code(late) == 1012
            server.on_loop(server.registry.drain)
            assert failure(later)["status"] == 503
            assert close_code(later) == 1012


class TestHandshake:
    def test_needs_a_token(self, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
        server = serve(runner=FakeRunner(answer=ANSWER), bearer_tokens=("secret",))
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(InvalidStatus) as refusal, connection(server, additional_headers=headers):
                pass
            response = refusal.value.response
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert response.headers["x-request-id"]
            assert set(json.loads(response.body)["error"]) == {"message", "type", "param", "code"}
        for headers in ({"Authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            with connection(server, additional_headers=headers) as websocket:
                assert turn(websocket)
        assert server.metrics.auth_failures.labels("unknown")._value.get() == 1
        assert not [record for record in caplog.records if record.levelname == "ERROR"]

    def test_a_token_that_is_taken_away_ends_with_the_turn(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(answer=ANSWER), bearer_tokens=("secret",))
        with connection(server, additional_headers={"Authorization": "Bearer secret"}) as websocket:
            turn(websocket)
            server.on_loop(lambda: server.app.asgi_handler._tokens.replace({"a": "other"}))  # type: ignore[attr-defined]
            assert failure(websocket)["status"] == 401

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/nothing", "/metrics"])
    def test_only_responses_are_served(self, saying: LiveServer, path: str) -> None:
        with pytest.raises(InvalidStatus) as refusal, connection(saying, path):
            pass
        assert refusal.value.response.status_code in (200, 404, 405)

    def test_pages_of_other_sites_are_kept_out(self, serve: Serve, saying: LiveServer) -> None:
        """Browsers keep them from nothing here. Where a token is needed, they have none."""
        for origin in ("https://evil.example", "null", f"http://127.0.0.1:{saying.port + 1}"):
            with pytest.raises(InvalidStatus) as refusal, connection(saying, origin=origin):
                pass
            assert refusal.value.response.status_code == 403
        with connection(saying, origin=saying.url) as websocket:
            assert turn(websocket)
        server = serve(runner=FakeRunner(answer=ANSWER), bearer_tokens=("secret",))
        headers = {"Authorization": "Bearer secret"}
        with connection(server, origin="https://app.example", additional_headers=headers) as websocket:
            assert turn(websocket)

    def test_only_a_get_becomes_one(self, saying: LiveServer) -> None:
        headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
        assert_error(saying.http.post("/v1/responses", json={"model": MODEL, "input": "hello"}, headers=headers), 400)

    @pytest.mark.parametrize("more", [b"x: " + b"y" * 10_000, b"x: y\r\n" * 200 + b"x: y", b"content-length: 2", b"x: y"])
    def test_heads_that_are_no_handshake(self, saying: LiveServer, more: bytes) -> None:
        """They are answered and closed: nobody waits for the rest of them."""
        with socket.create_connection(("127.0.0.1", saying.port), timeout=10) as sock:
            sock.sendall(b"GET /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n" + more)
            sock.sendall(b"\r\n\r\n")
            assert read_all(sock).startswith(b"HTTP/1.1 400 ")

    def test_connections_above_the_limit(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(answer=ANSWER), max_connections=2)
        with connection(server) as one, connection(server) as two:
            with pytest.raises(InvalidStatus) as refusal, connection(server):
                pass
            assert refusal.value.response.status_code == 503
            assert turn(one) and turn(two)
        assert refused(server, "too_many_connections") == 1


class TestEnds:
    def test_a_client_that_leaves_frees_its_place(self, serve: Serve) -> None:
        server = serve(runner=SlowRunner(), max_num_seqs=1, write_timeout=0.2)
        with connection(server) as websocket:
            ask(websocket)
            assert json.loads(websocket.recv())["type"] == "response.created"
            eventually(lambda: not server.is_idle())
        eventually(server.is_idle)
        eventually(lambda: server.metrics.disconnects.labels(MODEL)._value.get() == 1)
        assert server.registry.num_open_requests == 0
        time.sleep(0.3)
        assert refused(server, "write_timeout") == 0, "it was not slow, but gone"

    def test_a_client_that_does_not_read(self, serve: Serve) -> None:
        server = serve(FakeLoader(FakeRunner(), context_length=100_000), write_timeout=0.4)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with sock:
            sock.connect(("127.0.0.1", server.port))
            websocket = connect("ws://x/v1/responses", sock=sock, proxy=None, max_queue=1, legacy=True)
            try:
                include = ["message.output_text.logprobs"]
                ask(websocket, max_output_tokens=90_000, include=include, top_logprobs=20)
                eventually(lambda: refused(server, "write_timeout") == 1)
                eventually(server.is_idle)
                eventually(lambda: not server._uvicorn.server_state.connections)
            finally:
                threading.Thread(target=websocket.close, daemon=True).start()

    def test_too_many_turns_at_once(self, serve: Serve) -> None:
        server = serve(runner=SlowRunner())
        with connection(server) as websocket:
            with suppress(ConnectionClosed):  # it may be so before all are sent
                for _ in range(30):
                    ask(websocket, max_output_tokens=100)
            last = json.loads(websocket.recv(timeout=10))
            with suppress(ConnectionClosed):
                while True:
                    last = json.loads(websocket.recv(timeout=10))
        assert last["error"]["code"] == "websocket_too_many_messages"
        assert websocket.close_code == 1008
        eventually(server.is_idle)

    def test_a_message_that_is_too_large(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(answer=ANSWER), max_body_bytes=2000)
        with connection(server) as websocket:
            ask(websocket, "x" * 3000)
            assert close_code(websocket) == 1009

    def test_a_client_that_is_still_sending_is_told_too(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(answer=ANSWER), max_body_bytes=2000)
        with connection(server) as websocket:
            with suppress(ConnectionClosed):
                ask(websocket, "x" * 30_000_000)
            assert close_code(websocket) == 1009
        eventually(lambda: not server._uvicorn.server_state.connections)

    def test_a_message_of_too_many_fragments(self, serve: Serve) -> None:
        """Empty ones count for nothing in its size."""
        server = serve(runner=SlowRunner())
        with connection(server) as websocket:
            ask(websocket, max_output_tokens=100)
            with suppress(ConnectionClosed):
                websocket.send(("" for _ in range(MAX_FRAGMENTS + 100)), text=True)
            with suppress(ConnectionClosed):
                while True:
                    websocket.recv(timeout=10)
        assert websocket.close_code == 1009
        eventually(server.is_idle)
        eventually(lambda: not server._uvicorn.server_state.connections)

    def test_a_message_in_fragments(self, saying: LiveServer) -> None:
        message = json.dumps({"type": "response.create", "model": MODEL, "input": "hello"})
        with connection(saying) as websocket:
            websocket.send(iter(message))
            assert check_events(events(websocket))["status"] == "completed"

    def test_an_hour(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(answer=ANSWER))
        server.app.asgi_handler._max_seconds = 0.3  # type: ignore[attr-defined]
        with connection(server) as websocket:
            assert turn(websocket)
            event = json.loads(websocket.recv(timeout=10))
            assert (event["type"], event["error"]["code"]) == ("error", "websocket_connection_limit_reached")
            assert close_code(websocket) == 1000

    def test_the_server_stops(self, serve: Serve) -> None:
        server = serve(runner=FakeRunner(answer=ANSWER))
        with connection(server) as websocket:
            turn(websocket)
            server._uvicorn.should_exit = True
            assert close_code(websocket) == 1012
