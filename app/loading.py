"""Owns loading one entry of MODELS: tokenizer, chat template and engine together. Knows no admission and no HTTP.

torch and transformers are imported when a model is loaded, not before, so that the server can listen first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Protocol

import msgspec

from app.config import ModelSettings
from app.demo import DEMO_MODELS
from app.engine.defaults import GenerationDefaults
from app.engine.engine import Engine
from app.errors import ConfigError
from app.logs import adopt_library_logs

if TYPE_CHECKING:
    from app.text.chat import ChatTemplate
    from app.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that serves one loaded model."""

    engine: Engine
    tokenizer: "Tokenizer"
    chat: "ChatTemplate"
    defaults: GenerationDefaults
    is_encoder_decoder: bool
    num_decoder_start_tokens: int
    context_length: int
    vocab_size: int
    runner: str
    device: str
    dtype: str


class Loader(Protocol):
    """Loads one model; runs in the loading thread and may take minutes. Raises ConfigError."""

    def __call__(self, name: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]) -> Loaded: ...


def load_model(name: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]) -> Loaded:
    """Load tokenizer and model. Imports torch and transformers, which takes seconds."""
    from app.engine import loader
    from app.text.chat import ChatTemplate
    from app.text.tokenizer import load_tokenizer

    adopt_library_logs()
    # The shipped models go by their own names, wherever the package is installed.
    source = str(DEMO_MODELS.get(settings.name, settings.name))
    loaded = loader.load(name, source, settings, path, on_progress)
    try:
        tokenizer = load_tokenizer(source, settings.tokenizer_config, msgspec.structs.asdict(settings.decode_config), path)
    except ConfigError:
        loaded.engine.stop()
        raise
    return Loaded(
        engine=loaded.engine,
        tokenizer=tokenizer,
        chat=ChatTemplate(tokenizer),
        defaults=loaded.defaults,
        is_encoder_decoder=loaded.is_encoder_decoder,
        num_decoder_start_tokens=loaded.num_decoder_start_tokens,
        context_length=loaded.context_length,
        vocab_size=loaded.vocab_size,
        runner=loaded.runner,
        device=loaded.device,
        dtype=loaded.dtype,
    )


def package_version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
