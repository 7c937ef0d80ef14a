"""Owns the table of every parameter of every endpoint and its fate, and its page. Knows no handler.

The parameters that are honoured are the fields of the endpoints' structs, which decode bodies; those that are refused are the
`REFUSED` of their modules, which decoding asks too. What is said here is which fields change nothing, and which honour a part
of their values only. docs/compatibility.md is made from it: `python -m app.api.compatibility > docs/compatibility.md`.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from app.api.schemas import anthropic, chat, compaction, completions, decisions, responses, tokenize
from app.api.schemas.embeddings import EmbeddingRequest


class Fate(enum.StrEnum):
    """What happens to a parameter that is sent with a legal value."""

    HONOURED = "honoured"
    NO_EFFECT = "no effect"
    REFUSED = "refused"


class Parameter(NamedTuple):
    name: str
    fate: Fate
    note: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route's parameters. `no_effect` and `notes` map names to sentences; every name in them is a field of `request`."""

    route: str
    request: type[msgspec.Struct]
    refused: Mapping[str, str] = field(default_factory=dict)
    no_effect: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> list[Parameter]:
        """Every parameter, in the order of the alphabet."""
        names = [info.encode_name for info in msgspec.structs.fields(self.request)]
        rows = [Parameter(name, Fate.REFUSED, reason) for name, reason in self.refused.items()]
        for name in (name for name in names if name not in self.refused):
            if name in self.no_effect:
                rows.append(Parameter(name, Fate.NO_EFFECT, self.no_effect[name]))
            else:
                rows.append(Parameter(name, Fate.HONOURED, self.notes.get(name, "")))
        return sorted(rows)


_USER = {"user": "nothing here is counted by user."}
_HOSTING = {
    "metadata": "it labels what OpenAI stores; nothing is stored here.",
    "prompt_cache_key": "the prefix cache finds what is common by itself.",
    "prompt_cache_options": "the prefix cache needs no options.",
    "prompt_cache_retention": "cached blocks stay until their memory is needed.",
    "safety_identifier": "nothing here is counted by user.",
}
_SUFFIX = "where the model's tokenizer has fill-in-the-middle tokens, or FIM_TEMPLATE names them; else refused."
_BEAMS = {
    "early_stopping": "with `num_beams` of at least 2.",
    "encoder_no_repeat_ngram_size": "not beside what says itself what comes next.",
    "forced_bos_token_id": "encoder-decoder models; not beside what says itself what comes next.",
    "forced_eos_token_id": "not beside what says itself what comes next.",
    "length_penalty": "with `num_beams` of at least 2.",
    "no_repeat_ngram_size": "not beside what says itself what comes next.",
    "num_beams": "`n` of them at most are returned, all tokens at the end; not with logprobs, sampling, `response_format`, "
    "`logit_bias` and OpenAI's penalties.",
    "use_beam_search": "with `num_beams`, or with as many beams as `n`.",
}
_OUTPUT = _BEAMS | {
    "allowed_token_ids": "not beside what says itself what comes next (`response_format`, forced calls, ...).",
    "bad_words": "by the tokens that spell a word at the beginning of a line and behind a space; not beside `response_format`.",
    "prompt_logprobs": "not for encoder-decoder models, and not with `stream`.",
    "return_tokens_as_token_ids": "with `logprobs`.",
    "truncate_prompt_tokens": "more than the model takes is refused; -1 is what fits beside `max_tokens`.",
}
_STREAM = {
    "stream_options": "`include_usage`, `continuous_usage_stats`; `include_obfuscation` is taken, and no padding is sent."
}
_PREFIX_CACHE = {"cache_control": "the prefix cache finds what is common by itself, here and in blocks and tools."}
_OF_PROMPTS = {
    "messages": "text, thinking, `tool_use`, `tool_result`; images, documents and other blocks are refused by name.",
    "output_config": "`format`; `effort` where the model's template has a switch for it.",
    "output_format": "the older name of `output_config.format`.",
    "speed": '"standard"; "fast" is refused.',
    "thinking": "as far as the model's template can turn it on or off; `budget_tokens` is kept; thoughts are never hidden.",
    "tools": "your own; tools that Anthropic runs or defines are refused by name.",
}

