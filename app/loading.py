"""Owns loading one entry of MODELS: tokenizer, chat template and engine together. Knows no admission and no HTTP.

torch and transformers are imported when a model is loaded, not before, so that the server can listen first.
"""

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from app.config import ModelSettings, ModelType
from app.demo import DEMO_MODELS
from app.engine.loaded import LoadedEncoder, LoadedModel
from app.errors import ConfigError
from app.logs import adopt_library_logs

if TYPE_CHECKING:
    from app.text.chat import ChatTemplate
    from app.text.decisions import DecisionPrompts
    from app.text.grammar import GrammarCompiler
    from app.text.infill import Infill
    from app.text.sentences import SentenceEncoder
    from app.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(LoadedModel):
    """Everything that serves one loaded model."""

    tokenizer: "Tokenizer"
    chat: "ChatTemplate"
    grammars: "GrammarCompiler"
    decisions: "DecisionPrompts"
    infill: "Infill | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEmbedder(LoadedEncoder):
    """Everything that serves one loaded embedding model. `chat` is there for those who count a conversation's tokens."""

    tokenizer: "Tokenizer"
    chat: "ChatTemplate"
    sentences: "SentenceEncoder"


def check_room(models: Iterable[ModelSettings]) -> None:
    """Raise ConfigError if the weights of these models, as they lie on disk, are more than their device has free.

    A container would be killed for it, without an exception. Nothing is known, and so nothing refused, of models that are not
    on disk yet and of those that accelerate places.
    """
    needed: dict[str, int] = {}
    for settings in models:
        if settings.model_device is not None:
            needed[settings.model_device] = needed.get(settings.model_device, 0) + _bytes_on_disk(settings)
    if not any(needed.values()):
        return
    from app.engine.memory import free_on

    for device, wanted in needed.items():
        free = free_on(device)
        if free is not None and wanted > free:
            raise ConfigError(
                "MODELS",
                f"{wanted / 1e9:.1f} GB of weights to load and {free / 1e9:.1f} GB of free memory on {device}",
                "room for new models beside those that serve",
            )


def _bytes_on_disk(settings: ModelSettings) -> int:
    directory = DEMO_MODELS.get(settings.name, Path(settings.name))
    if not directory.is_dir():
        from huggingface_hub import snapshot_download

        try:
            directory = Path(
                snapshot_download(settings.name, revision=settings.model_config.get("revision"), local_files_only=True)
            )
        except Exception:  # not a hub id, or not in the cache: loading will say which
            return 0
    sizes = {suffix: sum(path.stat().st_size for path in directory.glob(f"*{suffix}")) for suffix in (".safetensors", ".bin")}
    return sizes[".safetensors"] or sizes[".bin"]


def free_memory() -> None:
    """Give back what unloaded models have left behind."""
    gc.unfreeze()
    _settle()
    from app.engine.memory import release_unused

    release_unused()


def _settle() -> None:
    """Let collections of garbage leave alone what is there now: the objects of libraries and models are many, and stay.

    To walk through them takes a third of a second, in which no stream moves.
    """
    gc.collect()
    gc.freeze()


class Loader(Protocol):
    """Loads one model; runs in the loading thread and may take minutes. Raises ConfigError."""

    def __call__(
        self, name: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]
    ) -> Loaded | LoadedEmbedder: ...


def load_model(name: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]) -> Loaded | LoadedEmbedder:
    """Load tokenizer and model. Imports torch and transformers, which takes seconds."""
    loaded = _load(name, settings, path, on_progress)
    _settle()
    return loaded


def _load(name: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]) -> Loaded | LoadedEmbedder:
    from app.engine.encoder_loader import load_encoder
    from app.engine.loader import load
    from app.text.chat import ChatTemplate
    from app.text.decisions import DecisionPrompts
    from app.text.grammar import GrammarCompiler
    from app.text.infill import find_infill
    from app.text.sentences import SentenceEncoder
    from app.text.tokenizer import load_tokenizer

    adopt_library_logs()
    # The shipped models go by their own names, wherever the package is installed.
    source = str(DEMO_MODELS.get(settings.name, settings.name))
    loaded: LoadedModel | LoadedEncoder
    if settings.type is ModelType.EMBEDDING:
        loaded = load_encoder(name, source, settings, path, on_progress)
        folder = loaded.files.folder
    else:
        loaded, folder = load(name, source, settings, path, on_progress), ""
    arguments = {**settings.tokenizer_config, **({"subfolder": folder} if folder else {})}
    try:
        tokenizer = load_tokenizer(source, arguments, msgspec.structs.asdict(settings.decode_config), path)
        chat = ChatTemplate(tokenizer, tool_format=settings.tool_format, reasoning_format=settings.reasoning_format, path=path)
        infill = None
        if isinstance(loaded, LoadedModel):
            infill = find_infill(tokenizer, settings.fim_template, is_encoder_decoder=loaded.is_encoder_decoder, path=path)
    except ConfigError:
        loaded.engine.stop()
        raise
    facts = {field.name: getattr(loaded, field.name) for field in fields(loaded)}
    if isinstance(loaded, LoadedModel):
        grammars = GrammarCompiler(
            tokenizer, loaded.vocab_size, loaded.defaults.eos_token_ids, starts_text=loaded.is_encoder_decoder
        )
        decisions = DecisionPrompts(tokenizer, chat, is_encoder_decoder=loaded.is_encoder_decoder)
        return Loaded(tokenizer=tokenizer, chat=chat, grammars=grammars, infill=infill, decisions=decisions, **facts)
    files = loaded.files
    sentences = SentenceEncoder(
        tokenizer=tokenizer,
        do_lower_case=files.do_lower_case,
        prompts=files.prompts,
        default_prompt_name=files.default_prompt_name,
    )
    return LoadedEmbedder(tokenizer=tokenizer, chat=chat, sentences=sentences, **facts)
