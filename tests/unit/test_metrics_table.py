"""The table of metrics is what a scrape shows, what the page says, and what other servers' dashboards find."""

import re
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from app.metrics import Metrics, ModelSample
from app.metrics_table import ALIASES, TABLE, VLLM, markdown
from tests.support.process import ROOT

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(metrics: Metrics) -> Series:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


class Counted:
    """Buckets as an engine has them."""

    bounds = (0.5, 1.0)
    sum = 2.25

    def cumulative(self) -> list[int]:
        return [1, 3, 4]


def filled() -> Metrics:
    """Metrics where every series of the table has a value."""
    metrics = Metrics("vllm")
    sample = ModelSample("m")
    for spec in TABLE.values():
        if spec.scraped and spec.kind == "histogram":
            sample.add_buckets(spec.name, Counted(), *spec.labels[1:])
        elif spec.scraped:
            sample.add(spec.name, 5, *spec.labels[1:])
    metrics.collect_from(lambda: [sample])
    for name, metric in vars(metrics).items():
        if name in ("registry", "legacy") or name.startswith("_"):
            continue
        labels = ("model",) if metric is metrics.inter_token_latency else metric._labelnames
        of_labels: Any = metric.labels(*(f"a {label}" for label in labels)) if labels else metric
        of_labels.observe(0.7) if hasattr(of_labels, "observe") else of_labels.inc(3)
    return metrics


def test_the_page_is_made_from_the_table() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == markdown(), "run `make metrics`"


def test_a_scrape_shows_exactly_the_table() -> None:
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name, _ in scrape(filled()) if name.startswith("tfoai_")}
    assert names == {spec.full_name for spec in TABLE.values()}


def test_labels_are_those_of_the_table() -> None:
    for name, labels in scrape(filled()):
        spec = next((spec for spec in TABLE.values() if re.fullmatch(rf"{spec.full_name}(_bucket|_sum|_count)?", name)), None)
        if spec is not None:
            assert {label for label, _ in labels} - {"le"} == set(spec.labels)


def test_names_follow_the_rules() -> None:
    for spec in TABLE.values():
        assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z]", spec.name) and not spec.name.endswith("_total")
        assert not re.search(r"milli|_ms\b|minutes|percent|kilo", spec.name), "base units"
        assert list(spec.buckets) == sorted(set(spec.buckets))
        assert bool(spec.buckets) == (spec.kind == "histogram" and not spec.scraped)
        assert not {"path", "user", "token", "client", "request_id", "prompt"} & set(spec.labels)


def test_every_alias_shows_the_same_values() -> None:
    series = scrape(filled())
    for alias in VLLM:
        spec = TABLE[alias.of]
        for suffix in ("_bucket", "_sum", "_count") if spec.kind == "histogram" else ("",):
            ours = {k: v for k, v in series.items() if k[0] == spec.full_name + suffix}
            theirs = {k: v for k, v in series.items() if k[0] == alias.full_name + suffix}
            assert ours and sorted(ours.values()) == sorted(theirs.values()), alias.name
            for _, labels in theirs:
                expected = {"engine", *(new for _, new in alias.labels), *(["le"] if suffix == "_bucket" else [])}
                assert {label for label, _ in labels} == expected


def test_aliases_sum_over_labels_that_the_other_server_has_not() -> None:
    metrics = Metrics("vllm")
    metrics.collect_from(list)
    metrics.requests.labels("m", "chat", "stop").inc(2)
    metrics.requests.labels("m", "text_completion", "stop").inc(3)
    metrics.requests.labels("m", "chat", "length").inc(7)
    labels = {"engine": "0", "model_name": "m", "finished_reason": "stop"}
    assert scrape(metrics)["vllm:request_success_total", frozenset(labels.items())] == 5


def test_what_the_endpoint_picker_reads_by_default() -> None:
    """gateway-api-inference-extension, docs/proposals/003-model-server-protocol."""
    names = {alias.full_name for alias in ALIASES["vllm"]}
    assert {"vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"} <= names
    cache = next(alias for alias in VLLM if alias.name == "vllm:cache_config_info")
    assert {"block_size", "num_gpu_blocks"} <= {new for _, new in cache.labels}


def test_without_aliases_there_are_none() -> None:
    assert b"vllm" not in Metrics().render()
