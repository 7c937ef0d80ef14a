"""Makes the Grafana dashboard: `python charts/dashboard.py > charts/tfoai/dashboards/tfoai.json`.

Five rows: is it well, latency, saturation, traffic shape, process. Every panel is by model, so that a model in trouble is not
averaged into one that is well. The last column of each entry is what the panel is for: Grafana shows it behind the "i".
"""

import json
from dataclasses import dataclass
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF = 'namespace=~"$namespace", job=~"$job"'
MODEL = f'{OF}, model=~"$model"'
RATE = "$__rate_interval"


@dataclass(frozen=True)
class Panel:
    """One panel. `queries` maps legend -> expression."""

    title: str
    unit: str
    queries: dict[str, str]
    text: str
    kind: str = "timeseries"
    width: int = 6
    stack: bool = False
    thresholds: tuple[float, float] | None = None


def rate(metric: str, by: str, more: str = "", scope: str = MODEL) -> str:
    selector = f"{scope}, {more}" if more else scope
    return f"sum by ({by}) (rate({metric}{{{selector}}}[{RATE}]))"


def quantile(q: float, metric: str, by: str = "model") -> str:
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', f'{by}, le')})"


def quantiles(metric: str) -> dict[str, str]:
    return {f"{{{{model}}}} p{round(100 * q)}": quantile(q, metric) for q in (0.5, 0.9, 0.99)}


def mean(metric: str, by: str = "model") -> str:
    return f"{rate(f'{metric}_sum', by)} / {rate(f'{metric}_count', by)}"


def share(part: str, whole: str) -> str:
    return f"{part} / {whole}"


_ALL = rate("tfoai_requests_total", "model")
_GOOD = rate("tfoai_requests_total", "model", 'finish_reason!="error"')
_REJECTED = rate("tfoai_requests_rejected_total", "model")
_BUSY = f"sum by (instance, model) (tfoai_requests_running{{{MODEL}}} + tfoai_requests_waiting{{{MODEL}}}) > bool 0"

