"""Owns every metric, once: names, units, buckets, labels. Knows engines only through the samples it is given.

Names and buckets follow Prometheus' rules and OpenTelemetry's GenAI advice; the label `model` is a served name and so bounded.
"""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_ITL = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_DURATION = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

# A `_created` series beside every counter doubles the scrape and no dashboard reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one server, in a collector registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.legacy = LegacyTotals()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tfoai_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"tfoai_{name}", text, labels, buckets=buckets, registry=self.registry)

        self.build_info = Gauge(
            "tfoai_build_info",
            "1, with the versions as labels",
            ("version", "python", "torch", "transformers"),
            registry=self.registry,
        )
        self.requests = counter("requests", "Sequences that ended, by reason", "model", "operation", "finish_reason")
        self.rejected = counter("requests_rejected", "Requests refused before the engine saw them", "model", "reason")
        self.disconnects = counter("client_disconnects", "Requests whose client left before the end", "model")
        self.auth_failures = counter("auth_failures", "Requests without a valid bearer token", "reason")
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From request accepted (before tokenizing) to first token handed out", _TTFT, "model"
        )
        self.inter_token_latency = histogram("inter_token_latency_seconds", "Between tokens of one sequence", _ITL, "model")
        self.time_per_output_token = histogram(
            "time_per_output_token_seconds", "(last - first token) / (tokens - 1), per sequence", _ITL, "model"
        )
        self.request_duration = histogram(
            "request_duration_seconds", "From request accepted to last byte handed out", _DURATION, "model", "operation"
        )
        self.prompt_tokens = histogram("request_prompt_tokens", "Prompt tokens per request", _TOKENS, "model")
        self.generation_tokens = histogram("request_generation_tokens", "Generation tokens per request", _TOKENS, "model")
        self.http_requests = counter("http_requests", "HTTP requests", "method", "route", "status")
        self.http_duration = histogram("http_request_duration_seconds", "HTTP requests", _DURATION, "method", "route")

    def collect_from(self, collect: Callable[[], Iterable["ModelSample"]]) -> None:
        """Read the engines' numbers at each scrape, so that the engines do no metrics work."""
        self.registry.register(_ModelCollector(collect))

    def render(self) -> bytes:
        return generate_latest(self.registry)


class ModelSample:
    """What one served model shows at a scrape; numbers are None until its engine runs."""

    def __init__(
        self, model: str, states: dict[str, bool], info: dict[str, str] | None, numbers: dict[str, float] | None
    ) -> None:
        self.model = model
        self.states = states
        self.info = info
        self.numbers = numbers


# Attribute of the engine's snapshot -> (name, kind, help).
_ENGINE_METRICS: dict[str, tuple[str, type[Metric], str]] = {
    "num_waiting": ("tfoai_requests_waiting", GaugeMetricFamily, "Sequences that wait for their first step"),
    "num_running": ("tfoai_requests_running", GaugeMetricFamily, "Sequences in the running batch"),
    "num_prompt_tokens": ("tfoai_prompt_tokens", CounterMetricFamily, "Prompt tokens computed"),
    "num_generation_tokens": ("tfoai_generation_tokens", CounterMetricFamily, "Tokens generated, aborted work included"),
    "num_step_errors": ("tfoai_engine_step_errors", CounterMetricFamily, "Sequences that failed in a step"),
    "num_preemptions": ("tfoai_preemptions", CounterMetricFamily, "Sequences whose blocks were taken, to be computed again"),
    "num_prompt_tokens_cached": ("tfoai_prompt_tokens_cached", CounterMetricFamily, "Prompt tokens found in the prefix cache"),
    "kv_cache_usage": ("tfoai_kv_cache_usage_ratio", GaugeMetricFamily, "Share of the KV blocks that sequences own, 0 to 1"),
    "num_steps": ("tfoai_engine_steps", CounterMetricFamily, "Steps of the engine's loop"),
    "last_step_time": ("tfoai_engine_last_step_timestamp_seconds", GaugeMetricFamily, "Unix time of the last step"),
}


class _ModelCollector(Collector):
    def __init__(self, collect: Callable[[], Iterable[ModelSample]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        samples = list(self._collect())
        state = GaugeMetricFamily("tfoai_model_state", "1 for the state that the model is in", labels=("model", "state"))
        info_labels = ("model", "source", "type", "runner", "device", "dtype")
        info = GaugeMetricFamily("tfoai_model_info", "1, with what serves the model as labels", labels=info_labels)
        for sample in samples:
            for name, is_on in sample.states.items():
                state.add_metric((sample.model, name), float(is_on))
            if sample.info is not None:
                info.add_metric([sample.info[label] for label in info_labels], 1.0)
        yield state
        yield info
        for key, (name, kind, text) in _ENGINE_METRICS.items():
            family: Any = kind(name, text, labels=("model",))  # type: ignore[call-arg]  # both kinds take labels
            for sample in samples:
                if sample.numbers is not None:
                    family.add_metric((sample.model,), sample.numbers[key])
            yield family


class LegacyTotals:
    """The JSON totals that the 2023 server gave at /v1/metrics."""

    def __init__(self) -> None:
        self._totals = _legacy_zero()
        self._models: dict[str, dict[str, int]] = {}

    def add(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        of_model = self._models.setdefault(model, {**_legacy_zero(), "calls": 0})
        of_model["calls"] += 1
        for totals in (self._totals, of_model):
            totals["total_prompt_tokens"] += prompt_tokens
            totals["total_completion_tokens"] += completion_tokens
            totals["total_total_tokens"] += prompt_tokens + completion_tokens

    def as_json(self) -> dict[str, Any]:
        return {**self._totals, "model_metrics": self._models}


def _legacy_zero() -> dict[str, int]:
    return {"total_prompt_tokens": 0, "total_completion_tokens": 0, "total_total_tokens": 0}
