"""The image as a pod runs it: read-only, without privileges, with the chart's own configuration and secrets."""

import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.chart import Rendered
from tests.support.container import TOKENS, Container, publish

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]

CHAT: dict[str, Any] = {
    "model": "tfoai-demo",
    "messages": [{"role": "user", "content": "How do I change the port?"}],
    "stream": True,
}


def client(container: Container, token: str = TOKENS["alice"]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{container.url}/v1", api_key=token, max_retries=0)


def inspect(engine: str, image: str) -> dict[str, Any]:
    result = subprocess.run([engine, "image", "inspect", image], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout)[0]
    return found


def test_what_the_image_says_of_itself(engine: str, image: str) -> None:
    found = inspect(engine, image)
    config = found["Config"]
    print(f"\n{found['Size'] / 1e6:.0f} MB")
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["tfoai"] and config["Cmd"] == ["/etc/tfoai/config.json"]
    assert list(config["Volumes"]) == ["/var/cache/tfoai"] and "8000/tcp" in config["ExposedPorts"]
    assert {"title", "description", "version", "revision", "source"} <= {key.rpartition(".")[2] for key in config["Labels"]}
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    assert not {"TOKEN", "PASSWORD", "SECRET"} & {word for name in environment for word in name.split("_")}
    assert found["Size"] < 2e9 or "nvidia" in str(found["Config"]["Env"])  # of the CPU's image


def test_it_serves_the_demo_at_once(engine: str, image: str) -> None:
    """`docker run -p 8000:8000 IMAGE`, with nothing else, and HEALTHCHECK follows it."""
    run = [engine, "run", "--detach", "--publish=127.0.0.1::8000", image]
    name = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    try:
        port = subprocess.run([engine, "port", name, "8000"], capture_output=True, text=True, check=True).stdout
        url = "http://" + port.split()[-1]
        health = [engine, "exec", name, "/opt/tfoai/bin/python", "-I", "/opt/tfoai/healthcheck.py"]
        assert subprocess.run(health, capture_output=True).returncode == 1  # it loads
        end = time.monotonic() + 120
        while subprocess.run(health, capture_output=True).returncode and time.monotonic() < end:
            time.sleep(0.5)
        body = {"model": "tfoai-demo-dates", "prompt": "the 3rd of March 2024"}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
        assert answer["choices"][0]["text"] == "2024-03-03"
    finally:
        subprocess.run([engine, "rm", "--force", "--volumes", name], capture_output=True)


def test_it_is_alive_first_and_ready_when_it_has_loaded(container: Container) -> None:
    while (alive := container.status("/livez")) is None:
        assert time.monotonic() < container.started + 60, container.log
        time.sleep(0.05)
    assert alive == 200
    assert (container.status("/startupz"), container.status("/readyz")) == (503, 503)
    print(f"\nready after {container.wait_until_ready():.1f} s")
    assert container.status("/startupz") == 200


def test_it_has_no_rights(container: Container) -> None:
    container.wait_until_ready()
    status = dict(line.split(":\t", 1) for line in container.execute("cat", "/proc/1/status").splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == 0 and status["NoNewPrivs"] == "1"
    tried = subprocess.run([container.engine, "exec", container.id, "touch", "/opt/tfoai/x"], capture_output=True, text=True)
    assert "Read-only file system" in tried.stderr
    assert "pip" not in container.execute("ls", "/opt/tfoai/bin").split()


def test_tokens_of_the_secret(container: Container) -> None:
    container.wait_until_ready()
    for headers in ({}, {"Authorization": "Bearer sk-other"}):
        assert httpx.get(f"{container.url}/v1/models", headers=headers).status_code == 401
    for token in TOKENS.values():
        models = {model.id for model in client(container, token).models.list()}
        assert models == {"tfoai-demo", "tfoai-demo-dates"}


def test_metrics_have_a_port_of_their_own(container: Container) -> None:
    container.wait_until_ready()
    headers = {"Authorization": f"Bearer {TOKENS['alice']}"}
    assert httpx.get(f"{container.url}/metrics", headers=headers).status_code == 404
    assert "tfoai_requests_waiting" in httpx.get(f"{container.admin_url}/metrics").text


def test_tokens_are_rotated_without_a_restart(container: Container) -> None:
    container.wait_until_ready()
    tokens = container.directory / "tokens"
    try:
        publish(tokens, {"alice": "sk-alice-new"})
        end = time.monotonic() + 30
        while httpx.get(f"{container.url}/v1/models", headers={"Authorization": "Bearer sk-alice-new"}).status_code != 200:
            assert time.monotonic() < end, container.log
            time.sleep(0.2)
        with pytest.raises(openai.AuthenticationError):
            client(container).models.list()
    finally:
        publish(tokens, TOKENS)
    end = time.monotonic() + 30
    while httpx.get(f"{container.url}/v1/models", headers={"Authorization": f"Bearer {TOKENS['bob']}"}).status_code != 200:
        assert time.monotonic() < end, container.log
        time.sleep(0.2)


def test_sigterm_lets_streams_end(engine: str, image: str, chart: Rendered, tmp_path: Path) -> None:
    """Not ready at once, open to the end of the delay, every stream whole, exit code 0."""
    container = Container(engine, image, chart, tmp_path)
    try:
        container.wait_until_ready()
        ended: list[str | None] = []
        begun = threading.Barrier(9)

        def stream() -> None:
            # Long: the demo model would say its piece and stop.
            chunks = client(container).chat.completions.create(**CHAT, max_tokens=60, extra_body={"ignore_eos": True})
            reason = None
            for i, chunk in enumerate(chunks):
                if i == 1:
                    begun.wait(60)
                reason = chunk.choices[0].finish_reason if chunk.choices else reason
            ended.append(reason)

        threads = [threading.Thread(target=stream) for _ in range(8)]
        for thread in threads:
            thread.start()
        begun.wait(60)
        container.signal("TERM")
        signalled = time.monotonic()
        while container.status("/readyz") == 200:
            assert time.monotonic() < signalled + 1.5
        # Load balancers have not noticed yet: their requests are answered.
        assert len(client(container).models.list().data) == 2
        for thread in threads:
            thread.join(60)
        assert container.wait() == 0
        print(f"\nended {time.monotonic() - signalled:.1f} s after the signal")
        assert ended == ["length"] * 8
        assert all(isinstance(json.loads(line), dict) for line in container.log.splitlines())
        for secret in (*TOKENS.values(), "change the port"):
            assert secret not in container.log
    finally:
        container.remove()
