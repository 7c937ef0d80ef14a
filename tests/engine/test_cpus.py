"""How many processors a container gives: limits as Kubernetes writes them."""

import os
from pathlib import Path

import pytest
import torch

from app.engine import cpus
from app.engine.cpus import helpful_threads, limit_threads, usable_cpus


@pytest.fixture(autouse=True)
def host_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("400000 100000\n", 4),
        ("max 100000\n", 64),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("9000000 100000\n", 64),
        ("x", 64),
    ],
)
def test_version_2(tmp_path: Path, text: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cpus(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("200000", 2), ("-1", 64)])
def test_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert usable_cpus(tmp_path) == expected


def test_no_control_group(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == 64


def test_torch_is_told_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(cpus, "_quota", lambda cgroup: 3.0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    limit_threads()
    assert told == [3]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    limit_threads()
    assert told == [3]


@pytest.mark.parametrize(("megabytes", "expected"), [(0, 1), (1, 1), (4, 1), (5, 2), (20, 5), (400, 16)])
def test_small_models_leave_processors_alone(monkeypatch: pytest.MonkeyPatch, megabytes: int, expected: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert helpful_threads(megabytes * 2**20) == expected
