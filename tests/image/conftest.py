"""The image, built from docker/Dockerfile, and containers of it that run as the chart's pods would.

Environment:
  CONTAINER        podman or docker (the first that is there)
  CONTAINER_BUILD  command that builds, where `podman build` needs more than that
  TEST_BASE        BASE_IMAGE of the build (debian:trixie-slim)
  TORCH_INDEX      index of torch's CPU wheels; empty: pip's own settings find them
  TEST_IMAGE       an image that is built already, instead
"""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.chart import Rendered, render
from tests.support.container import TOKENS, Container
from tests.support.process import ROOT

VALUES: dict[str, Any] = {
    "gpu": {"count": 0},
    "resources": {"limits": {"cpu": "1"}},
    "auth": {"tokens": TOKENS},
    "config": {"DRAIN_DELAY": 2, "DRAIN_TIMEOUT": 120},
    "ingress": {"enabled": True, "controller": "nginx", "hosts": ["a.example"]},
}


@pytest.fixture(scope="session")
def engine() -> str:
    found = os.environ.get("CONTAINER") or shutil.which("podman") or shutil.which("docker")
    if not found:
        pytest.skip("neither podman nor docker is here")
    return found


@pytest.fixture(scope="session")
def image(engine: str) -> str:
    if built := os.environ.get("TEST_IMAGE"):
        return built
    name = "localhost/tfoai:test"
    command = shlex.split(os.environ.get("CONTAINER_BUILD") or f"{engine} build")
    base = os.environ.get("TEST_BASE", "debian:trixie-slim")
    arguments = ["--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"TORCH_INDEX={os.environ.get('TORCH_INDEX', '')}"]
    started = time.monotonic()
    build = [*command, *arguments, "-t", name, "-f", "docker/Dockerfile", "."]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    print(f"\nbuilt in {time.monotonic() - started:.0f} s")
    return name


@pytest.fixture(scope="session")
def chart() -> Rendered:
    return render(VALUES)


@pytest.fixture(scope="module")
def container(engine: str, image: str, chart: Rendered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    running = Container(engine, image, chart, tmp_path_factory.mktemp("container"))
    yield running
    running.remove()
