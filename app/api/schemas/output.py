"""Owns the parameters that say which tokens an answer may have and how they, and the prompt's, are shown; they are vLLM's.

Knows no endpoint. openai-python sends them with `extra_body`.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from app.api.schemas.common import SamplingFields, TokenCount, check_token_id
from app.errors import Inapplicable, InvalidRequest
from app.text.output import OutputOptions, TokenAlternative
from app.text.truncation import Truncation

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

    def restrictions(self, vocab_size: int, tokenizer: "Tokenizer") -> dict[str, Any]:
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


class PromptFields(OutputFields, kw_only=True):
    """`truncate_prompt_tokens` cuts a long prompt to so many tokens (-1: what the model has room for), at its beginning unless
    `truncation_side` says otherwise. `return_tokens_as_token_ids` spells the tokens of logprobs `token_id:5`. `prompt_logprobs`
    is how many of the best tokens come with each token of the prompt.
    """

    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    def check_prompt_fields(self, *, has_logprobs: bool) -> None:
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequest(
                "`truncate_prompt_tokens` is 0; it must be at least 1, or -1.",
                param="truncate_prompt_tokens",
                code="invalid_value",
            )
        if self.truncation_side is not None and self.truncate_prompt_tokens is None:
            raise Inapplicable("`truncation_side` needs `truncate_prompt_tokens`.", param="truncation_side")
        if self.return_tokens_as_token_ids and not has_logprobs:
            raise Inapplicable("`return_tokens_as_token_ids` needs `logprobs`.", param="return_tokens_as_token_ids")
        if self.prompt_logprobs is not None and self.stream:
            raise Inapplicable("`prompt_logprobs` can not be streamed.", param="prompt_logprobs")

    def truncation(self, context_length: int, room: int) -> Truncation | None:
        """Return how prompts are cut, None if they are not; `room` is how many tokens of a prompt fit the model.

        Raise InvalidRequest for more than `context_length`.
        """
        wanted = self.truncate_prompt_tokens
        if wanted is None:
            return None
        if wanted > context_length:
            raise InvalidRequest(
                f"`truncate_prompt_tokens` is {wanted}; this model takes {context_length} tokens at most.",
                param="truncate_prompt_tokens",
                code="invalid_value",
            )
        return Truncation(max(1, room) if wanted == -1 else wanted, self.truncation_side or "left")


class PromptLogprob(Struct):
    """One token that could be at a place of the prompt; `rank` 1 is the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


def spelled(token: TokenAlternative, *, as_id: bool) -> str:
    """Return how a token is shown in logprobs."""
    return f"token_id:{token.token_id}" if as_id else token.text
