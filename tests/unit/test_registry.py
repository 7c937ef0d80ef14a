"""Served models: states, admission, lengths, defaults."""

import asyncio
import threading
import time

import pytest

from app.config import Config, ModelSettings, ModelType
from app.engine.defaults import GenerationDefaults
from app.engine.sequence import SamplingParams
from app.errors import (
    ConfigError,
    ContextLengthExceeded,
    Draining,
    EngineDead,
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    QueueFull,
)
from app.registry import ModelState, Registry
from tests.support.fakes import FakeLoader, FakeRunner


def config(names: str = "m", *, max_num_seqs: int = 2, max_queue: int = 3, type: ModelType = ModelType.CAUSAL_LM) -> Config:
    models = {name: ModelSettings(name=name, type=type, max_num_seqs=max_num_seqs) for name in names}
    return Config(models=models, max_queue=max_queue)


async def until(condition: object) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.005)


async def started(loader: FakeLoader, settings: Config | None = None) -> Registry:
    registry = Registry(settings or config(), load=loader)
    registry.start(lambda error: pytest.fail(str(error)))
    await until(lambda: registry.is_ready)
    return registry


async def test_states_while_models_load_one_after_the_other() -> None:
    loader = FakeLoader(gate=threading.Event())
    registry = Registry(config("ab"), load=loader)
    registry.start(lambda error: pytest.fail(str(error)))
    await until(lambda: registry.get("a").progress == 0.25)
    assert registry.get("b").progress == 0
    assert (registry.is_alive, registry.is_ready, registry.has_started) == (True, False, False)
    with pytest.raises(ModelLoading, match="25%") as caught:
        _ = registry.get("a").loaded
    assert caught.value.retry_after
    loader.gate.set()
    await until(lambda: registry.is_ready)
    assert registry.has_started
    assert registry.get("a").state is ModelState.READY
    registry.stop()


async def test_a_model_that_can_not_be_loaded_is_reported_and_ends_the_loading() -> None:
    errors: list[Exception] = []
    registry = Registry(config("ab"), load=FakeLoader(error=ConfigError("MODELS.a.NAME", "nothing", "a model")))
    registry.start(errors.append)
    await until(lambda: errors)
    assert str(errors[0]).startswith("MODELS.a.NAME")
    assert registry.get("b").progress == 0


async def test_draining_refuses_and_is_not_ready_but_alive() -> None:
    registry = await started(FakeLoader())
    registry.drain()
    assert (registry.is_alive, registry.is_ready, registry.has_started) == (True, False, True)
    assert registry.get("m").state is ModelState.DRAINING
    with pytest.raises(Draining):
        registry.get("m").admit(1)
    assert registry.get("m").loaded, "what was admitted before goes on"
    registry.stop()


async def test_a_dead_engine_fails_liveness() -> None:
    loader = FakeLoader()
    registry = await started(loader)
    await asyncio.to_thread(loader.engines[0].stop)
    assert (registry.is_alive, registry.is_ready) == (False, False)
    with pytest.raises(EngineDead):
        _ = registry.get("m").loaded


def test_unknown_names() -> None:
    registry = Registry(config(), load=FakeLoader())
    with pytest.raises(ModelNotFound) as caught:
        registry.get("x" * 5000)
    assert caught.value.param == "model"
    assert len(str(caught.value)) < 300


async def test_admission_is_all_or_nothing_and_gives_slots_back() -> None:
    registry = await started(FakeLoader())
    model = registry.get("m")
    assert model.capacity == 5
    first = model.admit(3)
    with pytest.raises(QueueFull) as caught:
        model.admit(3)
    assert caught.value.retry_after
    second = model.admit(2)
    with pytest.raises(QueueFull):
        model.admit(1)
    with pytest.raises(InvalidRequest, match="at most 5"):
        model.admit(6)
    second.close()
    second.close()
    assert model.num_admitted == 3
    first.close()
    assert model.num_admitted == 0
    registry.stop()


async def test_a_slot_is_taken_until_the_engine_confirms_the_end() -> None:
    gate = threading.Event()
    registry = await started(FakeLoader(FakeRunner(gate=gate)))
    model = registry.get("m")
    admission = model.admit(2)
    stream = admission.submit([5], SamplingParams(max_tokens=1000))
    admission.close()
    assert model.num_admitted == 1
    await until(lambda: model.loaded.engine.snapshot().num_running == 1)
    stream.close()
    await asyncio.sleep(0.05)
    assert model.num_admitted == 1, "the engine is still busy with it"
    gate.set()
    await until(lambda: model.num_admitted == 0)
    with pytest.raises(RuntimeError, match="admitted"):
        admission.submit([5], SamplingParams(max_tokens=1))
    registry.stop()


async def test_lengths_at_the_limit_and_beyond() -> None:
    registry = await started(FakeLoader(context_length=100))
    model = registry.get("m")
    model.check_length(60, 40, what="prompt")
    with pytest.raises(ContextLengthExceeded, match=r"length is 100 tokens\. However, you requested 101 tokens"):
        model.check_length(60, 41, what="prompt")
    registry.stop()


async def test_an_encoder_decoder_has_one_limit_for_each_side() -> None:
    registry = await started(FakeLoader(context_length=100), config(type=ModelType.SEQ2SEQ))
    model = registry.get("m")
    model.check_length(100, 99, what="prompt")
    for prompt, answer in ((101, 1), (1, 100)):
        with pytest.raises(ContextLengthExceeded):
            model.check_length(prompt, answer, what="prompt")
    registry.stop()


@pytest.mark.parametrize(
    ("defaults", "otherwise", "expected"),
    [
        ({}, 16, 16),
        ({}, None, 90),
        ({"max_new_tokens": 7}, 16, 7),
        ({"max_new_tokens": 500}, 16, 90),
        ({"max_length": 30}, 16, 20),
        ({"max_length": 5}, 16, 1),
    ],
    ids=str,
)
async def test_default_max_tokens(defaults: dict[str, int], otherwise: int | None, expected: int) -> None:
    registry = await started(FakeLoader(context_length=100, defaults=GenerationDefaults(**defaults)))
    assert registry.get("m").default_max_tokens(10, otherwise=otherwise) == expected
    registry.stop()


async def test_fingerprint_is_stable_and_tells_models_apart() -> None:
    registry = await started(FakeLoader(), config("ab"))
    assert registry.get("a").system_fingerprint == registry.get("a").system_fingerprint
    assert registry.get("a").system_fingerprint != registry.get("b").system_fingerprint
    registry.stop()
