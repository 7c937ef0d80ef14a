"""Owns the table of metrics: names, kinds, units, buckets, labels and words of every series. Counts nothing.

`python -m app.metrics_table > docs/metrics.md` writes the page that is in the repository. Names and buckets follow Prometheus'
rules and OpenTelemetry's advice for GenAI; times are in seconds, on the monotonic clock. Label values are bounded: `model` is a
served name, all others are words of the code.
"""

from dataclasses import dataclass
from typing import Literal

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_ITL = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_DURATION = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_QUEUE = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric. `name` is without the prefix `tfoai_` and, for a counter, without `_total`.

    `scraped` ones are read from the engines at each scrape; their buckets, if any, are the engine's.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    scraped: bool = False

    @property
    def full_name(self) -> str:
        """The name as Prometheus shows it; a histogram adds `_bucket`, `_sum` and `_count`."""
        return f"tfoai_{self.name}" + ("_total" if self.kind == "counter" else "")


_MODEL = ("model",)
CONNECTION_REFUSALS = (
    *("malformed", "header_timeout", "header_too_large", "body_timeout", "write_timeout"),
    "too_many_connections",
)

SERVER_METRICS = (
    Spec("requests_waiting", "gauge", "Sequences that wait for their first step", _MODEL, scraped=True),
    Spec("requests_running", "gauge", "Sequences in the running batch", _MODEL, scraped=True),
    Spec("kv_cache_usage_ratio", "gauge", "Share of the KV blocks that sequences own, 0 to 1", _MODEL, scraped=True),
    Spec(
        "cache_config_info",
        "gauge",
        "1, with the shape of KV memory as labels; absent for models without blocks",
        ("model", "block_size", "num_gpu_blocks", "dtype"),
        scraped=True,
    ),
    Spec(
        "model_info",
        "gauge",
        "1, with what serves the model as labels",
        ("model", "source", "revision", "type", "runner", "device", "dtype"),
        scraped=True,
    ),
    Spec(
        "model_state",
        "gauge",
        "1 for the state that the model is in (loading, ready, draining, dead), 0 for the others",
        ("model", "state"),
        scraped=True,
    ),
    Spec("model_load_duration_seconds", "gauge", "What loading the model took", _MODEL, scraped=True),
    Spec(
        "engine_last_step_timestamp_seconds",
        "gauge",
        "Unix time of the last step, or of when work came to an idle engine",
        _MODEL,
        scraped=True,
    ),
    Spec("engine_steps", "counter", "Steps of the engine's loop", _MODEL, scraped=True),
    Spec(
        "engine_step_errors",
        "counter",
        "Sequences that failed in a step, by reason (oom, nan, exception)",
        ("model", "reason"),
        scraped=True,
    ),
    Spec("preemptions", "counter", "Sequences whose blocks were taken, to be computed again", _MODEL, scraped=True),
    Spec(
        "step_duration_seconds",
        "histogram",
        "One step of the engine, by phase (prefill: with a prompt in it; decode: without)",
        ("model", "phase"),
        scraped=True,
    ),
    Spec("step_tokens", "histogram", "Tokens computed in one step, prompts included", _MODEL, scraped=True),
    Spec("prompt_tokens", "counter", "Prompt tokens of the sequences that got their first token", _MODEL, scraped=True),
    Spec("prompt_tokens_cached", "counter", "Prompt tokens found in the prefix cache", _MODEL, scraped=True),
    Spec("generation_tokens", "counter", "Tokens generated, aborted work included", _MODEL, scraped=True),
    Spec("build_info", "gauge", "1, with the versions as labels", ("version", "python", "torch", "transformers")),
    Spec(
        "config_last_reload_successful",
        "gauge",
        "1 if the last change of the source (config, tokens) was taken, 0 if it was refused and the old state kept",
        ("source",),
    ),
    Spec("config_last_reload_success_timestamp_seconds", "gauge", "Unix time when the source was last taken", ("source",)),
    Spec("config_reloads", "counter", "Changes seen of a source, by outcome (success, failure)", ("source", "outcome")),
    Spec("config_restart_required", "gauge", "Number of keys of config.json that changed and wait for a restart"),
    Spec("http_connections", "gauge", "Open connections on PORT"),
)

