"""Owns the property that no body, however odd, makes the server fail: it answers, or says what is wrong."""

import json
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.api.schemas.anthropic import MessagesRequest
from app.api.schemas.chat import REFUSED, ChatRequest
from app.api.schemas.completions import CompletionRequest
from tests.support.live import MODEL, LiveServer, assert_error, events_of, eventually
from tests.support.response_events import named_events

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 0.5, 1e-300, 1e300]),
)
TEXTS = st.one_of(
    st.sampled_from(["", "a", "text", "auto", "user", "0", "hello", "\x00", "🙂", "\ufffd", "<s>"]), st.text(max_size=12)
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]), "content": st.one_of(TEXTS, VALUES)},
        optional={"tool_calls": VALUES, "name": VALUES, "reasoning_content": TEXTS},
    ),
    min_size=1,
    max_size=3,
)
# What is likely to be valid, so that more than the first check is reached.
PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "n": st.integers(1, 3),
    "best_of": st.integers(1, 4),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(-1, 300),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(1e-3, 10),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(-1, 260).map(str), st.floats(-100, 100), max_size=4),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.one_of(TEXTS, st.lists(TEXTS, max_size=5)),
    "max_tokens": st.integers(0, 20),
    "max_completion_tokens": st.integers(0, 20),
    "min_tokens": st.integers(0, 20),
    "echo": st.booleans(),
    "stream": st.booleans(),
    "ignore_eos": st.booleans(),
    "stop_token_ids": st.lists(st.integers(-1, 260), max_size=3),
    "prompt": st.one_of(TEXTS, st.lists(TEXTS, max_size=3), st.lists(st.integers(-1, 260), max_size=5)),
    "messages": MESSAGES,
}


def bodies(kind: Any, required: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = [*kind.__struct_fields__, *REFUSED, "suffix", "nonsense"]
    plausible = st.fixed_dictionaries(
        required, optional={name: PLAUSIBLE[name] for name in names if name in PLAUSIBLE and name not in required}
    )
    odd = st.dictionaries(st.sampled_from(names), VALUES, max_size=2)
    return st.builds(lambda plausible, odd: plausible | odd, plausible, st.one_of(st.just({}), odd))


def assert_answered(response: httpx.Response, *, stream: bool) -> None:
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        assert_error(response, response.status_code, type="invalid_request_error")
    elif stream:
        events = events_of(response)
        assert events and all("choices" in event for event in events), events
    else:
        body = response.json()
        assert body["choices"] and all(choice["finish_reason"] in ("stop", "length") for choice in body["choices"])


# Examples are drawn from a fixed seed: a red build must be about the change that it is for.
settings.register_profile(
    "api", max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@settings(settings.get_profile("api"))
@given(body=bodies(CompletionRequest, {"model": st.just(MODEL), "max_tokens": st.integers(0, 20)}))
def test_completions(saying: LiveServer, body: dict[str, Any]) -> None:
    assert_answered(_post(saying, "/v1/completions", body), stream=body.get("stream") is True)


@settings(settings.get_profile("api"))
@given(body=bodies(ChatRequest, {"model": st.just(MODEL), "messages": MESSAGES, "max_tokens": st.integers(0, 20)}))
def test_chat(saying: LiveServer, body: dict[str, Any]) -> None:
    assert_answered(_post(saying, "/v1/chat/completions", body), stream=body.get("stream") is True)


BLOCKS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "thinking", "redacted_thinking", "tool_use", "tool_result", "image"])},
        optional={
            **dict.fromkeys(("text", "thinking", "signature", "data", "name"), TEXTS),
            **dict.fromkeys(("id", "tool_use_id"), st.sampled_from(["a", "b"])),
            "input": st.dictionaries(TEXTS, VALUES, max_size=2),
            "content": st.one_of(TEXTS, VALUES),
            "is_error": st.booleans(),
        },
    ),
    max_size=3,
)
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": st.one_of(TEXTS, BLOCKS)}),
    min_size=1,
    max_size=3,
)


@settings(settings.get_profile("api"))
@given(
    body=bodies(
        MessagesRequest, {"model": st.just(MODEL), "messages": st.one_of(TURNS, MESSAGES), "max_tokens": st.integers(0, 20)}
    )
)
def test_messages(saying: LiveServer, body: dict[str, Any]) -> None:
    response = _post(saying, "/v1/messages", body)
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        assert_error(response, response.status_code)
    elif body.get("stream") is True:
        assert named_events(response, done=False)[-1]["type"] == "message_stop"
    else:
        assert response.json()["stop_reason"] in ("end_turn", "max_tokens", "stop_sequence")


@settings(settings.get_profile("api"))
@given(content=st.one_of(st.binary(max_size=40), VALUES.map(lambda value: json.dumps(value).encode())))
def test_bodies_of_any_bytes(saying: LiveServer, content: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/engines/x/completions"):
        response = saying.http.post(path, content=content, headers={"content-type": "application/json"})
        assert_error(response, 404 if response.status_code == 404 else 400)


def test_nothing_is_left_over(saying: LiveServer) -> None:
    """Runs after the ones above: none of their requests may have kept a place."""
    eventually(saying.is_idle)
    assert saying.complete(max_tokens=50).status_code == 200


def _post(server: LiveServer, path: str, body: dict[str, Any]) -> httpx.Response:
    # json.dumps writes what httpx refuses to: half of a surrogate pair, as an escape.
    return server.http.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
