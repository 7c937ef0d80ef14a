"""Every expression of dashboard and alerts, run by a real Prometheus that scraped a real server under load.

Needs the programs `prometheus` and `promtool` (Debian's package prometheus).
`make test-monitoring` fails without them, `make test` leaves this out.
"""

import contextlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.monitoring.expressions import ALERTS, alert_rules, dashboard_expressions
from tests.support.process import ServerProcess, free_port
from tests.support.tiny import save_tiny

HERE = Path(__file__).parent
MISSING = [program for program in ("prometheus", "promtool") if shutil.which(program) is None]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif("TFOAI_TEST_MONITORING" not in os.environ, reason="takes a minute and Prometheus: make test-monitoring"),
]
TOKEN = "sk-load"


def promtool(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    assert not MISSING, f"not installed: {', '.join(MISSING)} (Debian: apt-get install prometheus)"
    return subprocess.run(["promtool", *args], capture_output=True, text=True, check=False, **kwargs)


def test_the_rules_are_valid() -> None:
    result = promtool("check", "rules", str(ALERTS))
    assert result.returncode == 0, result.stderr
    assert f"{len(alert_rules())} rules found" in result.stdout


def test_each_alert_fires_when_it_should() -> None:
    result = promtool("test", "rules", str(HERE / "alerts_test.yaml"))
    assert result.returncode == 0, result.stdout + result.stderr


class Load:
    """What an ordinary minute of a server has in it: streams, refusals of every kind, clients that leave."""

    def __init__(self, server: ServerProcess) -> None:
        self._url = server.url
        self._headers = {"Authorization": f"Bearer {TOKEN}"}
        self._stop = threading.Event()
        jobs = [self._stream] * 6 + [self._refused, self._hang_up, self._rude]
        self._threads = [threading.Thread(target=self._loop, args=(job,)) for job in jobs]
        for thread in self._threads:
            thread.start()

    def _loop(self, job: Any) -> None:
        with httpx.Client(base_url=self._url, headers=self._headers, timeout=60, trust_env=False) as client:
            while not self._stop.is_set():
                with contextlib.suppress(httpx.HTTPError, OSError):
                    job(client)

    def _stream(self, client: httpx.Client) -> None:
        # More than one block of the same beginning, for the prefix cache.
        prompt = "the same beginning of every prompt of this test " * 2 + str(time.monotonic())
        body = {"model": "m", "prompt": prompt, "max_tokens": 60, "stream": True, "ignore_eos": True}
        client.post("/v1/completions", json=body)

    def _refused(self, client: httpx.Client) -> None:
        for body in ({"model": "m", "prompt": "x", "n": 8, "temperature": 1}, {"model": "m", "prompt": "x", "top_p": 7}):
            client.post("/v1/completions", json=body)
        client.get("/v1/models", headers={"Authorization": "Bearer sk-other"})
        time.sleep(0.1)

    def _hang_up(self, client: httpx.Client) -> None:
        body = {"model": "m", "prompt": "x", "max_tokens": 400, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines(), None)
        time.sleep(0.1)

    def _rude(self, client: httpx.Client) -> None:
        url = httpx.URL(self._url)
        with socket.create_connection((url.host, url.port or 0), timeout=5) as raw:
            raw.send(b"this is not HTTP\r\n\r\n")
            raw.recv(1000)
        time.sleep(0.2)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=90)


