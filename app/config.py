"""Owns config.json: every key, its default, range and description, and reading the file. Knows no torch, no HTTP.

The keys are those of transformers-openai-api, so that its files start this server unchanged, plus limits. A
description, a range and the words of an error live together in one `Meta`: app/config_schema.py makes the JSON Schema
and the table of the README from them. `load_config` stops at the first thing that is wrong and says where it is.
"""

import difflib
import enum
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from app.errors import ConfigError

_INT_MAX = 2**31 - 1
_CUT = 80

# Patterns are read by Python here and by the editor's ECMAScript in the JSON Schema. Python's `$` also matches before a
# trailing newline, `(?!\n)$` does not, and both languages have it.
_END = r"(?!\n)$"
_VISIBLE = rf"^[^\s\x00-\x1f\x7f-\x9f]+{_END}"
_DEVICE_PATTERN = r"cpu|cuda(:[0-9]+)?|mps|xpu(:[0-9]+)?"
DTYPE_ALIASES = {"half": "float16", "float": "float32", "double": "float64", "short": "int16", "int": "int32", "long": "int64"}
DTYPES = (
    *(
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex64",
        "complex128",
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
    ),
    *("uint8", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    *("float8_e8m0fnu", *DTYPE_ALIASES),
)


def _doc(description: str, expected: str, **constraints: Any) -> Meta:
    return Meta(description=description, extra={"expected": expected}, **constraints)


def _whole(description: str, low: int, high: int = _INT_MAX) -> Meta:
    return _doc(description, f"a whole number from {low} to {high}", ge=low, le=high)


def _number(description: str, low: float, high: float) -> Meta:
    return _doc(description, f"a number from {low} to {high}", ge=low, le=high)


def expected_text(type_: Any) -> str:
    """Return what a type of this module expects, in words."""
    text: str = type_.__metadata__[-1].extra["expected"]
    return text


ServedName = Annotated[
    str,
    _doc(
        "The name that clients ask for.",
        "a served name of 1 to 200 characters without whitespace or control characters",
        pattern=_VISIBLE,
        max_length=200,
    ),
]
BearerToken = Annotated[
    str,
    _doc("One token.", "a token of printable ASCII characters without spaces", pattern=rf"^[\x21-\x7e]+{_END}"),
]
_DType = Annotated[
    str,
    _doc(
        'Type of the weights: "auto" or the name of a torch dtype.',
        '"auto" or the name of a torch dtype, such as "bfloat16", "float16" or "float32"',
        pattern=rf"^(auto|(torch\.)?({'|'.join(DTYPES)})){_END}",
    ),
]
_Device = Annotated[str, Meta(pattern=rf"^(auto|{_DEVICE_PATTERN}){_END}")] | None
_DEVICE_WORDS = '"auto", "cpu", "cuda", "cuda:N", "mps", "xpu", "xpu:N" or null'
_Bool = Annotated[bool, _doc("", "true or false")]

# Values in the free objects that are checked here, because a wrong one would fail late or in the middle of a request.
MODEL_CONFIG_KEYS: dict[str, Any] = {
    "dtype": _DType,
    "torch_dtype": _DType,
    "device_map": Annotated[
        Annotated[str, Meta(pattern=rf"^(auto|balanced|balanced_low_0|sequential|{_DEVICE_PATTERN}){_END}")]
        | Annotated[int, Meta(ge=0, le=_INT_MAX)]
        | None,
        _doc(
            "Where accelerate puts the layers; needs MODEL_DEVICE null or absent.",
            '"auto", "balanced", "balanced_low_0", "sequential", a device, an object: module -> device, or null',
        ),
    ],
    "trust_remote_code": _Bool,
}
# Not a part of the union above: msgspec 0.22 corrupts memory on a str with a pattern next to a dict or list in a union.
DEVICE_MAP_OBJECT = Annotated[
    dict[str, Annotated[int, Meta(ge=0, le=_INT_MAX)] | Annotated[str, Meta(min_length=1)]],
    _doc("", "an object: module name -> device name or number of a GPU"),
]
TOKENIZER_CONFIG_KEYS: dict[str, Any] = {"trust_remote_code": _Bool}
_Limit = Annotated[int, _whole("", 1)]
_Size = Annotated[int, _whole("", 0)]
_Fraction = Annotated[float, _number("", 0, 1)]
GENERATE_CONFIG_KEYS: dict[str, Any] = {
    "max_tokens": Annotated[int, _whole("Old name of max_length.", 1)],
    "max_length": _Limit,
    "max_new_tokens": _Limit,
    "min_length": _Size,
    "min_new_tokens": _Size,
    "num_beams": Annotated[int, _whole("", 1, 1024)],
    "no_repeat_ngram_size": _Size,
    "encoder_no_repeat_ngram_size": _Size,
    "top_k": _Size,
    "top_p": _Fraction,
    "min_p": _Fraction,
    "temperature": Annotated[float, _number("", 0, 100)],
    "repetition_penalty": Annotated[float, _doc("", "a number above 0, up to 100", gt=0, le=100)],
    "length_penalty": Annotated[float, _number("", -100, 100)],
    "do_sample": _Bool,
    "early_stopping": Annotated[bool | Literal["never"], _doc("", 'true, false or "never"')],
}

# Keys that would fight with what the server itself passes to these functions.
MODEL_CONFIG_REFUSED = ("pretrained_model_name_or_path", "config", "state_dict", "output_loading_info")
TOKENIZER_CONFIG_REFUSED = ("pretrained_model_name_or_path", "config")
GENERATE_CONFIG_REFUSED = (
    *("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "encoder_outputs"),
    *("decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask", "generation_config", "logits_processor"),
    *("stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model", "streamer", "tokenizer"),
    *("negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate"),
)


class ModelType(enum.StrEnum):
    CAUSAL_LM = "CausalLM"
    SEQ2SEQ = "Seq2Seq"


class DecodeConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """DECODE_CONFIG. Its keys keep the names that the tokenizer gives them."""

    skip_special_tokens: Annotated[
        bool, _doc("Leave special tokens such as the end of the sequence out of the text.", "true or false")
    ] = True
    clean_up_tokenization_spaces: Annotated[
        bool | None,
        _doc("Take out spaces before punctuation; null leaves it to the tokenizer.", "true, false or null"),
    ] = None


class ModelSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="upper"):
    """One entry of MODELS."""

    enabled: Annotated[bool, _doc("false keeps the entry in the file and does not load it.", "true or false")] = True
    name: Annotated[
        str,
        _doc(
            "What to load: a model id of the Hugging Face hub, a local directory, or a demo model shipped with tfoai.",
            "the name or the path of a model",
            pattern=rf"^(?=.*\S)[^\x00-\x1f\x7f]+{_END}",
        ),
    ]
    type: Annotated[
        ModelType,
        _doc(
            "Decoder-only (CausalLM) or encoder-decoder (Seq2Seq): which transformers auto class loads it.",
            '"CausalLM" or "Seq2Seq"',
        ),
    ]
    model_config: Annotated[
        dict[str, Any],
        _doc("Arguments of `from_pretrained` of the model, such as `dtype` or `device_map`.", "an object or null"),
    ] = field(default_factory=dict)
    model_device: Annotated[
        _Device,
        _doc(
            "Where the model runs; auto is the GPU if there is one and the CPU if not; null leaves it to accelerate, "
            "and is what an absent key means when MODEL_CONFIG has a `device_map`.",
            _DEVICE_WORDS,
        ),
    ] = "cuda"
    tokenizer_config: Annotated[
        dict[str, Any], _doc("Arguments of `from_pretrained` of the tokenizer.", "an object or null")
    ] = field(default_factory=dict)
    tokenizer_device: Annotated[
        _Device,
        _doc(
            "Accepted for compatibility, has no effect: tokens go to the device of their model.",
            _DEVICE_WORDS,
        ),
    ] = "cuda"
    generate_config: Annotated[
        dict[str, Any],
        _doc("Defaults of generation, by their names in transformers; a request overrides them.", "an object or null"),
    ] = field(default_factory=dict)
    decode_config: Annotated[
        DecodeConfig,
        _doc(
            "How tokens become text: `skip_special_tokens` (true) and `clean_up_tokenization_spaces` (null).",
            "an object or null",
        ),
    ] = DecodeConfig()
    max_num_seqs: Annotated[int, _whole("Sequences that run at the same time; the others wait for their turn.", 1, 4096)] = 32
    max_model_len: Annotated[
        _Limit | None,
        _doc(
            "Context limit in tokens, prompt and continuation; null is the limit of the model.",
            f"{expected_text(_Limit)}, or null",
        ),
    ] = None


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="upper"):
    """The whole file."""

    host: Annotated[
        str,
        _doc("Address to listen on; 0.0.0.0 is every interface.", "a host name or an address", pattern=_VISIBLE),
    ] = "127.0.0.1"
    port: Annotated[int, _whole("TCP port to listen on; 0 takes any free one.", 0, 65535)] = 5000
    models: Annotated[
        dict[ServedName, ModelSettings],
        _doc("The models by the name that clients ask for; at least one is enabled.", "an object of models"),
    ]
    bearer_tokens: Annotated[
        Annotated[tuple[BearerToken, ...], Meta(min_length=1)] | None,
        _doc("Tokens that clients may send; absent or null: no authorization.", "a list of tokens or null"),
    ] = None
    metrics: Annotated[bool, _doc("Serve /metrics and /v1/metrics; 1 and 0 mean true and false.", "true, false, 1 or 0")] = True
    max_queue: Annotated[int, _whole("Sequences that may wait for one model; more are refused with status 429.", 1)] = 128
    max_body_bytes: Annotated[
        int, _whole("Largest body of a request in bytes; a larger one is refused with status 413.", 1024)
    ] = 2 * 1024 * 1024
    drain_timeout: Annotated[
        float,
        _number("Seconds that running requests get to finish when the server is told to stop.", 0, 86400),
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
    root = _parse(_read_text(Path(path)))
    if not isinstance(root, dict):
        raise ConfigError("", _show(root), "a JSON object")
    # Unknown keys first: then the only place where tokens can be is known, and no message quotes what is there.
    _refuse_unknown(root, ("$schema", *(f.encode_name for f in msgspec.structs.fields(Config))), "")
    _check_tree(root)
    _value(root.pop("$schema", ""), Annotated[str, _doc("", "the address of a JSON Schema")], "$schema")
    config = Config(**_struct_values(Config, root, ""))
    if not config.enabled_models:
        raise ConfigError("MODELS", "no enabled model", "at least one model without ENABLED false")
    return config


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("", "no such file", "a configuration file; config.example.json is one to start from") from None
    except IsADirectoryError:
        raise ConfigError("", "a directory", "a configuration file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "a path that can not be opened"
        raise ConfigError("", reason, "a readable configuration file") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("", f"bytes that are not UTF-8 at offset {error.start}", "UTF-8 text") from None


class _Repeated(dict[str, Any]):
    """An object of the file that has a key twice; json alone would silently keep the last value."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    seen: set[str] = set()
    repeated = _Repeated(result)
    repeated.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return repeated


def _parse(text: str) -> Any:
    if not text.strip():
        raise ConfigError("", "an empty file", "a JSON object")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        found = f"invalid JSON at line {error.lineno}, column {error.colno} ({error.msg})"
    except RecursionError:
        found = "values nested too deep"
    except ValueError:
        found = "a number with too many digits"  # Python's own limit on int(); the position is lost
    raise ConfigError("", found, "a JSON object")


def _check_tree(root: dict[str, Any]) -> None:
    """Refuse what Python's json takes and JSON or later code does not: repeated keys, NaN, half characters."""
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        place, value = stack.pop()
        if isinstance(value, dict):
            secret = place.startswith("BEARER_TOKENS")
            if isinstance(value, _Repeated):
                raise ConfigError(place if secret else _at(place, value.key), "the same key twice", "every key once")
            for key, child in reversed(value.items()):
                at = place if secret else _at(place, key)
                _refuse_half_characters(key, at)
                stack.append((at, child))
        elif isinstance(value, list):
            stack.extend((f"{place}[{i}]", child) for i, child in reversed(list(enumerate(value))))
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(place, "NaN or a number that is infinite", "a finite number")
        elif isinstance(value, str):
            _refuse_half_characters(value, place)


def _refuse_half_characters(text: str, place: str) -> None:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ConfigError(place, "half of a surrogate pair", "Unicode text")


def _struct_values(cls: type[Struct], raw: Any, place: str) -> dict[str, Any]:
    """Return the checked values of the keys that `raw` has, by attribute name."""
    if not isinstance(raw, dict):
        raise ConfigError(place, _show(raw), "an object")
    fields = {f.encode_name: f for f in msgspec.structs.fields(cls)}
    _refuse_unknown(raw, fields, place)
    values: dict[str, Any] = {}
    for key, info in fields.items():
        at = _at(place, key)
        if key in raw:
            reader = _READERS.get(key)
            values[info.name] = reader(raw[key], at) if reader else _value(raw[key], info.type, at)
        elif info.required:
            raise ConfigError(at, "nothing", expected_text(info.type))
    return values


def _models(raw: Any, place: str) -> dict[str, ModelSettings]:
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(place, _show(raw), "an object with at least one model: served name -> model")
    return {_value(name, ServedName, _at(place, name)): _model(model, _at(place, name)) for name, model in raw.items()}


def _model(raw: Any, place: str) -> ModelSettings:
    values = _struct_values(ModelSettings, raw, place)
    if values.get("model_config", {}).get("device_map") is not None:
        if values.get("model_device") is not None:
            expected = f"null, because {place}.MODEL_CONFIG.device_map is set: set MODEL_DEVICE to null"
            raise ConfigError(_at(place, "MODEL_DEVICE"), _show(values["model_device"]), expected)
        # The old server would call .to("cuda") here, on a model that accelerate has placed: an error for some
        # placements and a silent move for others. An absent MODEL_DEVICE is taken as the null its README asks for.
        values["model_device"] = None
    return ModelSettings(**values)


def _bearer_tokens(raw: Any, place: str) -> tuple[str, ...] | None:
    if raw is None:
        return None
    if not isinstance(raw, list):
        raise ConfigError(place, _kind(raw), "a list of tokens")
    if not raw:
        raise ConfigError(place, "an empty list, which lets nobody in", "absent, or at least one token")
    for i, token in enumerate(raw):
        try:
            msgspec.convert(token, BearerToken)
        except msgspec.ValidationError:
            found = _kind(token)
            if isinstance(token, str) and token:
                found = "whitespace" if any(map(str.isspace, token)) else "a character that is not printable ASCII"
            # `from None` also keeps the token out of tracebacks.
            raise ConfigError(f"{place}[{i}]", found, expected_text(BearerToken)) from None
    return tuple(raw)


def _metrics(raw: Any, place: str) -> bool:
    if isinstance(raw, int) and raw in (0, 1):
        return bool(raw)
    raise ConfigError(place, _show(raw), "true, false, 1 or 0")


def _options(raw: Any, place: str, known: dict[str, Any], refused: Iterable[str] = (), why: str = "") -> dict[str, Any]:
    """Check a free object; null is an empty one, as it was in the old server."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(place, _show(raw), "an object or null")
    for key, value in raw.items():
        if key in refused:
            raise ConfigError(_at(place, key), "a key that is not allowed here", f"it to be absent: {why}")
        if key in known:
            _value(value, known[key], _at(place, key))
    return dict(raw)


def _model_config(raw: Any, place: str) -> dict[str, Any]:
    known = dict(MODEL_CONFIG_KEYS)
    if isinstance(raw, dict) and isinstance(raw.get("device_map"), dict):
        known["device_map"] = DEVICE_MAP_OBJECT
    options = _options(raw, place, known, MODEL_CONFIG_REFUSED, "tfoai sets it when it loads the model")
    # One canonical `dtype` for whoever loads the model: `torch_dtype` is deprecated in transformers.
    dtypes = {key: options.pop(key).removeprefix("torch.") for key in ("torch_dtype", "dtype") if key in options}
    names = {DTYPE_ALIASES.get(name, name) for name in dtypes.values()}
    if len(names) > 1:
        found = f"torch_dtype {dtypes['torch_dtype']} and dtype {dtypes['dtype']}"
        raise ConfigError(_at(place, "torch_dtype"), found, "one of the two keys, or the same value in both")
    if names:
        options["dtype"] = names.pop()
    return options


def _tokenizer_config(raw: Any, place: str) -> dict[str, Any]:
    why = "tfoai sets it when it loads the tokenizer"
    return _options(raw, place, TOKENIZER_CONFIG_KEYS, TOKENIZER_CONFIG_REFUSED, why)


def _generate_config(raw: Any, place: str) -> dict[str, Any]:
    why = "it belongs to a single call of generate()"
    options = _options(raw, place, GENERATE_CONFIG_KEYS, GENERATE_CONFIG_REFUSED, why)
    if "max_tokens" in options:
        alias = options.pop("max_tokens")
        if options.setdefault("max_length", alias) != alias:
            found = f"max_tokens {alias} and max_length {options['max_length']}"
            raise ConfigError(_at(place, "max_tokens"), found, "one of the two keys, or the same value in both")
    return options


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
}


def _value(raw: Any, type_: Any, place: str) -> Any:
    try:
        return msgspec.convert(raw, type_)
    except msgspec.ValidationError:
        raise ConfigError(place, _show(raw), expected_text(type_)) from None


def _refuse_unknown(raw: dict[str, Any], known: Iterable[str], place: str) -> None:
    names = {name.upper(): name for name in known}
    for key in raw:
        if key in names.values():
            continue
        near = difflib.get_close_matches(key[:_CUT].upper(), names, n=1)
        known_keys = ", ".join(name for name in names.values() if not name.startswith("$"))
        hint = f'a known key; did you mean "{names[near[0]]}"?' if near else f"one of {known_keys}"
        raise ConfigError(_at(place, key), "an unknown key", hint)


def _at(place: str, key: str) -> str:
    """Extend a dotted JSON path; a key that would make it ambiguous goes in brackets and quotes."""
    if re.fullmatch(rf"[\w$:/@+-]{{1,{_CUT}}}", key, re.ASCII):
        return f"{place}.{key}" if place else key
    return f"{place}[{_quote(key)}]"


def _quote(text: str) -> str:
    # Escapes keep control characters and line separators out of terminals and of the one line.
    quoted = json.dumps(text[:_CUT], ensure_ascii=not text[:_CUT].isprintable())
    return quoted if len(text) <= _CUT and len(quoted) <= _CUT + 2 else f'{quoted[:_CUT]}..."'


def _show(value: Any) -> str:
    """Show a value that was found; of lists and objects only the kind, because they can hold secrets."""
    if isinstance(value, str):
        return _quote(value)
    if value is None or isinstance(value, bool | int | float):
        shown = json.dumps(value)
        return shown if len(shown) <= _CUT else f"{shown[:_CUT]}..."
    return _kind(value)


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "a string" if value else "an empty string"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if value is None:
        return "null"
    return "a boolean" if isinstance(value, bool) else "a number"
