"""A real cluster, and the chart on it.

Environment:
  KUBECONFIG         the cluster; everything happens in a namespace of its own, tfoai-test
  TEST_IMAGE         an image that the cluster's nodes have (localhost/tfoai:test)
  TEST_INGRESS       address of the cluster's ingress controller, http://127.0.0.1:8080 say; without it the Service is
                     asked, whose address must then be reachable from here
  TEST_INGRESS_CLASS IngressClass of that controller (traefik)
  TEST_GPU_COMMAND   command that makes a node offer one nvidia.com/gpu, tainted; without it nothing is said of GPUs
  TEST_LOAD_SECONDS  how long the load runs while the release changes (120)
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest

from tests.support.chart import CHART, Values

NAMESPACE, RELEASE = "tfoai-test", "tfoai"
TOKENS = {"alice": "sk-alice-0123456789"}
HOST = "llm.example.test"


class Cluster:
    """kubectl and Helm in the namespace of the tests."""

    def __init__(self) -> None:
        self.kubeconfig = os.environ["KUBECONFIG"]
        repository, _, tag = os.environ.get("TEST_IMAGE", "localhost/tfoai:test").rpartition(":")
        self.base: Values = {
            "image": {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"},
            "gpu": {"count": 0},
            # The node of a small cluster is the one that gets the GPU's taint.
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "auth": {"tokens": TOKENS},
            "config": {"DRAIN_DELAY": 5, "DRAIN_TIMEOUT": 60, "RELOAD_INTERVAL": 1},
            "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1"}},
        }
        if self.ingress:
            name = os.environ.get("TEST_INGRESS_CLASS", "traefik")
            self.base["ingress"] = {"enabled": True, "className": name, "controller": "traefik", "hosts": [HOST]}

    @property
    def ingress(self) -> str:
        return os.environ.get("TEST_INGRESS", "")

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=300)
        assert result.returncode == 0 or not check, result.stderr
        return result.stdout

    def get(self, *arguments: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", *arguments, "--output=json"))["items"]
        return items

    def pods(self, component: str = "server") -> list[dict[str, Any]]:
        return self.get("pods", f"--selector=app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component={component}")

    def identities(self) -> set[tuple[str, int]]:
        """Return what changes when a pod or its container does: uids, and counts of restarts."""
        return {(p["metadata"]["uid"], p["status"]["containerStatuses"][0]["restartCount"]) for p in self.pods()}

    def values(self, **more: Any) -> Values:
        return {key: _merge(self.base.get(key, {}), more.get(key, {})) for key in {*self.base, *more}}

    def install(self, values: Values, **options: Any) -> None:
        with helm.Config(namespace=NAMESPACE, kubeconfig_path=self.kubeconfig) as config:
            options = {"wait": "watcher", "timeout": 180, **options}
            config.install(str(CHART), RELEASE, values, namespace=NAMESPACE, create_namespace=True, **options)

    def upgrade(self, values: Values, **options: Any) -> None:
        with helm.Config(namespace=NAMESPACE, kubeconfig_path=self.kubeconfig) as config:
            config.upgrade(str(CHART), RELEASE, values, namespace=NAMESPACE, **{"wait": "watcher", "timeout": 300, **options})

    def rollback(self, revision: int) -> None:
        with helm.Config(namespace=NAMESPACE, kubeconfig_path=self.kubeconfig) as config:
            config.rollback(RELEASE, version=revision, wait="watcher", timeout=300)

    def uninstall(self) -> None:
        with helm.Config(namespace=NAMESPACE, kubeconfig_path=self.kubeconfig) as config:
            config.uninstall(RELEASE, wait="watcher", timeout=120)

    def api(self) -> tuple[str, dict[str, str]]:
        """Return the address of the API and the headers that get there, through the ingress where there is one."""
        return (self.ingress, {"Host": HOST}) if self.ingress else self.service()

    def service(self) -> tuple[str, dict[str, str]]:
        """Return the same for the Service itself, with nothing in between but the node's packet rules."""
        (service,) = self.get("services", f"--selector=app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=server")
        return f"http://{service['spec']['clusterIP']}", {}


def _merge(one: Any, other: Any) -> Any:
    """Return `other` over `one`, as Helm merges values."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            key: _merge(one[key], other[key]) if key in one and key in other else {**one, **other}[key]
            for key in {**one, **other}
        }
    return other if other != {} else one


def wait_until(what: str, holds: Callable[[], bool], seconds: float) -> float:
    """Return how long it took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() < started + seconds, f"gave up waiting until {what}"
        time.sleep(0.25)
    return time.monotonic() - started


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if not os.environ.get("KUBECONFIG") or not Path(os.environ["KUBECONFIG"]).is_file():
        pytest.skip("KUBECONFIG names no cluster")
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    found = Cluster()
    found.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait")
    yield found
    found.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Cluster]:
    """Two pods of the demo models, on the CPU."""
    started = time.monotonic()
    cluster.install(cluster.values(replicas=2))
    print(f"\ninstalled and ready in {time.monotonic() - started:.1f} s")
    yield cluster
    if cluster.kubectl("get", "secrets", "--selector=owner=helm", "--output=name"):
        cluster.uninstall()
