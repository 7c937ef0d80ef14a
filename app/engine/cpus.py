"""Owns how many processors this process may use, by its affinity and its control group, and how many of them help a model.

Knows no model but its size.
"""

import logging
import os
from pathlib import Path

import torch

logger = logging.getLogger("tfoai.engine")

_CGROUP = Path("/sys/fs/cgroup")
# Weights that one thread reads in about the time that a step's Python takes. Processors left alone serve HTTP and other models.
BYTES_PER_THREAD = 4 * 2**20


def usable_cpus(cgroup: Path = _CGROUP) -> int:
    """Return the number of processors that are ours, at least 1.

    torch sees all processors of the host; a container with a limit of 4 on a host with 64 would run 64 threads on 4.
    """
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, visible if quota is None else min(visible, int(quota)))


def limit_threads() -> int:
    """Let torch use as many threads as there are processors for it; return how many. OMP_NUM_THREADS, if set, wins."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cpus())
    threads = torch.get_num_threads()
    logger.info("cpu.threads", extra={"threads": threads, "host_cpus": os.cpu_count()})
    return threads


def helpful_threads(num_bytes: int) -> int:
    """Return how many threads the steps of a model with so many bytes of weights should use: at most torch's own number.

    Small models spend their steps between operators, where more threads only wait, and wait in a loop.
    """
    return max(1, min(torch.get_num_threads(), -(-num_bytes // BYTES_PER_THREAD)))


def _quota(cgroup: Path) -> float | None:
    """Return the processors' worth of time that the control group (version 2, then 1) allows; None for no limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        return int(limit) / int(period) if int(limit) > 0 else None
    except (OSError, ValueError):
        return None
