"""Owns counting values by upper bound, cheaply: no lock, no loop over the bounds. Plain numbers: knows no metric."""

from bisect import bisect_left
from collections.abc import Sequence


class Tally:
    """Counts of values by upper bound (inclusive), and their sum. One thread observes, others may look."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> list[int]:
        """Return how many values were at most each bound, and how many there were at all."""
        total, result = 0, []
        for count in self._counts:
            total += count
            result.append(total)
        return result