REQUEST_METRICS = (
    Spec(
        "requests",
        "counter",
        "Sequences that ended, by reason (stop, length, abort, error)",
        ("model", "operation", "finish_reason"),
    ),
    Spec(
        "requests_rejected",
        "counter",
        "Requests refused before the engine saw them, by reason (queue_full, loading, draining, dead, context_length, "
        "invalid); model is empty if the request was refused before it was known",
        ("model", "reason"),
    ),
    Spec(
        "parameters_ignored",
        "counter",
        "Parameters left out of requests because COMPATIBILITY is lenient; parameter is one of the API's names, or unknown",
        ("parameter",),
    ),
    Spec("client_disconnects", "counter", "Requests whose client left before the end", _MODEL),
    Spec(
        "auth_failures",
        "counter",
        "Requests without a valid bearer token, by reason (missing, malformed, unknown)",
        ("reason",),
    ),
    Spec(
        "connections_refused",
        "counter",
        f"Connections closed for what their client did, by reason ({', '.join(CONNECTION_REFUSALS)})",
        ("reason",),
    ),
    Spec(
        "time_to_first_token_seconds",
        "histogram",
        "From request accepted (before tokenizing) to first token handed out, per sequence",
        _MODEL,
        _TTFT,
    ),
    Spec("inter_token_latency_seconds", "histogram", "Between tokens of one sequence", _MODEL, _ITL),
    Spec("time_per_output_token_seconds", "histogram", "(last - first token) / (tokens - 1), per sequence", _MODEL, _ITL),
    Spec(
        "request_duration_seconds",
        "histogram",
        "From request accepted to last byte handed out",
        ("model", "operation"),
        _DURATION,
    ),
    Spec("request_queue_seconds", "histogram", "From request accepted to its first step, per sequence", _MODEL, _QUEUE),
    Spec("request_prefill_seconds", "histogram", "From first step to first token, per sequence", _MODEL, _DURATION),
    Spec("request_decode_seconds", "histogram", "From first token to last token, per sequence", _MODEL, _DURATION),
    Spec("request_prompt_tokens", "histogram", "Prompt tokens per request", _MODEL, _TOKENS),
    Spec("request_generation_tokens", "histogram", "Generation tokens per request", _MODEL, _TOKENS),
    Spec("http_requests", "counter", "HTTP requests; an unknown route is `other`", ("method", "route", "status")),
    Spec("http_request_duration_seconds", "histogram", "HTTP requests, to the last byte", ("method", "route"), _DURATION),
)

TABLE: dict[str, Spec] = {spec.name: spec for spec in (*SERVER_METRICS, *REQUEST_METRICS)}


@dataclass(frozen=True, slots=True)
class Alias:
    """A metric under another server's name: the same values; labels renamed by `labels`, the others summed over."""

    name: str
    of: str
    labels: tuple[tuple[str, str], ...] = (("model", "model_name"),)

    @property
    def full_name(self) -> str:
        return self.name + ("_total" if TABLE[self.of].kind == "counter" else "")


