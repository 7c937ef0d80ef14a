"""Owns reading the files that sentence-transformers writes beside a model: which pooling, which layers behind it, limits,
prompts. Knows no torch: weights are named, not read.

modules.json                            the modules in order: Transformer, Pooling, then any of Dense, LayerNorm, Normalize
sentence_bert_config.json               max_seq_length, do_lower_case
1_Pooling/config.json                   how tokens become one vector; in the old form a flag per way, in the new one a name
config_sentence_transformers.json       prompts, default_prompt_name, truncate_dim

(sentence-transformers 6.2: base/modules/, sentence_transformer/modules/.)
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from app.errors import ConfigError

logger = logging.getLogger("tfoai.engine")

# In the order in which several of them are put side by side; the flags are those of files before version 5.5.
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")
# Read and written by modules that work on one vector per text.
_VECTOR = "sentence_embedding"


@dataclass(frozen=True, slots=True)
class HeadModule:
    """A layer behind the pooling: "Dense", "LayerNorm" or "Normalize", its settings, and the file with its weights."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceFiles:
    """What the files say; the defaults hold for a model without them: mean pooling, unit length.

    `folder` is where below the model's own place the transformer lies. `include_prompt` False leaves the prompt's tokens out
    of the pooling. `dimensions` is the size that vectors are cut to unless a request says otherwise.
    """

    exist: bool = False
    folder: str = ""
    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    head: tuple[HeadModule, ...] = (HeadModule("Normalize"),)
    max_seq_length: int | None = None
    do_lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    dimensions: int | None = None


def read_sentence_files(source: str, model_config: Mapping[str, Any], path: str) -> SentenceFiles:
    """Read the files of `source` (a directory or hub id); raise ConfigError under `path` for a module that tfoai lacks."""
    reader = _Reader(source, model_config, f"{path}.NAME")
    modules = reader.json("modules.json")
    if modules is None:
        return SentenceFiles()
    kinds = [_kind(module, reader) for module in _in_order(modules, reader)]
    names = [kind for kind, _ in kinds]
    if names[:2] != ["Transformer", "Pooling"]:
        raise reader.error(
            f"modules {', '.join(names) or 'none'} in its modules.json", "Transformer and Pooling as the first two"
        )
    (_, folder), (_, pooling_folder), *rest = kinds
    transformer: dict[str, Any] = next((found for name in _TRANSFORMER_FILES if (found := reader.json(name, folder))), {})
    if transformer.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise reader.error(f"transformer_task {transformer['transformer_task']!r}", "feature-extraction")
    pooling = reader.json("config.json", pooling_folder) or {}
    general = reader.json("config_sentence_transformers.json") or {}
    return SentenceFiles(
        exist=True,
        folder=folder,
        pooling=_pooling(pooling, reader),
        include_prompt=pooling.get("include_prompt", True),
        head=tuple(_head_module(kind, where, reader) for kind, where in rest if kind != "Dropout"),
        max_seq_length=transformer.get("max_seq_length"),
        do_lower_case=bool(transformer.get("do_lower_case")),
        prompts={name: text for name, text in (general.get("prompts") or {}).items() if text},
        default_prompt_name=general.get("default_prompt_name"),
        dimensions=general.get("truncate_dim"),
    )


def _in_order(modules: Any, reader: "_Reader") -> list[dict[str, Any]]:
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise reader.error("a modules.json that is no list of objects", "one that sentence-transformers wrote")
    return sorted(modules, key=lambda module: int(module.get("idx", 0)))


def _kind(module: Mapping[str, Any], reader: "_Reader") -> tuple[str, str]:
    """Return a module's class without its package, which has moved over the years, and its folder."""
    type_ = str(module.get("type", ""))
    kind = type_.rpartition(".")[2]
    known = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")
    if kind not in known or not type_.startswith("sentence_transformers."):
        raise reader.error(f"the module {type_[:100]!r} in its modules.json", f"sentence-transformers' own {', '.join(known)}")
    return kind, str(module.get("path", ""))


def _pooling(settings: Mapping[str, Any], reader: "_Reader") -> tuple[str, ...]:
    mode = settings.get("pooling_mode")
    if mode is None:
        modes = tuple(name for flag, name in POOLING_FLAGS.items() if settings.get(flag)) or ("mean",)
    else:
        modes = (mode,) if isinstance(mode, str) else tuple(mode)
    for mode in modes:
        if mode not in POOLING_FLAGS.values():
            raise reader.error(f"the pooling {mode!r}", f"one of {', '.join(POOLING_FLAGS.values())}")
    return modes


def _head_module(kind: str, folder: str, reader: "_Reader") -> HeadModule:
    if kind in ("Transformer", "Pooling"):
        raise reader.error(f"a second {kind} in its modules.json", "one of them, at the beginning")
    settings = reader.json("config.json", folder) or {}
    for key in ("module_input_name", "module_output_name"):
        if settings.get(key, _VECTOR) not in (_VECTOR, None):
            raise reader.error(f"a {kind} with {key} {settings[key]!r}", _VECTOR)
    if kind == "Normalize":
        return HeadModule(kind)
    weights = reader.file("model.safetensors", folder) or reader.file("pytorch_model.bin", folder)
    if weights is None:
        raise reader.error(f"no weights in {folder}", "model.safetensors or pytorch_model.bin")
    return HeadModule(kind, settings, weights)


class _Reader:
    """Finds files in a directory or on the hub, with the hub arguments of MODEL_CONFIG."""

    def __init__(self, source: str, model_config: Mapping[str, Any], place: str) -> None:
        self._source = source
        self._arguments = {name: model_config[name] for name in _HUB_ARGUMENTS if name in model_config}
        self._place = place

    def file(self, name: str, folder: str = "") -> Path | None:
        """Return where a file lies, None if there is none; offline, a file that was never fetched is none."""
        try:
            found = cached_file(
                self._source, name, subfolder=folder, _raise_exceptions_for_missing_entries=False, **self._arguments
            )
        except OSError as error:
            logger.warning("model.file_missing", extra={"file": f"{folder}/{name}", "detail": str(error)[:300]})
            return None
        return None if found is None else Path(found)

    def json(self, name: str, folder: str = "") -> Any:
        path = self.file(name, folder)
        if path is None:
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self.error(f"{folder}/{name} that can not be read ({error})", "a JSON file") from error

    def error(self, found: str, expected: str) -> ConfigError:
        return ConfigError(self._place, f'"{self._source}" with {found}', expected)
