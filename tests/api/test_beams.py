"""Beam search by request: what comes back, and what is refused beside it, by name."""

from typing import Any

import pytest

from app.api.limits import RULES
from app.config import ModelType
from app.engine.defaults import GenerationDefaults
from tests.api.conftest import ANSWER, Serve
from tests.support.fakes import FakeLoader, FakeRunner, ids_of
from tests.support.live import LiveServer, assert_error, events_of
from tests.support.tiny import EOS

GRAMMAR = {"guided_regex": "[ab]+"}


def test_choices_are_beams_and_a_stream_has_all_of_it_at_the_end(saying: LiveServer) -> None:
    body = saying.complete(num_beams=3, n=2, max_tokens=50).json()
    assert body["choices"][0]["text"] == ANSWER and body["choices"][1]["text"] != ANSWER
    chunks = events_of(saying.complete(num_beams=3, max_tokens=50, stream=True))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [ANSWER]
    assert saying.chat(num_beams=3, max_tokens=50).json()["choices"][0]["message"]["content"] == ANSWER
    response = saying.http.post("/v1/responses", json={"model": saying.model.name, "input": "x", "num_beams": 2})
    assert response.json()["output"][-1]["content"][0]["text"] == ANSWER


def test_vllms_spelling(saying: LiveServer) -> None:
    body = saying.complete(use_beam_search=True, n=2, max_tokens=50).json()
    assert body == saying.complete(num_beams=2, n=2, max_tokens=50).json() | {"id": body["id"], "created": body["created"]}
    assert saying.complete(use_beam_search=False, max_tokens=3).status_code == 200
    for wrong in ({"use_beam_search": True}, {"use_beam_search": False, "num_beams": 2}):
        assert_error(saying.complete(**wrong), 400, param="use_beam_search")
    error = assert_error(saying.complete(use_beam_search=True, n=9), 400, param="num_beams")
    assert "9" in error["message"] and "LIMITS.BEAMS" in error["message"]
    assert any(rule.parameter == "num_beams" for rule in RULES)


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("n", {"num_beams": 2, "n": 3}),
        ("logprobs", {"num_beams": 2, "logprobs": 1}),
        ("best_of", {"num_beams": 2, "best_of": 2}),
        ("prompt_logprobs", {"num_beams": 2, "prompt_logprobs": 1}),
        ("logit_bias", {"num_beams": 2, "logit_bias": {"65": 1}}),
        ("presence_penalty", {"num_beams": 2, "presence_penalty": 1}),
        ("temperature", {"num_beams": 2, "temperature": 0.5}),
        ("top_p", {"num_beams": 2, "top_p": 0.5}),
        ("top_k", {"num_beams": 2, "top_k": 5}),
        ("min_p", {"num_beams": 2, "min_p": 0.5}),
        ("guided_regex", {"num_beams": 2, **GRAMMAR}),
        ("length_penalty", {"length_penalty": 2}),
        ("early_stopping", {"early_stopping": True}),
        ("early_stopping", {"early_stopping": "never", "num_beams": 1}),
        ("no_repeat_ngram_size", {"no_repeat_ngram_size": 2, **GRAMMAR}),
        ("encoder_no_repeat_ngram_size", {"encoder_no_repeat_ngram_size": 2, **GRAMMAR}),
        ("forced_eos_token_id", {"forced_eos_token_id": 0, **GRAMMAR}),
        ("forced_bos_token_id", {"forced_bos_token_id": 65}),
        ("forced_eos_token_id", {"forced_eos_token_id": 259}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_not_be_honoured_is_named(counting: LiveServer, param: str, body: dict[str, Any]) -> None:
    assert_error(counting.complete(max_tokens=2, **body), 400, param=param)


def test_values_that_change_nothing_are_taken(counting: LiveServer) -> None:
    body = {"num_beams": 2, "temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "frequency_penalty": 0, "seed": 1}
    assert counting.complete(max_tokens=2, **body).status_code == 200
    assert counting.complete(max_tokens=2, length_penalty=1, early_stopping=False, num_beams=1).status_code == 200


def test_a_request_switches_the_models_own_beams_off(serve: Serve) -> None:
    defaults = GenerationDefaults(eos_token_ids=frozenset({EOS}), num_beams=3)
    server = serve(FakeLoader(FakeRunner(answer=ANSWER), defaults=defaults))
    assert_error(server.complete(max_tokens=2, logprobs=1), 400, param="logprobs")
    assert server.complete(max_tokens=2, logprobs=1, num_beams=1).status_code == 200
    assert server.complete(max_tokens=2, logprobs=1, use_beam_search=False).status_code == 200
    assert_error(server.complete(max_tokens=2, temperature=0, n=4), 400, param="n")


def test_options_without_beams(serve: Serve) -> None:
    server = serve(FakeLoader(FakeRunner(answer="abababab")), type=ModelType.SEQ2SEQ)

    def token_ids(prompt: str, **options: int) -> list[int]:
        body = server.complete(prompt, max_tokens=4, return_token_ids=True, **options).json()
        ids: list[int] = body["choices"][0]["token_ids"]
        return ids

    ids = token_ids("xyz", no_repeat_ngram_size=2)
    assert ids[:3] == ids_of("aba") and ids[3] != ids_of("b")[0]
    ids = token_ids("aba", encoder_no_repeat_ngram_size=2)
    assert ids[0] == ids_of("b")[0] or ids[1] != ids_of("b")[0]
    # As transformers has it, the beginning is forced on a decoder that has seen one token.
    ids = token_ids("x", forced_bos_token_id=77, forced_eos_token_id=78)
    assert (ids[0], ids[-1]) == (77, 78)
