"""Owns what the engine asks of a grammar: a matcher per sequence, masks of the tokens that may come next. Knows no library.

The engine never looks into a grammar. `app/text/grammar.py` makes them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray


class GrammarError(Exception):
    """A sequence can not follow its grammar any further; its message may be shown to the client."""


class Matcher(Protocol):
    """Where one sequence is in its grammar. It moves on `accept` only, so asking for masks may be repeated."""

    def accept(self, token_id: int) -> None:
        """Move on by a token that is committed; raise GrammarError if the grammar does not allow it."""
        ...

    @property
    def is_accepting(self) -> bool:
        """True if the text so far is complete: the sequence may end here, or go on."""
        ...

    @property
    def is_complete(self) -> bool:
        """True if the text so far is complete and nothing may follow: the sequence has to end here."""
        ...


class Grammar(Protocol):
    """A compiled grammar of one model's tokenizer. Any thread may start matchers; each then belongs to one sequence.

    `mask_words` is the width of a mask in 32-bit words: bit i % 32 of word i / 32 is token i. It is the same for all grammars
    of a model, and `fill` takes matchers of all of them.
    """

    mask_words: int

    def start(self) -> Matcher: ...

    def fill(self, matchers: Sequence[Matcher], masks: "NDArray[numpy.int32]") -> list[Exception | None]:
        """Write the masks [matchers, mask_words] of what may come next; return what went wrong for each matcher.

        Tokens that end a sequence are not the grammar's affair: their bits mean nothing.
        """
        ...
