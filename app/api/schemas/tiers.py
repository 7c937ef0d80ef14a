"""Owns `service_tier`: the tiers, what they mean for those that wait, and which one an answer names. Knows no endpoint."""

from typing import Literal

ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]

# Lower numbers are served first.
_PRIORITIES = {"priority": -100, "fast": -100, "flex": 100}
_SERVED = {"flex": "flex", "priority": "priority", "fast": "priority"}


def tier_priority(tier: str | None) -> int:
    """Return how much later a request of this tier is served than others, which `priority` says too."""
    return _PRIORITIES.get(tier or "auto", 0)


def served_tier(tier: str | None) -> str:
    return _SERVED.get(tier or "auto", "default")
