"""Owns what is made from app/config.py: the JSON Schema of config.json and the README's table. Reads no file.

`python -m app.config_schema > docs/config.schema.json` writes the schema that is in the repository. The schema accepts
what `load_config` accepts, but for what JSON Schema can not say: METRICS_PORT that equals PORT, and `dtype` and
`torch_dtype`, or `max_tokens` and `max_length`, that contradict each other.
"""

import json
import re
from typing import Any, NamedTuple

import msgspec

from app import config_keys
from app.config import NOT_FOR_EMBEDDINGS, Config, DecodeConfig, ModelSettings
from app.config_limits import Limits
from app.config_values import fields_of

Schema = dict[str, Any]


class Row(NamedTuple):
    """One key of the file, in words. `default` is JSON, or "required"."""

    key: str
    type: str
    default: str
    description: str


def config_json_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of config.json."""
    root = msgspec.json.schema(Config)
    definitions: dict[str, Schema] = root["$defs"]
    top, model = definitions.pop("Config"), definitions["ModelSettings"]
    top["title"] = "config.json of tfoai"
    keys = top["properties"]
    keys["METRICS"] |= {"type": ["boolean", "integer"], "enum": [True, False, 0, 1]}
    # "Not all of them are disabled", which also refuses an object without models.
    keys["MODELS"]["not"] = {"additionalProperties": {"properties": {"ENABLED": {"const": False}}, "required": ["ENABLED"]}}
    keys["$schema"] = {"type": "string", "description": "Address of this schema, for editors."}

    by_key = model["properties"]
    _free_object(by_key["MODEL_CONFIG"], config_keys.MODEL_CONFIG_KEYS, config_keys.MODEL_CONFIG_REFUSED)
    _free_object(by_key["TOKENIZER_CONFIG"], config_keys.TOKENIZER_CONFIG_KEYS, config_keys.TOKENIZER_CONFIG_REFUSED)
    _free_object(by_key["GENERATE_CONFIG"], config_keys.GENERATE_CONFIG_KEYS, config_keys.GENERATE_CONFIG_REFUSED)
    by_key["MODEL_CONFIG"]["properties"]["device_map"]["anyOf"].append(_schema(config_keys.DEVICE_MAP_OBJECT))
    keys["LIMITS"]["anyOf"] = [{"$ref": keys["LIMITS"].pop("$ref")}, {"type": "null"}]
    by_key["DECODE_CONFIG"]["anyOf"] = [{"$ref": by_key["DECODE_CONFIG"].pop("$ref")}, {"type": "null"}]
    # A device_map and a MODEL_DEVICE that is not null exclude each other.
    with_map = {"type": "object", "required": ["device_map"], "properties": {"device_map": {"not": {"type": "null"}}}}
    model["not"] = {
        "required": ["MODEL_CONFIG", "MODEL_DEVICE"],
        "properties": {"MODEL_CONFIG": with_map, "MODEL_DEVICE": {"type": "string"}},
    }
    # What has no meaning for a model of TYPE Embedding is empty there.
    model["if"] = {"properties": {"TYPE": {"const": "Embedding"}}, "required": ["TYPE"]}
    model["then"] = {
        "properties": {name.upper(): {"enum": [None, 0, {}]} for name in NOT_FOR_EMBEDDINGS},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": definitions}


def _free_object(schema: Schema, known: dict[str, Any], refused: tuple[str, ...]) -> None:
    schema["type"] = ["object", "null"]
    schema["properties"] = {key: _schema(type_) for key, type_ in known.items()}
    schema["propertyNames"] = {"not": {"enum": list(refused)}}


def _schema(type_: Any) -> Schema:
    schema = msgspec.json.schema(type_)
    if not schema["description"]:
        del schema["description"]
    return schema


def config_table() -> list[Row]:
    """Return every key: those of the top level, then those of one model, then LIMITS."""
    return [
        *_rows(Config, ""),
        *_rows(ModelSettings, "MODELS.<name>."),
        *_rows(DecodeConfig, "MODELS.<name>.DECODE_CONFIG."),
        *_rows(Limits, "LIMITS."),
    ]


def _rows(cls: type[msgspec.Struct], place: str) -> list[Row]:
    rows = []
    for info in fields_of(cls):
        # A `default_factory` here is always that of an empty object.
        value = {} if info.default is msgspec.NODEFAULT else info.default
        # The keys of DECODE_CONFIG and LIMITS have rows of their own.
        value = {} if isinstance(value, DecodeConfig | Limits) else value
        default = "required" if info.required else re.sub(r"\.0$", "", json.dumps(value))
        description: str = info.type.__metadata__[-1].description
        rows.append(Row(place + info.encode_name, config_keys.expected_text(info.type), default, description))
    return rows


if __name__ == "__main__":
    print(json.dumps(config_json_schema(), indent=2))
