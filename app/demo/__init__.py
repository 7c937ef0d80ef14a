"""Owns the two demo models that ship with tfoai: their weights, their training text, training and evaluation.

Importing it must stay cheap: it knows paths only, never torch. Nothing else in `app` imports its submodules.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

DEMO_MODELS: dict[str, Path] = {
    "tfoai-demo": _HERE / "tfoai-demo",
    "tfoai-demo-dates": _HERE / "tfoai-demo-dates",
}

__all__ = ["DEMO_MODELS"]
