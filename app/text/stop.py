"""Owns stop strings: text is cut before the first one, and no part of one is ever given out. Knows no tokens."""

from collections.abc import Sequence


class StopChecker:
    """Passes text through until a stop string appears.

    The longest end of the text that could be the start of a stop string is held back until it is decided. When several stop
    strings are found, the one that starts first wins, and of those the shortest, so the cut does not depend on how the text
    was split. With `include` the cut is behind the stop string.
    """

    def __init__(self, stop: Sequence[str], *, include: bool = False) -> None:
        self._stop = [text for text in stop if text]
        self._include = include
        self._held = ""
        # The stop string that was found, and by it whether one was.
        self.matched: str | None = None

    @property
    def stopped(self) -> bool:
        return self.matched is not None

    def add(self, text: str) -> str:
        """Return the part of `held back + text` that is safe to give out; after a stop string, nothing more."""
        if self.stopped:
            return ""
        if not self._stop:
            return text
        text = self._held + text
        first = self._first(text)
        hold = len(text) - max(overlap(text, stop) for stop in self._stop)
        if first is not None and first[0] <= hold:
            self._held = ""
            return self._cut(text, first)
        self._held = text[hold:]
        return text[:hold]

    def flush(self) -> str:
        """Return what is held back: the sequence has ended, so it is no stop string, unless a whole one is in it."""
        text, self._held = self._held, ""
        first = self._first(text)
        return text if first is None else self._cut(text, first)

    def _first(self, text: str) -> tuple[int, int, str] | None:
        """Return where the first stop string begins, how long it is, and itself; None if there is none."""
        found = [(position, len(stop), stop) for stop in self._stop if (position := text.find(stop)) >= 0]
        return min(found, default=None)

    def _cut(self, text: str, first: tuple[int, int, str]) -> str:
        position, length, self.matched = first
        return text[: position + length] if self._include else text[:position]


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
