"""The chart, rendered by Helm's own code, and the cases that every check of it goes through."""

import functools
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

from tests.support.process import ROOT

CHART = ROOT / "charts" / "tfoai"
Object = dict[str, Any]
Values = dict[str, Any]

# Kinds that no Kubernetes brings itself; `kubernetes-validate` knows no schema for them.
CUSTOM = {"HTTPRoute", "InferencePool", "PodMonitor", "PrometheusRule", "ScaledObject", "ServiceMonitor"}


def ci_values() -> dict[str, Values]:
    """Return the values that the chart gives as examples, by the name of their case."""
    return {path.stem.removesuffix("-values"): yaml.safe_load(path.read_text()) for path in sorted(CHART.glob("ci/*.yaml"))}


MODEL = {"NAME": "/models/m", "TYPE": "CausalLM"}
CASES: dict[str, Values] = {
    "defaults": {},
    **ci_values(),
    "names": {"fullnameOverride": "x" * 60, "nameOverride": "n" * 60, "commonLabels": {"team": "llm"}},
    "one port": {"config": {"METRICS_PORT": None}, "serviceMonitor": {"enabled": True}, "networkPolicy": {"enabled": True}},
    "node port": {"service": {"type": "NodePort", "port": 8080, "nodePort": 30080, "sessionAffinity": "ClientIP"}},
    "host path": {"cache": {"type": "hostPath", "hostPath": "/srv/models"}, "sharedMemory": ""},
    "existing claim": {"cache": {"type": "persistentVolumeClaim", "existingClaim": "mine"}, "replicas": 0},
    "small cache": {"cache": {"size": "1Gi"}, "serviceAccount": {"create": False}, "tests": {"enabled": False}},
    "digest": {"image": {"digest": "sha256:" + "0" * 64, "pullPolicy": "Always"}, "rollOnConfigChange": True},
    "patient": {"terminationGracePeriodSeconds": 900, "probes": {"startupSeconds": 7200}, "config": {"DRAIN_TIMEOUT": 300.5}},
    "dashboards and alerts": {"dashboards": {"enabled": True}, "prometheusRule": {"enabled": True}},
    "everything of mine": {
        "priorityClassName": "high", "schedulerName": "mine", "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"},
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "{{ .Release.Name }}"}}},
        ]}},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "topologySpreadConstraints": [{"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 2}],
        "extraEnvFrom": [{"configMapRef": {"name": "env"}}],
        "extraInitContainers": [{"name": "wait", "image": "wait:1"}], "extraContainers": [{"name": "side", "image": "side:1"}],
        "extraObjects": ["apiVersion: v1\nkind: Secret\nmetadata:\n  name: {{ .Release.Name }}-mine\n"],
        "resources": {"limits": {"cpu": 4, "memory": "8Gi", "example.com/fpga": "1"}, "claims": [{"name": "mine"}]},
        "lifecycle": {"preStop": {"httpGet": {"path": "/livez", "port": "http"}}},
        "gpu": {"tolerations": []}, "download": {"enabled": True, "models": [{"name": "a/b", "revision": "v1"}]},
    },
    **{
        f"ingress {controller or 'plain'}": {
            "ingress": {"enabled": True, "controller": controller, "hosts": ["a.example", "b.example"]},
            "config": {"MAX_BODY_BYTES": 5_000_000},
        }
        for controller in ("", "nginx", "nginx.org", "haproxy", "haproxy-ingress", "alb", "traefik")
    },
}  # fmt: skip
# No alerts or dashboards are tested where the chart has none.
if not list(CHART.glob("alerts/*.yaml")):
    del CASES["dashboards and alerts"]


class Rendered:
    """What `helm install` would send, and its notes."""

    def __init__(self, files: dict[str, str]) -> None:
        texts = {Path(path).name: text for path, text in files.items()}
        self.notes = texts.pop("NOTES.txt")
        self.objects: list[Object] = [o for text in texts.values() for o in yaml.safe_load_all(text) if o]

    def all(self, *kinds: str) -> list[Object]:
        return [o for o in self.objects if o["kind"] in kinds]

    def one(self, kind: str) -> Object:
        (found,) = self.all(kind)
        return found

    @property
    def workload(self) -> Object:
        (found,) = self.all("Deployment", "StatefulSet")
        return found

    @property
    def pod(self) -> Object:
        template: Object = self.workload["spec"]["template"]
        return template

    @property
    def server(self) -> Object:
        """The container of the server."""
        container: Object = next(c for c in self.pod["spec"]["containers"] if c["name"] == "tfoai")
        return container

    @property
    def config(self) -> str:
        """The text of config.json."""
        maps = (o["data"] for o in self.all("ConfigMap"))
        return next(str(data["config.json"]) for data in maps if "config.json" in data)


def render(values: Values, name: str = "tfoai", namespace: str = "llm") -> Rendered:
    """Render with Helm; raise HelmError where `helm install` would refuse."""
    return Rendered(_chart().render(values, name=name, namespace=namespace))


@functools.cache
def _chart() -> helm.Chart:
    return helm.Chart.load(str(CHART))
