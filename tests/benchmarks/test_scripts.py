"""The benchmark scripts run to their end, on the smallest models: a script that nobody runs rots."""

from pathlib import Path

import pytest
import torch

from tests.benchmarks import engine, gpu
from tests.benchmarks.models import SHAPES, make_model


def test_the_gpu_benchmark_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.measure("tiny", [1, 3], 1, torch.device("cpu"), 20, 6)
    printed = capsys.readouterr().out
    assert printed.count("greedy 100.00 %") == 2, printed


def test_the_engine_benchmark_finds_no_leak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine.long_use("0.2M", make_model("0.2M", tmp_path), 100)
    printed = capsys.readouterr().out
    assert printed.count(f"{engine.NUM_BLOCKS} of {engine.NUM_BLOCKS} blocks available") == 2
    assert engine.linear_floor(make_model("0.2M", tmp_path), 2) > 0
    assert set(SHAPES) == {"29M", "0.2M"}