ENDPOINTS = (
    Endpoint(
        "/v1/chat/completions",
        chat.ChatRequest,
        chat.REFUSED,
        _USER | _HOSTING | {"prediction": "a hint to be faster, which is not used."},
        _STREAM
        | {
            "messages": "text, refusals and calls; other content parts are refused.",
            "documents": "where the model's template reads them; else refused.",
            "modalities": '`["text"]`.',
            "reasoning_effort": "where the model's template has a switch for it; else refused.",
            "service_tier": "a priority among requests that wait.",
            "store": "false; true is refused: nothing is stored here.",
            "response_format": "beside `tools` that may be called: JSON, where calls can be told from it by their beginning.",
            "verbosity": "where the model's template reads it; else medium only.",
            "truncation_side": "left; right would cut off where the answer begins.",
        }
        | _OUTPUT,
    ),
    Endpoint(
        "/v1/responses",
        responses.ResponseRequest,
        responses.REFUSED,
        _USER | _HOSTING | {"max_tool_calls": "it counts calls of built-in tools, of which there are none."},
        {
            "background": "false; true is refused.",
            "include": "logprobs; what belongs to built-in tools never comes; encrypted reasoning is refused.",
            "input": "text, calls and their outputs, reasoning, compactions, references to stored items; no other parts.",
            "reasoning": "`effort` where the model's template has a switch for it; `summary` of auto.",
            "service_tier": "a priority among requests that wait.",
            "stream_options": "`include_obfuscation` is taken, and no padding is sent.",
            "text": "`format`; `verbosity` where the model's template reads it, else of medium.",
            "tools": "functions; built-in tools are refused.",
        }
        | _BEAMS
        | {name: _OUTPUT[name] for name in ("allowed_token_ids", "bad_words")},
    ),
    Endpoint(
        "/v1/responses/compact",
        compaction.CompactRequest,
        compaction.REFUSED,
        {name: note for name, note in _HOSTING.items() if name.startswith("prompt_cache_")},
        {"service_tier": "a priority among requests that wait."},
    ),
    Endpoint("/v1/responses/input_tokens", responses.InputTokensRequest, responses.REFUSED_FOR_COUNT),
    Endpoint(
        "/v1/messages",
        anthropic.MessagesRequest,
        anthropic.REFUSED,
        _PREFIX_CACHE
        | {
            "metadata": "nothing here is counted by user.",
            "service_tier": "there is one tier here.",
        },
        _OF_PROMPTS
        | {
            "max_tokens": "where the context has less, the `stop_reason` says so (model_context_window_exceeded).",
            "stop_sequences": "`stop_sequence` of the answer is the one that was found.",
        },
    ),
    Endpoint(
        "/v1/messages/count_tokens", anthropic.CountTokensRequest, anthropic.REFUSED_FOR_COUNT, _PREFIX_CACHE, _OF_PROMPTS
    ),
    Endpoint(
        "/v1/completions",
        completions.CompletionRequest,
        completions.REFUSED,
        _USER,
        _STREAM
        | _OUTPUT
        | {
            "add_special_tokens": "true is for texts; token ids are taken as they are; not with `suffix`.",
            "suffix": _SUFFIX,
            "truncate_prompt_tokens": f"{_OUTPUT['truncate_prompt_tokens'].rstrip('.')}; not with `suffix`.",
        },
    ),
    Endpoint(
        "/v1/decisions",
        decisions.DecisionRequest,
        decisions.REFUSED,
        {name: _HOSTING[name] for name in ("prompt_cache_key", "prompt_cache_options", "safety_identifier")},
        {"input": "text and JSON; images are refused.", "questions": "as many options as the model has labels of one token."},
    ),
    Endpoint("/v1/systemone", decisions.SystemOneRequest, decisions.SYSTEM_ONE_REFUSED),
    Endpoint("/v1/embeddings", EmbeddingRequest, {}, _USER),
    Endpoint("/tokenize", tokenize.TokenizeRequest, tokenize.REFUSED),
    Endpoint("/detokenize", tokenize.DetokenizeRequest),
)

# What a metric may name; everything else is "unknown".
NAMES = frozenset(parameter.name for endpoint in ENDPOINTS for parameter in endpoint.parameters)

_HEAD = """# Compatibility

Made from `app/api/compatibility.py`; the tests send every parameter below and see its fate.

**A 200 means that every parameter that was sent was honoured; anything else is a 400 that names it.** *No effect* is said of
what can not change an answer here. A name that is not below is refused too. With `COMPATIBILITY: "lenient"` what is refused as
unknown or unsupported is left out instead, and the header `x-tfoai-ignored` of the answer names it; wrong values stay errors.
"""


def page() -> str:
    """Return docs/compatibility.md."""
    parts = [_HEAD]
    for endpoint in ENDPOINTS:
        parts += [f"\n## {endpoint.route}\n\n", "| Parameter | Fate | |\n", "|---|---|---|\n"]
        parts += [f"| `{row.name}` | {row.fate} | {row.note} |\n" for row in endpoint.parameters]
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