class Prometheus:
    def __init__(self, directory: Path, target: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        scrape = {"job_name": "tfoai", "static_configs": [{"targets": [target], "labels": {"namespace": "prod"}}]}
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [scrape],
        }
        path = directory / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        arguments = [
            f"--config.file={path}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (directory / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(["prometheus", *arguments], stdout=log, stderr=log)

    def ask(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, trust_env=False).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, expression: str) -> list[float]:
        return [float(series["value"][1]) for series in self.ask("query", query=expression)["result"]]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen half a minute of load."""
    assert not MISSING, f"not installed: {', '.join(MISSING)} (Debian: apt-get install prometheus)"
    directory = tmp_path_factory.mktemp("monitoring")
    entry = {"NAME": str(save_tiny("llama", directory / "llama")), "TYPE": "CausalLM", "MODEL_DEVICE": "cpu"}
    config = {
        "MODELS": {"m": {**entry, "MAX_NUM_SEQS": 4}},
        "MAX_QUEUE": 2,
        "PORT": 0,
        "METRICS_PORT": 0,
        "METRICS_ALIASES": "vllm",
        "DRAIN_DELAY": 0,
        "BEARER_TOKENS": [TOKEN],
    }
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    server = ServerProcess(path)
    server.wait_until_ready()
    prometheus = Prometheus(directory, server.metrics_url.removeprefix("http://"))
    load = Load(server)
    try:
        time.sleep(25)
        yield prometheus
    finally:
        load.stop()
        prometheus.stop()
        server.kill()


def in_prometheus(expression: str) -> str:
    """Fill in Grafana's variables as it would."""
    for variable, value in {"__rate_interval": "15s", "namespace": "prod", "job": "tfoai", "model": ".*"}.items():
        expression = expression.replace(f"${variable}", value)
    assert "$" not in expression
    return expression


@pytest.mark.parametrize("name", dashboard_expressions())
def test_every_panel_shows_something(prometheus: Prometheus, name: str) -> None:
    values = prometheus.values(in_prometheus(dashboard_expressions()[name]))
    assert any(math.isfinite(value) for value in values), values


@pytest.mark.parametrize(
    "query",
    [
        "label_values(tfoai_build_info, namespace)",
        'label_values(tfoai_build_info{namespace=~"prod"}, job)',
        'label_values(tfoai_model_state{namespace=~"prod", job=~"tfoai"}, model)',
    ],
)
def test_variables_have_values(prometheus: Prometheus, query: str) -> None:
    selector, label = query.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
    assert prometheus.ask(f"label/{label}/values", **{"match[]": selector})


def test_figures_are_plausible(prometheus: Prometheus) -> None:
    """Not only something, but the right thing."""
    one = {name: prometheus.values(expression) for name, expression in {
        "rate": 'sum(rate(tfoai_requests_total{finish_reason="length"}[15s]))',
        "tokens": "sum(rate(tfoai_generation_tokens_total[15s]))",
        "refused": 'sum(rate(tfoai_requests_rejected_total{reason="queue_full"}[15s]))',
        "left": "sum(rate(tfoai_client_disconnects_total[15s]))",
        "phases": "+".join(f"sum(tfoai_request_{phase}_seconds_sum)" for phase in ("queue", "prefill", "decode")),
        "whole": "sum(tfoai_request_duration_seconds_sum)",
    }.items()}  # fmt: skip
    assert all(len(values) == 1 and values[0] > 0 for values in one.values()), one
    assert one["tokens"][0] >= 60 * one["rate"][0] * 0.8
    assert 0.5 < one["phases"][0] / one["whole"][0] < 1.2
    assert prometheus.values("sum(vllm:num_requests_running) - sum(tfoai_requests_running)") == [0]


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])
def test_every_alert_is_evaluated_and_what_it_looks_at_exists(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    groups = prometheus.ask("rules")["groups"]
    (state,) = [one for group in groups for one in group["rules"] if one["name"] == rule["alert"]]
    assert state["health"] == "ok" and not state.get("lastError")
    for metric in set(re.findall(r"\b(?:tfoai_\w+|up)\b(?=[{\[ )])", rule["expr"])):
        assert prometheus.values(metric), metric
    firing = [alert for alert in prometheus.ask("alerts")["alerts"] if alert["labels"]["alertname"] == rule["alert"]]
    assert [alert for alert in firing if alert["state"] == "firing"] == []


def test_the_scrape_is_valid(prometheus: Prometheus) -> None:
    target = prometheus.ask("targets")["activeTargets"][0]["scrapeUrl"]
    text = httpx.get(target, trust_env=False).text
    result = promtool("check", "metrics", input=text)
    # It does not like the names of the Prometheus client and of the other server; it has nothing to say of ours.
    complaints = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("tfoai_")]
    assert complaints == [], complaints
    assert result.returncode in (0, 3), result.stderr
    assert sys.getsizeof(text) < 200_000
