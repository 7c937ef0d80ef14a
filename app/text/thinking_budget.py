"""Owns how long a model may think: counts the tokens of its thoughts, and says when the marker that ends one has to come.

Knows no library of grammars: `matching.py` puts what is said here into masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

from app.engine.grammar import GrammarError, Matcher

M = TypeVar("M", bound=Matcher)


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """At most `num_tokens` tokens between the markers; `is_open` if the prompt has the opening one.

    `closings[i]` are the tokens of the closing one from its byte i on; only those of the whole one where it is one token.
    """

    num_tokens: int
    open: bytes
    close: bytes
    closings: Sequence[tuple[int, ...]]
    is_open: bool


class BudgetMatcher(Generic[M]):
    """`app.engine.grammar.Matcher` that ends thoughts in time, and otherwise is `inner`, or allows anything.

    A character is never cut: a thought may be longer by the tokens that end one. With `inner`, which says what comes behind the
    thought, there is one thought, where the answer begins; without, all that the model marks as thoughts count together.
    `tokens[i]` is what token i adds to the text.
    """

    def __init__(self, budget: ThinkingBudget, tokens: Sequence[bytes], inner: M | None) -> None:
        self.inner = inner
        self._budget = budget
        self._tokens = tokens
        self._left = budget.num_tokens
        self._thinks = budget.is_open
        self._is_over = False
        # The end of the text, as far as a marker may have begun in it.
        self._tail = b""
        self._closing: tuple[int, ...] = ()
        # The lengths of the last tokens of the thought in bytes, and how many of them begin the closing marker.
        self._lengths: list[int] = []
        self._num_in_marker = 0

    @property
    def forced(self) -> int | None:
        """The one token that may come next, None if others may."""
        return self._closing[0] if self._closing else None

    def accept(self, token_id: int) -> None:
        if self._closing and token_id != self._closing[0]:
            raise GrammarError("The thought is longer than its budget.")
        if self.inner is not None:
            self.inner.accept(token_id)
        self._closing = self._closing[1:]
        if self._is_over or token_id >= len(self._tokens):
            return
        data = self._tokens[token_id]
        self._tail += data
        if self._thinks:
            self._think(len(data))
        else:
            self._look_for_thought()

    @property
    def is_accepting(self) -> bool:
        return not self._closing and (self.inner is None or self.inner.is_accepting)

    @property
    def is_complete(self) -> bool:
        return self.inner is not None and self.inner.is_complete

    def _think(self, length: int) -> None:
        """Go on by a token of `length` bytes, which `_tail` has already."""
        close = self._budget.close
        _, closed, behind = self._tail.partition(close)
        if closed:
            self._left += self._num_in_marker
            self._thinks, self._tail, self._closing, self._lengths = False, behind, (), []
            self._is_over = self.inner is not None
            return
        self._left -= 1
        self._tail = self._tail[-max(len(close) - 1, 4) :]
        begun = _overlap(self._tail, close) if len(self._budget.closings) > 1 else 0
        self._lengths = [*self._lengths[-len(close) :], length]
        ends = accumulate(reversed(self._lengths))
        self._num_in_marker = sum(end <= begun for end in ends)
        if self._left <= 0 and not self._closing and _is_whole(self._tail):
            self._closing = self._budget.closings[begun]

    def _look_for_thought(self) -> None:
        opening = self._budget.open
        _, opened, behind = self._tail.partition(opening)
        if opened:
            self._thinks, self._tail = True, behind
            if self._left <= 0:
                self._closing = self._budget.closings[0]
        elif self.inner is None:
            self._tail = self._tail[-max(len(opening) - 1, 1) :]
        else:
            self._is_over = not opening.startswith(self._tail.lstrip())


def _overlap(text: bytes, marker: bytes) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `marker`."""
    lengths = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(marker[:length])), 0)


def _is_whole(text: bytes) -> bool:
    """Return whether UTF-8 does not end in the middle of a character."""
    for length in range(1, min(4, len(text)) + 1):
        lead = text[-length]
        if lead < 0x80:
            return True
        if lead >= 0xC0:
            return length >= (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4)
    return True
