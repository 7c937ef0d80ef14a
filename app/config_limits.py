"""Owns LIMITS of config.json: how much of everything that can be counted a request may have. `app/api/limits.py` enforces it.

The defaults are OpenAI's own limits where it has some. What is not here is bounded by MAX_BODY_BYTES and by the context of the
model; ranges of numbers that have a meaning (`temperature`, `top_logprobs`) are the API's and no limits. Reads nothing.
"""

from typing import Annotated

from msgspec import Struct

from app.config_keys import doc, expected_text, whole

_Tokens = Annotated[int, whole("", 1)]


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="upper"):
    """LIMITS."""

    n: Annotated[int, whole("Choices for one prompt (`n`, `best_of`).", 1, 1024)] = 16
    beams: Annotated[int, whole("Beams of one beam search (`num_beams`).", 1, 64)] = 8
    prompts: Annotated[int, whole("Prompts of one completion.", 1, 65536)] = 64
    inputs: Annotated[int, whole("Texts of one embeddings request.", 1, 65536)] = 2048
    messages: Annotated[int, whole("Messages of a conversation.", 1)] = 2048
    items: Annotated[int, whole("Items of an `input`; blocks of `system`; `documents` of a chat.", 1)] = 4096
    tools: Annotated[int, whole("Tools of one request.", 1)] = 128
    questions: Annotated[int, whole("Questions of one decision.", 1, 65536)] = 400
    text_characters: Annotated[int, whole("Characters of one text of `prompt`, `input` or `suffix`.", 1)] = 1_000_000
    prompt_tokens: Annotated[int, whole("Token ids of one list of them; the context of a model may be less.", 1)] = 1_000_000
    request_tokens: Annotated[
        _Tokens | None,
        doc(
            "Tokens of one request: prompts and max_tokens of all its sequences; null: what fits the context.",
            f"{expected_text(_Tokens)}, or null",
        ),
    ] = None
    stop: Annotated[int, whole("Stop texts.", 1, 1024)] = 4
    stop_characters: Annotated[int, whole("Characters of one stop text or bad word.", 1, 65536)] = 256
    stop_token_ids: Annotated[int, whole("Stop tokens.", 1, 65536)] = 64
    allowed_token_ids: Annotated[int, whole("Entries of `allowed_token_ids`.", 1)] = 65536
    bad_words: Annotated[int, whole("Words of `bad_words`.", 1, 65536)] = 64
    logit_bias: Annotated[int, whole("Entries of `logit_bias`.", 1)] = 300
    json_depth: Annotated[int, whole("Levels of objects and lists inside of each other in a body.", 4, 256)] = 128
    template_variables: Annotated[int, whole("Entries of `chat_template_kwargs`.", 1)] = 64
