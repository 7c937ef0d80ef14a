"""The import directions of docs/architecture.md hold, and torch stays out of what must start fast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "app"

# Who may import whom, by the first name below `app`; a package may always import itself.
ALLOWED: dict[str, set[str]] = {
    "__main__": {"cli"},
    "cli": {"config", "errors", "server", "versions"},
    "server": {
        *("api", "config", "connections", "errors", "logs", "metrics", "model_reload", "registry", "reload", "tokens"),
        "versions",
    },
    "connections": {"write_deadline"},
    "reload": {"config", "errors", "metrics", "model_reload", "tokens"},
    "model_reload": {"config", "errors", "loading", "registry"},
    "api": {
        "config",
        "config_limits",
        "engine",
        "errors",
        "logs",
        "metrics",
        "registry",
        "text",
        "tokens",
        "traces",
        "versions",
    },
    "registry": {"config", "errors", "loading", "served"},
    "served": {"config", "drain_rate", "engine", "errors", "loading", "versions"},
    "loading": {"config", "demo", "engine", "errors", "logs", "text"},
    "text": {"engine", "errors"},
    "engine": {"config", "errors", "tally"},
    "config": {"config_keys", "config_limits", "config_process", "config_values", "errors", "strict_json"},
    "config_keys": set(),
    "config_process": {"config_keys"},
    "config_limits": {"config_keys"},
    "drain_rate": set(),
    "config_values": {"config_keys", "errors", "strict_json"},
    "config_schema": {"config", "config_keys", "config_limits", "config_values"},
    "strict_json": {"errors"},
    "demo": set(),
    "errors": set(),
    "logs": set(),
    "metrics": {"metrics_table", "tally"},
    "metrics_table": set(),
    "tally": set(),
    "tokens": {"config_keys", "errors"},
    "traces": set(),
    "versions": set(),
    "write_deadline": set(),
}
# Of the engine and the text layer, the API may know only what has no torch behind it.
API_MAY_KNOW = {
    "app.engine.engine",
    "app.engine.loaded",
    "app.engine.defaults",
    "app.engine.grammar",
    "app.engine.pooling_job",
    "app.engine.sequence",
    "app.engine.stream",
    "app.text.call_constraint",
    "app.text.constraint",
    "app.text.deltas",
    "app.text.detokenizer",
    "app.text.json_prefix",
    "app.text.output",
    "app.text.truncation",
}
FOREIGN = {
    "torch": {"engine", "demo"},
    "transformers": {"engine", "text", "demo"},
    "litestar": {"api"},
    "llguidance": {"text"},
    "prometheus_client": {"metrics"},
    "uvicorn": {"server", "connections"},
}


def modules() -> list[Path]:
    return sorted(APP.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(APP).parts[0].removesuffix(".py")


def imports(path: Path, *, type_checking: bool = True) -> set[str]:
    """Return the modules that a file imports, anywhere in it; without those that only type checkers see, if asked so."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not type_checking:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            assert node.module is not None
            found.add(node.module)
            found.update(
                f"{node.module}.{alias.name}"
                for alias in node.names
                if node.module in ("app", "app.api", "app.engine", "app.text")
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(APP)))
def test_imports_point_the_right_way(path: Path) -> None:
    own = layer(path)
    if own == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "app" and len(parts) > 1:
            assert parts[1] == own or parts[1] in ALLOWED[own], f"{own} must not import {name}"
        if parts[0] in FOREIGN:
            assert own in FOREIGN[parts[0]], f"{own} must not import {name}"


@pytest.mark.parametrize("path", sorted((APP / "api").rglob("*.py")), ids=lambda path: path.name)
def test_the_api_knows_only_the_light_part_of_engine_and_text(path: Path) -> None:
    for name in imports(path, type_checking=False):
        if name.startswith(("app.engine.", "app.text.")):
            assert name in API_MAY_KNOW


def test_the_server_is_there_before_torch() -> None:
    code = "import sys, app.server; sys.exit(1 if {'torch', 'transformers'} & set(sys.modules) else 0)"
    assert subprocess.run([sys.executable, "-c", code], cwd=APP.parent, check=False).returncode == 0


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(APP)))
def test_every_module_says_what_it_owns(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, "the first line of a module says what it owns"
    assert len(docstring.splitlines()[0]) > 20


def test_modules_stay_readable() -> None:
    long = {str(path.relative_to(APP)): count for path in modules() if (count := len(path.read_text().splitlines())) > 350}
    assert long == {}
