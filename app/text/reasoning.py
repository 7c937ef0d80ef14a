"""Owns a model's reasoning before an answer that is held to a grammar: its markers in the prompt, and the split of the text.

Such an answer is content to the letter, whatever it looks like, so no response template reads it. Knows no HTTP and no
grammars.
"""

from collections.abc import Mapping
from typing import Any

from app.text.constraint import Reasoning
from app.text.stop import overlap

FIELDS = ("reasoning_content", "reasoning", "thinking")
# What models write that have no response template to tell.
USUAL = ("<think>", "</think>")


def reasoning_of(response_template: Mapping[str, Any] | None, end_of_prompt: str) -> Reasoning | None:
    """Return how a model reasons after a prompt that ends with `end_of_prompt`; None if it does not.

    It does if the prompt opens the block, or if the model's response template knows one and the prompt has not closed it.
    """
    fields = (response_template or {}).get("fields", {})
    found = [(field.get("open"), field.get("close")) for name, field in fields.items() if name in FIELDS]
    known = [(opening, close) for opening, close in found if isinstance(opening, str) and isinstance(close, str)]
    opening, close = (known or [USUAL])[0]
    end = end_of_prompt.rstrip()
    if end.endswith(opening.rstrip()):
        return Reasoning(opening.strip(), close.strip(), is_open=True)
    if known and not end.endswith(close.rstrip()):
        return Reasoning(opening.strip(), close.strip(), is_open=False)
    return None


class ReasoningSplitter:
    """Splits a text, as it arrives, into reasoning and answer; what may be part of a marker is held back."""

    def __init__(self, reasoning: Reasoning) -> None:
        self._markers = reasoning
        self._held = ""
        self._part = "reasoning" if reasoning.is_open else "start"

    def feed(self, text: str) -> tuple[str, str]:
        """Return (reasoning, answer) that `text` adds."""
        reasoning = ""
        text, self._held = self._held + text, ""
        if self._part == "start":
            if text.startswith(self._markers.open):
                self._part, text = "reasoning", text[len(self._markers.open) :]
            elif self._markers.open.startswith(text):
                self._held = text
            else:
                self._part = "answer"
        if self._part == "reasoning":
            reasoning, closed, text = text.partition(self._markers.close)
            if closed:
                self._part = "gap"
            else:
                hold = overlap(reasoning, self._markers.close)
                reasoning, self._held = reasoning[: len(reasoning) - hold], reasoning[len(reasoning) - hold :]
        if self._part == "gap":
            text = text.lstrip(" \n")
            self._part = "answer" if text else "gap"
        return reasoning, text if self._part == "answer" else ""

    def finish(self) -> tuple[str, str]:
        """Return what is held back when the text has ended."""
        held, self._held = self._held, ""
        return (held, "") if self._part == "reasoning" else ("", held)
