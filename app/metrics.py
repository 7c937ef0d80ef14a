"""Owns counting: the metrics of `app.metrics_table` as objects, and the text of a scrape. Knows engines by samples only."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric, Sample
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from app.metrics_table import ALIASES, CONNECTION_REFUSALS, TABLE, Alias, Spec
from app.tally import Tally

# A `_created` series beside every counter doubles the scrape and no dashboard reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one server, in a collector registry of their own."""

    def __init__(self, aliases: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self._aliases = CollectorRegistry()
        if aliases is not None:
            self._aliases.register(_AliasCollector(ALIASES[aliases], self.registry))
        self.legacy = LegacyTotals()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        self.build_info = self._gauge("build_info")
        self.last_reload_successful = self._gauge("config_last_reload_successful")
        self.last_reload_time = self._gauge("config_last_reload_success_timestamp_seconds")
        self.reloads = self._counter("config_reloads")
        self.restart_required = self._gauge("config_restart_required")
        self.http_connections = self._gauge("http_connections")
        self.requests = self._counter("requests")
        self.rejected = self._counter("requests_rejected")
        self.disconnects = self._counter("client_disconnects")
        self.auth_failures = self._counter("auth_failures")
        self.connections_refused = self._counter("connections_refused")
        self.time_to_first_token = self._histogram("time_to_first_token_seconds")
        # Observed for every token, for which a Histogram of the library is too slow: it walks its buckets, under two locks.
        self.inter_token_latency = _Tallies(TABLE["inter_token_latency_seconds"])
        self.registry.register(self.inter_token_latency)
        self.time_per_output_token = self._histogram("time_per_output_token_seconds")
        self.request_duration = self._histogram("request_duration_seconds")
        self.queue_time = self._histogram("request_queue_seconds")
        self.prefill_time = self._histogram("request_prefill_seconds")
        self.decode_time = self._histogram("request_decode_seconds")
        self.prompt_tokens = self._histogram("request_prompt_tokens")
        self.generation_tokens = self._histogram("request_generation_tokens")
        self.http_requests = self._counter("http_requests")
        self.parameters_ignored = self._counter("parameters_ignored")
        # There from the start, so that a rate is 0 and not absent before the first event.
        for reason in ("missing", "malformed", "unknown"):
            self.auth_failures.labels(reason)
        for reason in CONNECTION_REFUSALS:
            self.connections_refused.labels(reason)
        self.http_duration = self._histogram("http_request_duration_seconds")

    def collect_from(self, collect: Callable[[], Iterable["ModelSample"]]) -> None:
        """Read the engines' numbers at each scrape, so that the engines do no metrics work."""
        self.registry.register(_ModelCollector(collect))

    def render(self) -> bytes:
        return generate_latest(self.registry) + generate_latest(self._aliases)

    def reload_ended(self, source: str, success: bool, now: float) -> None:
        """Note that a change of `source` ("config", "tokens") was taken, or refused, at the Unix time `now`."""
        self.last_reload_successful.labels(source).set(success)
        self.reloads.labels(source, "success" if success else "failure").inc()
        if success:
            self.last_reload_time.labels(source).set(now)

    def add_model(self, model: str) -> None:
        """Make the series that alerts compare with others, so that they are 0 and not absent before the first event."""
        for reason in ("queue_full", "loading", "draining", "dead", "context_length", "invalid"):
            self.rejected.labels(model, reason)
        self.disconnects.labels(model)
        for histogram in (
            self.time_to_first_token,
            self.inter_token_latency,
            self.time_per_output_token,
            self.queue_time,
            self.prefill_time,
            self.decode_time,
            self.prompt_tokens,
            self.generation_tokens,
        ):
            histogram.labels(model)

    def _counter(self, name: str) -> Counter:
        spec = TABLE[name]
        return Counter(f"tfoai_{name}", spec.text, spec.labels, registry=self.registry)

    def _gauge(self, name: str) -> Gauge:
        spec = TABLE[name]
        return Gauge(f"tfoai_{name}", spec.text, spec.labels, registry=self.registry)

    def _histogram(self, name: str) -> Histogram:
        spec = TABLE[name]
        return Histogram(f"tfoai_{name}", spec.text, spec.labels, buckets=spec.buckets, registry=self.registry)


class Buckets(Protocol):
    """Values that were counted by upper bound (app/tally.py), read at a scrape."""

    @property
    def bounds(self) -> Sequence[float]: ...

    @property
    def sum(self) -> float: ...

    def cumulative(self) -> Sequence[int]:
        """How many values were at most each bound, and how many there were at all."""
        ...


@dataclass(slots=True)
class ModelSample:
    """What one served model shows at a scrape: label values (without the model's name) -> value, by metric of the table.

    A metric that the model does not have yet, because its engine does not run, is absent.
    """

    model: str
    numbers: dict[str, dict[tuple[str, ...], float]] = field(default_factory=dict)
    histograms: dict[str, dict[tuple[str, ...], Buckets]] = field(default_factory=dict)

    def add(self, name: str, value: float, *labels: str) -> None:
        self.numbers.setdefault(name, {})[labels] = value

    def add_all(self, name: str, values: Mapping[str, float]) -> None:
        """Add values by their one label beside `model`."""
        for label, value in values.items():
            self.add(name, value, label)

    def add_buckets(self, name: str, buckets: Buckets, *labels: str) -> None:
        self.histograms.setdefault(name, {})[labels] = buckets


class _Tallies(Collector):
    """A histogram by model that is cheap to observe, from one thread."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._by_model: dict[str, Tally] = {}

    def labels(self, model: str) -> Tally:
        if model not in self._by_model:
            self._by_model[model] = Tally(self._spec.buckets)
        return self._by_model[model]

    def collect(self) -> Iterable[Metric]:
        samples = [ModelSample(model, histograms={self._spec.name: {(): tally}}) for model, tally in self._by_model.items()]
        yield _family(self._spec, samples)


class _ModelCollector(Collector):
    def __init__(self, collect: Callable[[], Iterable[ModelSample]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        samples = list(self._collect())
        for spec in TABLE.values():
            if spec.scraped:
                yield _family(spec, samples)


def _family(spec: Spec, samples: list[ModelSample]) -> Metric:
    name = f"tfoai_{spec.name}"
    if spec.kind == "histogram":
        histogram = HistogramMetricFamily(name, spec.text, labels=spec.labels)
        for sample in samples:
            for labels, buckets in sample.histograms.get(spec.name, {}).items():
                bounds = [*map(floatToGoString, buckets.bounds), "+Inf"]
                counts: list[Any] = list(zip(bounds, buckets.cumulative(), strict=True))
                histogram.add_metric((sample.model, *labels), counts, buckets.sum)
        return histogram
    family = (CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily)(name, spec.text, labels=spec.labels)
    for sample in samples:
        for labels, value in sample.numbers.get(spec.name, {}).items():
            family.add_metric((sample.model, *labels), value)
    return family


class _AliasCollector(Collector):
    """Shows metrics of another collector registry under other names."""

    def __init__(self, aliases: Iterable[Alias], source: CollectorRegistry) -> None:
        self._aliases = tuple(aliases)
        self._source = source

    def describe(self) -> Iterable[Metric]:
        return ()  # there is nothing to see before the source has collectors

    def collect(self) -> Iterable[Metric]:
        families = {family.name: family for family in self._source.collect()}
        for alias in self._aliases:
            spec = TABLE[alias.of]
            family = families[f"tfoai_{alias.of}"]
            result = Metric(alias.name, f"The same as {spec.full_name}", family.type)
            values: defaultdict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
            for sample in family.samples:
                labels = [(new, sample.labels[old]) for old, new in alias.labels]
                if "le" in sample.labels:
                    labels.append(("le", sample.labels["le"]))
                suffix = sample.name.removeprefix(family.name)
                values[alias.name + suffix, tuple(labels)] += sample.value
            result.samples = [Sample(name, {"engine": "0", **dict(labels)}, value) for (name, labels), value in values.items()]
            yield result


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
