"""Owns config.json: every key, its default, range and description, and reading the file. Knows no torch, no HTTP.

The keys are those of transformers-openai-api, so that its files start this server unchanged, plus limits. A
description, a range and the words of an error live together in one `Meta`: app/config_schema.py makes the JSON Schema
and the table of the README from them. `load_config` stops at the first thing that is wrong and says where it is.
"""

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from app.config_keys import (
    DEVICE_MAP_OBJECT,
    DEVICE_WORDS,
    DTYPE_ALIASES,
    END,
    GENERATE_CONFIG_KEYS,
    GENERATE_CONFIG_REFUSED,
    MODEL_CONFIG_KEYS,
    MODEL_CONFIG_REFUSED,
    TOKENIZER_CONFIG_KEYS,
    TOKENIZER_CONFIG_REFUSED,
    VISIBLE,
    BearerToken,
    Device,
    FimTemplate,
    Fraction,
    Limit,
    ReasoningFormatName,
    ServedName,
    ToolFormatName,
    doc,
    expected_text,
    number,
    whole,
)
from app.config_limits import Limits
from app.config_process import ProcessSettings
from app.config_values import fields_of, options_of, refuse_unknown, value_of
from app.errors import ConfigError
from app.strict_json import at_key, check_tree, kind_of, parse_json, read_text, show


class ModelType(enum.StrEnum):
    CAUSAL_LM = "CausalLM"
    SEQ2SEQ = "Seq2Seq"
    EMBEDDING = "Embedding"


# Keys of a model that only mean something where text is generated.
NOT_FOR_EMBEDDINGS = ("generate_config", "kv_cache_memory_fraction", "fim_template")


class DecodeConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """DECODE_CONFIG. Its keys keep the names that the tokenizer gives them."""

    skip_special_tokens: Annotated[
        bool, doc("Leave special tokens out of the text; the token that ends a sequence is never part of it.", "true or false")
    ] = True
    clean_up_tokenization_spaces: Annotated[
        bool | None,
        doc(
            "Take out spaces before punctuation, for tokenizers that want it; null leaves it to the tokenizer.",
            "true, false or null",
        ),
    ] = None


class ModelSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="upper"):
    """One entry of MODELS."""

    enabled: Annotated[bool, doc("false keeps the entry in the file and does not load it.", "true or false")] = True
    name: Annotated[
        str,
        doc(
            "What to load: a model id of the Hugging Face hub, a local directory, or a demo model shipped with tfoai.",
            "the name or the path of a model",
            pattern=rf"^(?=.*\S)[^\x00-\x1f\x7f]+{END}",
        ),
    ]
    type: Annotated[
        ModelType,
        doc(
            "Decoder-only (CausalLM), encoder-decoder (Seq2Seq), or a model of either kind that makes vectors (Embedding).",
            '"CausalLM", "Seq2Seq" or "Embedding"',
        ),
    ]
    model_config: Annotated[
        dict[str, Any],
        doc("Arguments of `from_pretrained` of the model, such as `dtype` or `device_map`.", "an object or null"),
    ] = field(default_factory=dict)
    model_device: Annotated[
        Device,
        doc(
            "Where the model runs; auto is the GPU if there is one and the CPU if not; null leaves it to accelerate, "
            "and is what an absent key means when MODEL_CONFIG has a `device_map`.",
            DEVICE_WORDS,
        ),
    ] = "cuda"
    tokenizer_config: Annotated[
        dict[str, Any], doc("Arguments of `from_pretrained` of the tokenizer.", "an object or null")
    ] = field(default_factory=dict)
    tokenizer_device: Annotated[
        Device,
        doc(
            "Accepted for compatibility, has no effect: tokens go to the device of their model.",
            DEVICE_WORDS,
        ),
    ] = "cuda"
    generate_config: Annotated[
        dict[str, Any],
        doc("Defaults of generation, by their names in transformers; a request overrides them.", "an object or null"),
    ] = field(default_factory=dict)
    decode_config: Annotated[
        DecodeConfig,
        doc(
            "How tokens become text: `skip_special_tokens` (true) and `clean_up_tokenization_spaces` (null).",
            "an object or null",
        ),
    ] = DecodeConfig()
    max_num_seqs: Annotated[int, whole("Sequences that run at the same time; the others wait for their turn.", 1, 4096)] = 32
    max_model_len: Annotated[
        Limit | None,
        doc(
            "Context limit in tokens, prompt and continuation; null is the limit of the model.",
            f"{expected_text(Limit)}, or null",
        ),
    ] = None
    kv_cache_memory_fraction: Annotated[
        Fraction | None,
        doc(
            "Share of the memory free after loading that keys and values may take; null is 0.9 on a GPU, 0.3 on a CPU.",
            f"{expected_text(Fraction)}, or null",
        ),
    ] = None
    prefix_cache: Annotated[
        bool, doc("Keep the keys and values of prompts, for prompts that begin the same; never across tokens.", "true or false")
    ] = True
    tool_format: ToolFormatName = "auto"
    reasoning_format: ReasoningFormatName = "auto"
    fim_template: FimTemplate = None
    compile: Annotated[
        bool,
        doc(
            "Run the model through torch.compile: minutes at the start, less time per step; needs a compiler.", "true or false"
        ),
    ] = False


