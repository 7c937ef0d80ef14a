"""The logs of all pods of the release, kept while pods come and go: what a pod said is lost with it otherwise."""

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.cluster.conftest import NAMESPACE, Cluster


class PodLogs:
    """Follows every pod of the server from the moment that it is seen, within half a second of its start."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self._cluster = cluster
        self._directory = directory
        self._followers: dict[str, subprocess.Popen[bytes]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "PodLogs":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for follower in self._followers.values():
            follower.terminate()
            follower.wait()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            for pod in self._cluster.pods():
                name, statuses = pod["metadata"]["name"], pod["status"].get("containerStatuses", [])
                if name not in self._followers and any("running" in status["state"] for status in statuses):
                    self._follow(name)

    def _follow(self, name: str) -> None:
        kubectl = ["kubectl", f"--kubeconfig={self._cluster.kubeconfig}", f"--namespace={NAMESPACE}"]
        with (self._directory / name).open("wb") as file:
            self._followers[name] = subprocess.Popen([*kubectl, "logs", "--follow", name], stdout=file)

    def finished(self, request_id: str) -> list[dict[str, Any]]:
        """Return the access lines of a request, one for each pod that it came to."""
        lines = [line for file in self._directory.iterdir() for line in file.read_text().splitlines() if request_id in line]
        return [line for line in map(json.loads, lines) if line["msg"] == "request.finished"]
