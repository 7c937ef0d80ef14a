"""Owns the tests of /metrics and of the legacy totals at /v1/metrics."""

import threading
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.api.conftest import ANSWER, Serve
from tests.support.fakes import FakeLoader, FakeRunner, ids_of
from tests.support.live import MODEL, LiveServer, SlowRunner, assert_error, eventually

NUM_ANSWER_TOKENS = len(ids_of(ANSWER)) + 1


def scrape(server: LiveServer) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = server.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]
    values = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(values) == len(samples), "a series is there twice"
    return values


def value(server: LiveServer, name: str, **labels: str) -> float | None:
    return scrape(server).get((name, frozenset(labels.items())))


def test_a_request_moves_them(serve: Serve) -> None:
    server = serve(runner=FakeRunner(answer=ANSWER))
    assert server.complete(max_tokens=50).status_code == 200
    assert server.chat(stream=True).status_code == 200
    assert server.complete(max_tokens=2, n=2, temperature=0).status_code == 200
    prompt_tokens = 5 + server.chat().json()["usage"]["prompt_tokens"] * 2 + 5
    eventually(server.is_idle)
    num_tokens = 3 * NUM_ANSWER_TOKENS + 4

    def of(name: str, **labels: str) -> float | None:
        return value(server, name, **labels)

    assert of("tfoai_requests_total", model=MODEL, operation="text_completion", finish_reason="stop") == 1
    assert of("tfoai_requests_total", model=MODEL, operation="text_completion", finish_reason="length") == 2
    assert of("tfoai_requests_total", model=MODEL, operation="chat", finish_reason="stop") == 2
    assert of("tfoai_requests_total", model=MODEL, operation="chat", finish_reason="abort") is None
    assert of("tfoai_generation_tokens_total", model=MODEL) == num_tokens
    assert of("tfoai_request_generation_tokens_sum", model=MODEL) == num_tokens
    assert of("tfoai_request_prompt_tokens_sum", model=MODEL) == prompt_tokens
    # Two sequences of one prompt compute it twice.
    assert of("tfoai_prompt_tokens_total", model=MODEL) == prompt_tokens + 5
    assert of("tfoai_time_to_first_token_seconds_count", model=MODEL) == 5
    # Tokens that arrive together with the first one have no time between them.
    between = of("tfoai_inter_token_latency_seconds_count", model=MODEL)
    assert between is not None and num_tokens - 5 >= between > num_tokens / 2
    assert of("tfoai_time_per_output_token_seconds_count", model=MODEL) == 5
    assert of("tfoai_request_duration_seconds_count", model=MODEL, operation="chat") == 2
    assert of("tfoai_requests_running", model=MODEL) == 0
    assert of("tfoai_requests_waiting", model=MODEL) == 0
    steps = of("tfoai_engine_steps_total", model=MODEL)
    assert steps is not None and steps >= 20
    assert of("tfoai_http_requests_total", method="POST", route="/v1/chat/completions", status="200") == 2


def test_refusals_are_counted_by_reason(serve: Serve) -> None:
    server = serve(max_num_seqs=1, max_queue=1)
    server.complete(n=5)
    assert value(server, "tfoai_requests_rejected_total", model=MODEL, reason="invalid") == 1
    server.on_loop(server.registry.drain)
    server.complete()
    assert value(server, "tfoai_requests_rejected_total", model=MODEL, reason="draining") == 1


def test_each_refusal_has_its_reason(serve: Serve) -> None:
    server = serve(max_num_seqs=1, max_queue=1)
    assert server.complete(n=5).status_code == 400
    assert server.complete(max_tokens=10**6).status_code == 400
    assert server.complete(temperature=9).status_code == 400  # refused before the model is looked at
    assert server.http.get("/v1/models/none").status_code == 404
    assert server.http.put("/v1/models").status_code == 405

    def of(model: str, reason: str) -> float | None:
        labels = {"reason": reason} | ({"model": model} if model else {"model": ""})
        return value(server, "tfoai_requests_rejected_total", **labels)

    assert (of(MODEL, "invalid"), of(MODEL, "context_length"), of("", "invalid")) == (1, 1, 1)
    assert of(MODEL, "queue_full") == 0, "a series from the start"


