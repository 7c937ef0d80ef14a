"""Owns the tests of /v1/responses/compact: what it returns, and that a conversation goes on from it."""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.api.conftest import ANSWER, Serve
from tests.api.test_responses import CALL, TOOL, counted, respond, text_of
from tests.support.fakes import FakeLoader, FakeRunner, ids_of
from tests.support.live import MODEL, LiveServer, assert_error, eventually, live_server
from tests.support.tiny import RESPONSE_TEMPLATE

SUMMARY = "They greeted each other, wörldly."
TALK = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "Hi there."},
    {"role": "user", "content": "How are you?"},
]


@pytest.fixture(scope="module")
def summing() -> Iterator[LiveServer]:
    with live_server(FakeLoader(runner=FakeRunner(answer=f"  {SUMMARY}\n"), context_length=4096)) as server:
        yield server


def compact(server: LiveServer, input: Any = None, **body: Any) -> dict[str, Any]:
    response = server.http.post("/v1/responses/compact", json={"model": MODEL, "input": input or TALK, **body})
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def summary_of(item: dict[str, Any]) -> str:
    assert item["type"] == "compaction" and item["id"].startswith("cmp_")
    return base64.urlsafe_b64decode(item["encrypted_content"])[22:].decode()


def test_is_a_summary_by_the_model(summing: LiveServer) -> None:
    result = compact(summing)
    (item,) = result["output"]
    assert summary_of(item) == SUMMARY
    assert result["object"] == "response.compaction" and result["id"].startswith("resp_")
    usage = result["usage"]
    assert usage["output_tokens"] == len(ids_of(f"  {SUMMARY}\n")) + 1
    assert usage["input_tokens"] > counted(summing, TALK)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    eventually(summing.is_idle)


def test_the_model_sees_the_conversation_and_the_task(serve: Serve) -> None:
    """The task joins the last message where that is the user's, so that the roles take turns."""
    loader = FakeLoader(runner=FakeRunner(answer=SUMMARY), context_length=4096)
    server = serve(loader)
    shown: list[Any] = []
    chat = server.model.loaded.chat
    render = chat.render
    chat.render = lambda messages, *args, **more: shown.append(list(messages)) or render(messages, *args, **more)  # type: ignore
    compact(server, instructions="Be brief.")
    compact(server, TALK[:2])
    (first, second) = shown
    assert [message["role"] for message in first] == ["system", "user", "assistant", "user"]
    assert first[-1]["content"].startswith("How are you?\n\nWrite a summary")
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[-1]["content"].startswith("Write a summary")


def test_a_conversation_goes_on_from_it(summing: LiveServer) -> None:
    output = compact(summing)["output"]
    shown = "Summary of the conversation so far:\n" + SUMMARY
    after = [{"role": "user", "content": "And now?"}]
    assert counted(summing, output + after) == counted(summing, f"{shown}\n\nAnd now?")
    assert counted(summing, output) == counted(summing, shown)
    assistant = {"role": "assistant", "content": "Fine."}
    whole = [{"role": "user", "content": shown}, assistant, *after]
    assert counted(summing, [*output, assistant, *after]) == counted(summing, whole)
    response = respond(summing, output + after)
    listed = summing.http.get(f"/v1/responses/{response['id']}/input_items", params={"order": "asc"}).json()["data"]
    assert listed[0] == output[0]
    again = compact(summing, output + after)["output"]
    assert len(again) == 1 and again[0]["id"] != output[0]["id"]


def test_what_is_stored_can_be_compacted(summing: LiveServer) -> None:
    first = respond(summing, "x" * 200)
    alone = compact(summing, TALK)
    body = {"model": MODEL, "previous_response_id": first["id"]}
    response = summing.http.post("/v1/responses/compact", json=body)
    assert response.status_code == 200 and len(response.json()["output"]) == 1
    both = compact(summing, TALK, previous_response_id=first["id"])
    assert both["usage"]["input_tokens"] > alone["usage"]["input_tokens"] + 200


def test_what_stays_as_it_is(summing: LiveServer) -> None:
    """Rules, and calls that nobody has answered yet."""
    rule = {"type": "message", "role": "developer", "content": "Speak like a pirate."}
    calls = [
        {"type": "function_call", "call_id": f"call_{number}", "name": "weather", "arguments": '{"city": "Rome"}'}
        for number in range(2)
    ]
    done = {"type": "function_call_output", "call_id": "call_0", "output": "rain"}
    kept, item, pending = compact(summing, [rule, *TALK, *calls, done])["output"]
    assert kept["role"] == "developer" and kept["content"][0]["text"] == "Speak like a pirate."
    assert summary_of(item) == SUMMARY
    assert pending["call_id"] == "call_1" and pending["arguments"] == calls[1]["arguments"]
    output = {"type": "function_call_output", "call_id": "call_1", "output": "sun"}
    assert respond(summing, [kept, item, pending, output])["status"] == "completed"


