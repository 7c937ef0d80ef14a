"""A seed gives the same text alone and among 32 neighbours, whoever they are: 100 times out of 100, in every kind of runner."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.config import ModelSettings, ModelType
from app.engine.sequence import SamplingParams
from app.loading import Loaded, load_model
from tests.support.process import serving
from tests.support.tiny import EOS, VOCAB_SIZE, save_tiny

NUM_NEIGHBOURS = 32
MAX_TOKENS = 16
# Each way to draw a token, and what changes the scores before it.
WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9, "frequency_penalty": 1.0},
    {"temperature": 1.5, "top_k": 20, "repetition_penalty": 1.2},
    {"temperature": 2.0, "min_p": 0.02, "logit_bias": {70: 3.0}, "presence_penalty": -0.5},
)


@pytest.fixture(scope="module", params=[("llama", 25), ("falcon", 3), ("t5", 3)], ids=lambda pair: pair[0])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Loaded, int]]:
    """A model and how often its four ways to draw are tried."""
    kind, rounds = request.param
    path = save_tiny(kind, tmp_path_factory.mktemp("models") / kind)
    type = ModelType.SEQ2SEQ if kind == "t5" else ModelType.CAUSAL_LM
    settings = ModelSettings(name=str(path), type=type, model_device="cpu", max_num_seqs=NUM_NEIGHBOURS + 1)
    loaded = load_model("m", settings, "MODELS.m", lambda share: None)
    assert isinstance(loaded, Loaded)
    yield loaded, rounds
    loaded.engine.stop()


async def _ids(loaded: Loaded, prompt: list[int], params: SamplingParams) -> list[int]:
    ids: list[int] = []
    async for output in loaded.engine.submit(prompt, params):
        ids += output.token_ids
    return ids


def _seeded(number: int) -> tuple[list[int], SamplingParams]:
    """A request that is always the same."""
    rng = random.Random(number)
    prompt = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 40))]
    return prompt, SamplingParams(
        max_tokens=MAX_TOKENS, seed=number, stop_token_ids=frozenset({EOS}), **WAYS[number % len(WAYS)]
    )


async def test_alone_and_among_neighbours(model: tuple[Loaded, int]) -> None:
    loaded, rounds = model
    rng = random.Random(0)
    alone = [await _ids(loaded, *_seeded(number)) for number in range(len(WAYS))]
    assert len(set(map(tuple, alone))) == len(WAYS)
    outcomes = []
    for _ in range(rounds):
        neighbours = []
        for _ in range(NUM_NEIGHBOURS - len(WAYS) + 1):
            prompt = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 60))]
            seed = rng.choice([None, rng.randrange(len(WAYS))])  # seeds of others are nobody else's
            neighbours.append((prompt, SamplingParams(max_tokens=rng.randint(1, 30), seed=seed, **rng.choice(WAYS))))
        wanted = [_seeded(number) for number in range(len(WAYS))]
        everything = [(index, *one) for index, one in enumerate([*wanted, *neighbours])]
        rng.shuffle(everything)
        found = await asyncio.gather(*(_ids(loaded, prompt, params) for _, prompt, params in everything))
        by_index = dict(zip((index for index, *_ in everything), found, strict=True))
        outcomes += [by_index[number] == alone[number] for number in range(len(WAYS))]
    assert outcomes == [True] * len(WAYS) * rounds


@pytest.mark.e2e
def test_over_http(tmp_path: Path) -> None:
    path = save_tiny("qwen3", tmp_path / "m")
    config = {"MODELS": {"m": {"NAME": str(path), "TYPE": "CausalLM", "MODEL_DEVICE": "cpu", "MAX_NUM_SEQS": 33}}}
    body = {"model": "m", "prompt": "Once upon a time", "seed": 42, "temperature": 1.2, "max_tokens": 24, "n": 2}

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

            async def texts(**more: Any) -> list[str]:
                response = await client.post("/v1/completions", json=body | more)
                assert response.status_code == 200, response.text
                return [choice["text"] for choice in response.json()["choices"]]

            alone = await texts()
            assert len(set(alone)) == 2
            for round in range(5):
                others = [texts(prompt="x" * (number + 1), seed=number, n=1, max_tokens=30 + round) for number in range(31)]
                assert (await asyncio.gather(texts(), *others))[0] == alone

    with serving(config, tmp_path) as server:
        server.wait_until_ready()
        asyncio.run(ask())
        assert server.stop() == 0
