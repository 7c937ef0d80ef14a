"""Owns following one JSON object as its text arrives: where it ends, and where it stops being JSON. Builds no values."""

import re

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_SCALAR_CHARS = frozenset("truefalsn0123456789+-.eE")
_MAX_SCALAR = 1024


class JsonObject:
    """Takes the text of one object in any pieces: `is_whole` behind its last brace, `is_broken` where it is no JSON."""

    def __init__(self) -> None:
        self.is_whole = False
        self.is_broken = False
        self._open: list[str] = []
        self._expected = "object"
        self._within = ""  # "string", "escape", "hex" or "scalar"
        self._scalar = ""
        self._hex_left = 0

    def take(self, text: str, at: int) -> int:
        """Read on from `at`; return the place behind the last character that belongs to the object."""
        while at < len(text) and not self.is_whole:
            if self._within == "string":
                match = _PLAIN.match(text, at)
                if match is not None and match.end() > at:
                    at = match.end()
                    continue
            elif self._within == "scalar" and text[at] not in _SCALAR_CHARS:
                self._end_scalar()
                if self.is_broken:
                    break
            if not self._step(text[at]):
                self.is_broken = True
                break
            at += 1
        return at

    def _step(self, char: str) -> bool:
        """Take one character; return whether it may be there."""
        match self._within:
            case "string":
                if char == '"':
                    self._within = ""
                    self._expected = "colon" if self._expected in ("key", "first key") else "comma"
                    return True
                self._within = "escape"
                return char == "\\"
            case "escape":
                self._within, self._hex_left = ("hex", 4) if char == "u" else ("string", 0)
                return char in '"\\/bfnrtu'
            case "hex":
                self._hex_left -= 1
                self._within = "hex" if self._hex_left else "string"
                return char in "0123456789abcdefABCDEF"
            case "scalar":
                self._scalar += char
                return len(self._scalar) <= _MAX_SCALAR
        return char in " \t\n\r" or self._structure(char)

    def _end_scalar(self) -> None:
        self._within = ""
        self._expected = "comma"
        self.is_broken = _SCALAR.fullmatch(self._scalar) is None

    def _structure(self, char: str) -> bool:
        expected = self._expected
        if char in "}]":
            return self._close(char)
        if expected == "object":
            return char == "{" and self._begin(char)
        if expected in ("key", "first key"):
            self._within = "string"
            return char == '"'
        if expected == "colon":
            self._expected = "value"
            return char == ":"
        if expected == "comma":
            self._expected = "key" if self._open[-1] == "{" else "value"
            return char == ","
        if char in "{[":
            return self._begin(char)
        self._within = "string" if char == '"' else "scalar"
        self._scalar = char
        return char == '"' or char in _SCALAR_CHARS

    def _begin(self, char: str) -> bool:
        self._open.append(char)
        self._expected = "first key" if char == "{" else "first value"
        return True

    def _close(self, char: str) -> bool:
        if not self._open or self._expected not in ("comma", "first key" if char == "}" else "first value"):
            return False
        if self._open.pop() != ("{" if char == "}" else "["):
            return False
        self._expected = "comma"
        self.is_whole = not self._open
        return True