def test_times_of_a_request_add_up(serve: Serve) -> None:
    server = serve(runner=SlowRunner())
    assert server.complete(max_tokens=50, n=2, temperature=0).status_code == 200
    for name in ("queue", "prefill", "decode"):
        assert value(server, f"tfoai_request_{name}_seconds_count", model=MODEL) == 2
    phases = ("queue", "prefill", "decode")
    times = {name: value(server, f"tfoai_request_{name}_seconds_sum", model=MODEL) or 0 for name in phases}
    whole = value(server, "tfoai_request_duration_seconds_sum", model=MODEL, operation="text_completion") or 0
    assert times["decode"] > 2 * 49 * 0.005
    assert sum(times.values()) <= 2 * whole
    steps = value(server, "tfoai_step_duration_seconds_count", model=MODEL, phase="decode") or 0
    assert steps >= 49
    assert value(server, "tfoai_step_duration_seconds_count", model=MODEL, phase="prefill") in (1, 2)
    assert value(server, "tfoai_step_tokens_sum", model=MODEL) == 2 * 5 + 2 * 49


def test_aliases_show_the_same(serve: Serve) -> None:
    server = serve(runner=FakeRunner(answer=ANSWER), metrics_aliases="vllm")
    assert server.complete(max_tokens=50).status_code == 200
    labels = {"model_name": MODEL, "engine": "0"}
    assert value(server, "vllm:generation_tokens_total", **labels) == NUM_ANSWER_TOKENS
    assert value(server, "vllm:request_success_total", **labels, finished_reason="stop") == 1
    assert value(server, "vllm:num_requests_waiting", **labels) == 0


def test_states_of_a_model(serve: Serve) -> None:
    gate = threading.Event()
    server = serve(FakeLoader(gate=gate), wait_ready=False)

    def states() -> set[str]:
        return {
            dict(labels)["state"] for (name, labels), on in scrape(server).items() if name == "tfoai_model_state" and on == 1
        }

    assert states() == {"loading"}
    assert value(server, "tfoai_requests_running", model=MODEL) is None
    gate.set()
    eventually(lambda: server.registry.is_ready)
    assert states() == {"ready"}
    info = {
        "model": MODEL,
        "source": MODEL,
        "revision": "",
        "type": "CausalLM",
        "runner": "fake",
        "device": "cpu",
        "dtype": "float32",
    }
    assert value(server, "tfoai_model_info", **info) == 1
    server.on_loop(server.registry.drain)
    assert states() == {"draining"}


def test_paths_of_clients_make_no_series(serve: Serve) -> None:
    """A label with every path ever asked for would fill the memory of Prometheus."""
    server = serve()
    for path in ("/a", "/b", "/v1/models/x", "/v1/models/y", "/v1/models/x/y"):
        server.http.get(path)
    routes = {dict(labels)["route"] for name, labels in scrape(server) if name == "tfoai_http_requests_total"}
    assert not any(name in route for route in routes for name in ("/a", "/b", "/x", "/y"))
    assert "/v1/models/{model_name:path}" in routes or "/v1/models/{model_name}" in routes
    methods = {dict(labels)["method"] for name, labels in scrape(server) if name == "tfoai_http_requests_total"}
    for method in ("NONSENSE", "PURGE", "X" * 50):
        server.http.request(method, "/v1/models")
    after = {dict(labels)["method"] for name, labels in scrape(server) if name == "tfoai_http_requests_total"}
    assert len(after - methods) <= 1, "the method is the client's to choose, too"


def test_legacy_totals(serve: Serve) -> None:
    server = serve(names=("a", "b"))
    zero: dict[str, Any] = {"total_prompt_tokens": 0, "total_completion_tokens": 0, "total_total_tokens": 0}
    assert server.http.get("/v1/metrics").json() == {**zero, "model_metrics": {}}
    for name, prompt in (("a", "12345"), ("a", "123"), ("b", "1")):
        server.http.post("/v1/completions", json={"model": name, "prompt": prompt, "max_tokens": 10})
    assert server.http.get("/v1/metrics").json() == {
        "total_prompt_tokens": 9,
        "total_completion_tokens": 30,
        "total_total_tokens": 39,
        "model_metrics": {
            "a": {"total_prompt_tokens": 8, "total_completion_tokens": 20, "total_total_tokens": 28, "calls": 2},
            "b": {"total_prompt_tokens": 1, "total_completion_tokens": 10, "total_total_tokens": 11, "calls": 1},
        },
    }


def test_switched_off(serve: Serve) -> None:
    server = serve(metrics=False)
    assert_error(server.http.get("/metrics"), 404)
    assert_error(server.http.get("/v1/metrics"), 404)
    assert server.complete(max_tokens=1).status_code == 200


def test_two_servers_in_one_process_do_not_share(serve: Serve) -> None:
    first, second = serve(), serve()
    first.complete(max_tokens=1)
    assert value(second, "tfoai_generation_tokens_total", model=MODEL) == 0