class Config(ProcessSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="upper"):
    """The whole file; the keys about the process alone are in app/config_process.py."""

    host: Annotated[
        str,
        doc("Address to listen on; 0.0.0.0 is every interface.", "a host name or an address", pattern=VISIBLE),
    ] = "127.0.0.1"
    port: Annotated[int, whole("TCP port to listen on; 0 takes any free one.", 0, 65535)] = 5000
    models: Annotated[
        dict[ServedName, ModelSettings],
        doc("The models by the name that clients ask for; at least one is enabled.", "an object of models"),
    ]
    aliases: Annotated[
        dict[ServedName, ServedName],
        doc(
            "Other names for models: alias -> served name, for clients whose model can not be set.",
            "an object: name -> served name of an enabled model",
        ),
    ] = field(default_factory=dict)
    compatibility: Annotated[
        Literal["strict", "lenient"],
        doc(
            "strict refuses parameters that are unknown or can not be honoured; lenient leaves them out and names them in the "
            "header x-tfoai-ignored.",
            '"strict" or "lenient"',
        ),
    ] = "strict"
    bearer_tokens: Annotated[
        Annotated[tuple[BearerToken, ...], Meta(min_length=1)] | None,
        doc("Tokens that clients may send; absent or null: no authorization.", "a list of tokens or null"),
    ] = None
    metrics: Annotated[bool, doc("Serve /metrics and /v1/metrics; 1 and 0 mean true and false.", "true, false, 1 or 0")] = True
    max_queue: Annotated[int, whole("Sequences that may wait for one model; more are refused with status 429.", 1)] = 128
    max_queue_tokens: Annotated[
        Limit | None,
        doc(
            "Tokens of prompts that one model may have admitted, running and waiting; more are refused with status 429; "
            "null: no limit but MAX_QUEUE.",
            f"{expected_text(Limit)}, or null",
        ),
    ] = None
    max_body_bytes: Annotated[
        int, whole("Largest body of a request in bytes; a larger one is refused with status 413.", 1024)
    ] = 2 * 1024 * 1024
    limits: Annotated[Limits, doc("How much a request may have of what can be counted.", "an object or null")] = Limits()
    drain_timeout: Annotated[
        float,
        number("Seconds that running requests get to finish when the server is told to stop.", 0, 86400),
    ] = 30.0

    @property
    def enabled_models(self) -> dict[str, ModelSettings]:
        return {name: model for name, model in self.models.items() if model.enabled}

    def __repr__(self) -> str:
        """Leave out the tokens, and MODEL_CONFIG, where a token of the hub may be: a repr ends up in logs."""
        tokens = len(self.bearer_tokens or ())
        return f"Config(host={self.host!r}, port={self.port}, models={list(self.models)}, bearer_tokens=<{tokens}>)"


def load_config(path: Path | str) -> Config:
    """Read and check a file; whatever is wrong with it is a ConfigError."""
    root = parse_json(read_text(Path(path)))
    if not isinstance(root, dict):
        raise ConfigError("", show(root), "a JSON object")
    # Unknown keys first: then the only place where tokens can be is known, and no message quotes what is there.
    refuse_unknown(root, ("$schema", *(f.encode_name for f in fields_of(Config))), "")
    check_tree(root)
    value_of(root.pop("$schema", ""), Annotated[str, doc("", "the address of a JSON Schema")], "$schema")
    config = Config(**_struct_values(Config, root, ""))
    if not config.enabled_models:
        raise ConfigError("MODELS", "no enabled model", "at least one model without ENABLED false")
    for alias, name in config.aliases.items():
        if alias in config.enabled_models or name not in config.enabled_models:
            found = f'"{name}"' if name not in config.enabled_models else "an alias that is a served name itself"
            raise ConfigError(at_key("ALIASES", alias), found, "another name for an enabled model")
    if config.metrics_port and config.metrics_port == config.port:
        raise ConfigError("METRICS_PORT", f"{config.metrics_port}, which is PORT too", "another port, or null to share PORT")
    return config


def _struct_values(cls: type[Struct], raw: Any, place: str) -> dict[str, Any]:
    """Return the checked values of the keys that `raw` has, by attribute name."""
    if not isinstance(raw, dict):
        raise ConfigError(place, show(raw), "an object")
    fields = {f.encode_name: f for f in fields_of(cls)}
    refuse_unknown(raw, fields, place)
    values: dict[str, Any] = {}
    for key, info in fields.items():
        at = at_key(place, key)
        if key in raw:
            reader = _READERS.get(key)
            values[info.name] = reader(raw[key], at) if reader else value_of(raw[key], info.type, at)
        elif info.required:
            raise ConfigError(at, "nothing", expected_text(info.type))
    return values


