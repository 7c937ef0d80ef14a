"""What a request says of the tokens of prompts and answers: which there may be, and how they are shown; whole and streamed."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.config import ModelType
from tests.api.conftest import ANSWER, Serve
from tests.support.fakes import FakeLoader, FakeRunner, ids_of
from tests.support.live import LiveServer, SlowRunner, assert_error, events_of, live_server
from tests.support.tiny import BOS, EOS

ANSWER_IDS = [*ids_of(ANSWER), EOS]
# What comes after a prompt of five tokens, as FakeRunner counts.
COUNTED = [8, 9, 10, 11]


class SpecialRunner(FakeRunner):
    """Says a<s>b and stops."""

    def next_token(self, seq: Any, length: int) -> int:
        ids = [*ids_of("a"), BOS, *ids_of("b"), EOS]
        return ids[min(length - seq.num_decoder_prompt_tokens, 3)]


@pytest.fixture(scope="module")
def special() -> Iterator[LiveServer]:
    with live_server(runner=SpecialRunner()) as server:
        yield server


def ok(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def complete(server: LiveServer, prompt: Any = "hello", **body: Any) -> dict[str, Any]:
    """Return the only choice; its stream is the same, piece by piece."""
    (choice,) = ok(server.complete(prompt, **body))["choices"]
    chunks = [chunk["choices"][0] for chunk in events_of(server.complete(prompt, stream=True, **body))]
    assert "".join(chunk["text"] for chunk in chunks) == choice["text"]
    if body.get("return_token_ids"):
        assert [one for chunk in chunks for one in chunk["token_ids"]] == choice["token_ids"]
        assert [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk] == [choice["prompt_token_ids"]]
        assert "prompt_token_ids" in chunks[0]
    if body.get("logprobs") is not None:
        assert [one for chunk in chunks for one in chunk["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]
    result: dict[str, Any] = choice
    return result


def chat(server: LiveServer, **body: Any) -> str:
    """Return the content of the only answer, which is that of its stream too."""
    content = ok(server.chat(**body))["choices"][0]["message"]["content"]
    chunks = events_of(server.chat(stream=True, **body))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == content
    return str(content)


class TestSpecialTokens:
    def test_are_shown_on_request(self, special: LiveServer) -> None:
        assert complete(special, max_tokens=9)["text"] == "ab"
        assert complete(special, max_tokens=9, skip_special_tokens=True)["text"] == "ab"
        assert complete(special, max_tokens=9, skip_special_tokens=False)["text"] == "a<s>b"
        assert chat(special, skip_special_tokens=False) == "a<s>b"

    def test_the_one_that_ends_the_answer_too(self, special: LiveServer) -> None:
        shown = {"skip_special_tokens": False, "include_stop_str_in_output": True}
        assert complete(special, max_tokens=9, **shown)["text"] == "a<s>b</s>"
        assert chat(special, **shown) == "a<s>b</s>"
        assert complete(special, max_tokens=9, include_stop_str_in_output=True)["text"] == "ab"

    def test_of_a_prompt_that_came_as_ids(self, counting: LiveServer) -> None:
        prompt = [BOS, *ids_of("hi")]
        assert complete(counting, prompt, max_tokens=0, echo=True)["text"] == "hi"
        assert complete(counting, prompt, max_tokens=0, echo=True, skip_special_tokens=False)["text"] == "<s>hi"
        echoed = complete(counting, prompt, max_tokens=0, echo=True, logprobs=0, skip_special_tokens=False)
        assert echoed["logprobs"]["text_offset"] == [0, 3, 4]

    def test_in_a_response(self, special: LiveServer) -> None:
        body = {"model": special.model.name, "input": "x", "skip_special_tokens": False}
        output = ok(special.http.post("/v1/responses", json=body))["output"]
        assert output[-1]["content"][0]["text"] == "a<s>b"


class TestStops:
    def test_the_stop_text_is_shown(self, saying: LiveServer) -> None:
        choice = complete(saying, stop=["wör", "zz"], include_stop_str_in_output=True, max_tokens=50, logprobs=0)
        assert (choice["text"], choice["finish_reason"]) == ("Hello, wör", "stop")
        assert choice["logprobs"]["tokens"][-1] == "r"
        assert complete(saying, stop="wör", include_stop_str_in_output=False, max_tokens=50)["text"] == "Hello, "
        assert chat(saying, stop="wör", include_stop_str_in_output=True) == "Hello, wör"

    def test_a_stop_token_is_shown(self, saying: LiveServer) -> None:
        stop_ids = ids_of("w")
        assert complete(saying, stop_token_ids=stop_ids, max_tokens=50)["text"] == "Hello, "
        choice = complete(saying, stop_token_ids=stop_ids, include_stop_str_in_output=True, max_tokens=50)
        assert choice["text"] == "Hello, w"


class TestTokenIds:
    @pytest.mark.parametrize("runner", [FakeRunner, SlowRunner])
    def test_completion(self, serve: Serve, runner: type[FakeRunner]) -> None:
        server = serve(runner=runner(answer=ANSWER))
        choice = complete(server, max_tokens=50, return_token_ids=True)
        assert choice["token_ids"] == ANSWER_IDS
        assert choice["prompt_token_ids"] == ids_of("hello")

    def test_of_prompts_and_choices(self, counting: LiveServer) -> None:
        body = ok(counting.complete(["a", "bcd"], n=2, temperature=0, max_tokens=2, return_token_ids=True, echo=True))
        assert [choice["prompt_token_ids"] for choice in body["choices"]] == [ids_of("a")] * 2 + [ids_of("bcd")] * 2
        assert [choice["token_ids"] for choice in body["choices"]] == [[4, 5]] * 2 + [[6, 7]] * 2

    def test_are_as_many_as_usage_counts(self, saying: LiveServer) -> None:
        body = ok(saying.complete(stop="wör", max_tokens=50, return_token_ids=True))
        assert body["choices"][0]["token_ids"] == ids_of("Hello, wör")
        assert body["usage"]["completion_tokens"] == len(ids_of("Hello, wör"))

    def test_chat(self, saying: LiveServer) -> None:
        prompt_ids = [BOS, *ids_of("user: hello\n"), BOS, *ids_of("assistant: ")]
        body = ok(saying.chat(return_token_ids=True, n=2, temperature=0))
        assert body["prompt_token_ids"] == prompt_ids
        assert [choice["token_ids"] for choice in body["choices"]] == [ANSWER_IDS] * 2
        chunks = events_of(saying.chat(return_token_ids=True, n=2, temperature=0, stream=True))
        for index in range(2):
            mine = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
            assert [one for chunk in mine for one in chunk["choices"][0]["token_ids"]] == ANSWER_IDS
            assert ["prompt_token_ids" in chunk for chunk in mine] == [True] + [False] * (len(mine) - 1)
            assert mine[0]["prompt_token_ids"] == prompt_ids

    def test_are_absent_otherwise(self, saying: LiveServer) -> None:
        body = ok(saying.chat())
        assert "prompt_token_ids" not in body and "token_ids" not in body["choices"][0]

    def test_spell_the_tokens_of_logprobs(self, counting: LiveServer) -> None:
        choice = complete(counting, max_tokens=2, echo=True, logprobs=1, return_tokens_as_token_ids=True)
        assert choice["logprobs"]["tokens"] == [f"token_id:{one}" for one in [*ids_of("hello"), 8, 9]]
        assert list(choice["logprobs"]["top_logprobs"][-1]) == ["token_id:9"]
        body = ok(counting.chat(max_tokens=1, logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True))
        (entry,) = body["choices"][0]["logprobs"]["content"]
        assert entry["token"].startswith("token_id:") and entry["token"] == entry["top_logprobs"][0]["token"]

    def test_need_logprobs_to_spell(self, counting: LiveServer) -> None:
        for response in (counting.complete(return_tokens_as_token_ids=True), counting.chat(return_tokens_as_token_ids=True)):
            assert_error(response, 400, param="return_tokens_as_token_ids")


class TestPrompts:
    def test_are_cut(self, counting: LiveServer) -> None:
        body = {"max_tokens": 1, "return_token_ids": True, "echo": True}
        left = complete(counting, "hello", truncate_prompt_tokens=3, **body)
        assert left["prompt_token_ids"] == ids_of("llo") and left["text"].startswith("llo")
        right = complete(counting, ids_of("hello"), truncate_prompt_tokens=3, truncation_side="right", **body)
        assert right["prompt_token_ids"] == ids_of("hel") and right["text"].startswith("hel")
        assert complete(counting, "hello", truncate_prompt_tokens=5, **body)["prompt_token_ids"] == ids_of("hello")
        assert ok(counting.complete("hello", truncate_prompt_tokens=3))["usage"]["prompt_tokens"] == 3

    def test_are_cut_to_what_fits(self, counting: LiveServer) -> None:
        long = "x" * 600
        assert_error(counting.complete(long, max_tokens=100), 400, code="context_length_exceeded")
        assert ok(counting.complete(long, max_tokens=100, truncate_prompt_tokens=-1))["usage"]["prompt_tokens"] == 412
        assert ok(counting.complete(long, truncate_prompt_tokens=-1))["usage"]["prompt_tokens"] == 512 - 16
        messages = [{"role": "user", "content": long}]
        assert ok(counting.chat(messages, max_tokens=100, truncate_prompt_tokens=-1))["usage"]["prompt_tokens"] == 412
        assert_error(counting.complete(truncate_prompt_tokens=-1, max_tokens=512), 400, code="context_length_exceeded")

    def test_of_a_chat_keep_their_end(self, counting: LiveServer) -> None:
        body = ok(counting.chat(max_tokens=1, truncate_prompt_tokens=13, return_token_ids=True))
        assert body["prompt_token_ids"] == [*ids_of("\n"), BOS, *ids_of("assistant: ")]
        error = assert_error(counting.chat(truncate_prompt_tokens=13, truncation_side="right"), 400, param="truncation_side")
        assert error["code"] == "unsupported_parameter"

    def test_keep_their_special_tokens(self, serve: Serve) -> None:
        server = serve(FakeLoader(append_eos=True), type=ModelType.SEQ2SEQ)
        body = {"max_tokens": 1, "return_token_ids": True}
        assert complete(server, "hello", **body)["prompt_token_ids"] == [*ids_of("hello"), EOS]
        assert complete(server, "hello", truncate_prompt_tokens=3, **body)["prompt_token_ids"] == [*ids_of("lo"), EOS]
        assert complete(server, "hello", add_special_tokens=False, **body)["prompt_token_ids"] == ids_of("hello")
        assert ok(server.chat(**body))["prompt_token_ids"][-1] != EOS
        assert ok(server.chat(add_special_tokens=True, **body))["prompt_token_ids"][-1] == EOS

    @pytest.mark.parametrize(
        ("param", "body"),
        [
            ("truncate_prompt_tokens", {"truncate_prompt_tokens": 513}),
            ("truncation_side", {"truncation_side": "left"}),
            ("add_special_tokens", {"prompt": [5], "add_special_tokens": True}),
            ("add_special_tokens", {"suffix": "x", "add_special_tokens": False}),
            ("truncate_prompt_tokens", {"suffix": "x", "truncate_prompt_tokens": 4}),
        ],
    )
    def test_what_can_not_be_honoured_is_named(self, counting: LiveServer, param: str, body: dict[str, Any]) -> None:
        error = assert_error(counting.complete(**({"prompt": "hello"} | body)), 400, param=param)
        if body.get(param) == 513:
            assert "513" in error["message"] and "512" in error["message"]


class TestAllowedAndForbidden:
    def test_allowed(self, counting: LiveServer) -> None:
        choice = complete(counting, max_tokens=4, allowed_token_ids=[20, 30], return_token_ids=True)
        assert choice["token_ids"] == [30] * 4
        choices = ok(counting.chat(max_tokens=4, allowed_token_ids=[20, 30], return_token_ids=True))["choices"]
        assert choices[0]["token_ids"] == [30] * 4

    def test_bad_words(self, saying: LiveServer) -> None:
        assert "w" not in complete(saying, max_tokens=50, bad_words=["w"])["text"]
        assert complete(saying, max_tokens=9, bad_words=["lo,"])["text"].startswith("Hello")
        assert "lo," not in complete(saying, max_tokens=9, bad_words=["lo,"])["text"]
        assert "wö" not in chat(saying, max_tokens=50, bad_words=["wö"])

    def test_nothing_left(self, counting: LiveServer) -> None:
        both = {"allowed_token_ids": ids_of("w"), "bad_words": ["w"]}
        assert_error(counting.complete(**both), 400, param="allowed_token_ids", code="nothing_allowed")
        assert complete(counting, max_tokens=4, return_token_ids=True)["token_ids"] == COUNTED

    @pytest.mark.parametrize("more", [{"allowed_token_ids": [65]}, {"bad_words": ["a"]}])
    def test_not_beside_a_grammar(self, counting: LiveServer, more: dict[str, Any]) -> None:
        (param,) = more
        assert_error(counting.complete(guided_regex="[ab]+", **more), 400, param=param)
        assert_error(counting.chat(response_format={"type": "json_object"}, **more), 400, param=param)
