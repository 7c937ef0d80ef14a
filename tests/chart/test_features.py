"""docs/chart-features.md: what it says the chart has is there."""

import re
from typing import Any

import pytest
import yaml

from tests.support.chart import CHART, render
from tests.support.process import ROOT

_PAGE = (ROOT / "docs" / "chart-features.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in _PAGE.splitlines() if line.startswith("| ")][1:]
_VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
_SERVER = re.compile("make .*|restricted")


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_what_a_row_names_is_there(row: list[str]) -> None:
    _, has, by, _ = row
    assert has in ("yes", "always", "off by default", "not needed")
    names = [name for name in re.findall("`([^`]+)`", by) if not _SERVER.fullmatch(name)]
    assert names
    for name in names:
        found: Any = _VALUES
        if "/" in name or name.endswith((".json", ".yaml", ".md")):
            assert (CHART / name).exists() or (ROOT / name).exists(), name
            continue
        for key in name.split("."):
            assert key in found, name
            found = found[key]


def test_there_are_all_rows() -> None:
    assert len(ROWS) == 38
    assert len({row[0] for row in ROWS}) == 38


def test_hooks_of_the_container() -> None:
    hook = {"preStop": {"sleep": {"seconds": 5}}}
    assert render({"lifecycle": hook}).server["lifecycle"] == hook
    assert "lifecycle" not in render({}).server
