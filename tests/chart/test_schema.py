"""What `helm install` refuses before anything is installed, and that it says why."""

from typing import Any

import helm_python as helm
import pytest

from tests.support.chart import CASES, CHART, MODEL, render

MODELS = {"MODELS": {"m": MODEL}}
CPU = {"gpu": {"count": 0}}

# Values that must be refused, with a word of the reason.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt key": ({"replicaCount": 2}, "replicaCount"),
    "a misspelt key below": ({"image": {"tags": "1"}}, "tags"),
    "a wrong type": ({"replicas": "two"}, "replicas"),
    "a negative number": ({"replicas": -1}, "replicas"),
    "latest": ({"image": {"tag": "latest"}}, "tag"),
    "a digest that is none": ({"image": {"digest": "sha256:1"}}, "digest"),
    "an unknown key of config": ({"config": {"MODELL": {}}}, "MODELL"),
    "an unknown key of a model": ({"config": {"MODELS": {"m": {**MODEL, "DEVICE": "cpu"}}}}, "DEVICE"),
    "an unknown key of DECODE_CONFIG": ({"config": {"MODELS": {"m": {**MODEL, "DECODE_CONFIG": {"x": 1}}}}}, "DECODE_CONFIG"),
    "a model without a type": ({"config": {"MODELS": {"m": {"NAME": "x"}}}}, "TYPE"),
    "a wrong type of model": ({"config": {"MODELS": {"m": {"NAME": "x", "TYPE": "Causal"}}}}, "TYPE"),
    "an empty name": ({"config": {"MODELS": {"m": {"NAME": " ", "TYPE": "CausalLM"}}}}, "NAME"),
    "a served name with a space": ({"config": {"MODELS": {"a b": MODEL}}}, "a b"),
    "a dtype that torch does not know": (
        {"config": {"MODELS": {"m": {**MODEL, "MODEL_CONFIG": {"dtype": "float13"}}}}}, "dtype",
    ),
    "an argument that tfoai sets": ({"config": {"MODELS": {"m": {**MODEL, "MODEL_CONFIG": {"config": 1}}}}}, "'config'"),
    "num_beams of none": ({"config": {"MODELS": {"m": {**MODEL, "GENERATE_CONFIG": {"num_beams": 0}}}}}, "num_beams"),
    "device_map and a device": (
        {"config": {"MODELS": {"m": {**MODEL, "MODEL_CONFIG": {"device_map": "auto"}, "MODEL_DEVICE": "cpu"}}}}, "MODELS",
    ),
    "tokens in the ConfigMap": ({"config": {"BEARER_TOKENS": ["sk-1"]}}, "BEARER_TOKENS"),
    "any port": ({"config": {"PORT": 0}}, "PORT"),
    "any port for metrics": ({"config": {"METRICS_PORT": 0}}, "METRICS_PORT"),
    "a token with a space": ({"auth": {"tokens": {"alice": "sk 1"}}}, "tokens"),
    "a client with a slash": ({"auth": {"tokens": {"a/b": "sk-1"}}}, "a/b"),
    "an unknown cache": ({"cache": {"type": "nfs"}}, "type"),
    "a size without a unit that is known": ({"cache": {"size": "10GB"}}, "size"),
    "a relative mount": ({"modelVolumes": [{"name": "m", "mountPath": "models", "source": {"emptyDir": {}}}]}, "mountPath"),
    "a volume without a source": ({"modelVolumes": [{"name": "m", "mountPath": "/m"}]}, "source"),
    "a GPU resource without a domain": ({"gpu": {"resourceName": "gpu"}}, "resourceName"),
    "no pods to scale to": ({"autoscaling": {"minReplicas": 0}}, "minReplicas"),
    "a wrong strategy": ({"strategy": {"type": "BlueGreen"}}, "type"),
    "a label that is a number": ({"podLabels": {"a": 1}}, "podLabels"),
    "a route's timeout without a unit": ({"httpRoute": {"timeout": "30"}}, "timeout"),
    # What the schema can not say, the templates do.
    "a grace too short": ({"terminationGracePeriodSeconds": 30}, "streams would be cut"),
    "two sources of tokens": ({"auth": {"tokens": {"a": "b"}, "existingSecret": "c"}}, "exclude each other"),
    "two tokens of the hub": ({"hub": {"token": "a", "existingSecret": "c"}}, "exclude each other"),
    "two autoscalers": ({"autoscaling": {"enabled": True}, "keda": {"enabled": True, "prometheus": "x"}}, "exclude each other"),
    "two monitors": ({"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}, "exclude each other"),
    "more than the most": ({"autoscaling": {"enabled": True, "minReplicas": 9}}, "more than maxReplicas"),
    "keda without Prometheus": ({"keda": {"enabled": True}}, "keda.prometheus"),
    "an ingress without a host": ({"ingress": {"enabled": True}}, "ingress.hosts"),
    "a route without a gateway": ({"httpRoute": {"enabled": True}}, "parentRefs"),
    "a pool without a picker": ({"inferencePool": {"enabled": True}}, "endpointPicker.name"),
    "a host path without a path": ({"cache": {"type": "hostPath"}}, "cache.hostPath"),
    "a claim without a size": ({"cache": {"type": "persistentVolumeClaim"}}, "cache.size"),
    "replicas' claims without a size": ({"cache": {"type": "perReplica"}}, "cache.size"),
    "a claim that is not used": ({"cache": {"existingClaim": "mine"}}, "existingClaim"),
    "one port for two": ({"config": {"METRICS_PORT": 8000}}, "the same"),
    "nothing to download": ({"download": {"enabled": True}, "config": MODELS}, "names a model of the hub"),
    "a GPU model without a GPU": ({**CPU, "config": MODELS}, "config.MODELS.m runs on cuda"),
    "a CUDA model without a GPU": ({**CPU, "config": {"MODELS": {"m": {**MODEL, "MODEL_DEVICE": "cuda:0"}}}}, "gpu.count is 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    values, word = REFUSED[case]
    with pytest.raises(helm.HelmError) as refused:
        render(values)
    assert word in str(refused.value)


ALLOWED: dict[str, dict[str, Any]] = {
    "a model on the CPU": {**CPU, "config": {"MODELS": {"m": {**MODEL, "MODEL_DEVICE": "cpu"}}}},
    "a disabled model": {
        **CPU,
        "config": {"MODELS": {"m": {**MODEL, "ENABLED": False}, "n": {**MODEL, "MODEL_DEVICE": "auto"}}},
    },
    "GPUs from elsewhere": {"gpu": {"count": 0}, "runtimeClassName": "nvidia", "config": MODELS},
    "another extended resource": {"gpu": {"count": 0}, "resources": {"limits": {"amd.com/gpu": "1"}}, "config": MODELS},
    "a device_map": {"config": {"MODELS": {"m": {**MODEL, "MODEL_CONFIG": {"device_map": {"": 0}}}}}},
    "as a dependency": {"global": {"x": 1}, "enabled": True},
}


@pytest.mark.parametrize("case", ALLOWED)
def test_allowed(case: str) -> None:
    assert render(ALLOWED[case]).workload


@pytest.mark.parametrize("case", CASES)
def test_lint(case: str) -> None:
    result = helm.lint(str(CHART), CASES[case], strict=True, kube_version="v1.34.0")
    assert result["total_charts_linted"] == 1 and not result["errors"]
    # There is no picture to show.
    assert [m["error"] for m in result["messages"]] == ["icon is recommended"]
