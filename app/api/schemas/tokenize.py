"""Owns the objects of /tokenize, /detokenize, /tokenizer_info, /version and /load.

They are vLLM's (vllm/entrypoints/serve/tokenize/protocol.py), which lm-evaluation-harness' remote tokenizer speaks too
(lm_eval/utils.py, RemoteTokenizer). `model` in answers is ours: it says whose tokenizer answered.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from app.api.schemas.common import TokenCount
from app.api.schemas.messages import Message
from app.api.schemas.tools import Tool
from app.errors import InvalidRequest, UnsupportedParameter

REFUSED = {
    "chat_template": "templates are the model's own.",
    "media_io_kwargs": "this server reads text only.",
    "mm_processor_kwargs": "this server reads text only.",
}

ModelName = Annotated[str, Meta(min_length=1, max_length=512)]
_Variable = bool | int | float | str | None


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Either `prompt`, a plain text, or `messages`, a conversation; `model` absent is the first model of the configuration.

    A plain text gets the tokenizer's special tokens unless `add_special_tokens` is false; a conversation has those that the
    model's template writes.
    """

    model: ModelName | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, _Variable] | None = None

    def check(self) -> None:
        """Raise InvalidRequest for combinations that mean nothing."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Send either `prompt` or `messages`.", param="prompt" if self.prompt is None else "messages")
        if self.messages is None:
            for name in ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
                if getattr(self, name):
                    raise InvalidRequest(f"`{name}` belongs to `messages`, not to `prompt`.", param=name)
        elif self.add_special_tokens:
            raise UnsupportedParameter(
                "`add_special_tokens` is not supported with `messages`: the chat template writes them.",
                param="add_special_tokens",
            )
        elif self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "`continue_final_message` and `add_generation_prompt` exclude each other.", param="continue_final_message"
            )


class TokenizeResponse(msgspec.Struct, kw_only=True):
    """`max_model_len` is the model's context in tokens; `token_strs` are the tokens as the tokenizer spells them."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None
    model: str


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: ModelName | None = None
    tokens: list[TokenCount]


class DetokenizeResponse(msgspec.Struct, kw_only=True):
    prompt: str
    model: str


class TokenizerInfo(msgspec.Struct, kw_only=True):
    """What a client needs to work with the tokenizer from afar; the names are those of tokenizer_config.json.

    Special tokens are texts, null where the model has none; `chat_template` is the default one where there are several.
    """

    tokenizer_class: str
    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    sep_token: str | None
    cls_token: str | None
    mask_token: str | None
    additional_special_tokens: list[str]
    padding_side: str
    truncation_side: str
    chat_template: str | None
    model: str


class Version(msgspec.Struct):
    version: str


class ModelLoad(msgspec.Struct, kw_only=True):
    """Sequences of one model; `capacity` is how many may be admitted at a time (MAX_NUM_SEQS + MAX_QUEUE)."""

    running: int
    waiting: int
    admitted: int
    capacity: int


class Load(msgspec.Struct, kw_only=True):
    """`server_load` is vLLM's name for the number of requests that are being answered."""

    server_load: int
    models: dict[str, ModelLoad]
