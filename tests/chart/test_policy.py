"""What scanners say of the chart and the Dockerfile: trivy nothing of MEDIUM or above, hadolint nothing at all."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.chart import CHART
from tests.support.process import ROOT


def tool(name: str) -> str:
    """Return a program that a package of requirements-dev.txt brings, from the environment that runs the tests."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is not installed: requirements-dev.txt has it"
    return found


def trivy(*arguments: str, cache: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the findings by the file they are in; every file that was looked at is there."""
    command = [tool("trivy"), "config", "--quiet", "--skip-check-update", "--cache-dir", str(cache), "--format", "json"]
    severity = ["--severity", "MEDIUM,HIGH,CRITICAL"]
    result = subprocess.run([*command, *severity, *arguments], capture_output=True, text=True, check=True, cwd=ROOT)
    results = json.loads(result.stdout).get("Results", [])
    return {r["Target"]: r.get("Misconfigurations", []) for r in results}


# Not all cases, for time; and `air-gapped` has a registry of its own, which trivy does not know (KSV-0125).
@pytest.mark.parametrize("name", ["", "public", "replicas"])
def test_trivy_on_the_chart(name: str, tmp_path: Path) -> None:
    values = ["--helm-values", str(CHART / "ci" / f"{name}-values.yaml")] if name else []
    findings = trivy(*values, str(CHART), cache=tmp_path)
    # A chart that trivy can not render is skipped without an error.
    workload = "templates/statefulset.yaml" if name == "replicas" else "templates/deployment.yaml"
    assert workload in findings
    assert [finding["ID"] for found in findings.values() for finding in found] == []


def test_trivy_on_the_dockerfile(tmp_path: Path) -> None:
    assert trivy("docker", cache=tmp_path) == {"Dockerfile": []}


def test_trivy_finds_what_there_is(tmp_path: Path) -> None:
    """The checks above can fail."""
    loose = [
        "--helm-set",
        "securityContext.readOnlyRootFilesystem=false",
        "--helm-set",
        "podSecurityContext.runAsNonRoot=false",
    ]
    findings = trivy(*loose, str(CHART), cache=tmp_path)
    assert {"KSV-0014"} <= {finding["ID"] for finding in findings["templates/deployment.yaml"]}


def test_hadolint() -> None:
    result = subprocess.run([tool("hadolint"), "docker/Dockerfile"], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout) == (0, "")


def test_every_ignored_rule_has_its_reason() -> None:
    """A reason is a comment right above."""
    lines = (ROOT / "docker" / "Dockerfile").read_text().splitlines()
    ignores = [i for i, line in enumerate(lines) if "hadolint ignore" in line]
    assert ignores
    for i in ignores:
        assert lines[i - 1].startswith("# "), lines[i]
    assert not (ROOT / ".trivyignore").exists() and not (ROOT / ".hadolint.yaml").exists()
