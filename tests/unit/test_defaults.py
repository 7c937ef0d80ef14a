"""How a request meets the model's defaults."""

import pytest

from app.engine.defaults import GenerationDefaults, SamplingRequest
from app.errors import UnsupportedParameter

EOS = frozenset({2})


def resolve(defaults: dict[str, object], **request: object) -> object:
    return GenerationDefaults(eos_token_ids=EOS, **defaults).resolve(SamplingRequest(**request), max_tokens=5)


def test_nothing_said_anywhere_is_greedy_like_generate() -> None:
    params = resolve({})
    assert (params.temperature, params.stop_token_ids, params.num_beams) == (0.0, EOS, 1)


@pytest.mark.parametrize(
    ("defaults", "request_", "temperature"),
    [
        ({"do_sample": True}, {}, 1.0),
        ({"do_sample": True, "temperature": 0.6}, {}, 0.6),
        ({"temperature": 0.6}, {}, 0.0),
        ({"do_sample": True, "temperature": 0.6}, {"temperature": 0.0}, 0.0),
        ({}, {"temperature": 0.3}, 0.3),
        ({}, {"top_p": 0.9}, 1.0),
        ({"temperature": 0.6}, {"top_k": 4}, 0.6),
        ({}, {"n": 2}, 1.0),
        ({}, {"n": 2, "temperature": 0.0}, 0.0),
    ],
    ids=str,
)
def test_when_sampling_happens(defaults: dict[str, object], request_: dict[str, object], temperature: float) -> None:
    assert resolve(defaults, **request_).temperature == temperature


def test_the_request_wins_over_the_model() -> None:
    defaults = {"top_p": 0.5, "top_k": 5, "min_p": 0.1, "repetition_penalty": 2.0, "min_new_tokens": 3}
    params = resolve(defaults, top_p=0.9, top_k=0, min_p=0.0, repetition_penalty=1.0, min_tokens=0)
    assert (params.top_p, params.top_k, params.min_p, params.repetition_penalty, params.min_tokens) == (0.9, 0, 0.0, 1.0, 0)
    params = resolve(defaults)
    assert (params.top_p, params.top_k, params.min_p, params.repetition_penalty, params.min_tokens) == (0.5, 5, 0.1, 2.0, 3)


def test_stop_tokens() -> None:
    assert resolve({}, stop_token_ids=(7,)).stop_token_ids == {2, 7}
    assert resolve({}, stop_token_ids=(7,), ignore_eos=True).stop_token_ids == {7}


@pytest.mark.parametrize(
    ("name", "value"),
    [("logprobs", 0), ("prompt_logprobs", 2), ("logit_bias", {1: 2.0}), ("frequency_penalty", 0.5), ("presence_penalty", -1.0)],
)
def test_beam_search_refuses_by_name_what_it_can_not_honour(name: str, value: object) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        resolve({"num_beams": 4}, **{name: value})
    assert caught.value.param == name
    assert resolve({"num_beams": 4}, temperature=0.5, **{name: value}).num_beams == 1


def test_neutral_values_do_not_disturb_beam_search() -> None:
    assert resolve({"num_beams": 4}, frequency_penalty=0.0, presence_penalty=0.0, logit_bias={}).num_beams == 4
