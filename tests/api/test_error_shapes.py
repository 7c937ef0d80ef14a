"""Owns the tests of which shape an error has on which route."""

import json

import pytest

from app.api.error_shapes import connection_refusal, error_body, speaks_anthropic
from app.errors import EngineDead, InvalidRequest, NotFound, QueueFull, RequestError, UnsupportedParameter


@pytest.mark.parametrize(
    ("path", "is_anthropic"),
    [
        ("/v1/messages", True),
        ("/v1/messages/", True),
        ("/v1/messages/count_tokens", True),
        ("/v1/messages/batches/x", True),
        ("/v1/messagesx", False),
        ("/v1/chat/completions", False),
        ("/x/v1/messages", False),
        ("", False),
    ],
)
def test_by_path(path: str, is_anthropic: bool) -> None:
    assert speaks_anthropic(path) is is_anthropic
    body = error_body(path, InvalidRequest("no", param="x"), "req_1")
    assert body == (
        {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "no", "details": {"param": "x"}},
            "request_id": "req_1",
        }
        if is_anthropic
        else {"error": {"message": "no", "type": "invalid_request_error", "param": "x", "code": None}}
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotFound("x"), "not_found_error"),
        (QueueFull("x"), "rate_limit_error"),
        (EngineDead("x"), "overloaded_error"),
        (RequestError("x"), "api_error"),
        (UnsupportedParameter("x"), "invalid_request_error"),
    ],
)
def test_types(error: RequestError, kind: str) -> None:
    assert error_body("/v1/messages", error, "req_1")["error"]["type"] == kind


@pytest.mark.parametrize(("status", "kind"), [(403, "permission_error"), (413, "request_too_large"), (504, "timeout_error")])
def test_types_of_statuses(status: int, kind: str) -> None:
    error = RequestError("x")
    error.status = status  # type: ignore[misc]
    assert error_body("/v1/messages", error, "req_1")["error"]["type"] == kind


def test_clients_that_want_threads_are_told_in_their_word() -> None:
    wanted = error_body("/v1/messages", UnsupportedParameter("no", param="thread"), "req_1")
    assert wanted["error"]["details"] == {"error_code": "thread_unsupported_request", "param": "thread"}
    wrong = error_body("/v1/messages", InvalidRequest("no", param="thread"), "req_1")
    assert "error_code" not in wrong["error"]["details"]


def test_before_there_is_a_request() -> None:
    body, headers = connection_refusal("/v1/messages", 503, "too_many", "no")
    error = json.loads(body)
    assert dict(headers)[b"request-id"].decode() == error["request_id"] and error["error"]["type"] == "overloaded_error"
    body, headers = connection_refusal("/v1/models", 503, "too_many", "no")
    assert headers == [] and json.loads(body)["error"]["code"] == "too_many"
