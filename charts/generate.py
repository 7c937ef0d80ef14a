"""Makes charts/tfoai/values.schema.json and the table of charts/tfoai/README.md from values.yaml and the server's own schema.

`python charts/generate.py` writes both; tests/chart/test_generated.py fails when they differ. In values.yaml the comment
above a key is its description, and a line `# @schema {...}` is merged into the schema that follows from the default value.
`config` is the server's config.json: its schema comes from app/config_schema.py, so that a key that the server does not know is
refused by `helm install`.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).parent / "tfoai"
ROOT = CHART.parents[1]
BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->"

Schema = dict[str, Any]


class Key(NamedTuple):
    """One key of values.yaml. `path` is dotted; `schema` is what its comments add."""

    path: str
    default: Any
    description: str
    schema: Schema


def read_keys(text: str) -> list[Key]:
    """Return every key that has a comment or a default that is no object, in the order of the file."""
    lines = text.splitlines()
    keys: list[Key] = []

    def visit(node: yaml.MappingNode, prefix: str) -> None:
        for name, value in node.value:
            description, schema = _comments(lines, name.start_mark.line)
            path = f"{prefix}{name.value}"
            default = yaml.safe_load(yaml.serialize(value))
            keys.append(Key(path, default, description, schema))
            if isinstance(value, yaml.MappingNode):
                visit(value, f"{path}.")

    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    visit(root, "")
    return keys


def _comments(lines: list[str], at: int) -> tuple[str, Schema]:
    """Return the words and the schema of the comment that ends right above line `at`."""
    block: list[str] = []
    while at and lines[at - 1].lstrip().startswith("#"):
        at -= 1
        block.insert(0, lines[at].strip().removeprefix("#").strip())
    words = [line for line in block if not line.startswith("@schema ")]
    schema: Schema = {}
    for line in block:
        if line.startswith("@schema "):
            schema |= json.loads(line.removeprefix("@schema "))
    return " ".join(words), schema


def values_schema(keys: list[Key], config: Schema) -> Schema:
    """Return the JSON Schema (draft 2020-12) of values.yaml; unknown keys are refused wherever the chart knows them all."""
    by_path = {key.path: key for key in keys}
    children: dict[str, list[str]] = {}
    for path in by_path:
        parent, _, name = path.rpartition(".")
        children.setdefault(parent, []).append(name)

    def of(path: str) -> Schema:
        key = by_path[path]
        described = {"description": key.description} if key.description else {}
        if "$ref" in key.schema:
            return described | key.schema
        schema = described | _of_default(key.default)
        # An object whose defaults are all there is to it; others say so with `@schema`.
        if isinstance(key.default, dict) and key.default and not {"type", "additionalProperties"} & key.schema.keys():
            schema |= _object({name: of(f"{path}.{name}") for name in children[path]})
        merged = schema | key.schema
        if "properties" in key.schema:
            merged["properties"] = {name: of(f"{path}.{name}") for name in children.get(path, [])} | key.schema["properties"]
        return merged

    definitions = config.pop("$defs")
    definitions["Config"] = config
    top = _object({name: of(name) for name in children[""]})
    # Helm puts these in when the chart is a dependency of another.
    top["properties"] |= {"global": {"type": "object"}, "enabled": {"type": "boolean"}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Values of tfoai", **top, "$defs": definitions}


def _object(properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _of_default(default: Any) -> Schema:
    match default:
        case bool():
            return {"type": "boolean", "default": default}
        case int():
            return {"type": "integer", "default": default}
        case str():
            return {"type": "string", "default": default}
        case list():
            return {"type": "array"}
        case dict():
            return {"type": "object"}
    raise TypeError(f"no type for the default {default!r}")


def chart_config_schema() -> Schema:
    """Return the schema of `.Values.config`: that of config.json, as the chart takes it."""
    sys.path.insert(0, str(ROOT))
    from app.config_schema import config_json_schema

    schema = config_json_schema()
    del schema["$schema"], schema["title"], schema["required"]
    keys = schema["properties"]
    del keys["$schema"], keys["BEARER_TOKENS"]  # tokens are no business of a ConfigMap
    keys.pop("BEARER_TOKENS_DIR", None)  # the chart's own, from `auth`
    del keys["MODELS"]["not"]  # none at all are the demo models
    # Ports are part of other objects: they can not be left to chance.
    keys["PORT"]["minimum"] = 1
    for metrics_port in keys["METRICS_PORT"]["anyOf"]:
        if "minimum" in metrics_port:
            metrics_port["minimum"] = 1
    described = {"description": "The server's config.json; see docs/config.schema.json."}
    return _without_lookaround(described | {k: v for k, v in schema.items() if k != "description"})


def _without_lookaround(node: Any) -> Any:
    r"""Helm's schemas are checked by Go, whose patterns have no `(?!...)` and no `(?=...)`, and whose `$` needs no `(?!\n)`."""
    if isinstance(node, list):
        return [_without_lookaround(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _without_lookaround(value) for key, value in node.items()}
    if isinstance(pattern := node.get("pattern"), str):
        pattern = pattern.replace("(?!\\n)$", "$")
        # "At least one character that is no space", said without looking ahead.
        pattern = re.sub(r"^\^\(\?=\.\*\\S\)\[\^(.+)\]\+\$$", r"^[^\1]*[^\1\\s][^\1]*$", pattern)
        if "(?" in pattern.replace("(?:", ""):
            raise ValueError(f"Go has no such pattern: {pattern}")
        result["pattern"] = pattern
    return result


def readme_table(keys: list[Key]) -> str:
    rows = ["| Value | Default | |", "|---|---|---|"]
    for key in keys:
        is_leaf = not isinstance(key.default, dict) or not key.default or key.path.count(".") > 1
        if key.path.startswith(("podSecurityContext.", "securityContext.", "autoscaling.behavior.")):
            continue
        if not is_leaf and not key.description:
            continue
        default = "" if isinstance(key.default, dict) and key.default else f"`{json.dumps(key.default)}`"
        rows.append(f"| `{key.path}` | {default} | {key.description.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def outputs() -> dict[Path, str]:
    """Return what the generated files should hold."""
    keys = read_keys((CHART / "values.yaml").read_text())
    schema = json.dumps(values_schema(keys, chart_config_schema()), indent=2, ensure_ascii=False) + "\n"
    readme = CHART / "README.md"
    text = readme.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return {CHART / "values.schema.json": schema, readme: f"{before}{BEGIN}{readme_table(keys)}{END}{after}"}


if __name__ == "__main__":
    for path, content in outputs().items():
        path.write_text(content)
        print(path)