ROWS: dict[str, list[Panel]] = {
    "Is it well": [
        Panel(
            "Ready replicas",
            "short",
            {"{{model}}": f'sum by (model) (tfoai_model_state{{{MODEL}, state="ready"}})'},
            "Replicas that can answer for each model.",
            "stat",
            4,
        ),
        Panel(
            "Requests by end",
            "reqps",
            {"{{model}} {{finish_reason}}": rate("tfoai_requests_total", "model, finish_reason")},
            "Sequences per second, by how they ended. abort: the client left, or the server went down.",
            width=8,
            stack=True,
        ),
        Panel(
            "Failed",
            "percentunit",
            {"{{model}}": f"1 - {share(_GOOD, _ALL)}"},
            "Share of sequences that ended with an error of the engine.",
            "stat",
            4,
            thresholds=(0.005, 0.02),
        ),
        Panel(
            "Time to first token, p95",
            "s",
            {"{{model}}": quantile(0.95, "tfoai_time_to_first_token_seconds")},
            "What a reader of a stream waits for its beginning.",
            "stat",
            4,
            thresholds=(2, 5),
        ),
        Panel(
            "Time per output token, p95",
            "s",
            {"{{model}}": quantile(0.95, "tfoai_time_per_output_token_seconds")},
            "How fast text appears, averaged over each sequence.",
            "stat",
            4,
            thresholds=(0.1, 0.25),
        ),
    ],
    "Latency": [
        Panel(
            "Time to first token",
            "s",
            quantiles("tfoai_time_to_first_token_seconds"),
            "From request accepted to first token handed out: queue and prefill. It grows with the prompt's length.",
            width=8,
        ),
        Panel(
            "Between tokens",
            "s",
            quantiles("tfoai_inter_token_latency_seconds"),
            "Single gaps: p99 shows the prompts of others.",
            width=8,
        ),
        Panel(
            "Whole request",
            "s",
            quantiles("tfoai_request_duration_seconds"),
            "To the last byte. It is the number of tokens more than the speed.",
            width=8,
        ),
        Panel(
            "Queue",
            "s",
            quantiles("tfoai_request_queue_seconds"),
            "From accepted to the first step. When this grows, there are too few replicas or too small MAX_NUM_SEQS.",
            width=12,
        ),
        Panel(
            "Where the time goes (means)",
            "s",
            {
                "{{model}} queue": mean("tfoai_request_queue_seconds"),
                "{{model}} prefill": mean("tfoai_request_prefill_seconds"),
                "{{model}} decode": mean("tfoai_request_decode_seconds"),
            },
            "Mean time of a sequence in each phase.",
            width=12,
            stack=True,
        ),
    ],
    "Saturation": [
        Panel(
            "Running and waiting",
            "short",
            {
                "{{model}} running": f"sum by (model) (tfoai_requests_running{{{MODEL}}})",
                "{{model}} waiting": f"sum by (model) (tfoai_requests_waiting{{{MODEL}}})",
            },
            "Sequences. Autoscalers look at waiting per replica.",
            width=8,
        ),
        Panel(
            "KV memory",
            "percentunit",
            {"{{model}} {{instance}}": f"max by (instance, model) (tfoai_kv_cache_usage_ratio{{{MODEL}}})"},
            "Share of the blocks that sequences own. Cached prompts do not count: they make room.",
            width=8,
        ),
        Panel(
            "Preemptions",
            "ops",
            {"{{model}}": rate("tfoai_preemptions_total", "model")},
            "Sequences whose blocks were taken, to be computed again: KV memory is too small for what runs.",
            width=8,
        ),
        Panel(
            "Refused requests",
            "reqps",
            {"{{model}} {{reason}}": rate("tfoai_requests_rejected_total", "model, reason", scope=OF)},
            "queue_full is a 429; loading, draining and dead are 503s; invalid and context_length are the client's.",
            width=6,
            stack=True,
        ),
        Panel(
            "Refused share",
            "percentunit",
            {"{{model}}": f"{_REJECTED} / ({_REJECTED} + {_ALL})"},
            "Refused requests of all there were.",
            width=6,
        ),
        Panel(
            "Step",
            "s",
            {
                "{{model}} {{phase}} p50": quantile(0.5, "tfoai_step_duration_seconds", "model, phase"),
                "{{model}} {{phase}} p99": quantile(0.99, "tfoai_step_duration_seconds", "model, phase"),
            },
            "One step of the engine; prefill: with a prompt in it.",
            width=6,
        ),
        Panel(
            "Tokens per step (mean)",
            "short",
            {"{{model}}": mean("tfoai_step_tokens")},
            "How full the batches are.",
            width=6,
        ),
    ],
    "Traffic shape": [
        Panel(
            "Tokens",
            "short",
            {
                "{{model}} prompt": rate("tfoai_prompt_tokens_total", "model"),
                "{{model}} generation": rate("tfoai_generation_tokens_total", "model"),
            },
            "Tokens per second.",
        ),
        Panel(
            "Prompt lengths",
            "short",
            {"{{le}}": rate("tfoai_request_prompt_tokens_bucket", "le")},
            "Tokens per prompt.",
            "heatmap",
        ),
        Panel(
            "Answer lengths",
            "short",
            {"{{le}}": rate("tfoai_request_generation_tokens_bucket", "le")},
            "Tokens per answer.",
            "heatmap",
        ),
        Panel(
            "Prompt tokens from the cache",
            "percentunit",
            {"{{model}}": share(rate("tfoai_prompt_tokens_cached_total", "model"), rate("tfoai_prompt_tokens_total", "model"))},
            "Prompts that begin like others are not computed again.",
        ),
    ],
    "Process": [
        Panel("Memory", "bytes", {"{{instance}}": f"process_resident_memory_bytes{{{OF}}}"}, "Resident memory."),
        Panel(
            "Processors",
            "short",
            {"{{instance}}": f"rate(process_cpu_seconds_total{{{OF}}}[{RATE}])"},
            "Processors in use.",
        ),
        Panel(
            "Files and connections",
            "short",
            {
                "{{instance}} files": f"process_open_fds{{{OF}}}",
                "{{instance}} files, limit": f"process_max_fds{{{OF}}}",
                "{{instance}} connections": f"tfoai_http_connections{{{OF}}}",
            },
            "A connection is a file; MAX_CONNECTIONS is their limit.",
        ),
        Panel(
            "HTTP by status",
            "reqps",
            {"{{status}}": rate("tfoai_http_requests_total", "status", scope=OF)},
            "All routes, probes and scrapes included.",
            stack=True,
        ),
        Panel(
            "Clients that left, or were sent away",
            "ops",
            {
                "{{model}} left": rate("tfoai_client_disconnects_total", "model"),
                "connection: {{reason}}": rate("tfoai_connections_refused_total", "reason", scope=OF),
                "token: {{reason}}": rate("tfoai_auth_failures_total", "reason", scope=OF),
            },
            "Disconnects, connections closed for what their client did, requests without a valid token.",
        ),
        Panel(
            "Last step of busy engines",
            "s",
            {
                "{{model}} {{instance}}": "max by (instance, model) "
                f"(time() - tfoai_engine_last_step_timestamp_seconds{{{MODEL}}}) * ({_BUSY})"
            },
            "Seconds since the last step, 0 for engines without work. Growing without end: the engine is stuck.",
        ),
        Panel(
            "Since the start",
            "s",
            {"{{instance}}": f"time() - process_start_time_seconds{{{OF}}}"},
            "Falls to 0 at each restart.",
        ),
        Panel(
            "Reloads",
            "short",
            {
                "{{instance}} {{source}} taken": f"tfoai_config_last_reload_successful{{{OF}}}",
                "{{instance}} keys that wait for a restart": f"tfoai_config_restart_required{{{OF}}}",
            },
            "taken is 0 while the last change of config.json or of the tokens was refused.",
        ),
    ],
}


