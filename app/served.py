"""Owns one served model: what it is, its state, admission and lengths. Knows no other model, no HTTP and no torch."""

import enum
import hashlib
import time
from collections.abc import Sequence
from functools import partial

from app.config import ModelSettings, ModelType
from app.drain_rate import DrainRate
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
    QueueFull,
    UnsupportedParameter,
)
from app.loading import Loaded, LoadedEmbedder, Loader
from app.versions import package_version

# What Retry-After says while a model loads or the server goes down, in seconds; openai-python honours up to 120.
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
        # Tokens of the prompts of all sequences that are admitted.
        self.num_prompt_tokens = 0
        self.drain_rate = DrainRate()
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

    def admit(self, num_sequences: int, *, reuses: bool = False) -> "Admission":
        """Take slots for all sequences of a request, or none; raise QueueFull. With `reuses` slots are kept until it is closed.

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
                retry_after=self.drain_rate.seconds_until(self.num_admitted + num_sequences - self.capacity),
            )
        if self.num_admitted == 0:
            self.drain_rate.begin()
        return Admission(self, num_sequences, reuses=reuses)

    def check_prompt_tokens(self, num_tokens: int, limit: int, param: str) -> None:
        """Raise QueueFull if so many tokens of prompts are more than are free now, InvalidRequest if they can never be."""
        if num_tokens > limit:
            raise InvalidRequest(
                f"The prompts of this request have {num_tokens} tokens, counted once for each sequence; "
                f"at most {limit} are possible (MAX_QUEUE_TOKENS).",
                param=param,
            )
        missing = self.num_prompt_tokens + num_tokens - limit
        if missing > 0:
            raise QueueFull(
                f"The model `{self.name}` is overloaded: {self.num_prompt_tokens} of {limit} tokens of prompts are in use, "
                f"and this request has {num_tokens}. Please retry.",
                retry_after=self.drain_rate.seconds_until(1, missing),
            )

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

    def room(self, num_prompt_tokens: int) -> int:
        """Return how many tokens the context has for a completion; less than 0 if it has too little for the prompt alone.

        The prompt of an encoder-decoder model has a context of its own.
        """
        loaded = self.loaded
        used = loaded.num_decoder_start_tokens if loaded.is_encoder_decoder else num_prompt_tokens
        return loaded.context_length - used

    def default_max_tokens(self, num_prompt_tokens: int, *, otherwise: int | None) -> int:
        """Return max_tokens for a request that names none: the model's default, else `otherwise`, else the rest of the context.

        The default is cut to what fits; only a number that the client sent is refused when it does not.
        """
        loaded = self.loaded
        used = loaded.num_decoder_start_tokens if loaded.is_encoder_decoder else num_prompt_tokens
        room = max(1, self.room(num_prompt_tokens))
        wanted = loaded.defaults.max_tokens(used)
        if wanted is None:
            wanted = otherwise
        return room if wanted is None else min(wanted, room)

    def prompt_room(self, max_tokens: int | None, *, otherwise: int) -> int:
        """Return how many tokens of a prompt fit beside `max_tokens`, or beside `otherwise` if no number was sent."""
        context_length = self.loaded.context_length
        if self.loaded.is_encoder_decoder:
            return context_length
        return context_length - (min(otherwise, context_length // 2) if max_tokens is None else max_tokens)

    def resolve(self, request: SamplingRequest, *, max_tokens: int, choice: int = 0) -> SamplingParams:
        """Return the parameters of one choice; raise InvalidRequest for what contradicts itself or can not be honoured."""
        if request.min_tokens is not None and request.min_tokens > max_tokens:
            raise InvalidRequest(
                f"`min_tokens` ({request.min_tokens}) is more than the {max_tokens} tokens that may be generated.",
                param="min_tokens",
            )
        loaded = self.loaded
        if request.forced_bos_token_id is not None and not (loaded.is_encoder_decoder and loaded.num_decoder_start_tokens == 1):
            raise UnsupportedParameter(
                f"`forced_bos_token_id` is not supported by the model `{self.name}`: it is for encoder-decoder models, whose "
                "decoders begin with one token.",
                param="forced_bos_token_id",
            )
        return loaded.defaults.resolve(request, max_tokens=max_tokens, choice=choice)


class Admission:
    """Slots held by one request. A sequence gives its slot back when the engine confirms its end; `close` the unused ones.

    Until it is closed, one that `reuses` gets the slot of a sequence that has ended back for the next one.
    """

    def __init__(self, model: ServedModel, num_sequences: int, *, reuses: bool = False) -> None:
        self._model = model
        self._reuses = reuses
        self._unused = num_sequences
        model.num_admitted += num_sequences

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, *, salt: str = "") -> TokenStream:
        loaded = self._model.loaded
        if self._unused < 1:
            raise RuntimeError("more sequences submitted than admitted")
        try:
            on_done = partial(self._return_one, len(prompt_ids))
            stream = loaded.engine.submit(prompt_ids, params, on_done=on_done, salt=salt)
        except EngineDeadError as error:
            raise EngineDead(f"The engine of model `{self._model.name}` has stopped.", retry_after=RETRY_LOADING) from error
        self._unused -= 1
        self._model.num_prompt_tokens += len(prompt_ids)
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
        self._reuses = False

    def _return_one(self, num_prompt_tokens: int = 0) -> None:
        self._model.num_prompt_tokens -= num_prompt_tokens
        self._model.drain_rate.note(num_prompt_tokens)
        if self._reuses:
            self._unused += 1
        else:
            self._model.num_admitted -= 1


def _path(name: str) -> str:
    return f"MODELS.{name}" if name.replace("-", "").replace("_", "").isalnum() else f'MODELS["{name}"]'
