"""Owns the served models: name -> ServedModel, their state, admission and draining. Knows no HTTP and no torch."""

import asyncio
import enum
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from app.config import Config, ModelSettings, ModelType
from app.engine.defaults import SamplingRequest
from app.engine.engine import EngineDeadError
from app.engine.pooling_job import PoolingInput, PoolingJob
from app.engine.sequence import SamplingParams
from app.engine.stream import TokenStream
from app.errors import (
    ContextLengthExceeded,
    Draining,
    EngineDead,
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    QueueFull,
)
from app.loading import Loaded, LoadedEmbedder, Loader, load_model
from app.versions import package_version

logger = logging.getLogger("tfoai.registry")

# What Retry-After says while a model loads or the queue is full, in seconds; openai-python honours up to 120.
RETRY_LOADING = 5.0
RETRY_QUEUE = 1.0


class ModelState(enum.StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class ServedModel:
    """One entry of MODELS: what it is, how far its loading is, and its admission."""

    def __init__(self, name: str, settings: ModelSettings, max_queue: int) -> None:
        self.name = name
        self.settings = settings
        self.created = int(time.time())
        self.progress = 0.0
        self.is_draining = False
        self.capacity = settings.max_num_seqs + max_queue
        self.num_admitted = 0
        # Requests that are being answered, counted by the API: their last bytes may leave long after their engine's last step.
        self.num_open_requests = 0
        self.system_fingerprint = ""
        self.load_seconds = 0.0
        self._loaded: Loaded | LoadedEmbedder | None = None

    @property
    def state(self) -> ModelState:
        if self._loaded is None:
            return ModelState.LOADING
        if self._loaded.engine.dead is not None:
            return ModelState.DEAD
        return ModelState.DRAINING if self.is_draining else ModelState.READY

    @property
    def loaded(self) -> Loaded:
        """What generates text; raise the reason why nothing can be asked of it now, or InvalidRequest if it makes vectors."""
        loaded = self.any_loaded
        if not isinstance(loaded, Loaded):
            raise self._of_other_kind()
        return loaded

    @property
    def encoder(self) -> LoadedEmbedder:
        """What makes vectors; raise as `loaded` does."""
        loaded = self.any_loaded
        if not isinstance(loaded, LoadedEmbedder):
            raise self._of_other_kind()
        return loaded

    @property
    def makes_embeddings(self) -> bool:
        return self.settings.type is ModelType.EMBEDDING

    def check_kind(self, *, embeddings: bool) -> None:
        """Raise InvalidRequest if this model does not do what is asked for, loaded or not."""
        if embeddings != self.makes_embeddings:
            raise self._of_other_kind()

    def _of_other_kind(self) -> InvalidRequest:
        does = (
            "makes embeddings; it answers /v1/embeddings and generates no text"
            if self.makes_embeddings
            else "generates text; it answers /v1/chat/completions and /v1/completions and makes no embeddings"
        )
        return InvalidRequest(f"The model `{self.name}` {does}.", param="model", code="unsupported_model")

    @property
    def any_loaded(self) -> Loaded | LoadedEmbedder:
        """What serves this model, of whatever kind; raise the reason why nothing can be asked of it now."""
        if self._loaded is None:
            raise ModelLoading(
                f"The model `{self.name}` is still loading ({self.progress:.0%}). Please try again shortly.",
                retry_after=RETRY_LOADING,
            )
        if self._loaded.engine.dead is not None:
            raise EngineDead(f"The engine of model `{self.name}` has stopped.", retry_after=RETRY_LOADING)
        return self._loaded

    @property
    def loaded_or_none(self) -> Loaded | LoadedEmbedder | None:
        """What serves this model, for those who only look at it."""
        return self._loaded

    @property
    def encoder_or_none(self) -> LoadedEmbedder | None:
        return self._loaded if isinstance(self._loaded, LoadedEmbedder) else None

    def unload(self) -> None:
        """Let go of everything; the engine must have been stopped."""
        self._loaded = None

    def is_stalled(self, timeout: float) -> bool:
        """True if the engine has work and has made no step for more than `timeout` seconds; 0 is never."""
        if self._loaded is None or not timeout:
            return False
        engine = self._loaded.engine.snapshot()
        return bool(engine.num_running or engine.num_waiting) and time.monotonic() - engine.last_step_time > timeout

    def load(self, load: Loader) -> None:
        """Load and start serving; takes minutes, so not on the event loop. Raise ConfigError."""
        start = time.monotonic()
        loaded = load(self.name, self.settings, _path(self.name), self._set_progress)
        self.load_seconds = time.monotonic() - start
        self.set_loaded(loaded)

    def _set_progress(self, share: float) -> None:
        self.progress = share

    def set_loaded(self, loaded: Loaded | LoadedEmbedder) -> None:
        # A stable name for everything that decides which tokens a seed gives.
        parts = [package_version(name) for name in ("tfoai", "torch", "transformers")]
        parts += [self.settings.name, loaded.dtype, loaded.device, loaded.runner]
        self.system_fingerprint = "fp_" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
        self._loaded = loaded
        self.progress = 1.0

    def admit(self, num_sequences: int) -> "Admission":
        """Take slots for all sequences of a request, or none; raise QueueFull.

        Called before any rendering or tokenizing, so that a full server refuses cheaply.
        """
        if self.is_draining:
            raise Draining("The server is shutting down. Please send the request to another replica.", retry_after=RETRY_QUEUE)
        _ = self.any_loaded
        if num_sequences > self.capacity:
            raise InvalidRequest(
                f"This request asks for {num_sequences} sequences (prompts x n or best_of); "
                f"at most {self.capacity} are possible (MAX_NUM_SEQS + MAX_QUEUE)."
            )
        if self.num_admitted + num_sequences > self.capacity:
            raise QueueFull(
                f"The model `{self.name}` is overloaded: {self.num_admitted} of {self.capacity} sequences are in use. "
                "Please retry.",
                retry_after=RETRY_QUEUE,
            )
        return Admission(self, num_sequences)

    def check_length(self, num_prompt_tokens: int, max_tokens: int, *, what: str) -> None:
        """Raise ContextLengthExceeded if prompt and completion do not fit.

        A decoder-only model has one context for both; an encoder-decoder model has one for each.
        """
        loaded = self.loaded
        limit = loaded.context_length
        if loaded.is_encoder_decoder:
            fits = num_prompt_tokens <= limit and loaded.num_decoder_start_tokens + max_tokens <= limit
        else:
            fits = num_prompt_tokens + max_tokens <= limit
        if not fits:
            raise ContextLengthExceeded(limit, num_prompt_tokens, max_tokens, what=what, param=what)

    def default_max_tokens(self, num_prompt_tokens: int, *, otherwise: int | None) -> int:
        """Return max_tokens for a request that names none: the model's default, else `otherwise`, else the rest of the context.

        The default is cut to what fits; only a number that the client sent is refused when it does not.
        """
        loaded = self.loaded
        used = loaded.num_decoder_start_tokens if loaded.is_encoder_decoder else num_prompt_tokens
        room = max(1, loaded.context_length - used)
        wanted = loaded.defaults.max_tokens(used)
        if wanted is None:
            wanted = otherwise
        return room if wanted is None else min(wanted, room)

    def resolve(self, request: SamplingRequest, *, max_tokens: int, choice: int = 0) -> SamplingParams:
        """Return the parameters of one choice; raise InvalidRequest for what contradicts itself or can not be honoured."""
        if request.min_tokens is not None and request.min_tokens > max_tokens:
            raise InvalidRequest(
                f"`min_tokens` ({request.min_tokens}) is more than the {max_tokens} tokens that may be generated.",
                param="min_tokens",
            )
        return self.loaded.defaults.resolve(request, max_tokens=max_tokens, choice=choice)


class Admission:
    """Slots held by one request. A sequence gives its slot back when the engine confirms its end; `close` the unused ones."""

    def __init__(self, model: ServedModel, num_sequences: int) -> None:
        self._model = model
        self._unused = num_sequences
        model.num_admitted += num_sequences

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, *, salt: str = "") -> TokenStream:
        loaded = self._model.loaded
        if self._unused < 1:
            raise RuntimeError("more sequences submitted than admitted")
        try:
            stream = loaded.engine.submit(prompt_ids, params, on_done=self._return_one, salt=salt)
        except EngineDeadError as error:
            raise EngineDead(f"The engine of model `{self._model.name}` has stopped.", retry_after=RETRY_LOADING) from error
        self._unused -= 1
        return stream

    def submit_inputs(self, inputs: Sequence[PoolingInput]) -> PoolingJob:
        """Queue a job for vectors; all of its inputs together take one slot."""
        loaded = self._model.encoder
        if self._unused < 1:
            raise RuntimeError("more jobs submitted than admitted")
        try:
            job = loaded.engine.submit(inputs, self._return_one)
        except EngineDeadError as error:
            raise EngineDead(f"The engine of model `{self._model.name}` has stopped.", retry_after=RETRY_LOADING) from error
        self._unused -= 1
        return job

    def close(self) -> None:
        self._model.num_admitted -= self._unused
        self._unused = 0

    def _return_one(self) -> None:
        self._model.num_admitted -= 1


