"""Owns the tests of the tokenizer's routes, /version and /load: what vLLM's clients and lm-evaluation-harness send and read."""

import concurrent.futures
import threading
from dataclasses import replace
from typing import Any

import httpx
import jinja2
import pytest

from app.text.chat import ChatTemplate
from app.text.tokenizer import Tokenizer
from app.versions import package_version
from tests.api.conftest import Serve
from tests.support.fakes import FakeLoader, FakeRunner, ids_of
from tests.support.live import MODEL, LiveServer, assert_error, eventually
from tests.support.tiny import BOS, CHAT_TEMPLATE, EOS, RESPONSE_TEMPLATE, VOCAB_SIZE, byte_tokenizer

MESSAGES = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
TEXT = "Grüße, 世界 🙂\n"


def tokenize(server: LiveServer, **body: Any) -> httpx.Response:
    return server.http.post("/tokenize", json=body)


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_there_and_back(counting: LiveServer, prefix: str) -> None:
    answer = counting.http.post(f"{prefix}/tokenize", json={"prompt": TEXT}).json()
    ids = ids_of(TEXT)
    assert answer == {"count": len(ids), "max_model_len": 512, "tokens": ids, "token_strs": None, "model": MODEL}
    response = counting.http.post(f"{prefix}/detokenize", json={"tokens": ids})
    assert response.json() == {"prompt": TEXT, "model": MODEL}


def test_what_the_remote_tokenizer_of_lm_eval_does(counting: LiveServer) -> None:
    """It names no model, asks for no special tokens, finds ids of special tokens by their texts, renders templates itself."""
    info = counting.http.get("/tokenizer_info").json()
    assert (info["eos_token"], info["bos_token"], info["pad_token"]) == ("</s>", "<s>", "<pad>")

    def encode(text: str) -> list[int]:
        answer = counting.http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
        tokens: list[int] = answer["tokens"]
        return tokens

    assert encode(info["eos_token"]) == [EOS] and encode(info["bos_token"]) == [BOS]
    rendered = jinja2.Template(info["chat_template"]).render(messages=MESSAGES, add_generation_prompt=True)
    assert encode(rendered) == tokenize(counting, messages=MESSAGES).json()["tokens"]
    assert counting.http.post("/detokenize", json={"tokens": encode(rendered)}).json()["prompt"] == rendered


def test_tokenizer_info(counting: LiveServer) -> None:
    info = counting.http.get("/tokenizer_info", params={"model": MODEL}).json()
    assert info["chat_template"] == CHAT_TEMPLATE
    assert (info["model_max_length"], info["vocab_size"], info["model"]) == (512, VOCAB_SIZE, MODEL)
    assert info["tokenizer_class"] == type(byte_tokenizer()).__name__
    assert info["unk_token"] is None and info["additional_special_tokens"] == []
    assert_error(counting.http.get("/tokenizer_info?model=nope"), 404, code="model_not_found")


def test_special_tokens_are_added_unless_they_are_not_wanted(serve: Serve) -> None:
    class Loader(FakeLoader):
        def __call__(self, *args: Any) -> Any:
            return replace(super().__call__(*args), tokenizer=Tokenizer(byte_tokenizer(append_eos=True)))

    server = serve(Loader())
    for wanted, expected in ((None, [*ids_of("a"), EOS]), (True, [*ids_of("a"), EOS]), (False, ids_of("a"))):
        assert tokenize(server, prompt="a", add_special_tokens=wanted).json()["tokens"] == expected
    assert server.http.post("/detokenize", json={"tokens": [*ids_of("a"), EOS]}).json()["prompt"] == "a</s>"


def test_token_strings(counting: LiveServer) -> None:
    answer = tokenize(counting, prompt="a é", return_token_strs=True).json()
    assert answer["token_strs"] == ["a", "Ġ", "Ã", "©"]
    assert answer["count"] == 4


def test_an_empty_text_has_no_tokens(counting: LiveServer) -> None:
    assert tokenize(counting, prompt="").json()["tokens"] == []
    assert counting.http.post("/detokenize", json={"tokens": []}).json()["prompt"] == ""


def test_messages_are_counted_as_the_chat_counts_them(serve: Serve) -> None:
    server = serve(runner=FakeRunner(answer="hi"))
    for messages in (MESSAGES, [{"role": "developer", "content": [{"type": "text", "text": "<s>"}]}, *MESSAGES]):
        count = tokenize(server, messages=messages).json()["count"]
        assert count == server.chat(messages).json()["usage"]["prompt_tokens"]


