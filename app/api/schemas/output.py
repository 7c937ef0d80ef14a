"""Owns the parameters that say which tokens an answer may have and how they, and the prompt's, are shown; they are vLLM's.

Knows no endpoint. openai-python sends them with `extra_body`.
"""

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from app.api.schemas.common import SamplingFields, TokenCount, check_token_id
from app.errors import InvalidRequest
from app.text.output import OutputOptions, TokenAlternative

if TYPE_CHECKING:
    from app.text.tokenizer import Tokenizer

_Word = Annotated[str, Meta(min_length=1)]


class OutputFields(SamplingFields, kw_only=True):
    """`bad_words` are words whose tokens, at the beginning of a line or behind a space, are never completed.

    `include_stop_str_in_output` shows what stopped the answer: a stop text, and a stop token where special tokens are shown.
    """

    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: list[_Word] | None = None
    allowed_token_ids: Annotated[list[TokenCount], Meta(min_length=1)] | None = None

    @property
    def output_options(self) -> OutputOptions:
        return OutputOptions(
            stop=self.stop_texts,
            include_stop=bool(self.include_stop_str_in_output),
            skip_special_tokens=self.skip_special_tokens,
        )

    def sampling_extras(self, vocab_size: int, tokenizer: "Tokenizer") -> dict[str, Any]:
        """Return what `sampling_request` takes of these; raise InvalidRequest for what leaves no token or is none."""
        for token_id in self.allowed_token_ids or ():
            check_token_id(token_id, vocab_size, "allowed_token_ids")
        words = [spelling for word in self.bad_words or () for spelling in self._spellings(word, tokenizer)]
        allowed = None if self.allowed_token_ids is None else tuple(self.allowed_token_ids)
        return {"allowed_token_ids": allowed, "bad_words_ids": tuple(words)}

    def _spellings(self, word: str, tokenizer: "Tokenizer") -> list[tuple[int, ...]]:
        found = tokenizer.spellings(word)
        if not found:
            raise InvalidRequest(f"`bad_words`: {word[:100]!r} has no tokens.", param="bad_words")
        return found


class PromptLogprob(Struct):
    """One token that could be at a place of the prompt; `rank` 1 is the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


def spelled(token: TokenAlternative, *, as_id: bool) -> str:
    """Return how a token is shown in logprobs."""
    return f"token_id:{token.token_id}" if as_id else token.text
