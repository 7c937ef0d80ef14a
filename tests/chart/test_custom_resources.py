"""The kinds that Kubernetes does not bring itself: against the schemas of their own projects, where npm could fetch those."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.chart import CASES, CUSTOM, render
from tests.support.process import ROOT

PACKAGES = ("prometheus-operator@6", "gateway-api@2", "keda@2")
INSTALL = "npm install --no-save --ignore-scripts " + " ".join(f"@kubernetes-models/{name}" for name in PACKAGES)


def custom() -> list[dict[str, Any]]:
    return [item for values in CASES.values() for item in render(values).objects if item["kind"] in CUSTOM]


def validate(objects: list[dict[str, Any]]) -> str:
    if shutil.which("node") is None or not (ROOT / "node_modules" / "@kubernetes-models").is_dir():
        pytest.skip(f"the schemas are npm packages: {INSTALL}")
    command = ["node", str(Path(__file__).parent / "validate.mjs")]
    return subprocess.run(command, input=json.dumps(objects), capture_output=True, text=True, check=True).stdout


def test_each_kind_is_in_some_case() -> None:
    assert {item["kind"] for item in custom()} == CUSTOM


def test_valid() -> None:
    objects = [item for item in custom() if item["kind"] != "InferencePool"]
    assert validate(objects) == ""


def test_a_wrong_object_is_seen() -> None:
    (route,) = render(CASES["public"]).all("HTTPRoute")
    route["spec"]["rules"][0]["timeouts"]["request"] = "soon"
    assert validate([route]).startswith("HTTPRoute: ")


def test_inference_pool() -> None:
    """There is no package for this one: inference.networking.k8s.io/v1 has these fields, and the pool needs no others."""
    (pool,) = render(CASES["pool"]).all("InferencePool")
    labels = {
        f"app.kubernetes.io/{key}": value for key, value in (("name", "tfoai"), ("instance", "tfoai"), ("component", "server"))
    }
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    assert pool["spec"] == {
        "selector": {"matchLabels": labels},
        "targetPorts": [{"number": 8000}],
        "endpointPickerRef": {"name": "tfoai-epp", "port": {"number": 9002}, "failureMode": "FailOpen"},
    }
