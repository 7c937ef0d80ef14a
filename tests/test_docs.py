"""The README tells the truth: its tables are the code's, its blocks run and print what they say."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config import load_config
from app.config_schema import config_table
from tests.support.process import ROOT, ServerProcess

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(?:<!-- expect: (?P<expect>.*?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)


def blocks(language: str) -> list[re.Match[str]]:
    return [match for match in BLOCK.finditer(README) if match["language"] == language]


def test_the_config_table_is_made_from_the_code() -> None:
    """Put what this test expects between the markers when it fails."""
    rows = [f"| `{row.key}` | {row.type} | {row.default} | {row.description} |" for row in config_table()]
    table = "\n".join(["| Key | Value | Default | |", "|---|---|---|---|", *rows])
    written = README.partition("<!-- config table: begin -->\n")[2].partition("\n<!-- config table: end -->")[0]
    assert written == table


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """config.example.json as it is, but on a free port."""
    directory = tmp_path_factory.mktemp("readme")
    config = json.loads((ROOT / "config.example.json").read_text())
    path = directory / "config.json"
    path.write_text(json.dumps({**config, "PORT": 0}))
    server = ServerProcess(path)
    server.wait_until_ready()
    yield server
    server.kill()


def at(server: ServerProcess, code: str) -> str:
    assert "http://127.0.0.1:5000" in code
    return code.replace("http://127.0.0.1:5000", server.url)


CURLS = [match for match in blocks("sh") if match["code"].startswith("curl")]


@pytest.mark.e2e
@pytest.mark.parametrize("match", CURLS, ids=lambda match: match["expect"])
def test_curl_blocks(server: ServerProcess, match: re.Match[str]) -> None:
    result = subprocess.run(["bash", "-ec", at(server, match["code"])], capture_output=True, text=True, check=True)
    answer = json.loads(result.stdout)
    assert "error" not in answer
    assert match["expect"] in result.stdout


@pytest.mark.e2e
@pytest.mark.parametrize("match", blocks("python"), ids=lambda match: match["code"].splitlines()[-1])
def test_python_blocks(server: ServerProcess, match: re.Match[str], tmp_path: Path) -> None:
    """A comment behind a print says how its output begins, or a part of it."""
    script = tmp_path / "example.py"
    script.write_text(at(server, match["code"]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "ANTHROPIC_"))}
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    output = result.stdout
    expected = re.findall(r"print\(.*\)  # (.*)", match["code"])
    assert expected
    for text in expected:
        assert text in output, "in this order"
        output = output.partition(text)[2]


def test_json_blocks_are_valid_configurations(tmp_path: Path) -> None:
    for match in blocks("json"):
        path = tmp_path / "config.json"
        path.write_text(match["code"])
        load_config(path)


def test_the_example_configuration_is_valid_and_serves_the_demo_models() -> None:
    config = load_config(ROOT / "config.example.json")
    assert (config.host, config.port) == ("127.0.0.1", 5000)
    assert set(config.enabled_models) == {"tfoai-demo", "tfoai-demo-dates"}
    assert all(model.model_device == "auto" for model in config.enabled_models.values())
    assert set(config.models) > {"text-davinci-003", "text-curie-001", "text-babbage-001"}


def test_routes_in_the_readme_exist() -> None:
    from app.api.app import create_app
    from app.registry import Registry

    config = load_config(ROOT / "config.example.json")
    app = create_app(config, Registry(config))
    paths = {re.sub(r"\{\w+(:\w+)?\}", "{}", route.path) for route in app.routes}
    named = re.findall(
        r"^\| `(?:POST|GET) (.*?)` \||`(/[\w/{}.-]+)`", README.partition("## What the API does")[2], re.MULTILINE
    )
    found = {re.sub(r"\{\w+\}", "{}", name) for pair in named for part in pair for name in part.split("`, `") if name}
    assert found
    assert found - {"/v1/responses"} <= paths


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))], ids=str)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_make_targets_are_documented() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: ([\w-]+)", makefile, re.MULTILINE)
    documented = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    assert phony == documented
    assert {"serve", "test", "lint", "bench"} <= set(documented)
