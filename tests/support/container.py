"""A container of the image that runs as a pod of the rendered chart would: mounts, user, rights, limits, arguments."""

import base64
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.support.chart import Rendered
from tests.support.process import free_port

TOKENS = {"alice": "sk-alice-0123456789", "bob": "sk-bob-0123456789"}


class Container:
    """One container of the image, with the mounts, the user, the limits and the arguments of the chart's pod."""

    def __init__(self, engine: str, image: str, chart: Rendered, directory: Path) -> None:
        self.engine, self.directory = engine, directory
        self.config: dict[str, Any] = json.loads(chart.config)
        ports = {p["name"]: (p["containerPort"], free_port()) for p in chart.server["ports"]}
        self.url = f"http://127.0.0.1:{ports['http'][1]}"
        self.admin_url = f"http://127.0.0.1:{ports.get('admin', ports['http'])[1]}"
        self.grace = chart.pod["spec"]["terminationGracePeriodSeconds"]
        flags = [*self._security(chart), *self._volumes(chart)]
        flags += [f"--publish=127.0.0.1:{host}:{inside}" for inside, host in ports.values()]
        if cpus := chart.server["resources"].get("limits", {}).get("cpu"):
            flags.append(f"--cpus={cpus}")
        flags += [f"--env={e['name']}={e['value']}" for e in chart.server["env"]]
        self.started = time.monotonic()
        self.id = self._run("run", "--detach", *flags, image, *chart.server["args"]).strip()

    def _security(self, chart: Rendered) -> list[str]:
        """Return the flags that say what the pod's and the container's security contexts say."""
        pod, container = chart.pod["spec"]["securityContext"], chart.server["securityContext"]
        flags = [f"--user={pod['runAsUser']}:{pod['runAsGroup']}"]
        flags += ["--read-only"] if container["readOnlyRootFilesystem"] else []
        flags += [f"--cap-drop={name}" for name in container["capabilities"]["drop"]]
        flags += [] if container["allowPrivilegeEscalation"] else ["--security-opt=no-new-privileges"]
        return flags

    def _volumes(self, chart: Rendered) -> list[str]:
        """Return a bind mount for each ConfigMap and Secret, written as kubelet would, and a tmpfs for each emptyDir."""
        flags = []
        volumes = {v["name"]: v for v in chart.pod["spec"]["volumes"]}
        for mount in chart.server["volumeMounts"]:
            volume = volumes[mount["name"]]
            if "emptyDir" in volume:
                flags.append(f"--tmpfs={mount['mountPath']}:mode=1777")
                continue
            decode: Callable[[str], str] = str
            if "configMap" in volume:
                wanted = ("ConfigMap", volume["configMap"]["name"])
            else:
                wanted, decode = ("Secret", volume["secret"]["secretName"]), _from_base64
            (data,) = (o["data"] for o in chart.objects if (o["kind"], o["metadata"]["name"]) == wanted)
            source = self.directory / mount["name"]
            publish(source, {name: decode(text) for name, text in data.items()})
            flags.append(f"--volume={source}:{mount['mountPath']}:ro")
        return flags

    def _run(self, *arguments: str) -> str:
        result = subprocess.run([self.engine, *arguments], capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def execute(self, *command: str) -> str:
        return self._run("exec", self.id, *command)

    def signal(self, name: str) -> None:
        self._run("kill", f"--signal={name}", self.id)

    def wait(self) -> int:
        """Return the exit code when the container has ended."""
        return int(self._run("wait", self.id))

    @property
    def log(self) -> str:
        result = subprocess.run([self.engine, "logs", self.id], capture_output=True, text=True)
        return result.stdout + result.stderr

    def status(self, path: str) -> int | None:
        """Return the status of a probe, None while nothing listens."""
        try:
            return httpx.get(self.admin_url + path, timeout=5).status_code
        except httpx.TransportError:
            return None

    def wait_until_ready(self, seconds: float = 120) -> float:
        """Return the seconds it took from the start of the container."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.status("/readyz") == 200:
                return time.monotonic() - self.started
            assert self._run("inspect", "--format={{.State.Running}}", self.id).strip() == "true", self.log
            time.sleep(0.2)
        raise AssertionError(self.log)

    def remove(self) -> None:
        subprocess.run([self.engine, "rm", "--force", "--volumes", self.id], capture_output=True)


def publish(directory: Path, files: dict[str, str]) -> None:
    """Write files as kubelet does: into a new directory behind the link `..data`, which is then swapped."""
    version = directory / f"..{time.time_ns()}"
    version.mkdir(parents=True)
    for name, text in files.items():
        (version / name).write_text(text)
        link = directory / name
        if not link.is_symlink():
            link.symlink_to(Path("..data", name))
    new = directory / "..data_tmp"
    new.symlink_to(version.name)
    new.rename(directory / "..data")
    for link in directory.iterdir():
        if link.is_symlink() and not link.name.startswith("..") and link.name not in files:
            link.unlink()


def _from_base64(text: str) -> str:
    return base64.b64decode(text).decode()
