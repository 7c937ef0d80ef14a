"""Owns the types of config.json's values: range, pattern, description and the words of their errors. Reads nothing."""

from typing import Annotated, Any, Literal

from msgspec import Meta

INT_MAX = 2**31 - 1

# Patterns are read by Python here and by the editor's ECMAScript in the JSON Schema. Python's `$` also matches before a
# trailing newline, `(?!\n)$` does not, and both languages have it.
END = r"(?!\n)$"
VISIBLE = rf"^[^\s\x00-\x1f\x7f-\x9f]+{END}"
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


def doc(description: str, expected: str, **constraints: Any) -> Meta:
    return Meta(description=description, extra={"expected": expected}, **constraints)


def whole(description: str, low: int, high: int = INT_MAX) -> Meta:
    return doc(description, f"a whole number from {low} to {high}", ge=low, le=high)


def number(description: str, low: float, high: float) -> Meta:
    return doc(description, f"a number from {low} to {high}", ge=low, le=high)


def expected_text(type_: Any) -> str:
    """Return what a type of this module expects, in words."""
    text: str = type_.__metadata__[-1].extra["expected"]
    return text


ServedName = Annotated[
    str,
    doc(
        "The name that clients ask for.",
        "a served name of 1 to 200 characters without whitespace or control characters",
        pattern=VISIBLE,
        max_length=200,
    ),
]
BearerToken = Annotated[
    str,
    doc("One token.", "a token of printable ASCII characters without spaces", pattern=rf"^[\x21-\x7e]+{END}"),
]
_DType = Annotated[
    str,
    doc(
        'Type of the weights: "auto" or the name of a torch dtype.',
        '"auto" or the name of a torch dtype, such as "bfloat16", "float16" or "float32"',
        pattern=rf"^(auto|(torch\.)?({'|'.join(DTYPES)})){END}",
    ),
]
Device = Annotated[str, Meta(pattern=rf"^(auto|{_DEVICE_PATTERN}){END}")] | None
DEVICE_WORDS = '"auto", "cpu", "cuda", "cuda:N", "mps", "xpu", "xpu:N" or null'
_Bool = Annotated[bool, doc("", "true or false")]

# Values in the free objects that are checked here, because a wrong one would fail late or in the middle of a request.
MODEL_CONFIG_KEYS: dict[str, Any] = {
    "dtype": _DType,
    "torch_dtype": _DType,
    "device_map": Annotated[
        Annotated[str, Meta(pattern=rf"^(auto|balanced|balanced_low_0|sequential|{_DEVICE_PATTERN}){END}")]
        | Annotated[int, Meta(ge=0, le=INT_MAX)]
        | None,
        doc(
            "Where accelerate puts the layers; needs MODEL_DEVICE null or absent.",
            '"auto", "balanced", "balanced_low_0", "sequential", a device, an object: module -> device, or null',
        ),
    ],
    "trust_remote_code": _Bool,
}
# Not a part of the union above: msgspec 0.22 corrupts memory on a str with a pattern next to a dict or list in a union.
DEVICE_MAP_OBJECT = Annotated[
    dict[str, Annotated[int, Meta(ge=0, le=INT_MAX)] | Annotated[str, Meta(min_length=1)]],
    doc("", "an object: module name -> device name or number of a GPU"),
]
TOKENIZER_CONFIG_KEYS: dict[str, Any] = {"trust_remote_code": _Bool}
# How models call tools and reason; app/text/formats.py has the same names.
TOOL_FORMATS = (
    *("harmony", "deepseek_v3", "deepseek_v31", "mistral_v11", "mistral", "gemma4", "functiongemma", "qwen_xml", "hermes"),
    "llama3",
)
REASONING_FORMATS = ("harmony", "gemma4", "mistral", "think")


def one_of(description: str, *names: str) -> Meta:
    return doc(description, " or ".join(f'"{name}"' for name in names), pattern=rf"^({'|'.join(names)}){END}")


ToolFormatName = Annotated[
    str,
    one_of(
        "How the model writes tool calls; auto: as its tokenizer's response template or its chat template shows.",
        *("auto", "none", *TOOL_FORMATS),
    ),
]
ReasoningFormatName = Annotated[
    str,
    one_of("How the model marks its reasoning; auto as for TOOL_FORMAT.", *("auto", "none", *REASONING_FORMATS)),
]
# One before the other, said without looking ahead, which patterns of Helm's schemas can not do.
_BOTH_ORDERS = (("prefix", "suffix"), ("suffix", "prefix"))
_ANY = r"[^\x00]*"
_FIM_ORDERS = "|".join(_ANY + rf"\{{{first}\}}" + _ANY + rf"\{{{then}\}}" + _ANY for first, then in _BOTH_ORDERS)
FimTemplate = Annotated[
    Annotated[str, Meta(pattern=rf"^({_FIM_ORDERS})?{END}", max_length=1000)] | None,
    doc(
        "How the model wants a prompt to fill the gap before `suffix`: its tokens around {prefix} and {suffix}. null: by the "
        "tokens that its tokenizer has; empty: it fills none.",
        'a text with {prefix} and {suffix} such as "<PRE>{prefix}<SUF>{suffix}<MID>", an empty text, or null',
    ),
]
Limit = Annotated[int, whole("", 1)]
_Size = Annotated[int, whole("", 0)]
Fraction = Annotated[float, number("", 0, 1)]
GENERATE_CONFIG_KEYS: dict[str, Any] = {
    "max_tokens": Annotated[int, whole("Old name of max_length.", 1)],
    "max_length": Limit,
    "max_new_tokens": Limit,
    "min_length": _Size,
    "min_new_tokens": _Size,
    "num_beams": Annotated[int, whole("", 1, 1024)],
    "no_repeat_ngram_size": _Size,
    "encoder_no_repeat_ngram_size": _Size,
    "top_k": _Size,
    "top_p": Fraction,
    "min_p": Fraction,
    "temperature": Annotated[float, number("", 0, 100)],
    "repetition_penalty": Annotated[float, doc("", "a number above 0, up to 100", gt=0, le=100)],
    "length_penalty": Annotated[float, number("", -100, 100)],
    "do_sample": _Bool,
    "early_stopping": Annotated[bool | Literal["never"], doc("", 'true, false or "never"')],
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
