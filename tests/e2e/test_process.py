"""The process as its operator sees it: start, probes, signals, exit codes, one line for what is wrong."""

import json
import socket
import subprocess
import sys
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
            headers = {"Authorization": f"Bearer {token}", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
            for body in (
                {"model": "m", "prompt": "canary prompt"},
                {"model": "m", "prompt": "canary prompt", "temperature": 9},
                {"model": "canary-model", "prompt": "canary prompt"},
                {"model": "m", "prompt": "canary prompt", "stream": True},
                {"model": "m", "prompt": "canary prompt", "canary": True},
                {"model": "m", "prompt": {"canary": "prompt"}},
            ):
                httpx.post(f"{server.url}/v1/completions", json=body, headers=headers)
            httpx.post(f"{server.url}/v1/completions", content=b'{"prompt": "canary', headers=headers)
            answer = httpx.get(f"{server.url}/canary/path?canary=1", headers={**headers, "X-Request-Id": "mine-1"})
            assert answer.headers["traceparent"] == headers["traceparent"]
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port)) as raw:  # uvicorn has words of its own for this
            raw.send(b"canary canary\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 400")
        assert server.stop() == 0
        assert "canary" not in server.log
        finished = [event for event in server.events() if event["msg"] == "request.finished"]
        assert len([event for event in finished if event["status"] == 200]) == 2
        assert all({"request_id", "route", "status", "duration_ms"} <= event.keys() for event in finished)
        assert all((event["trace_id"], event["span_id"]) == ("ab" * 16, "cd" * 8) for event in finished)
        assert {event["client"] for event in finished} == {"BEARER_TOKENS[0]", None}
        assert "mine-1" in {event["request_id"] for event in finished}
        assert len({event["request_id"] for event in finished}) == len(finished) - 1, "one line for each request"


def test_both_console_scripts_are_installed() -> None:
    for script in ("tfoai", "transformers-openai-api"):
        path = Path(sys.executable).parent / script
        if not path.exists():
            pytest.skip("tfoai is not installed in this environment; `make test` installs it")
        result = subprocess.run([str(path), "--help"], capture_output=True, text=True, check=True)
        assert "config" in result.stdout.lower()
