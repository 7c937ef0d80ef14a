"""Owns how large KV memory is: what is free on the model's device, and the share of it that is taken. Knows no owners."""

from pathlib import Path

import torch

# On a GPU the memory is there for that; on a CPU it belongs to others too.
DEFAULT_FRACTION = {"cuda": 0.9, "cpu": 0.3}


def kv_cache_blocks(
    device: torch.device,
    bytes_per_block: int,
    *,
    max_num_seqs: int,
    blocks_per_seq: int,
    fraction: float | None,
    step_bytes: int = 0,
) -> int:
    """Return the number of blocks: enough for every sequence at full length, or what `fraction` of the free memory holds.

    `step_bytes` of the free memory are left to the steps. Never fewer than one sequence at full length needs, as far as memory
    allows: then long sequences still run, one by one.
    """
    share = DEFAULT_FRACTION.get(device.type, 0.5) if fraction is None else fraction
    affordable = int(max(0, free_memory(device) - step_bytes) * share) // bytes_per_block
    return max(1, min(max_num_seqs * blocks_per_seq, affordable))


def free_memory(device: torch.device) -> int:
    """Return the bytes that a model's device can still give."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return free
    available = _meminfo_available()
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    return available if limit is None else min(available, limit - (used or 0))


def free_on(device: str) -> int | None:
    """Return the bytes that a device of the configuration ("auto", "cpu", "cuda:1", ...) can still give; None if unknown."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and torch.cuda.is_available():
        return free_memory(torch.device(device))
    return free_memory(torch.device("cpu")) if device == "cpu" else None


def release_unused() -> None:
    """Give memory that torch keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def _cgroup(name: str) -> int | None:
    """Return a number of this container's control group (version 2), None if there is no limit."""
    path = Path("/sys/fs/cgroup") / name
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return None if text == "max" else int(text)
