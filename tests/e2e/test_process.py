"""The process as its operator sees it: start, probes, signals, exit codes, one line for what is wrong."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from app.engine.generation import merged_generation_config
from tests.support.process import ROOT, serving
from tests.support.tiny import byte_tokenizer, save_tiny, tiny_model

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for kind in ("t5", "opt", "pegasus"):
        save_tiny(kind, root / kind)
    return root


def entry(path: Path, type: str = "CausalLM", **more: Any) -> dict[str, Any]:
    return {"NAME": str(path), "TYPE": type, "MODEL_DEVICE": "cpu", **more}


def test_it_listens_before_it_loads_and_tells_how_far_it_is(models: Path, tmp_path: Path) -> None:
    with serving({"MODELS": {"m": entry(models / "opt")}}, tmp_path) as server:
        # 2 s on a quiet machine; test runs share theirs.
        assert server.wait_until_listening() < 6
        assert httpx.get(f"{server.url}/livez").status_code == 200
        loading = httpx.get(f"{server.url}/readyz")
        if loading.status_code == 503:  # importing torch alone takes longer than getting here
            assert loading.json()["models"]["m"]["state"] == "loading"
            answer = httpx.post(f"{server.url}/v1/completions", json={"model": "m", "prompt": "x"})
            assert answer.status_code in (200, 503)
            if answer.status_code == 503:
                assert answer.json()["error"]["code"] == "model_loading"
                assert int(answer.headers["retry-after"]) > 0
        server.wait_until_ready()
        assert httpx.get(f"{server.url}/startupz").status_code == 200
        assert server.stop() == 0
        assert next(event["msg"] for event in server.events()) == "server.listening"
        assert "Traceback" not in server.log


def test_a_config_of_the_old_project_starts_unchanged(models: Path, tmp_path: Path) -> None:
    """Its three models with local paths; the one without MODEL_DEVICE is disabled there, and its default is cuda."""
    summary = {
        "max_length": 40, "min_length": 8, "no_repeat_ngram_size": 3, "early_stopping": True, "repetition_penalty": 3.5,
        "length_penalty": 0.2, "encoder_no_repeat_ngram_size": 3, "num_beams": 4,
    }  # fmt: skip
    old = {
        "MODELS": {
            "text-davinci-003": {
                "NAME": str(models / "t5"),
                "TYPE": "Seq2Seq",
                "MODEL_CONFIG": {"device_map": "auto"},
                "MODEL_DEVICE": None,
            },
            "text-curie-001": {
                "NAME": str(models / "opt"),
                "TYPE": "CausalLM",
                "MODEL_CONFIG": {"torch_dtype": "float32"},
                "MODEL_DEVICE": "cpu",
                "TOKENIZER_DEVICE": "cpu",
                "GENERATE_CONFIG": {"max_new_tokens": 30},
            },
            "text-babbage-001": {
                "NAME": str(models / "pegasus"),
                "TYPE": "Seq2Seq",
                "MODEL_DEVICE": "cpu",
                "TOKENIZER_DEVICE": "cpu",
                "GENERATE_CONFIG": summary,
                "DECODE_CONFIG": {"skip_special_tokens": True},
            },
        },
        "BEARER_TOKENS": ["sk-old"],
        "METRICS": 1,
    }
    prompt = "Hello everyone this is"
    with serving(old, tmp_path) as server:
        server.wait_until_ready()
        # Its README: `openai.api_base = 'http://HOST:PORT/v1'`, in today's spelling.
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-old", max_retries=0)
        for name, kind, options in (
            ("text-davinci-003", "t5", {"max_new_tokens": 16}),
            ("text-curie-001", "opt", {"max_new_tokens": 30}),
            ("text-babbage-001", "pegasus", summary),
        ):
            answer = client.completions.create(model=name, prompt=prompt)
            assert answer.choices[0].text == generated(kind, prompt, options)
            # The same, as openai-python 0.x sent it for `engine=...`.
            legacy = httpx.post(
                f"{server.url}/v1/engines/{name}/completions",
                json={"prompt": prompt},
                headers={"Authorization": "Bearer sk-old"},
            )
            assert legacy.json()["choices"][0]["text"] == answer.choices[0].text
        engines = httpx.get(f"{server.url}/v1/engines", headers={"Authorization": "Bearer sk-old"}).json()
        assert [engine["id"] for engine in engines["data"]] == list(old["MODELS"])
        totals = httpx.get(f"{server.url}/v1/metrics", headers={"Authorization": "Bearer sk-old"}).json()
        assert totals["model_metrics"]["text-curie-001"]["calls"] == 2
        assert totals["total_total_tokens"] == totals["total_prompt_tokens"] + totals["total_completion_tokens"] > 0
        assert httpx.get(f"{server.url}/v1/engines").status_code == 401


def generated(kind: str, prompt: str, options: dict[str, Any]) -> str:
    """What the old server computed: `generate` on the model itself."""
    model = tiny_model(kind)
    merged_generation_config(model, options, "")
    tokenizer = byte_tokenizer(append_eos=model.config.is_encoder_decoder)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)[0]
    # Decoded whole and cut, so that a character which the prompt begins counts too.
    if model.config.is_encoder_decoder:
        return tokenizer.decode(output, skip_special_tokens=True)
    return tokenizer.decode(output, skip_special_tokens=True)[len(prompt) :]


def test_sigterm_finishes_the_streams_that_run_and_refuses_new_work(models: Path, tmp_path: Path) -> None:
    with serving({"MODELS": {"m": entry(models / "opt")}}, tmp_path) as server:
        server.wait_until_ready()
        request = {"model": "m", "prompt": "x", "max_tokens": 400, "stream": True, "ignore_eos": True}
        results: list[str] = []
        running = threading.Barrier(5)

        def stream() -> None:
            with httpx.stream("POST", f"{server.url}/v1/completions", json=request, timeout=60) as response:
                lines = response.iter_lines()
                results_line = next(lines)
                running.wait()
                results.append("\n".join([results_line, *lines]))

        threads = [threading.Thread(target=stream) for _ in range(4)]
        for thread in threads:
            thread.start()
        running.wait(timeout=30)
        server.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 5
        while httpx.get(f"{server.url}/readyz").status_code == 200:
            assert time.monotonic() < end
        refused = httpx.post(f"{server.url}/v1/completions", json={"model": "m", "prompt": "x"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert httpx.get(f"{server.url}/livez").status_code == 200
        for thread in threads:
            thread.join(timeout=60)
        assert len(results) == 4
        assert all(text.rstrip().endswith("data: [DONE]") and '"error"' not in text for text in results)
        assert server.process.wait(timeout=20) == 0


def test_what_runs_longer_than_the_drain_timeout_ends_with_an_error_event(models: Path, tmp_path: Path) -> None:
    config = {"MODELS": {"m": entry(models / "t5", "Seq2Seq", MAX_MODEL_LEN=100_000)}, "DRAIN_TIMEOUT": 0.5}
    with serving(config, tmp_path) as server:
        server.wait_until_ready()
        request = {"model": "m", "prompt": "x", "max_tokens": 90_000, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=request, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["type"] == "service_unavailable"
        assert server.process.wait(timeout=20) == 0


def run(config: dict[str, Any], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"PORT": 0, **config}))
    return subprocess.run(
        [sys.executable, "-m", "app", str(path)],
        cwd=ROOT,
        env={**__import__("os").environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"MODEL_DEVICE": "cuda"}, "MODELS.m.MODEL_DEVICE"),
        ({"NAME": "/no/such/model"}, "MODELS.m.NAME"),
        ({"NAME": "no-such-owner/no-such-model"}, "MODELS.m.NAME"),
        ({"TYPE": "Seq2Seq"}, "MODELS.m.TYPE"),
        ({"GENERATE_CONFIG": {"typical_p": 0.3}}, "MODELS.m.GENERATE_CONFIG.typical_p"),
    ],
    ids=str,
)
def test_a_model_that_can_not_be_served_is_exit_code_2_and_one_line(
    models: Path, tmp_path: Path, change: dict[str, Any], place: str
) -> None:
    if change.get("MODEL_DEVICE") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = run({"MODELS": {"m": entry(models / "opt") | change}}, tmp_path)
    assert result.returncode == 2, result.stderr
    message = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(message) == 1
    assert f"config.json: {place}: found " in message[0]
    assert "Traceback" not in result.stderr


def test_a_taken_port_is_known_at_once(models: Path, tmp_path: Path) -> None:
    with serving({"MODELS": {"m": entry(models / "opt")}}, tmp_path) as server:
        server.wait_until_listening()
        port = int(server.url.rpartition(":")[2])
        other = tmp_path / "other"
        other.mkdir()
        result = run({"MODELS": {"m": entry(models / "opt")}, "PORT": port}, other)
        assert result.returncode == 2
        assert f"HOST, PORT: found 127.0.0.1 port {port}" in result.stderr
        assert "Traceback" not in result.stderr


def test_prompts_and_tokens_stay_out_of_the_log(models: Path, tmp_path: Path) -> None:
    config = {"MODELS": {"m": entry(models / "opt")}, "BEARER_TOKENS": ["canary-token"]}
    with serving(config, tmp_path) as server:
        server.wait_until_ready()
        for token in ("canary-token", "canary-wrong"):
            headers = {"Authorization": f"Bearer {token}"}
            for body in (
                {"model": "m", "prompt": "canary prompt"},
                {"model": "m", "prompt": "canary prompt", "temperature": 9},
                {"model": "canary-model", "prompt": "canary prompt"},
                {"model": "m", "prompt": "canary prompt", "stream": True},
            ):
                httpx.post(f"{server.url}/v1/completions", json=body, headers=headers)
            httpx.get(f"{server.url}/canary/path?canary=1", headers=headers)
        assert server.stop() == 0
        assert "canary" not in server.log
        finished = [event for event in server.events() if event["msg"] == "request.finished"]
        assert len([event for event in finished if event["status"] == 200]) == 2
        assert all({"request_id", "route", "status", "duration_ms"} <= event.keys() for event in finished)


def test_both_console_scripts_are_installed() -> None:
    for script in ("tfoai", "transformers-openai-api"):
        path = Path(sys.executable).parent / script
        if not path.exists():
            pytest.skip("tfoai is not installed in this environment; `make test` installs it")
        result = subprocess.run([str(path), "--help"], capture_output=True, text=True, check=True)
        assert "config" in result.stdout.lower()