def test_without_generation_prompt_and_with_an_open_end(counting: LiveServer) -> None:
    def text(**body: Any) -> str:
        tokens = tokenize(counting, **body).json()["tokens"]
        return str(counting.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"])

    assert text(messages=MESSAGES) == "<s>user: hi\n<s>assistant: "
    assert text(messages=MESSAGES, add_generation_prompt=False) == "<s>user: hi\n"
    begun = [*MESSAGES, {"role": "assistant", "content": "Well"}]
    assert text(messages=begun, continue_final_message=True) == "<s>user: hi\n<s>assistant: Well"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": MESSAGES}, "messages"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": "a" * 1_000_001}, "prompt"),
        ({"prompt": "a", "tools": TOOLS}, "tools"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": "a", "model": ""}, "model"),
        ({"prompt": "a", "nonsense": 1}, "nonsense"),
        ({"messages": []}, "messages"),
        ({"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens"),
        ({"messages": MESSAGES, "chat_template": "x"}, "chat_template"),
        ({"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"messages": MESSAGES, "chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
        ({"messages": MESSAGES, "chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs.messages"),
        ({"messages": MESSAGES, "chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs.tokenize"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.[0].content.[0].type"),
        # The fake model has no response template, so its chat can not call tools either.
        ({"messages": MESSAGES, "tools": TOOLS}, "tools"),
    ],
)
def test_what_tokenize_refuses(counting: LiveServer, body: dict[str, Any], param: str) -> None:
    assert_error(tokenize(counting, **body), 400, type="invalid_request_error", param=param)
    eventually(counting.is_idle)


@pytest.mark.parametrize(
    ("tokens", "param"),
    [("a", "tokens"), ([-1], "tokens.[0]"), ([3, VOCAB_SIZE], "tokens.[1]"), ([2**31], "tokens.[0]"), (None, "tokens")],
)
def test_what_detokenize_refuses(counting: LiveServer, tokens: Any, param: str) -> None:
    assert_error(counting.http.post("/detokenize", json={"tokens": tokens}), 400, param=param)


def test_the_first_model_answers_who_names_none(serve: Serve) -> None:
    server = serve(names=("b", "a"))
    assert tokenize(server, prompt="x").json()["model"] == "b"
    assert tokenize(server, prompt="x", model="a").json()["model"] == "a"
    assert server.http.post("/detokenize", json={"tokens": [], "model": "a"}).json()["model"] == "a"
    assert server.http.get("/tokenizer_info").json()["model"] == "b"
    assert_error(tokenize(server, prompt="x", model="c"), 404, code="model_not_found")


def test_while_loading(serve: Serve) -> None:
    server = serve(FakeLoader(gate=threading.Event()), wait_ready=False)
    assert_error(tokenize(server, prompt="a"), 503, code="model_loading")
    assert_error(server.http.get("/tokenizer_info"), 503, code="model_loading")
    assert server.http.get("/load").json() == {
        "server_load": 0,
        "models": {MODEL: {"running": 0, "waiting": 0, "admitted": 0, "capacity": 136}},
    }


def test_a_full_server_refuses(serve: Serve) -> None:
    server = serve(runner=FakeRunner(gate=threading.Event()), max_num_seqs=1, max_queue=1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(server.complete, n=2, max_tokens=1)
        eventually(lambda: server.model.num_admitted == 2)
        load = server.http.get("/load").json()
        assert load["server_load"] == 1
        assert (load["models"][MODEL]["admitted"], load["models"][MODEL]["capacity"]) == (2, 2)
        assert load["models"][MODEL]["running"] + load["models"][MODEL]["waiting"] == 2
        assert_error(tokenize(server, prompt="a"), 429, code="engine_overloaded")
        server.loader.runner.gate.set()  # type: ignore[union-attr]
    eventually(server.is_idle)
    assert server.http.get("/load").json()["server_load"] == 0


def test_version(counting: LiveServer) -> None:
    assert counting.http.get("/version").json() == {"version": package_version("tfoai")}


def test_tools_and_the_templates_own_variables(serve: Serve) -> None:
    class Loader(FakeLoader):
        def __call__(self, *args: Any) -> Any:
            loaded = super().__call__(*args)
            hf = byte_tokenizer()
            hf.chat_template = CHAT_TEMPLATE + "{% if enable_thinking %}thinking{% endif %}"
            hf.response_template = RESPONSE_TEMPLATE
            tokenizer = Tokenizer(hf)
            return replace(loaded, tokenizer=tokenizer, chat=ChatTemplate(tokenizer))

    server = serve(Loader())

    def text(**body: Any) -> str:
        tokens = tokenize(server, messages=MESSAGES, **body).json()["tokens"]
        return str(server.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"])

    assert text(tools=TOOLS, add_generation_prompt=False).startswith("<s>user: hi\ntools: [{")
    assert text(chat_template_kwargs={"enable_thinking": True}) == "<s>user: hi\n<s>assistant: thinking"
    count = len(tokenize(server, messages=MESSAGES, tools=TOOLS).json()["tokens"])
    assert count == server.chat(MESSAGES, tools=TOOLS, max_tokens=1).json()["usage"]["prompt_tokens"]
