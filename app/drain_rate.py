"""Owns how fast a model gets rid of what it has admitted, for Retry-After. Plain numbers: knows no model and no HTTP."""

import time
from collections import deque
from collections.abc import Callable

# As far as is looked back, in seconds, and at sequences.
WINDOW = 60.0
MAX_EVENTS = 1024
# openai-python does not retry at all for more than 120 seconds.
SHORTEST, LONGEST = 1.0, 60.0


class DrainRate:
    """Counts sequences that end while there are any. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: deque[tuple[float, int]] = deque(maxlen=MAX_EVENTS)
        self._busy_since = clock()

    def begin(self) -> None:
        """Note that an idle model has got work: what was before says nothing of how fast it is now."""
        self._busy_since = self._clock()
        self._ended.clear()

    def note(self, num_tokens: int) -> None:
        """Note that a sequence with so many prompt tokens has ended."""
        self._ended.append((self._clock(), num_tokens))

    def seconds_until(self, num_sequences: int, num_tokens: int = 0) -> float:
        """Return how long it will take until so many sequences, and so many tokens of prompts, have ended.

        Where none has ended yet it takes as long again as it has taken so far, at least.
        """
        now = self._clock()
        while self._ended and self._ended[0][0] < now - WINDOW:
            self._ended.popleft()
        # A full deque reaches less far back than the window.
        start = self._ended[0][0] if len(self._ended) == MAX_EVENTS else max(self._busy_since, now - WINDOW)
        seconds = max(now - start, 1e-3)
        ended, tokens = len(self._ended), sum(tokens for _, tokens in self._ended)
        if not ended:
            return _bounded(seconds)
        wait = num_sequences * seconds / ended
        if num_tokens:
            wait = max(wait, num_tokens * seconds / max(tokens, 1))
        return _bounded(wait)


def _bounded(seconds: float) -> float:
    return min(max(seconds, SHORTEST), LONGEST)
