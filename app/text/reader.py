"""Owns reading text that arrives in pieces: up to a marker, by a pattern, as a JSON object. Knows no formats of calls.

What reads is written as generators that `yield` when they need more text, so that a format reads like its grammar. What they
find depends on the text alone, never on how it was cut: nothing is decided while another piece could change it.
"""

from collections.abc import Callable, Generator, Sequence

import regex

from app.text.deltas import CallArguments, ChatDelta, Content, Reasoning
from app.text.json_scan import JsonObject

Emit = Callable[[str], None]
# What a generator that reads returns at its end.
Read = Generator[None, None, "bool"]


class Reader:
    """The text that is there, the place up to which it is read, and what was found so far."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self._ended = False
        self._found: list[ChatDelta] = []

    def add(self, text: str) -> None:
        self._text += text

    def end(self) -> None:
        """No more text will come."""
        self._ended = True

    def take_found(self) -> list[ChatDelta]:
        """Return what was found since the last time, and forget text that nobody will go back to."""
        keep_from = self._at if self._mark is None else self._mark
        self._text = self._text[keep_from:]
        self._at -= keep_from
        self._mark = None if self._mark is None else 0
        found, self._found = self._found, []
        return found

    def emit(self, delta: ChatDelta) -> None:
        """Add to what was found; pieces of the same text become one."""
        last = self._found[-1] if self._found else None
        match last, delta:
            case (Content(before), Content(text)):
                self._found[-1] = Content(before + text)
            case (Reasoning(before), Reasoning(text)):
                self._found[-1] = Reasoning(before + text)
            case (CallArguments(before_index, before), CallArguments(index, text)) if before_index == index:
                self._found[-1] = CallArguments(index, before + text)
            case _:
                self._found.append(delta)

    def mark(self) -> None:
        """Remember this place, to return to it if what follows is not what it seems."""
        self._mark = self._at

    def back(self) -> None:
        assert self._mark is not None
        self._at, self._mark = self._mark, None

    def forget_mark(self) -> None:
        self._mark = None

    def until(
        self, markers: Sequence[str], emit: Emit, *, trim: bool = False, lead: bool = False, stay: bool = False
    ) -> Generator[None, None, tuple[str, str]]:
        """Give text to `emit` up to the first of `markers`; pass it, or `stay` before it; return it and the space before it.

        "" is returned at the end of the text. With `trim`, whitespace before a marker is not emitted; with `lead`, neither is
        whitespace at the beginning. No marker may begin with another one.
        """
        while True:
            if lead:
                self._at = _skip_space(self._text, self._at)
                lead = self._at == len(self._text)
            places = [(place, marker) for marker in markers if (place := self._text.find(marker, self._at)) >= 0]
            place, marker = min(places, default=(len(self._text), ""))
            hold = len(self._text) if self._ended else len(self._text) - self._overlap(markers)
            decided = marker != "" and place < hold
            stop = place if decided else hold
            text_end = self._before_space(stop) if trim and (decided or not self._ended) else stop
            if text_end > self._at:
                emit(self._text[self._at : text_end])
                self._at = text_end
            if decided:
                space, self._at = self._text[text_end:place], place if stay else place + len(marker)
                return marker, space
            if self._ended:
                self._at = stop
                return "", ""
            yield

    def match(self, pattern: "regex.Pattern[str]") -> Generator[None, None, "regex.Match[str] | None"]:
        """Pass what `pattern` matches here; None, and nothing passed, where it does not.

        The pattern must end with something definite, not with a repetition that more text could lengthen.
        """
        while True:
            match = pattern.match(self._text, self._at, partial=not self._ended)
            if match is None:
                return None
            if not match.partial:
                self._at = match.end()
                return match
            yield

    def object(self, emit: Emit) -> Read:
        """Give the text of a JSON object to `emit`; False where it breaks off or stops being JSON."""
        scan = JsonObject()
        while True:
            start, self._at = self._at, scan.take(self._text, self._at)
            if self._at > start:
                emit(self._text[start : self._at])
            if scan.is_whole or scan.is_broken or self._ended:
                return scan.is_whole
            yield

    def _overlap(self, markers: Sequence[str]) -> int:
        """Return the length of the longest end of the unread text that is a proper beginning of a marker."""
        longest = min(len(self._text) - self._at, max(map(len, markers), default=0) - 1)
        for length in range(longest, 0, -1):
            end = self._text[-length:]
            if any(len(marker) > length and marker.startswith(end) for marker in markers):
                return length
        return 0

    def _before_space(self, place: int) -> int:
        while place > self._at and self._text[place - 1].isspace():
            place -= 1
        return place


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
