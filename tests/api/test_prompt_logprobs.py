"""`prompt_logprobs`: what a plain forward of the model says of each token of the prompt, in vLLM's shape."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from app.config import ModelType
from app.engine.kv_cache import BlockLedger
from app.engine.verify import verify
from tests.api.conftest import Serve
from tests.support.fakes import FakeLoader, ids_of
from tests.support.live import LiveServer, assert_error, live_server
from tests.support.tiny import BOS, tiny_model

# Longer than a step: it is computed in pieces.
LONG = "to be or not to be, " * 20
CHAT_IDS = [BOS, *ids_of("user: hello\n"), BOS, *ids_of("assistant: ")]


@pytest.fixture(scope="module")
def llama() -> Iterator[LiveServer]:
    verified = verify(tiny_model("llama"))
    runner: Any = type(verified)(tiny_model("llama"), verified.attention, 64 * 16)
    runner.gate = None  # which the fakes have
    ledger = BlockLedger(64 * 16, verified.attention.block_size)
    with live_server(FakeLoader(runner=runner, ledger=ledger)) as server:
        yield server


def check(entries: list[dict[str, Any] | None], ids: list[int], num_top: int) -> None:
    with torch.inference_mode():
        logprobs = tiny_model("llama")(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    assert len(entries) == len(ids) and entries[0] is None
    for row, token_id, entry in zip(logprobs, ids[1:], entries[1:], strict=False):
        assert entry is not None
        first = next(iter(entry))
        assert int(first) == token_id
        expected = {token_id: int((row >= row[token_id]).sum())}
        expected |= {one: rank for rank, one in enumerate(row.topk(num_top).indices.tolist(), 1)} if num_top else {}
        assert {int(key): value["rank"] for key, value in entry.items()} == expected
        for key, value in entry.items():
            assert value["logprob"] == pytest.approx(row[int(key)].item(), abs=1e-4)
            assert set(value) == {"logprob", "rank", "decoded_token"}


def test_completions_in_pieces_and_beside_the_prefix_cache(llama: LiveServer) -> None:
    llama.complete(LONG, max_tokens=1)
    body = llama.complete([LONG, "hello"], n=2, temperature=0, max_tokens=2, prompt_logprobs=3).json()
    prompts = [ids_of(LONG), ids_of("hello")]
    for choice in body["choices"]:
        check(choice["prompt_logprobs"], prompts[choice["index"] // 2], 3)
    assert body["choices"][2]["prompt_logprobs"][1][str(ids_of("e")[0])]["decoded_token"] == "e"
    again = llama.complete(LONG, max_tokens=1).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 256
    assert "prompt_logprobs" not in again["choices"][0]


def test_none_of_the_best_and_beside_echo(llama: LiveServer) -> None:
    (choice,) = llama.complete(max_tokens=1, prompt_logprobs=0).json()["choices"]
    check(choice["prompt_logprobs"], ids_of("hello"), 0)
    (choice,) = llama.complete(max_tokens=1, prompt_logprobs=4, echo=True, logprobs=1).json()["choices"]
    check(choice["prompt_logprobs"], ids_of("hello"), 4)
    assert all(len(top) <= 2 for top in choice["logprobs"]["top_logprobs"][1:])


def test_chat_says_them_once(llama: LiveServer) -> None:
    body = llama.chat(n=2, max_tokens=1, prompt_logprobs=2).json()
    check(body["prompt_logprobs"], CHAT_IDS, 2)
    assert llama.chat(max_tokens=0, prompt_logprobs=1).json()["usage"]["completion_tokens"] == 0


def test_what_can_not_be_honoured_is_named(llama: LiveServer, serve: Serve) -> None:
    for ask in (llama.complete, llama.chat):
        assert_error(ask(prompt_logprobs=1, stream=True), 400, param="prompt_logprobs")
    server = serve(type=ModelType.SEQ2SEQ)
    for ask in (server.complete, server.chat):
        assert_error(ask(prompt_logprobs=1), 400, param="prompt_logprobs", code="unsupported_parameter")
