"""Owns the objects of /v1/embeddings (openai-python: types/embedding_create_params.py, types/create_embedding_response.py)."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from app.errors import InvalidRequest

# OpenAI's own limit.
MAX_TOTAL_TOKENS = 300_000


class EmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`input` is a text, a list of texts, a list of token ids, or a list of lists of token ids.

    Texts get the tokenizer's special tokens, ids are taken as they are. The fields after `user` are not OpenAI's: `prompt_name`
    picks one of the model's own prompts, `truncate_prompt_tokens` cuts long inputs (-1: to the model's limit) instead of
    refusing them.
    """

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    user: Annotated[str, Meta(max_length=4096)] | None = None
    prompt_name: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """The inputs, one or more; raise InvalidRequest for empty or mixed ones."""
        given = self.input
        if isinstance(given, str):
            given = [given]
        if not given:
            raise InvalidRequest("`input` must not be an empty list.", param="input")
        kinds = {type(item) for item in given}
        if len(kinds) > 1:
            raise InvalidRequest("`input` must hold texts only, or token ids only, or lists of token ids only.", param="input")
        if kinds == {int}:
            given = [given]  # type: ignore[list-item]  # all are int
        for index, item in enumerate(given):
            if not item:
                place = "input" if isinstance(self.input, str) else f"input.[{index}]"
                raise InvalidRequest(f"`{place}` must not be empty.", param=place)
        return given  # type: ignore[return-value]  # all are str, or all are list

    def check(self) -> None:
        """Raise InvalidRequest for combinations that contradict each other."""
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequest("`truncate_prompt_tokens` must be positive, or -1.", param="truncate_prompt_tokens")
        if self.prompt_name is not None and not isinstance(self.inputs[0], str):
            raise InvalidRequest("`prompt_name` needs texts as `input`, not token ids.", param="prompt_name")


class Embedding(msgspec.Struct, kw_only=True):
    """`embedding` is a list of numbers, or base64 of them as little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