def panel_json(panel: Panel, number: int, x: int, y: int, height: int) -> dict[str, Any]:
    heatmap = panel.kind == "heatmap"
    targets = [
        {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": expression,
            "format": "heatmap" if heatmap else "time_series",
            "legendFormat": legend,
            "range": True,
            "refId": chr(ord("A") + index),
        }
        for index, (legend, expression) in enumerate(panel.queries.items())
    ]
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.thresholds is not None:
        steps += [{"color": color, "value": value} for color, value in zip(("orange", "red"), panel.thresholds, strict=True)]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        mode = "normal" if panel.stack else "none"
        fill = 25 if panel.stack else 0
        defaults["custom"] = {"fillOpacity": fill, "showPoints": "never", "stacking": {"mode": mode, "group": "A"}}
        options = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}}
        options["tooltip"] = {"mode": "multi", "sort": "desc"}
    elif panel.kind == "stat":
        options = {"colorMode": "value", "graphMode": "area", "textMode": "auto"}
        options["reduceOptions"] = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    else:
        options = {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"mode": "scheme", "scheme": "Blues"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": height},
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def panels() -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        result.append(
            {
                "id": len(result) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
            }
        )
        y += 1
        x, height = 0, 6 if title == "Is it well" else 8
        for panel in row:
            if x + panel.width > 24:
                x, y = 0, y + height
            result.append(panel_json(panel, len(result) + 1, x, y, height))
            x += panel.width
        y += height
    return result


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Not a list of all values: a server outside of Kubernetes has no namespace at all.
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> dict[str, Any]:
    return {
        "uid": "tfoai",
        "title": "tfoai",
        "description": "Models served by tfoai. What the metrics mean: docs/metrics.md.",
        "tags": ["tfoai", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                    "refresh": 1,
                },
                variable("namespace", "Namespace", "label_values(tfoai_build_info, namespace)"),
                variable("job", "Job", 'label_values(tfoai_build_info{namespace=~"$namespace"}, job)'),
                variable("model", "Model", 'label_values(tfoai_model_state{namespace=~"$namespace", job=~"$job"}, model)'),
            ]
        },
        "panels": panels(),
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
