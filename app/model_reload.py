"""Owns changing the served models at run time: load, swap, drain, free; all of a change or nothing. Knows no files, no HTTP.

Three policies (MODEL_RELOAD):

    swap      New and changed models are loaded beside those that serve; when all are there, all names point to them at once.
              Needs memory for both: where the weights would not fit, the change is refused before anything is loaded.
    replace   Changed and removed models are drained and freed first, their names answer 503 meanwhile and the server is not
              ready. If the new ones can not be loaded, the old settings are loaded again.
    restart   Nothing changes until the next start.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from app.config import Config, ModelSettings
from app.errors import TfoaiError
from app.loading import Loader, check_room, free_memory
from app.registry import Registry, ServedModel, stop_all

logger = logging.getLogger("tfoai.reload")

POLL_SECONDS = 0.05
# What streams get to send their error event.
ABORT_SECONDS = 10.0

T = TypeVar("T")


class ModelReloadError(TfoaiError):
    """The change was not made; what was served before is served still."""


class ModelReload:
    """Changes a registry's models. One change at a time: the caller waits for `apply`."""

    def __init__(self, registry: Registry, on_lost: Callable[[Exception], None]) -> None:
        """`on_lost` is told when neither the new nor the old models can be loaded."""
        self._registry = registry
        self._on_lost = on_lost
        # Old models that still answer the requests they had.
        self._retiring: set[asyncio.Task[None]] = set()

    def serves(self, config: Config) -> bool:
        """True if the models that are served are those of `config`."""
        return config.enabled_models == {name: model.settings for name, model in self._registry.models.items()}

    async def apply(self, config: Config) -> None:
        """Serve the models of `config`, as its MODEL_RELOAD says; raise ModelReloadError if that can not be.

        Then everything is as it was before.
        """
        if config.model_reload != "restart":
            # The models of the start come first. Their loading, and requests, are looked at: nothing is signalled.
            while not self._registry.has_started:  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)
            await self._change(config, config.model_reload)
        if self.serves(config):
            self._registry.aliases = config.aliases
        self._registry.aliases = config.aliases
        for model in self._registry.models.values():
            model.capacity = model.settings.max_num_seqs + config.max_queue

    async def _change(self, config: Config, policy: Literal["swap", "replace"]) -> None:
        serving, wanted = self._registry.models, config.enabled_models
        changed = {name for name, settings in wanted.items() if name not in serving or serving[name].settings != settings}
        leaving = [model for name, model in serving.items() if name in changed or name not in wanted]
        fresh = {name: ServedModel(name, wanted[name], config.max_queue) for name in wanted if name in changed}
        if policy == "replace" and leaving:
            await self._replace(config, fresh, leaving)
        elif fresh or leaving:
            await self._load(fresh.values(), check=bool(serving))
            self._commit({name: fresh.get(name) or serving[name] for name in wanted})
            for model in leaving:
                self._retire(model, config.drain_timeout)

    async def _replace(self, config: Config, fresh: dict[str, ServedModel], leaving: list[ServedModel]) -> None:
        serving = self._registry.models
        # The fresh ones say "loading" to whoever asks.
        self._commit({name: fresh.get(name) or serving[name] for name in config.enabled_models})
        await asyncio.gather(*(self._end(model, config.drain_timeout) for model in leaving))
        try:
            await self._load(fresh.values(), check=False)
        except ModelReloadError:
            old = {model.name: ServedModel(model.name, model.settings, config.max_queue) for model in leaving}
            self._commit({name: old.get(name) or model for name, model in serving.items()})
            try:
                await self._load(old.values(), check=False)
            except ModelReloadError as error:
                self._on_lost(error)
            raise

    async def _load(self, models: Iterable[ServedModel], *, check: bool) -> None:
        """Load all of them, one after the other, or none."""
        models = list(models)
        if check:
            await _in_thread(lambda: _check_room([model.settings for model in models]))
        for model in models:
            logger.info("model.loading", extra={"model": model.name})
            try:
                await _in_thread(_load_one(model, self._registry.load))
            except Exception as error:
                reason = str(error) if isinstance(error, TfoaiError) else f"{type(error).__name__}: {error}"
                failure = ModelReloadError(reason)
                error.__traceback__ = None  # its frames hold what was loaded
                await _in_thread(lambda: stop_all(models))
                for loaded in models:
                    loaded.unload()
                await _in_thread(free_memory)
                raise failure from None
            logger.info("model.ready", extra={"model": model.name})

    def _commit(self, models: dict[str, ServedModel]) -> None:
        """Point all names to their models at once: one assignment on the event loop, so no request sees a half of it."""
        if self._registry.is_draining:
            stop_all(models.values(), 0)
            raise ModelReloadError("the server is shutting down")
        self._registry.models = models

    def _retire(self, model: ServedModel, timeout: float) -> None:
        task = asyncio.get_running_loop().create_task(self._end(model, timeout))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _end(self, model: ServedModel, drain_timeout: float) -> None:
        """Let a model that nobody can ask any more finish what it has, then free it."""
        deadline = time.monotonic() + drain_timeout
        await _until_idle(model, deadline)
        logger.info("model.removed", extra={"model": model.name, "aborted": model.num_open_requests})
        await _in_thread(lambda: stop_all([model]))
        await _until_idle(model, deadline + ABORT_SECONDS)  # what is left ends with an error
        model.unload()
        await _in_thread(free_memory)


async def _until_idle(model: ServedModel, deadline: float) -> None:
    while model.num_open_requests and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)


def _load_one(model: ServedModel, load: Loader) -> Callable[[], None]:
    return lambda: model.load(load)


def _check_room(settings: list[ModelSettings]) -> None:
    try:
        check_room(settings)
    except TfoaiError as error:
        raise ModelReloadError(f"{error}; MODEL_RELOAD replace would free the old models first") from None


async def _in_thread(function: Callable[[], T]) -> T:
    """Run something slow beside the event loop, in a thread that does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # without an error it is there

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as caught:
            error = caught
        try:
            loop.call_soon_threadsafe(deliver, result, error)
        except RuntimeError:
            return  # the loop is closed: the server has gone meanwhile

    threading.Thread(target=run, name="reload", daemon=True).start()
    return await future
