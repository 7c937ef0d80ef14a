"""Owns loading one entry of MODELS: tokenizer, chat template and engine together. Knows no admission and no HTTP.

torch and transformers are imported when a model is loaded, not before, so that the server can listen first.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

import msgspec

from app.config import ModelSettings, ModelType
from app.demo import DEMO_MODELS
from app.engine.loaded import LoadedEncoder, LoadedModel
from app.errors import ConfigError
from app.logs import adopt_library_logs

if TYPE_CHECKING:
    from app.text.chat import ChatTemplate
    from app.text.sentences import SentenceEncoder
    from app.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(LoadedModel):
    """Everything that serves one loaded model."""

    tokenizer: "Tokenizer"
    chat: "ChatTemplate"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEmbedder(LoadedEncoder):
    """Everything that serves one loaded embedding model. `chat` is there for those who count a conversation's tokens."""

    tokenizer: "Tokenizer"
    chat: "ChatTemplate"
    sentences: "SentenceEncoder"


# How often a thread of torch looks for more work before it sleeps, about 0.2 ms: longer than the pause between two operators,
# shorter than the one between two steps. libgomp's own 3 ms take a processor from whoever has work, the threads it waits for
# among them: beside other processes, steps become many times longer.
_SPIN_COUNT = 20_000


class Loader(Protocol):
    """Loads one model; runs in the loading thread and may take minutes. Raises ConfigError."""

    def __call__(
        self, name: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]
    ) -> Loaded | LoadedEmbedder: ...


def load_model(name: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]) -> Loaded | LoadedEmbedder:
    """Load tokenizer and model. Imports torch and transformers, which takes seconds."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_COUNT))  # read when torch is imported
    from app.engine.encoder_loader import load_encoder
    from app.engine.loader import load
    from app.text.chat import ChatTemplate
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
    except ConfigError:
        loaded.engine.stop()
        raise
    facts = {field.name: getattr(loaded, field.name) for field in fields(loaded)}
    if isinstance(loaded, LoadedModel):
        return Loaded(tokenizer=tokenizer, chat=chat, **facts)
    files = loaded.files
    sentences = SentenceEncoder(
        tokenizer=tokenizer,
        do_lower_case=files.do_lower_case,
        prompts=files.prompts,
        default_prompt_name=files.default_prompt_name,
    )
    return LoadedEmbedder(tokenizer=tokenizer, chat=chat, sentences=sentences, **facts)
