"""Beam search and transformers' options that a request asks for: what `generate` gives with the same arguments.

Causal models run in paged batches here, with plain sequences beside the beams and too little KV memory for all.
"""

import asyncio
import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from app.config import ModelSettings, ModelType
from app.engine.defaults import SamplingRequest
from app.engine.engine import EngineThread
from app.engine.loaded import LoadedModel
from app.engine.loader import load
from app.engine.sequence import FinishReason, SamplingParams
from tests.support.tiny import EOS, VOCAB_SIZE, save_tiny, tiny_model

MAX_TOKENS = 8


@functools.cache
def reference(kind: str) -> PreTrainedModel:
    return tiny_model(kind)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (4, 33)]


def expected(kind: str, prompt: list[int], **options: Any) -> list[list[int]]:
    model = reference(kind)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False, **options)
    rows = found[:, 1 if kind == "bart" else len(prompt) :].tolist()
    # The shorter ones of several are padded behind their end.
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


@functools.cache
def plainly(kind: str, prompt: tuple[int, ...]) -> list[list[int]]:
    return expected(kind, list(prompt))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    def loaded(kind: str) -> LoadedModel:
        path: Path = save_tiny(kind, tmp_path_factory.mktemp(kind))
        type = ModelType.SEQ2SEQ if kind == "bart" else ModelType.CAUSAL_LM
        settings = ModelSettings(name=str(path), type=type, model_device="cpu", max_model_len=128, max_num_seqs=4)
        return load(kind, str(path), settings, "MODELS.tiny", lambda share: None)

    return {kind: loaded(kind) for kind in ("llama", "bart")}


async def run(engine: EngineThread, prompt: list[int], params: SamplingParams) -> list[int]:
    ids: list[int] = []
    async for output in engine.submit(prompt, params):
        ids += output.token_ids
        assert output.finish_reason in (None, FinishReason.STOP, FinishReason.LENGTH), output.error
    return ids


@pytest.mark.parametrize("kind", ["llama", "bart"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
        {"num_beams": 2, "early_stopping": "never", "length_penalty": -1.0},
        {"num_beams": 3, "no_repeat_ngram_size": 2},
        {"num_beams": 2, "encoder_no_repeat_ngram_size": 2, "repetition_penalty": 1.4},
        {"num_beams": 2, "forced_eos_token_id": 7},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 3},
        {"encoder_no_repeat_ngram_size": 1},
        {"forced_eos_token_id": 9},
    ],
    ids=str,
)
async def test_equals_generate_beside_plain_sequences(
    models: dict[str, LoadedModel], kind: str, options: dict[str, Any]
) -> None:
    model = models[kind]
    assert model.runner == ("seq2seq" if kind == "bart" else "paged")
    asked = model.defaults.resolve(SamplingRequest(**options), max_tokens=MAX_TOKENS)
    plain = model.defaults.resolve(SamplingRequest(), max_tokens=MAX_TOKENS)
    short, long = prompts()
    got = await asyncio.gather(
        *(
            run(model.engine, prompt, params)
            for prompt, params in ((short, plain), (long, asked), (long, plain), (short, asked))
        )
    )
    assert [got[1]] == expected(kind, long, **options)
    assert [got[0], got[2]] == [ids for prompt in prompts() for ids in plainly(kind, tuple(prompt))]
    assert len(got[3]) > 0


@pytest.mark.parametrize("kind", ["llama", "bart"])
async def test_choices_are_the_best_beams(models: dict[str, LoadedModel], kind: str) -> None:
    request, model = SamplingRequest(num_beams=4, n=3), models[kind]
    params = [model.defaults.resolve(request, max_tokens=MAX_TOKENS, choice=choice) for choice in range(3)]
    prompt = prompts()[1]
    got = await asyncio.gather(*(run(model.engine, prompt, one) for one in params))
    assert got == expected(kind, prompt, num_beams=4, num_return_sequences=3)
    assert len({tuple(ids) for ids in got}) == 3


async def test_a_forced_beginning(models: dict[str, LoadedModel]) -> None:
    request, model = SamplingRequest(num_beams=3, forced_bos_token_id=55), models["bart"]
    got = await run(model.engine, prompts()[1], model.defaults.resolve(request, max_tokens=MAX_TOKENS))
    assert got[0] == 55
    assert [got] == expected("bart", prompts()[1], num_beams=3, forced_bos_token_id=55)


async def test_forbidden_tokens_bind_beams_too(models: dict[str, LoadedModel]) -> None:
    model, prompt = models["llama"], prompts()[1]
    free = await run(model.engine, prompt, model.defaults.resolve(SamplingRequest(num_beams=3), max_tokens=MAX_TOKENS))
    word = tuple(free[2:4])
    request = SamplingRequest(num_beams=3, bad_words_ids=(word, (free[0],)))
    held = await run(model.engine, prompt, model.defaults.resolve(request, max_tokens=MAX_TOKENS))
    assert free[0] not in held and word not in itertools.pairwise(held)
    assert [held] == expected("llama", prompt, num_beams=3, bad_words_ids=[list(word), [free[0]]])


async def test_beams_leave_nothing_in_the_prefix_cache(models: dict[str, LoadedModel]) -> None:
    model = models["llama"]
    prompt = torch.randint(3, VOCAB_SIZE, (100,), generator=torch.Generator().manual_seed(9)).tolist()
    search = model.defaults.resolve(SamplingRequest(num_beams=3), max_tokens=MAX_TOKENS)
    plain = model.defaults.resolve(SamplingRequest(), max_tokens=MAX_TOKENS)
    beams, single = expected("llama", prompt, num_beams=3), expected("llama", prompt)
    for params, answer in ((search, beams), (plain, single), (search, beams), (plain, single)):
        assert [await run(model.engine, prompt, params)] == answer
