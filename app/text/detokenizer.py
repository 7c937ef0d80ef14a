"""Owns token ids -> text, piece by piece, so that the pieces joined are the text. Knows no stop strings and no streams."""

from collections.abc import Callable, Sequence

# What a decoder writes for bytes that are not (or not yet) a character.
_REPLACEMENT = "\ufffd"

# Enough tokens before the first new one for decoders that look back (a leading space, a byte sequence).
CONTEXT_TOKENS = 8
# Until it has this many tokens a window only grows: to shorten it costs a second decoding.
WINDOW_TOKENS = 16


class Detokenizer:
    """Decodes a growing list of ids.

    Text is given out only up to a character boundary: while the end decodes to a replacement character, it may be half an
    emoji, and is held back until more tokens or the end decide it. Each step decodes only a short window: the tokens since the
    last boundary and some before it (for tokenizers that drop a leading space), never the whole text.

    `context_ids` are the last tokens of the prompt that the new tokens continue; their text is not given out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], context_ids: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(context_ids[-CONTEXT_TOKENS:])
        self._num_done = len(self._window)
        self._done_text = decode(self._window) if self._window else ""

    def add(self, token_ids: Sequence[int]) -> str:
        """Return the text that these tokens complete; empty while a character is incomplete."""
        self._window += token_ids
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT):
            return ""
        new_text = self._new_part(text)
        if len(self._window) < WINDOW_TOKENS:
            self._done_text, self._num_done = text, len(self._window)
            return new_text
        # The next window starts at the boundary before this one, unless what is left to look back at has no text by itself
        # (special tokens, a lone space): then the one before it is still needed.
        shorter = self._window[self._num_done :]
        shorter_text = self._decode(shorter) if shorter else ""
        if shorter_text:
            self._window, self._done_text = shorter, shorter_text
        else:
            self._done_text = text
        self._num_done = len(self._window)
        return new_text

    def flush(self) -> str:
        """Return what is held back: the sequence has ended, so it is as complete as it gets."""
        if self._num_done == len(self._window):
            return ""
        new_text = self._new_part(self._decode(self._window))
        self._num_done = len(self._window)
        return new_text

    def _new_part(self, text: str) -> str:
        if text.startswith(self._done_text):
            return text[len(self._done_text) :]
        # The prompt ended inside a character which the new tokens complete: give out the whole character.
        same = 0
        for ours, theirs in zip(text, self._done_text, strict=False):
            if ours != theirs:
                break
            same += 1
        return text[same:]
