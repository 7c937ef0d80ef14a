"""Owns the tests of app/cli.py: exit codes, what goes to which stream, and when the server is imported."""

import importlib.metadata
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from app import cli
from app.config import Config
from app.errors import ConfigError
from app.versions import package_version

REPOSITORY = Path(__file__).parents[2]
MODEL = {"NAME": "openai-community/gpt2", "TYPE": "CausalLM"}


def write(path: Path, **models: Any) -> Path:
    path.write_text(json.dumps({"MODELS": models}), encoding="utf-8")
    return path


def run(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    command = [sys.executable, "-m", "app", *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


class FakeServer(types.ModuleType):
    """Stands for app.server: notes what it is asked to serve."""

    def __init__(self) -> None:
        super().__init__("app.server")
        self.calls: list[tuple[Config, Path]] = []
        self.error: Exception | None = None

    def serve(self, config: Config, path: Path) -> int:
        self.calls.append((config, path))
        if self.error:
            raise self.error
        return 7


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake = FakeServer()
    monkeypatch.setitem(sys.modules, "app.server", fake)
    return fake


def test_check_names_the_enabled_models(tmp_path: Path) -> None:
    write(tmp_path / "config.json", a=MODEL, b=MODEL | {"TYPE": "Seq2Seq"}, c=MODEL | {"ENABLED": False})
    for args in (["check", "config.json"], ["check"]):
        done = run(*args, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "config.json: ok, 2 models enabled: a (CausalLM), b (Seq2Seq)\n"


def test_check_counts_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], server: FakeServer) -> None:
    path = write(tmp_path / "one.json", a=MODEL)
    assert cli.main(["check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: ok, 1 model enabled: a (CausalLM)\n"
    assert server.calls == []


@pytest.mark.parametrize("args", [["config.json"], [], ["check", "config.json"]])
def test_broken_file_in_a_real_process(tmp_path: Path, args: list[str]) -> None:
    write(tmp_path / "config.json", gpt2=MODEL | {"TYPE": "Causal"})
    done = run(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        'tfoai: config.json: MODELS.gpt2.TYPE: found "Causal"; expected "CausalLM", "Seq2Seq" or "Embedding"\n'
    )


@pytest.mark.parametrize("args", [[], ["absent.json"], ["./check"], ["check"], ["check", "absent.json"]])
def test_missing_file_in_a_real_process(tmp_path: Path, args: list[str]) -> None:
    done = run(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "found no such file; expected" in done.stderr


def test_names_outside_the_encoding_of_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path / "config.json", 模型=MODEL)
    done = run("check", str(path), cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert r"\u6a21\u578b (CausalLM)" in done.stdout


def test_file_names_stay_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(tmp_path / "a\nb\x1b[1m\udcff.json")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and r"a\nb\x1b[1m\udcff.json: found no such file" in err


def test_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> None:
    path = write(tmp_path / "config.json", a=MODEL)
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(path)]) == 7
    assert cli.main([]) == 7
    assert [called_path for _, called_path in server.calls] == [path, Path("config.json")]
    assert list(server.calls[0][0].models) == ["a"]


def test_a_file_named_check_can_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> None:
    write(tmp_path / "check", a=MODEL)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["./check"]) == 7
    assert cli.main(["check", "check"]) == 0
    assert len(server.calls) == 1


def test_config_error_while_starting(tmp_path: Path, capsys: pytest.CaptureFixture[str], server: FakeServer) -> None:
    path = write(tmp_path / "config.json", a=MODEL)
    server.error = ConfigError("MODELS.a.MODEL_DEVICE", "no GPU", '"cpu" or "auto"')
    assert cli.main([str(path)]) == 2
    assert capsys.readouterr().err == f'tfoai: {path}: MODELS.a.MODEL_DEVICE: found no GPU; expected "cpu" or "auto"\n'


@pytest.mark.parametrize("args", [["--port", "1"], ["a", "b"], ["check", "a", "b"], ["check", "--version"], ["--vers"]])
def test_wrong_arguments(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 2
    assert "usage: tfoai" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--help"], ["-h"]])
def test_help(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert "tfoai check" in out and "--version" in out and "exit codes" in out and "./check" in out
    assert max(map(len, out.splitlines())) <= 110


def test_help_has_an_example_that_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"])
    example = capsys.readouterr().out.splitlines()[-1]
    path = tmp_path / "config.json"
    path.write_text(example, encoding="utf-8")
    assert cli.main(["check", str(path)]) == 0


def test_help_of_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--help"]) == 0
    assert "without loading anything" in capsys.readouterr().out


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("app.versions.package_version", lambda name: f"1.2.3 of {name}")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "tfoai 1.2.3 of tfoai\n"


def test_version_of_a_checkout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("app.versions.version", absent)
    package_version.cache_clear()
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "tfoai 0.0.0+unknown\n"
    package_version.cache_clear()


def test_arguments_of_the_process_are_the_default(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["tfoai", "--version"])
    assert cli.main() == 0
    assert capsys.readouterr().out.startswith("tfoai ")


def test_command_line_is_light_to_import() -> None:
    program = "import sys, app.cli; print('msgspec' in sys.modules, 'app.config' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
