"""Owns loading one entry of MODELS: tokenizer, chat template and engine together. Knows no admission and no HTTP.

torch and transformers are imported when a model is loaded, not before, so that the server can listen first.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

import msgspec

from app.config import ModelSettings
from app.demo import DEMO_MODELS
from app.engine.loaded import LoadedModel
from app.errors import ConfigError
from app.logs import adopt_library_logs

if TYPE_CHECKING:
    from app.text.chat import ChatTemplate
    from app.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(LoadedModel):
    """Everything that serves one loaded model."""

    tokenizer: "Tokenizer"
    chat: "ChatTemplate"


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
        chat = ChatTemplate(tokenizer, tool_format=settings.tool_format, reasoning_format=settings.reasoning_format, path=path)
    except ConfigError:
        loaded.engine.stop()
        raise
    facts = {field.name: getattr(loaded, field.name) for field in fields(loaded)}
    return Loaded(tokenizer=tokenizer, chat=chat, **facts)
