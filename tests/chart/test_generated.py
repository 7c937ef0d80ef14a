"""values.schema.json and the chart's README are what `make chart` makes of values.yaml and of the server's own schema."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest
import yaml

from app.config_schema import config_json_schema
from tests.support.chart import CHART, ci_values
from tests.support.process import ROOT


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "charts" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_files_are_up_to_date(generate: ModuleType) -> None:
    outputs: dict[Path, str] = generate.outputs()
    assert len(outputs) == 2
    for path, content in outputs.items():
        assert path.read_text() == content, f"{path.name} is stale: run `make chart`"


def test_config_knows_what_the_server_knows() -> None:
    """Down to the keys of a model; but for tokens, which are no business of a ConfigMap."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    ours, server = schema["$defs"], config_json_schema()
    left_out = {"$schema", "BEARER_TOKENS", "BEARER_TOKENS_DIR"}
    assert ours["Config"]["properties"].keys() == server["properties"].keys() - left_out
    for key in ("ModelSettings", "DecodeConfig"):
        assert ours[key]["properties"].keys() == server["$defs"][key]["properties"].keys()
    assert "(?!" not in json.dumps(schema) and "(?=" not in json.dumps(schema)


@pytest.mark.parametrize("name", ["", *ci_values()])
def test_examples_fit_the_schema_for_other_readers_of_it_too(name: str) -> None:
    """Editors and Argo read it with other libraries than Helm."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = ci_values()[name] if name else yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.Draft202012Validator(schema).validate(values)


def test_versions_are_one() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    pyproject = (ROOT / "pyproject.toml").read_text()
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert f'\nversion = "{chart["version"]}"\n' in pyproject
    assert f'ARG VERSION="{chart["version"]}"' in dockerfile
    assert chart["appVersion"] == chart["version"]