# What published dashboards, autoscalers and the inference gateway's endpoint picker read. Names as of vLLM's V1 engine; the two
# after it are older names that dashboards still use.
VLLM = (
    Alias("vllm:num_requests_running", "requests_running"),
    Alias("vllm:num_requests_waiting", "requests_waiting"),
    Alias("vllm:kv_cache_usage_perc", "kv_cache_usage_ratio"),
    Alias("vllm:gpu_cache_usage_perc", "kv_cache_usage_ratio"),
    Alias(
        "vllm:cache_config_info",
        "cache_config_info",
        (
            ("model", "model_name"),
            ("block_size", "block_size"),
            ("num_gpu_blocks", "num_gpu_blocks"),
            ("dtype", "cache_dtype"),
        ),
    ),
    Alias("vllm:num_preemptions", "preemptions"),
    Alias("vllm:prompt_tokens", "prompt_tokens"),
    Alias("vllm:generation_tokens", "generation_tokens"),
    Alias("vllm:prefix_cache_queries", "prompt_tokens"),
    Alias("vllm:prefix_cache_hits", "prompt_tokens_cached"),
    Alias("vllm:iteration_tokens_total", "step_tokens"),
    Alias("vllm:request_success", "requests", (("model", "model_name"), ("finish_reason", "finished_reason"))),
    Alias("vllm:time_to_first_token_seconds", "time_to_first_token_seconds"),
    Alias("vllm:inter_token_latency_seconds", "inter_token_latency_seconds"),
    Alias("vllm:time_per_output_token_seconds", "inter_token_latency_seconds"),
    Alias("vllm:request_time_per_output_token_seconds", "time_per_output_token_seconds"),
    Alias("vllm:e2e_request_latency_seconds", "request_duration_seconds"),
    Alias("vllm:request_queue_time_seconds", "request_queue_seconds"),
    Alias("vllm:request_prefill_time_seconds", "request_prefill_seconds"),
    Alias("vllm:request_decode_time_seconds", "request_decode_seconds"),
    Alias("vllm:request_prompt_tokens", "request_prompt_tokens"),
    Alias("vllm:request_generation_tokens", "request_generation_tokens"),
)
ALIASES = {"vllm": VLLM}


def markdown() -> str:
    """Return docs/metrics.md."""
    lines = ["# Metrics", "", *_INTRODUCTION.splitlines()]
    for title, specs in (("Server and engines", SERVER_METRICS), ("Requests", REQUEST_METRICS)):
        lines += ["", f"## {title}", "", "| Metric | Kind | Labels | |", "|---|---|---|---|"]
        for spec in specs:
            labels = ", ".join(f"`{label}`" for label in spec.labels)
            lines.append(f"| `{spec.full_name}` | {spec.kind} | {labels} | {spec.text}. |")
    lines += ["", "## Buckets", "", "| Histogram | Upper bounds |", "|---|---|"]
    for spec in TABLE.values():
        if spec.buckets:
            lines.append(f"| `{spec.full_name}` | {' '.join(f'{bound:g}' for bound in spec.buckets)} |")
    lines += ["", "## Under other names", "", *_ALIASES_TEXT.splitlines(), "", "| Name | Is |", "|---|---|"]
    lines += [f"| `{alias.full_name}` | `{TABLE[alias.of].full_name}` |" for alias in VLLM]
    return "\n".join(lines) + "\n"


_INTRODUCTION = """\
Made from `app/metrics_table.py`; `make metrics` writes this page anew.

`GET /metrics` gives them in Prometheus' text format: on `METRICS_PORT` without a token, or, without such a port, on `PORT`
with a token if the server has tokens. Beside them are `process_*` and `python_*` of the Prometheus client. The label `model`
is a served name; no label ever holds a token, a user, a path or text of a client.

The three gauges that the Gateway API Inference Extension's model server protocol asks for are `tfoai_requests_waiting`,
`tfoai_requests_running` and `tfoai_kv_cache_usage_ratio`; block size and number of blocks are labels of
`tfoai_cache_config_info`.

Scale on waiting requests per replica, not on processor or GPU load: that is full with the first request."""

_ALIASES_TEXT = """\
With `METRICS_ALIASES: "vllm"` these are there too, with the same values, `model_name` for `model` and `engine="0"`. Labels
that the other server does not have are summed over."""


if __name__ == "__main__":
    print(markdown(), end="")