def test_reasoning_is_no_part_of_it(serve: Serve) -> None:
    loader = FakeLoader(
        runner=FakeRunner(answer="<think>hm</think>" + SUMMARY), response_template=RESPONSE_TEMPLATE, context_length=4096
    )
    (item,) = compact(serve(loader))["output"]
    assert summary_of(item) == SUMMARY


@pytest.mark.parametrize("answer", ["", " \n", "<think>hm</think>"])
def test_nothing_is_no_summary(serve: Serve, answer: str) -> None:
    loader = FakeLoader(runner=FakeRunner(answer=answer), response_template=RESPONSE_TEMPLATE, context_length=4096)
    server = serve(loader)
    refused = server.http.post("/v1/responses/compact", json={"model": MODEL, "input": TALK})
    assert_error(refused, 500, code="engine_error")
    eventually(server.is_idle)


class TestErrors:
    @pytest.mark.parametrize("input", [None, "", []])
    def test_nothing_to_compact(self, summing: LiveServer, input: Any) -> None:
        body = {"model": MODEL, "input": input}
        error = assert_error(summing.http.post("/v1/responses/compact", json=body), 400, param="input")
        assert error["code"] == "missing_required_parameter"

    def test_too_long(self, summing: LiveServer) -> None:
        body = {"model": MODEL, "input": "x" * 4000}
        refused = summing.http.post("/v1/responses/compact", json=body)
        assert_error(refused, 400, param="input", code="context_length_exceeded")

    @pytest.mark.parametrize("content", ["", "x", "gAAAAABk", "é", 1, None])
    def test_summaries_by_others(self, summing: LiveServer, content: Any) -> None:
        """OpenAI's can be read by OpenAI only."""
        item = {"type": "compaction", "encrypted_content": content}
        body = {"model": MODEL, "input": [item, *TALK]}
        error = assert_error(summing.http.post("/v1/responses", json=body), 400)
        assert error["param"].startswith("input.[0]")

    def test_a_summary_that_is_no_text(self, summing: LiveServer) -> None:
        """The digest is no secret."""
        data = b"\xff"
        content = base64.urlsafe_b64encode(b"tfoai1" + hashlib.sha256(data).digest()[:16] + data).decode()
        body = {"model": MODEL, "input": [{"type": "compaction", "encrypted_content": content}]}
        assert_error(summing.http.post("/v1/responses", json=body), 400, param="input.[0].encrypted_content")

    def test_no_room_for_a_summary(self, serve: Serve) -> None:
        """Half of one would lose the other half without a word."""
        server = serve(FakeLoader(runner=FakeRunner(), context_length=1000))
        for length in (10, 550):
            body = {"model": MODEL, "input": "x" * length}
            refused = server.http.post("/v1/responses/compact", json=body)
            assert_error(refused, 400, param="input", code="context_length_exceeded")
        assert server.is_idle()

    def test_a_summary_that_was_changed(self, summing: LiveServer) -> None:
        (item,) = compact(summing)["output"]
        data = bytearray(base64.urlsafe_b64decode(item["encrypted_content"]))
        data[-1] ^= 1
        changed = item | {"encrypted_content": base64.urlsafe_b64encode(bytes(data)).decode()}
        body = {"model": MODEL, "input": [changed]}
        assert_error(summing.http.post("/v1/responses", json=body), 400, param="input.[0].encrypted_content")


def test_openai_client(saying: LiveServer, summing: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{summing.url}/v1", api_key="none")
    compacted = client.responses.compact(model=MODEL, input=TALK)  # type: ignore[arg-type]
    assert [item.type for item in compacted.output] == ["compaction"] and compacted.usage.total_tokens > 0
    again: Any = [*(item.to_dict() for item in compacted.output), {"role": "user", "content": "And now?"}]
    assert client.responses.create(model=MODEL, input=again).output_text.strip() == SUMMARY


def test_with_tools_in_the_conversation(serve: Serve) -> None:
    """A model that calls instead of summing up has written no summary."""
    loader = FakeLoader(runner=FakeRunner(answer=CALL), response_template=RESPONSE_TEMPLATE, context_length=4096)
    server = serve(loader)
    first = respond(server, tools=[TOOL])
    assert first["output"][0]["type"] == "function_call"
    (item, pending) = compact(server, [*TALK, *first["output"]])["output"]
    # Without tools nothing is taken for a call.
    assert "weather" in summary_of(item) and pending["call_id"] == first["output"][0]["call_id"]
    assert text_of(respond(server, [item])) == CALL
    assert ANSWER not in summary_of(item)
