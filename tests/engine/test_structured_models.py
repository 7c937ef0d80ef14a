"""Grammars with real models of random weights, sampled at temperature 1, on both runners."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from app.config import ModelSettings, ModelType
from app.engine.defaults import SamplingRequest
from app.engine.sequence import FinishReason
from app.loading import Loaded, load_model
from app.text.constraint import Constraint
from tests.support.schemas import SCHEMAS, validate
from tests.support.tiny import BOS, EOS, save_tiny


def load(kind: str, directory: Path, **more: Any) -> Loaded:
    type = ModelType.SEQ2SEQ if kind in ("t5", "bart", "pegasus") else ModelType.CAUSAL_LM
    settings = ModelSettings(name=str(save_tiny(kind, directory)), type=type, model_device="cpu", **more)
    return load_model("m", settings, "MODELS.m", lambda share: None)


async def generate(loaded: Loaded, schema: Any, seed: int, max_tokens: int = 400) -> tuple[str, FinishReason, list[int]]:
    grammar = await loaded.grammars.compile(Constraint("json_schema", schema, "p"))
    request = SamplingRequest(temperature=1.0, seed=seed, grammar=grammar, grammar_param="p")
    params = loaded.defaults.resolve(request, max_tokens=max_tokens)
    ids: list[int] = []
    async for output in loaded.engine.submit(loaded.tokenizer.encode("Some JSON: ", add_special_tokens=False), params):
        ids += output.token_ids
        if output.finish_reason is not None:
            assert output.error is None, output.error
            return loaded.tokenizer.decode(ids), output.finish_reason, ids
    raise AssertionError("it has no end")


async def check(loaded: Loaded, schemas: list[Any], **more: Any) -> list[list[int]]:
    results = await asyncio.gather(*(generate(loaded, schema, seed, **more) for seed, schema in enumerate(schemas)))
    finished = 0
    for schema, (text, reason, _) in zip(schemas, results, strict=True):
        if reason is FinishReason.STOP:
            finished += 1
            validate(json.loads(text), schema)
        else:
            assert reason is FinishReason.LENGTH
    assert finished >= 0.9 * len(schemas), f"{finished} of {len(schemas)}"
    return [ids for _, _, ids in results]


async def test_a_hundred_schemas_on_paged_batches(tmp_path: Path) -> None:
    assert len(SCHEMAS) >= 100
    loaded = load("llama", tmp_path)
    assert loaded.runner == "paged"
    try:
        await check(loaded, SCHEMAS)
        snapshot = loaded.engine.snapshot()
        assert snapshot.num_running == 0
    finally:
        loaded.engine.stop()


@pytest.mark.parametrize(("kind", "runner"), [("t5", "seq2seq"), ("bart", "seq2seq"), ("mamba", "sequential")])
async def test_on_models_without_paged_memory(kind: str, runner: str, tmp_path: Path) -> None:
    loaded = load(kind, tmp_path)
    assert loaded.runner == runner
    try:
        await check(loaded, SCHEMAS[::9])
    finally:
        loaded.engine.stop()


async def test_what_a_configuration_forces_and_suppresses(tmp_path: Path) -> None:
    """A first token that is dictated comes before the grammar's text; the rest of the configuration yields to the grammar."""
    forcing = {
        "forced_bos_token_id": BOS,
        "forced_eos_token_id": EOS,
        "no_repeat_ngram_size": 1,
        "min_length": 40,
        "suppress_tokens": list(range(100, 200)),
    }
    loaded = load("bart", tmp_path, generate_config=forcing)
    try:
        for ids in await check(loaded, SCHEMAS[48:60]):
            assert ids[0] == BOS
        _, reason, ids = await generate(loaded, {"type": "array", "minItems": 50, "items": {"const": "abc"}}, 0, max_tokens=30)
        assert reason is FinishReason.LENGTH and EOS not in ids
    finally:
        loaded.engine.stop()
