"""Owns the tests of app/config.py and app/config_schema.py: what a file may say, and what a wrong file is told."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import cli, config_keys
from app.config import Config, DecodeConfig, ModelSettings, ModelType, load_config
from app.config_schema import config_json_schema, config_table
from app.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
SECRET = "sk-abcdefghijkl"

# The example of transformers-openai-api: its three models with their settings. Such a file has to load unchanged.
OLD_EXAMPLE: dict[str, Any] = {
    "MODELS": {
        "text-davinci-003": {
            "NAME": "google/flan-t5-base",
            "TYPE": "Seq2Seq",
            "MODEL_CONFIG": {"device_map": "auto"},
            "MODEL_DEVICE": None,
        },
        "text-curie-001": {
            "ENABLED": False,
            "NAME": "facebook/opt-350m",
            "TYPE": "CausalLM",
            "MODEL_CONFIG": {"torch_dtype": "float16"},
            "GENERATE_CONFIG": {"max_new_tokens": 2048},
        },
        "text-babbage-001": {
            "ENABLED": False,
            "NAME": "pszemraj/pegasus-x-large-book-summary",
            "TYPE": "Seq2Seq",
            "GENERATE_CONFIG": {
                "num_beams": 4,
                "early_stopping": True,
                "min_length": 8,
                "max_length": 256,
                "length_penalty": 0.2,
                "repetition_penalty": 3.5,
                "no_repeat_ngram_size": 3,
                "encoder_no_repeat_ngram_size": 3,
            },
        },
    }
}


def with_model(**keys: Any) -> dict[str, Any]:
    return {"MODELS": {"gpt2": {"NAME": "openai-community/gpt2", "TYPE": "CausalLM", **keys}}}


def with_top(**keys: Any) -> dict[str, Any]:
    return {**with_model(), **keys}


def named(name: str) -> dict[str, Any]:
    return {"MODELS": {name: {"NAME": "x", "TYPE": "CausalLM"}}}


def load(tmp_path: Path, content: Any) -> Config:
    return load_config(write(tmp_path, content))


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "config.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def model(tmp_path: Path, **keys: Any) -> ModelSettings:
    return load(tmp_path, with_model(**keys)).models["gpt2"]


# Broken as text: (content, place in the message, rest of the message). JSON Schema has nothing to say about these.
BROKEN_TEXT: list[tuple[str | bytes, str, str]] = [
    ("", "", "found an empty file"),
    (" \n\t", "", "found an empty file"),
    ('{"MODELS": {},\n  "PORT" 80\n}', "", "line 2, column 10"),
    ('{"MODELS": {},\n  "PORT": 80,\n}', "", "invalid JSON at line"),
    ("{'MODELS': {}}", "", "line 1, column 2"),
    ('{"HOST": "a\nb"}', "", "invalid JSON at line 1"),
    ('{"MODELS": {}} x', "", "line 1, column 16"),
    (b'{"HOST": "\xff"}', "", "not UTF-8 at offset 10"),
    (json.dumps(with_model()).encode("utf-16"), "", "not UTF-8"),
    ("[" * 100_000, "", "nested too deep"),
    ('{"PORT": ' + "1" * 5000 + "}", "", "too many digits"),
    ('{"PORT": 1, "PORT": 2}', "PORT: ", "the same key twice"),
    ('{"MODELS": {"a": {}, "a": {}}}', "MODELS.a: ", "the same key twice"),
    ('{"MODELS": {"a.b": {"NAME": "x", "NAME": "y"}}}', 'MODELS["a.b"].NAME: ', "the same key twice"),
    ('{"MODELS": {"a": {"MODEL_CONFIG": {"x": [{"y": 1, "y": 1}]}}}}', "MODELS.a.MODEL_CONFIG.x[0].y: ", "twice"),
    ('{"DRAIN_TIMEOUT": NaN}', "DRAIN_TIMEOUT: ", "expected a finite number"),
    ('{"DRAIN_TIMEOUT": -Infinity}', "DRAIN_TIMEOUT: ", "expected a finite number"),
    ('{"MODELS": {"a": {"GENERATE_CONFIG": {"x": [1e999]}}}}', "MODELS.a.GENERATE_CONFIG.x[0]: ", "a finite number"),
    (r'{"HOST": "\ud800"}', "HOST: ", "half of a surrogate pair"),
    (r'{"MODELS": {"\udc00": {}}}', r'MODELS["\udc00"]: ', "half of a surrogate pair"),
    ('{"BEARER_TOKENS": [{"' + SECRET + '": 1, "' + SECRET + '": 2}]}', "BEARER_TOKENS[0]: ", "twice"),
]

# Broken as values: (content, place in the message, rest of the message). The JSON Schema refuses them as well.
BROKEN: list[tuple[Any, str, str]] = [
    ([], "", "found an empty list; expected a JSON object"),
    ("null", "", "found null; expected a JSON object"),
    ({}, "MODELS: ", "found nothing; expected an object of models"),
    ({"MODELS": {}}, "MODELS: ", "found an empty object; expected an object with at least one model"),
    ({"MODELS": None}, "MODELS: ", "found null"),
    ({"MODELS": ["gpt2"]}, "MODELS: ", "found a list"),
    ({"MODELS": {"gpt2": "gpt2"}}, "MODELS.gpt2: ", 'found "gpt2"; expected an object'),
    (with_model(ENABLED=False), "MODELS: ", "found no enabled model"),
    (with_top(port=80), "port: ", 'found an unknown key; expected a known key; did you mean "PORT"?'),
    (with_top(BEARER_TOKEN=[SECRET]), "BEARER_TOKEN: ", 'did you mean "BEARER_TOKENS"?'),
    (with_top(QUUX=1), "QUUX: ", "expected one of HOST, PORT, MODELS"),
    (with_top(**{"a\nb": 1}), r'["a\nb"]: ', "an unknown key"),
    (with_top(**{"x" * 1000: 1}), '["xxxxxxx', '..."]: found an unknown key'),
    (with_top(**{"$schema": 1}), "$schema: ", "found 1; expected the address of a JSON Schema"),
    (with_top(HOST=""), "HOST: ", 'found ""'),
    (with_top(HOST="a b"), "HOST: ", 'found "a b"; expected a host name or an address'),
    (with_top(HOST="x\n"), "HOST: ", r'found "x\n"'),
    (with_top(HOST=None), "HOST: ", "found null"),
    (with_top(PORT="80"), "PORT: ", 'found "80"; expected a whole number from 0 to 65535'),
    (with_top(PORT=65536), "PORT: ", "found 65536"),
    (with_top(PORT=-1), "PORT: ", "found -1"),
    (with_top(PORT=80.5), "PORT: ", "found 80.5"),
    (with_top(PORT=True), "PORT: ", "found true"),
    (with_top(PORT=10**400), "PORT: ", "found 1000"),
    (with_top(METRICS=2), "METRICS: ", "found 2; expected true, false, 1 or 0"),
    (with_top(METRICS=None), "METRICS: ", "found null"),
    (with_top(MAX_QUEUE=0), "MAX_QUEUE: ", "found 0; expected a whole number from 1"),
    (with_top(MAX_BODY_BYTES=1023), "MAX_BODY_BYTES: ", "found 1023"),
    (with_top(DRAIN_TIMEOUT=-1), "DRAIN_TIMEOUT: ", "found -1; expected a number from 0 to 86400"),
    (with_top(DRAIN_TIMEOUT=10**400), "DRAIN_TIMEOUT: ", "found 1000"),
    (
        with_top(BEARER_TOKENS=[]),
        "BEARER_TOKENS: ",
        "an empty list, which lets nobody in; expected absent, or at least one",
    ),
    (with_top(BEARER_TOKENS=SECRET), "BEARER_TOKENS: ", "found a string; expected a list of tokens"),
    (with_top(BEARER_TOKENS={SECRET: SECRET}), "BEARER_TOKENS: ", "found an object"),
    (with_top(BEARER_TOKENS=["ok", ""]), "BEARER_TOKENS[1]: ", "found an empty string"),
    (with_top(BEARER_TOKENS=[SECRET + " x"]), "BEARER_TOKENS[0]: ", "found whitespace"),
    (with_top(BEARER_TOKENS=[SECRET + "\n"]), "BEARER_TOKENS[0]: ", "found whitespace"),
    (with_top(BEARER_TOKENS=[SECRET + "é"]), "BEARER_TOKENS[0]: ", "found a character that is not printable ASCII"),
    (with_top(BEARER_TOKENS=[[SECRET]]), "BEARER_TOKENS[0]: ", "found a list"),
    (with_top(BEARER_TOKENS=[None]), "BEARER_TOKENS[0]: ", "found null"),
    (with_top(BEARER_TOKENS_DIR=""), "BEARER_TOKENS_DIR: ", "expected the path of a directory or null"),
    (with_top(ALIASES=1), "ALIASES: ", "expected an object: name -> served name of an enabled model"),
    (with_top(COMPATIBILITY="loose"), "COMPATIBILITY: ", 'expected "strict" or "lenient"'),
    (with_top(METRICS_PORT=70000), "METRICS_PORT: ", "expected a whole number from 0 to 65535, or null"),
    (with_top(METRICS_ALIASES="tgi"), "METRICS_ALIASES: ", 'expected "vllm" or null'),
    (with_top(MODEL_RELOAD="never"), "MODEL_RELOAD: ", 'expected "swap", "replace" or "restart"'),
    (with_top(WRITE_TIMEOUT=0), "WRITE_TIMEOUT: ", "expected a number from 0.1 to 3600"),
    (with_top(BEARER_TOKENS=[7]), "BEARER_TOKENS[0]: ", "found a number"),
    (named(""), 'MODELS[""]: ', "expected a served name of 1 to 200 characters"),
    (named("a b"), 'MODELS["a b"]: ', "expected a served name"),
    (named("a\x1bb"), r'MODELS["a\u001bb"]: ', "expected a served name"),
    (named("a" * 201), 'MODELS["aaa', "expected a served name"),
    (with_model(TYPE="Causal"), "MODELS.gpt2.TYPE: ", 'found "Causal"; expected "CausalLM", "Seq2Seq" or "Embedding"'),
    (with_model(TYPE="x" * 500), "MODELS.gpt2.TYPE: ", 'xxx..."; expected'),
    (
        with_model(TYPE="Embedding", GENERATE_CONFIG={"top_k": 5}),
        "MODELS.gpt2.GENERATE_CONFIG: ",
        "a model of TYPE Embedding generates nothing",
    ),
    (with_model(TYPE="Embedding", KV_CACHE_MEMORY_FRACTION=0.5), "MODELS.gpt2.KV_CACHE_MEMORY_FRACTION: ", "found 0.5"),
    ({"MODELS": {"a.b": {"NAME": "x", "TYPE": 1}}}, 'MODELS["a.b"].TYPE: ', "found 1"),
    ({"MODELS": {"gpt2": {"TYPE": "CausalLM"}}}, "MODELS.gpt2.NAME: ", "found nothing"),
    ({"MODELS": {"gpt2": {"NAME": "x"}}}, "MODELS.gpt2.TYPE: ", "found nothing"),
    (with_model(NAME=""), "MODELS.gpt2.NAME: ", 'found ""'),
    (with_model(NAME="  "), "MODELS.gpt2.NAME: ", "expected the name or the path of a model"),
    (with_model(NAME="a\0"), "MODELS.gpt2.NAME: ", "expected the name or the path of a model"),
    (with_model(ENABLED=1), "MODELS.gpt2.ENABLED: ", "found 1; expected true or false"),
    (with_model(MODLE_DEVICE="cpu"), "MODELS.gpt2.MODLE_DEVICE: ", 'did you mean "MODEL_DEVICE"?'),
    (with_model(name="x"), "MODELS.gpt2.name: ", 'did you mean "NAME"?'),
    (with_model(MODEL_DEVICE="gpu"), "MODELS.gpt2.MODEL_DEVICE: ", 'found "gpu"; expected "auto", "cpu", "cuda"'),
    (with_model(MODEL_DEVICE="cuda:"), "MODELS.gpt2.MODEL_DEVICE: ", 'found "cuda:"'),
    (with_model(MODEL_DEVICE="cuda:0\n"), "MODELS.gpt2.MODEL_DEVICE: ", "found"),
    (with_model(MODEL_DEVICE=0), "MODELS.gpt2.MODEL_DEVICE: ", "found 0"),
    (with_model(TOKENIZER_DEVICE="gpu"), "MODELS.gpt2.TOKENIZER_DEVICE: ", 'found "gpu"'),
    (with_model(MODEL_CONFIG="x"), "MODELS.gpt2.MODEL_CONFIG: ", "expected an object or null"),
    (with_model(MODEL_CONFIG=["hf_secret"]), "MODELS.gpt2.MODEL_CONFIG: ", "found a list"),
    (
        with_model(MODEL_CONFIG={"dtype": "fp16"}),
        "MODELS.gpt2.MODEL_CONFIG.dtype: ",
        'found "fp16"; expected "auto" or',
    ),
    (with_model(MODEL_CONFIG={"torch_dtype": None}), "MODELS.gpt2.MODEL_CONFIG.torch_dtype: ", "found null"),
    (
        with_model(MODEL_CONFIG={"config": {}}),
        "MODELS.gpt2.MODEL_CONFIG.config: ",
        "expected it to be absent: tfoai sets",
    ),
    (with_model(MODEL_CONFIG={"state_dict": 1}), "MODELS.gpt2.MODEL_CONFIG.state_dict: ", "expected it to be absent"),
    (
        with_model(MODEL_CONFIG={"trust_remote_code": "no"}),
        "MODEL_CONFIG.trust_remote_code: ",
        "expected true or false",
    ),
    (with_model(MODEL_CONFIG={"device_map": "autoo"}), "MODEL_CONFIG.device_map: ", 'found "autoo"'),
    (
        with_model(MODEL_CONFIG={"device_map": {"": None}}),
        "MODEL_CONFIG.device_map: ",
        "expected an object: module name",
    ),
    (with_model(MODEL_CONFIG={"device_map": []}), "MODEL_CONFIG.device_map: ", "found an empty list"),
    (
        with_model(MODEL_CONFIG={"device_map": "auto"}, MODEL_DEVICE="cuda"),
        "MODELS.gpt2.MODEL_DEVICE: ",
        'found "cuda"; expected null, because MODELS.gpt2.MODEL_CONFIG.device_map is set: set MODEL_DEVICE to null',
    ),
    (with_model(TOKENIZER_CONFIG=1), "MODELS.gpt2.TOKENIZER_CONFIG: ", "found 1"),
    (with_model(TOKENIZER_CONFIG={"config": 1}), "MODELS.gpt2.TOKENIZER_CONFIG.config: ", "expected it to be absent"),
    (with_model(GENERATE_CONFIG=[1]), "MODELS.gpt2.GENERATE_CONFIG: ", "found a list"),
    (
        with_model(GENERATE_CONFIG={"streamer": None}),
        "MODELS.gpt2.GENERATE_CONFIG.streamer: ",
        "single call of generate()",
    ),
    (with_model(GENERATE_CONFIG={"input_ids": [1]}), "MODELS.gpt2.GENERATE_CONFIG.input_ids: ", "single call"),
    (with_model(GENERATE_CONFIG={"max_new_tokens": 0}), "GENERATE_CONFIG.max_new_tokens: ", "found 0"),
    (with_model(GENERATE_CONFIG={"max_tokens": "9"}), "GENERATE_CONFIG.max_tokens: ", 'found "9"'),
    (with_model(GENERATE_CONFIG={"num_beams": 1.5}), "GENERATE_CONFIG.num_beams: ", "found 1.5"),
    (with_model(GENERATE_CONFIG={"temperature": -0.1}), "GENERATE_CONFIG.temperature: ", "found -0.1"),
    (with_model(GENERATE_CONFIG={"top_p": 1.1}), "GENERATE_CONFIG.top_p: ", "expected a number from 0 to 1"),
    (with_model(GENERATE_CONFIG={"repetition_penalty": 0}), "GENERATE_CONFIG.repetition_penalty: ", "above 0"),
    (with_model(GENERATE_CONFIG={"do_sample": 1}), "GENERATE_CONFIG.do_sample: ", "found 1; expected true or false"),
    (with_model(GENERATE_CONFIG={"early_stopping": "always"}), "GENERATE_CONFIG.early_stopping: ", 'false or "never"'),
    (
        with_model(DECODE_CONFIG={"errors": "x"}),
        "MODELS.gpt2.DECODE_CONFIG.errors: ",
        "expected one of skip_special_tokens",
    ),
    (
        with_model(DECODE_CONFIG={"Skip_special_token": 1}),
        "DECODE_CONFIG.Skip_special_token: ",
        '"skip_special_tokens"?',
    ),
    (with_model(DECODE_CONFIG={"skip_special_tokens": None}), "DECODE_CONFIG.skip_special_tokens: ", "found null"),
    (with_model(DECODE_CONFIG=[]), "MODELS.gpt2.DECODE_CONFIG: ", "found an empty list"),
    (with_model(MAX_NUM_SEQS=0), "MODELS.gpt2.MAX_NUM_SEQS: ", "expected a whole number from 1 to 4096"),
    (with_model(MAX_NUM_SEQS=4097), "MODELS.gpt2.MAX_NUM_SEQS: ", "found 4097"),
    (with_model(MAX_MODEL_LEN=0), "MODELS.gpt2.MAX_MODEL_LEN: ", "found 0"),
]

# Broken in a way that JSON Schema can not say.
BROKEN_BEYOND_SCHEMA: list[tuple[Any, str, str]] = [
    (with_top(ALIASES={"a": "nobody"}), "ALIASES.a: ", 'found "nobody"; expected another name for an enabled model'),
    (with_top(METRICS_PORT=5000), "METRICS_PORT: ", "found 5000, which is PORT too"),
    (
        with_model(MODEL_CONFIG={"dtype": "float16", "torch_dtype": "bfloat16"}),
        "MODELS.gpt2.MODEL_CONFIG.torch_dtype: ",
        "found torch_dtype bfloat16 and dtype float16",
    ),
    (
        with_model(GENERATE_CONFIG={"max_tokens": 5, "max_length": 6}),
        "MODELS.gpt2.GENERATE_CONFIG.max_tokens: ",
        "found max_tokens 5 and max_length 6",
    ),
]

GOOD: list[Any] = [
    OLD_EXAMPLE,
    with_model(),
    with_top(**{"$schema": "docs/config.schema.json"}),
    with_top(HOST="::", PORT=0, MAX_QUEUE=1, MAX_BODY_BYTES=1024, DRAIN_TIMEOUT=0.5),
    with_top(BEARER_TOKENS=None),
    with_top(METRICS_PORT=None, METRICS_ALIASES=None, BEARER_TOKENS_DIR=None),
    with_top(METRICS_PORT=9090, METRICS_ALIASES="vllm", BEARER_TOKENS_DIR="/etc/tfoai/tokens", MODEL_RELOAD="replace"),
    with_top(PORT=0, METRICS_PORT=0, RELOAD_INTERVAL=0, DRAIN_DELAY=0, STALL_TIMEOUT=0, HEADER_TIMEOUT=0.1, WRITE_TIMEOUT=5),
    with_top(BEARER_TOKENS=[SECRET, "!~"]),
    *(with_top(METRICS=value) for value in (True, False, 1, 0)),
    named("org/model:v1.5"),
    named("模型"),
    named("a" * 200),
    with_model(NAME="/srv/my models/gpt2"),
    *(with_model(MODEL_DEVICE=device) for device in ("auto", "cpu", "cuda", "cuda:12", "mps", "xpu", "xpu:0", None)),
    with_model(MODEL_CONFIG=None, TOKENIZER_CONFIG=None, GENERATE_CONFIG=None, DECODE_CONFIG=None),
    *(with_model(MODEL_CONFIG={"device_map": value}) for value in ("auto", "balanced_low_0", "cuda:1", 0, {"": 0})),
    with_model(MODEL_CONFIG={"device_map": None}, MODEL_DEVICE="cuda"),
    with_model(MODEL_CONFIG={"device_map": {"a": 1, "b": "cpu"}, "max_memory": {"0": "1GB"}}, MODEL_DEVICE=None),
    *(with_model(MODEL_CONFIG={"dtype": dtype}) for dtype in ("auto", "torch.bfloat16", "float8_e5m2", "half")),
    with_model(MODEL_CONFIG={"trust_remote_code": True, "anything": {"goes": [1, None]}}),
    with_model(GENERATE_CONFIG={"max_tokens": 5, "early_stopping": "never", "bad_words_ids": [[1]], "top_k": 0}),
    with_model(GENERATE_CONFIG={"temperature": 0, "top_p": 1, "min_p": 0.1, "length_penalty": -1, "do_sample": False}),
    with_model(DECODE_CONFIG={"skip_special_tokens": False, "clean_up_tokenization_spaces": None}),
    with_model(MAX_NUM_SEQS=4096, MAX_MODEL_LEN=None),
]


@pytest.mark.parametrize(("content", "place", "text"), BROKEN_TEXT + BROKEN + BROKEN_BEYOND_SCHEMA)
def test_broken_file_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, place: str, text: str
) -> None:
    path = write(tmp_path, content)

    assert cli.main(["check", str(path)]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    line = err.removesuffix("\n")
    assert "\n" not in line and line.isprintable() and len(line) < 800
    assert line.startswith(f"tfoai: {path}: ")
    assert place in line and text in line
    if not place:
        assert line.startswith(f"tfoai: {path}: found ")
    assert SECRET not in line and "hf_secret" not in line and "Traceback" not in line


@pytest.mark.parametrize("content", GOOD)
def test_good_file_loads_and_the_schema_agrees(tmp_path: Path, content: Any) -> None:
    assert load(tmp_path, content).enabled_models
    jsonschema.validate(content, config_json_schema())


@pytest.mark.parametrize("content", [content for content, _, _ in BROKEN])
def test_schema_refuses_what_load_config_refuses(content: Any) -> None:
    content = json.loads(content) if isinstance(content, str) else content
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, config_json_schema())


@pytest.mark.parametrize("content", [content for content, _, _ in BROKEN_BEYOND_SCHEMA])
def test_schema_can_not_say_everything(content: Any) -> None:
    jsonschema.validate(content, config_json_schema())


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no such file"):
        load_config(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match="found a directory"):
        load_config(str(tmp_path))
    with pytest.raises(ConfigError, match="a path that can not be opened"):
        load_config("a\0b")
    with pytest.raises(ConfigError, match="found Not a directory"):
        load_config(write(tmp_path, "{}") / "config.json")


def test_error_has_place_found_and_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, with_model(TYPE="Causal"))
    assert str(caught.value) == 'MODELS.gpt2.TYPE: found "Causal"; expected "CausalLM", "Seq2Seq" or "Embedding"'
    assert caught.value.path == "MODELS.gpt2.TYPE"


def test_old_example(tmp_path: Path) -> None:
    loaded = load(tmp_path, OLD_EXAMPLE)

    assert (loaded.host, loaded.port, loaded.metrics, loaded.bearer_tokens) == ("127.0.0.1", 5000, True, None)
    assert list(loaded.models) == ["text-davinci-003", "text-curie-001", "text-babbage-001"]
    assert list(loaded.enabled_models) == ["text-davinci-003"]
    davinci, curie, babbage = loaded.models.values()
    assert (davinci.type, davinci.model_device) == (ModelType.SEQ2SEQ, None)
    assert davinci.model_config == {"device_map": "auto"}
    assert (curie.type, curie.model_device, curie.tokenizer_device) == (ModelType.CAUSAL_LM, "cuda", "cuda")
    assert curie.model_config == {"dtype": "float16"}
    assert curie.generate_config == {"max_new_tokens": 2048}
    assert babbage.generate_config == OLD_EXAMPLE["MODELS"]["text-babbage-001"]["GENERATE_CONFIG"]


def test_defaults(tmp_path: Path) -> None:
    loaded = load(tmp_path, with_model())
    assert (loaded.max_queue, loaded.max_body_bytes, loaded.drain_timeout) == (128, 2097152, 30)
    settings = loaded.models["gpt2"]
    assert (settings.enabled, settings.max_num_seqs, settings.max_model_len) == (True, 32, None)
    assert (settings.model_config, settings.tokenizer_config, settings.generate_config) == ({}, {}, {})
    assert settings.decode_config == DecodeConfig(skip_special_tokens=True, clean_up_tokenization_spaces=None)


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbf" + json.dumps(with_model()).encode()).port == 5000


@pytest.mark.parametrize(("given_value", "metrics"), [(1, True), (0, False), (True, True), (False, False)])
def test_metrics_is_a_boolean_afterwards(tmp_path: Path, given_value: Any, metrics: bool) -> None:
    assert load(tmp_path, with_top(METRICS=given_value)).metrics is metrics


def test_device_map_without_model_device_leaves_placement_to_accelerate(tmp_path: Path) -> None:
    assert model(tmp_path, MODEL_CONFIG={"device_map": "cpu"}).model_device is None
    assert model(tmp_path, MODEL_CONFIG={"device_map": None}).model_device == "cuda"
    assert model(tmp_path, MODEL_CONFIG={"device_map": None}, MODEL_DEVICE="cpu").model_device == "cpu"


@pytest.mark.parametrize(
    ("model_config", "dtype"),
    [
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"dtype": "half", "torch_dtype": "float16"}, "float16"),
        ({"dtype": "double"}, "float64"),
        ({"torch_dtype": "auto", "dtype": "auto"}, "auto"),
    ],
)
def test_dtype_is_normalised(tmp_path: Path, model_config: dict[str, Any], dtype: str) -> None:
    assert model(tmp_path, MODEL_CONFIG=model_config).model_config == {"dtype": dtype}


def test_dtypes_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in config_keys.DTYPES)
    # An alias has to mean what torch means by it.
    assert all(getattr(torch, a) is getattr(torch, b) for a, b in config_keys.DTYPE_ALIASES.items())


def test_max_tokens_is_the_old_name_of_max_length(tmp_path: Path) -> None:
    assert model(tmp_path, GENERATE_CONFIG={"max_tokens": 7, "x": 1}).generate_config == {"x": 1, "max_length": 7}
    assert model(tmp_path, GENERATE_CONFIG={"max_tokens": 7, "max_length": 7}).generate_config == {"max_length": 7}


def test_repr_has_no_secrets(tmp_path: Path) -> None:
    content = with_model(MODEL_CONFIG={"token": "hf_secret"}) | {"BEARER_TOKENS": [SECRET]}
    loaded = load(tmp_path, content)
    assert loaded.bearer_tokens == (SECRET,)
    assert SECRET not in repr(loaded) and "hf_secret" not in repr(loaded) and "<1>" in repr(loaded)


def test_settings_are_frozen(tmp_path: Path) -> None:
    loaded = load(tmp_path, with_model())
    with pytest.raises(AttributeError):
        loaded.port = 1  # type: ignore[misc]


known_keys = st.sampled_from(
    [row.key.rsplit(".", 1)[-1] for row in config_table()]
    + [*config_keys.MODEL_CONFIG_KEYS, *config_keys.GENERATE_CONFIG_KEYS, "$schema", "streamer", "model device"]
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["auto", "CausalLM", "cuda:0", "never", "float16", "\ud800", 10**500, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | known_keys, inner, max_size=3),
    max_leaves=8,
)
places = st.sampled_from([(), ("MODELS",), ("MODELS", "gpt2")]) | st.sampled_from(
    [("MODELS", "gpt2", key) for key in ("MODEL_CONFIG", "GENERATE_CONFIG", "TOKENIZER_CONFIG", "DECODE_CONFIG")]
)


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(st.tuples(places, known_keys | st.text(max_size=5), json_values), max_size=4))
def test_random_values_in_random_places(tmp_path_factory: pytest.TempPathFactory, changes: list[Any]) -> None:
    content = with_top(BEARER_TOKENS=[SECRET])
    for place, key, value in changes:
        parent: Any = content
        for step in place:
            parent = parent.setdefault(step, {}) if isinstance(parent, dict) else None
        if isinstance(parent, dict):
            parent[key] = value
    path = tmp_path_factory.getbasetemp() / "random.json"
    path.write_text(json.dumps(content), encoding="utf-8")

    try:
        load_config(path)
    except ConfigError as error:
        message = str(error)
        assert message.isprintable() and SECRET not in message and len(message) < 1000


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=40) | st.text(alphabet='{}[]",:1eN\\u ', max_size=30).map(str.encode))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.bin"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load_config(path)


def test_schema_in_docs_is_the_generated_one() -> None:
    """Run `python -m app.config_schema > docs/config.schema.json` when this fails."""
    expected = json.dumps(config_json_schema(), indent=2) + "\n"
    assert (REPOSITORY / "docs" / "config.schema.json").read_text(encoding="utf-8") == expected


def test_schema_is_valid_and_describes_every_key() -> None:
    schema = config_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    for keys in (schema["properties"], schema["$defs"]["ModelSettings"]["properties"]):
        for key, entry in keys.items():
            assert entry["description"], key
            assert "default" in entry or key in ("MODELS", "NAME", "TYPE", "$schema"), key


def test_table_has_every_key_in_words() -> None:
    rows = {row.key: row for row in config_table()}
    assert rows["PORT"][1:] == (
        "a whole number from 0 to 65535",
        "5000",
        "TCP port to listen on; 0 takes any free one.",
    )
    assert rows["MODELS.<name>.NAME"].default == "required"
    assert rows["MODELS.<name>.MODEL_CONFIG"].default == "{}"
    assert "MODELS.<name>.DECODE_CONFIG.skip_special_tokens" in rows
    assert all(row.type and re.fullmatch(r"[^|\n]+\.", row.description) for row in rows.values())


def test_configuration_is_light_to_import() -> None:
    program = "import sys, app.config, app.config_schema; print({m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not re.search("torch|transformers|litestar|uvicorn|numpy", loaded.stdout)
