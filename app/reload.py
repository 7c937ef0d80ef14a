"""Owns noticing that config.json or the tokens' directory changed, and taking the change: all of it, or the old state stays.

Contents are compared, every RELOAD_INTERVAL seconds and on SIGHUP: that sees every way in which Kubernetes and people replace
files, where watches on a file are lost with the file. Knows no HTTP.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from app.config import Config, load_config
from app.errors import ConfigError, TfoaiError
from app.metrics import Metrics
from app.model_reload import ModelReload, ModelReloadError
from app.tokens import named_tokens

logger = logging.getLogger("tfoai.reload")

# Keys that are looked at whenever they matter, so that a new value holds at once. All others wait for a restart.
LIVE_KEYS = frozenset(
    {
        *("models", "aliases", "max_queue", "model_reload"),
        *("bearer_tokens", "bearer_tokens_dir"),
        *("drain_delay", "drain_timeout", "reload_interval"),
    }
)

SETTLE_SECONDS = 0.2

T = TypeVar("T")
Tokens = Mapping[str, str] | None


class Reloader:
    """Keeps a running server at its files. `config` is what holds now."""

    def __init__(
        self, path: Path, config: Config, metrics: Metrics, models: ModelReload, replace_tokens: Callable[[Tokens], None]
    ) -> None:
        self.config = config
        self._started_with = config
        self._path = path
        self._metrics = metrics
        self._models = models
        self._replace_tokens = replace_tokens
        self._tokens = _fingerprints(named_tokens(config.bearer_tokens, config.bearer_tokens_dir))
        self._config_digest = _digest(path)
        self._tokens_error = ""
        self._wakes = (asyncio.Event(), asyncio.Event())
        for source in ("config", "tokens"):
            metrics.last_reload_successful.labels(source).set(1)
            metrics.last_reload_time.labels(source).set(time.time())
        metrics.restart_required.set(0)

    def look_now(self) -> None:
        """Look at both sources soon, and try again what has failed; call on the event loop."""
        self._config_digest = ""
        self._tokens_error = ""
        for wake in self._wakes:
            wake.set()

    async def run(self) -> None:
        """Look again and again, until cancelled. Tokens do not wait for models that load."""
        checks = (self.check_tokens, self.check_config)
        await asyncio.gather(*(self._watch(check, wake) for check, wake in zip(checks, self._wakes, strict=True)))

    async def _watch(self, check: Callable[[], Coroutine[Any, Any, None]], wake: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), self.config.reload_interval or None)
            wake.clear()
            try:
                await check()
            except Exception:  # a bug must not end the watching for good
                logger.exception("reload.failed")

    async def check_tokens(self) -> None:
        """Take the tokens that the sources hold now, if they are others."""
        config = self.config
        try:
            tokens = await _settled(lambda: named_tokens(config.bearer_tokens, config.bearer_tokens_dir))
        except ConfigError as error:
            if str(error) != self._tokens_error:
                self._tokens_error = str(error)
                self._failed("tokens", error)
            return
        if config is not self.config:
            return  # the file was taken meanwhile, with its tokens
        if _fingerprints(tokens) != self._tokens or self._tokens_error:
            self._take_tokens(tokens)

    def _take_tokens(self, tokens: Tokens) -> None:
        fingerprints = _fingerprints(tokens)
        before, after = self._tokens or {}, fingerprints or {}
        self._tokens = fingerprints
        self._tokens_error = ""
        self._replace_tokens(tokens)
        self._metrics.reload_ended("tokens", True, time.time())
        changes = {
            "added": sorted(after.keys() - before.keys()),
            "removed": sorted(before.keys() - after.keys()),
            "changed": sorted(name for name in before.keys() & after.keys() if before[name] != after[name]),
        }
        logger.info("tokens.reloaded", extra={key: ",".join(names) for key, names in changes.items() if names})

    async def check_config(self) -> None:
        """Take config.json as it is now, if it is another."""
        digest = await asyncio.to_thread(_digest, self._path)
        if digest == self._config_digest:
            return
        self._config_digest = digest  # also if it fails: what is wrong today is tried again when it changes
        try:
            await self._take_config(await _settled(lambda: load_config(self._path)))
        except (ConfigError, ModelReloadError) as error:
            self._failed("config", error)

    async def _take_config(self, config: Config) -> None:
        if config != self.config:
            tokens = await _settled(lambda: named_tokens(config.bearer_tokens, config.bearer_tokens_dir))
            if tokens is None and self._tokens is not None:
                raise ConfigError("BEARER_TOKENS", "no tokens any more", "tokens, or a restart to let everybody in")
            await self._models.apply(config)
            # From here on nothing can fail.
            self.config = config
            for name in config.enabled_models:
                self._metrics.add_model(name)
            if _fingerprints(tokens) != self._tokens:
                self._take_tokens(tokens)
        self._succeeded(self._waiting_for_restart())

    def _waiting_for_restart(self) -> list[str]:
        """Return the keys whose values in the file are not those that the server runs with."""
        fields = [info for info in msgspec.structs.fields(self.config) if info.name not in LIVE_KEYS]
        now, then = self.config, self._started_with
        keys = [info.encode_name for info in fields if getattr(now, info.name) != getattr(then, info.name)]
        return keys if self._models.serves(now) else ["MODELS", *keys]

    def _succeeded(self, restart: list[str]) -> None:
        self._metrics.reload_ended("config", True, time.time())
        self._metrics.restart_required.set(len(restart))
        logger.info("config.reloaded")
        if restart:
            logger.warning("config.restart_required", extra={"keys": ",".join(restart)})

    def _failed(self, source: str, error: TfoaiError) -> None:
        self._metrics.reload_ended(source, False, time.time())
        logger.error("%s.reload_failed", source, extra={"error": str(error), "kept": "the old state"})


async def _settled(read: Callable[[], T]) -> T:
    """Read off the event loop; what can not be used is read again a moment later, when whoever writes it has finished."""
    try:
        return await asyncio.to_thread(read)
    except ConfigError:
        await asyncio.sleep(SETTLE_SECONDS)
        return await asyncio.to_thread(read)


def _fingerprints(tokens: Tokens) -> dict[str, str] | None:
    """Return what tells tokens apart without keeping them."""
    return None if tokens is None else {name: hashlib.sha256(token.encode()).hexdigest() for name, token in tokens.items()}


def _digest(path: Path) -> str:
    """Return what tells one content of a file from another; a file that can not be read is a content of its own."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"unreadable: {error.errno}"