class Registry:
    """All served models. `start` loads them one after the other in a thread of its own."""

    def __init__(self, config: Config, load: Loader | None = None) -> None:
        self.load = load or load_model
        self.models = {name: ServedModel(name, settings, config.max_queue) for name, settings in config.enabled_models.items()}
        self.stall_timeout = config.stall_timeout
        # Not ready any more, but still serving; then draining.
        self.is_leaving = False
        self.is_draining = False
        # Of all models, those included that are not served any more.
        self.num_open_requests = 0
        self._thread: threading.Thread | None = None
        self._has_started = False

    def start(self, on_error: Callable[[Exception], None]) -> None:
        """Begin loading; call on the event loop. `on_error` is called there if a model can not be loaded."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._load_all, args=(loop, on_error), name="load", daemon=True)
        self._thread.start()

    def _load_all(self, loop: asyncio.AbstractEventLoop, on_error: Callable[[Exception], None]) -> None:
        for model in self.models.values():
            try:
                model.load(self.load)
            except Exception as error:
                with _ignore_closed_loop():
                    loop.call_soon_threadsafe(on_error, error)
                return
            logger.info("model.ready", extra={"model": model.name})

    def get(self, name: str) -> ServedModel:
        """Return a served model, loaded or not; raise ModelNotFound."""
        model = self.models.get(name)
        if model is None:
            raise ModelNotFound(name)
        return model

    def get_or_first(self, name: str | None) -> ServedModel:
        """Return the model `name`; the first of the configuration for None; raise ModelNotFound."""
        return next(iter(self.models.values())) if name is None else self.get(name)

    @property
    def is_ready(self) -> bool:
        """True when every model can answer. Overload does not count: it would take all replicas out of the Service at once."""
        return not self.is_leaving and all(model.state is ModelState.READY for model in self.models.values())

    @property
    def has_started(self) -> bool:
        """True once every model has been loaded; what is loaded again later does not take it back."""
        self._has_started = self._has_started or all(model.state is not ModelState.LOADING for model in self.models.values())
        return self._has_started

    @property
    def is_alive(self) -> bool:
        """False when a restart would help: an engine has ended, or is busy and makes no progress."""
        return not any(model.state is ModelState.DEAD or model.is_stalled(self.stall_timeout) for model in self.models.values())

    def leave(self) -> None:
        """Be not ready from now on, so that load balancers look elsewhere; requests are still served."""
        self.is_leaving = True

    def drain(self) -> None:
        """Admit nothing more; what runs goes on."""
        self.leave()
        self.is_draining = True
        for model in self.models.values():
            model.is_draining = True

    def stop(self, seconds: float = 10) -> None:
        """End all engines; waits for their present steps, so call it off the event loop while there is one."""
        stop_all(self.models.values(), seconds)


def stop_all(models: Iterable[ServedModel], seconds: float = 10) -> None:
    """End the engines of these models, all at once, and wait at most `seconds` for their present steps."""
    deadline = time.monotonic() + seconds
    engines = [model.loaded_or_none.engine for model in models if model.loaded_or_none is not None]
    for engine in engines:
        engine.stop(0)
    for engine in engines:
        engine.stop(max(0.0, deadline - time.monotonic()))


def _path(name: str) -> str:
    return f"MODELS.{name}" if name.replace("-", "").replace("_", "").isalnum() else f'MODELS["{name}"]'


@contextmanager
def _ignore_closed_loop() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # the server has gone while a model was loading
        return
