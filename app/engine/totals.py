"""Owns what an engine counts of its steps, cheaply. Plain numbers for any thread to read: knows no metric."""

import time
from dataclasses import dataclass, field

from app.tally import Tally

# Upper bounds of what is counted of each step: how long it took, and how many tokens it computed.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

# By name, because torch stays out of this module.
_REASONS = {"OutOfMemoryError": "oom", "MemoryError": "oom", "NotFiniteError": "nan"}


@dataclass(slots=True)
class Totals:
    """What all steps so far have done, aborted work included."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_prompt_tokens_cached: int = 0
    num_generation_tokens: int = 0
    step_errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("oom", "nan", "exception"), 0))
    # When the last step ended, or when work came to an idle engine.
    last_step_time: float = field(default_factory=time.monotonic)
    step_seconds: dict[str, Tally] = field(default_factory=lambda: {"prefill": Tally(_SECONDS), "decode": Tally(_SECONDS)})
    step_tokens: Tally = field(default_factory=lambda: Tally(_TOKENS))

    def count_step(self, phase: str, seconds: float, num_tokens: int) -> None:
        """Count a step that has just ended; `phase` is "prefill" or "decode"."""
        self.num_steps += 1
        self.last_step_time = time.monotonic()
        self.step_seconds[phase].observe(seconds)
        self.step_tokens.observe(num_tokens)

    def count_error(self, error: Exception) -> None:
        """Count a sequence that failed."""
        self.step_errors[_REASONS.get(type(error).__name__, "exception")] += 1
