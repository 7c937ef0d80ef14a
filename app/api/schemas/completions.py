"""Owns the objects of /v1/completions (openai-python: types/completion_create_params.py, types/completion.py)."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app.api.schemas.common import TokenCount, Usage
from app.api.schemas.output import PromptLogprob
from app.api.schemas.prompts import PromptFields
from app.errors import Inapplicable, InvalidRequest

REFUSED: dict[str, str] = {}

_Prompt = str | list[str | int | list[int]]


class CompletionRequest(PromptFields, kw_only=True):
    """`prompt` is a text, a list of texts, a list of token ids, or a list of lists of token ids.

    With a `suffix` that is not empty, what is generated is the text between the two.
    """

    prompt: _Prompt | None = None
    best_of: Annotated[int, Meta(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    max_tokens: TokenCount | None = None
    suffix: str | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or more; an absent one is the empty text (OpenAI: "from the beginning of a new document")."""
        prompt = self.prompt
        if prompt is None:
            return [""]
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise InvalidRequest("`prompt` must not be an empty list.", param="prompt")
        kinds = {type(item) for item in prompt}
        if len(kinds) > 1:
            raise InvalidRequest(
                "`prompt` must hold texts only, or token ids only, or lists of token ids only.", param="prompt"
            )
        if kinds == {int}:
            return [prompt]  # type: ignore[list-item]  # all are int
        if any(item == [] for item in prompt):
            raise InvalidRequest("`prompt` must not hold an empty list of token ids.", param="prompt")
        return prompt  # type: ignore[return-value]  # all are str, or all are list

    @property
    def num_candidates(self) -> int:
        """Continuations generated per prompt: best_of, or n."""
        return max(self.n or 1, self.best_of or 1)

    def check(self) -> None:
        """Raise InvalidRequest for combinations that contradict each other."""
        self.check_stream_options()
        self.check_beams()
        _ = self.constraint
        if self.best_of and self.best_of < (self.n or 1):  # 0, which openapi.yaml allows, is no wish
            raise InvalidRequest(f"`best_of` ({self.best_of}) must not be less than `n` ({self.n}).", param="best_of")
        if self.stream and self.num_candidates > (self.n or 1):
            raise InvalidRequest("`best_of` above `n` can not be streamed.", param="best_of")
        self.check_prompt_fields(has_logprobs=self.logprobs is not None)
        if self.suffix:
            for name in ("add_special_tokens", "truncate_prompt_tokens"):
                if getattr(self, name) is not None:
                    raise Inapplicable(f"`{name}` is not possible with `suffix`, which sets the prompt's form.", param=name)
        if self.add_special_tokens and not isinstance(self.prompts[0], str):
            raise Inapplicable("`add_special_tokens` is for texts; ids are taken as they are.", param="add_special_tokens")
        if self.suffix and self.echo and self.logprobs is not None:
            raise Inapplicable(
                "`echo` with `logprobs` is not possible with `suffix`: the model does not read the prompt as it is written.",
                param="echo",
            )


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists, one entry per token; `text_offset` counts characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    """The token ids are there on request; in a stream `prompt_token_ids` are in a choice's first chunk."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length", "content_filter"] | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | UnsetType = UNSET


class Completion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
