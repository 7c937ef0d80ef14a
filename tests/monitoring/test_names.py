"""Dashboard, alerts and runbooks speak of metrics, labels and alerts that exist. Needs no Prometheus."""

import json
import re
import runpy
from typing import Any

import pytest
import yaml

from app.metrics_table import TABLE
from tests.monitoring.expressions import alert_rules, dashboard_expressions
from tests.support.process import ROOT

FOREIGN = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_max_fds"} | {
    "process_start_time_seconds",
    "ALERTS",
}
# What a scrape adds to every series.
SCRAPED_LABELS = {"namespace", "job", "instance", "pod", "le"}
EXPRESSIONS = {**dashboard_expressions(), **{rule["alert"]: rule["expr"] for rule in alert_rules()}}


def series_names() -> dict[str, set[str]]:
    """Every name of a series of the table, with the labels it has."""
    names = {}
    for spec in TABLE.values():
        suffixes = ("_bucket", "_sum", "_count") if spec.kind == "histogram" else ("",)
        names.update({spec.full_name + suffix: set(spec.labels) | SCRAPED_LABELS for suffix in suffixes})
    return names


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_metrics_and_labels_exist(name: str) -> None:
    known = series_names()
    expression = EXPRESSIONS[name]
    used = set(re.findall(r"\b(?:tfoai|process|up)\w*\b(?=[{\[ )]|$)", expression))
    assert used
    for metric in used:
        assert metric in known or metric in FOREIGN, metric
    for metric, selector in re.findall(r"(\w+)\{([^}]*)\}", expression):
        for label in re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector):
            assert label in known.get(metric, SCRAPED_LABELS), (metric, label)
    labels = set().union(*(known.get(metric, SCRAPED_LABELS) for metric in used))
    for grouping in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        assert set(re.split(r",\s*", grouping)) <= labels


def test_the_dashboard_is_made_by_its_script() -> None:
    made = runpy.run_path(str(ROOT / "charts" / "dashboard.py"))["dashboard"]()
    written = (ROOT / "charts" / "tfoai" / "dashboards" / "tfoai.json").read_text()
    assert written == json.dumps(made, indent=2) + "\n", "run the command in the script's first line"


def test_the_dashboard_is_whole() -> None:
    dashboard: dict[str, Any] = json.loads((ROOT / "charts" / "tfoai" / "dashboards" / "tfoai.json").read_text())
    panels = dashboard["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Is it well", "Latency", "Saturation", "Traffic shape", "Process",
    ]  # fmt: skip
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken, f"{panel['title']} overlaps"
        taken |= cells
        assert panel["type"] == "row" or (panel["description"] and panel["fieldConfig"]["defaults"]["unit"])
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__rate_interval", "__all"}
    assert used == variables


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    text = (ROOT / "docs" / "runbooks.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    rules = {rule["alert"]: rule for rule in alert_rules()}
    assert list(sections) == list(rules), "in the same order"
    for name, rule in rules.items():
        assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{name.lower()}"
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert "- Look:" in sections[name] and "- Helps:" in sections[name]


def test_every_alert_is_tested_to_fire() -> None:
    tests = yaml.safe_load((ROOT / "tests" / "monitoring" / "alerts_test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", []) if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in alert_rules()}


def test_keys_of_the_runbooks_exist() -> None:
    from app.config_schema import config_table

    keys = {row.key.rsplit(".", 1)[-1] for row in config_table()}
    text = (ROOT / "docs" / "runbooks.md").read_text()
    named = set(re.findall(r"`([A-Z][A-Z_]+)[`:]", text))
    assert named and named - {"SIGHUP"} <= keys
