"""Owns cutting prompts to a number of tokens. Plain ints: knows no tokenizer and no HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Truncation:
    """At most `num_tokens` of a prompt are kept; `side` is the one that is cut off."""

    num_tokens: int
    side: Literal["left", "right"] = "left"

    def cut(self, ids: Sequence[int], affixes: tuple[Sequence[int], Sequence[int]] = ((), ())) -> list[int]:
        """Return the ids that are kept. `affixes`, special tokens around a text, stay as long as there is room for them."""
        if len(ids) <= self.num_tokens:
            return list(ids)
        before, behind = affixes
        room = self.num_tokens - len(before) - len(behind)
        if room < 1:
            return list(ids[-self.num_tokens :] if self.side == "left" else ids[: self.num_tokens])
        inner = ids[len(before) : len(ids) - len(behind)]
        return [*before, *(inner[-room:] if self.side == "left" else inner[:room]), *behind]
