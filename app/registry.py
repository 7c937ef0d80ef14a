"""Owns the served models: name -> ServedModel, loading and draining them together. Knows no HTTP and no torch."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from app.config import Config
from app.errors import ModelNotFound
from app.loading import Loader, load_model
from app.served import RETRY_LOADING, RETRY_QUEUE, Admission, ModelState, ServedModel

logger = logging.getLogger("tfoai.registry")

# Whoever asks for a model asks here, for what belongs to it too.
__all__ = ["RETRY_LOADING", "RETRY_QUEUE", "Admission", "ModelState", "Registry", "ServedModel", "stop_all"]


class Registry:
    """All served models. `start` loads them one after the other in a thread of its own."""

    def __init__(self, config: Config, load: Loader | None = None) -> None:
        self.load = load or load_model
        self.models = {name: ServedModel(name, settings, config.max_queue) for name, settings in config.enabled_models.items()}
        self.aliases = config.aliases
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
        """Return a served model by its name or an alias, loaded or not; raise ModelNotFound."""
        model = self.models.get(self.aliases.get(name, name))
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


@contextmanager
def _ignore_closed_loop() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # the server has gone while a model was loading
        return
