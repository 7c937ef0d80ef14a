"""Owns what a scrape reads of the served models: states, engine totals and sizes, by the names of the metrics' table."""

import time
from collections.abc import Iterator

from app.engine.engine import EngineSnapshot
from app.engine.loaded import LoadedEncoder, LoadedModel
from app.metrics import ModelSample
from app.registry import ModelState, Registry, ServedModel


def model_samples(registry: Registry) -> Iterator[ModelSample]:
    """Yield one sample for each model that is served now."""
    for model in registry.models.values():
        sample = ModelSample(model.name)
        for state in ModelState:
            sample.add("model_state", float(state is model.state), str(state))
        if model.loaded_or_none is not None:
            _add_info(sample, model, model.loaded_or_none)
            _add_engine(sample, model.loaded_or_none.engine.snapshot(), model.loaded_or_none.dtype)
        yield sample


def _add_info(sample: ModelSample, model: ServedModel, loaded: LoadedModel | LoadedEncoder) -> None:
    settings = model.settings
    revision = str(settings.model_config.get("revision", ""))
    labels = (settings.name, revision, str(settings.type), loaded.runner, loaded.device, loaded.dtype)
    sample.add("model_info", 1, *labels)
    sample.add("model_load_duration_seconds", model.load_seconds)


def _add_engine(sample: ModelSample, engine: EngineSnapshot, dtype: str) -> None:
    sample.add("requests_waiting", engine.num_waiting)
    sample.add("requests_running", engine.num_running)
    sample.add("kv_cache_usage_ratio", engine.kv_cache_usage)
    if engine.num_blocks:
        sample.add("cache_config_info", 1, str(engine.block_size), str(engine.num_blocks), dtype)
    # The engine's clock is monotonic; scrapers want Unix time.
    sample.add("engine_last_step_timestamp_seconds", engine.last_step_time + time.time() - time.monotonic())
    sample.add("engine_steps", engine.num_steps)
    sample.add_all("engine_step_errors", engine.step_errors)
    sample.add("preemptions", engine.num_preemptions)
    sample.add("prompt_tokens", engine.num_prompt_tokens)
    sample.add("prompt_tokens_cached", engine.num_prompt_tokens_cached)
    sample.add("generation_tokens", engine.num_generation_tokens)
    for phase, buckets in engine.step_seconds.items():
        sample.add_buckets("step_duration_seconds", buckets, phase)
    sample.add_buckets("step_tokens", engine.step_tokens)
