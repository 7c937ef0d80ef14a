"""Owns the parameters that chat and completions share about their prompts, and about showing tokens; they are vLLM's.

Knows no endpoint.
"""

from typing import Annotated, Literal

from msgspec import Meta

from app.api.schemas.beams import BeamFields
from app.errors import Inapplicable, InvalidRequest
from app.text.truncation import Truncation


class PromptFields(BeamFields, kw_only=True):
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
