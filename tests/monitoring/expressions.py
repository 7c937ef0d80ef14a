"""What the dashboard and the alerts ask Prometheus."""

import json
from typing import Any

import yaml

from tests.support.process import ROOT

ALERTS = ROOT / "charts" / "tfoai" / "alerts" / "tfoai.yaml"
DASHBOARD = ROOT / "charts" / "tfoai" / "dashboards" / "tfoai.json"


def dashboard_expressions() -> dict[str, str]:
    """Panel and legend -> expression, with Grafana's variables in it."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {
        f"{panel['title']}: {target['legendFormat']}": target["expr"] for panel in panels for target in panel.get("targets", [])
    }


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]