def _models(raw: Any, place: str) -> dict[str, ModelSettings]:
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(place, show(raw), "an object with at least one model: served name -> model")
    return {value_of(name, ServedName, at_key(place, name)): _model(model, at_key(place, name)) for name, model in raw.items()}


def _model(raw: Any, place: str) -> ModelSettings:
    values = _struct_values(ModelSettings, raw, place)
    if values.get("model_config", {}).get("device_map") is not None:
        if values.get("model_device") is not None:
            expected = f"null, because {place}.MODEL_CONFIG.device_map is set: set MODEL_DEVICE to null"
            raise ConfigError(at_key(place, "MODEL_DEVICE"), show(values["model_device"]), expected)
        # The old server would call .to("cuda") here, on a model that accelerate has placed: an error for some
        # placements and a silent move for others. An absent MODEL_DEVICE is taken as the null its README asks for.
        values["model_device"] = None
    if values["type"] is ModelType.EMBEDDING:
        for name in NOT_FOR_EMBEDDINGS:
            if values.get(name):
                expected = "it to be absent: a model of TYPE Embedding generates nothing"
                raise ConfigError(at_key(place, name.upper()), show(raw[name.upper()]), expected)
    return ModelSettings(**values)


def _bearer_tokens(raw: Any, place: str) -> tuple[str, ...] | None:
    if raw is None:
        return None
    if not isinstance(raw, list):
        raise ConfigError(place, kind_of(raw), "a list of tokens")
    if not raw:
        raise ConfigError(place, "an empty list, which lets nobody in", "absent, or at least one token")
    for i, token in enumerate(raw):
        try:
            msgspec.convert(token, BearerToken)
        except msgspec.ValidationError:
            found = kind_of(token)
            if isinstance(token, str) and token:
                found = "whitespace" if any(map(str.isspace, token)) else "a character that is not printable ASCII"
            # `from None` also keeps the token out of tracebacks.
            raise ConfigError(f"{place}[{i}]", found, expected_text(BearerToken)) from None
    return tuple(raw)


def _metrics(raw: Any, place: str) -> bool:
    if isinstance(raw, int) and raw in (0, 1):
        return bool(raw)
    raise ConfigError(place, show(raw), "true, false, 1 or 0")


def _model_config(raw: Any, place: str) -> dict[str, Any]:
    known = dict(MODEL_CONFIG_KEYS)
    if isinstance(raw, dict) and isinstance(raw.get("device_map"), dict):
        known["device_map"] = DEVICE_MAP_OBJECT
    options = options_of(raw, place, known, MODEL_CONFIG_REFUSED, "tfoai sets it when it loads the model")
    # One canonical `dtype` for whoever loads the model: `torch_dtype` is deprecated in transformers.
    dtypes = {key: options.pop(key).removeprefix("torch.") for key in ("torch_dtype", "dtype") if key in options}
    names = {DTYPE_ALIASES.get(name, name) for name in dtypes.values()}
    if len(names) > 1:
        found = f"torch_dtype {dtypes['torch_dtype']} and dtype {dtypes['dtype']}"
        raise ConfigError(at_key(place, "torch_dtype"), found, "one of the two keys, or the same value in both")
    if names:
        options["dtype"] = names.pop()
    return options


def _tokenizer_config(raw: Any, place: str) -> dict[str, Any]:
    why = "tfoai sets it when it loads the tokenizer"
    return options_of(raw, place, TOKENIZER_CONFIG_KEYS, TOKENIZER_CONFIG_REFUSED, why)


def _generate_config(raw: Any, place: str) -> dict[str, Any]:
    why = "it belongs to a single call of generate()"
    options = options_of(raw, place, GENERATE_CONFIG_KEYS, GENERATE_CONFIG_REFUSED, why)
    if "max_tokens" in options:
        alias = options.pop("max_tokens")
        if options.setdefault("max_length", alias) != alias:
            found = f"max_tokens {alias} and max_length {options['max_length']}"
            raise ConfigError(at_key(place, "max_tokens"), found, "one of the two keys, or the same value in both")
    return options


def _limits(raw: Any, place: str) -> Limits:
    return Limits(**_struct_values(Limits, {} if raw is None else raw, place))


def _decode_config(raw: Any, place: str) -> DecodeConfig:
    return DecodeConfig(**_struct_values(DecodeConfig, {} if raw is None else raw, place))


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "MODELS": _models,
    "BEARER_TOKENS": _bearer_tokens,
    "METRICS": _metrics,
    "MODEL_CONFIG": _model_config,
    "TOKENIZER_CONFIG": _tokenizer_config,
    "GENERATE_CONFIG": _generate_config,
    "DECODE_CONFIG": _decode_config,
    "LIMITS": _limits,
}
