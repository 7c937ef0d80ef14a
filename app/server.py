"""Owns the process: config -> registry -> applications -> uvicorn, signals, drain, exit code. Knows no request."""

import asyncio
import contextlib
import logging
import platform
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from app.api.app import create_app, create_metrics_app
from app.api.auth import PUBLIC_PATHS, BearerTokens
from app.api.error_shapes import connection_refusal
from app.config import Config
from app.connections import ConnectionLimits, protocol_classes
from app.errors import ConfigError
from app.logs import setup_logging
from app.metrics import Metrics
from app.model_reload import ModelReload
from app.registry import Registry
from app.reload import Reloader
from app.tokens import named_tokens
from app.versions import package_version

logger = logging.getLogger("tfoai.server")

POLL_SECONDS = 0.05
# How long the event loop may keep an engine, whose device waits, from the interpreter's lock, and the other way round. Python's
# own 5 ms are more than a decode step of a small model takes.
SWITCH_SECONDS = 0.001
# For what ended with the engines to be told to its clients.
LAST_EVENTS_SECONDS = 1.0
# File descriptors for what is no connection: models' files, libraries, logs.
OTHER_FILES = 256


class _MetricsServer(uvicorn.Server):
    """Serves METRICS_PORT beside the main server, whose signals are not its business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Server(uvicorn.Server):
    """uvicorn, but a signal first drains.

    SIGTERM: not ready -> serve on for DRAIN_DELAY -> refuse what is new -> what runs may finish until DRAIN_TIMEOUT -> abort
    the rest, each stream with an error event -> exit. SIGINT leaves out the delay: there is a person, and no load balancer. A
    second signal ends the waiting, a third one the process.
    """

    def __init__(self, config: uvicorn.Config, registry: Registry, reloader: Reloader, metrics: "_MetricsPort | None") -> None:
        super().__init__(config)
        self._registry = registry
        self._reloader = reloader
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals: list[int] = []
        self._hurry = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._metrics_task: asyncio.Task[None] | None = None
        self.error: Exception | None = None
        self.exit_code = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._metrics is not None:
            self._metrics_task = self._loop.create_task(self._metrics.run())
            await self._metrics.wait_until_started()
        if self.started:
            urls = {"url": _url(self.servers[0].sockets[0])}
            if self._metrics is not None:
                urls["metrics_url"] = _url(self._metrics.socket)
            logger.info("server.listening", extra=urls)
            self._registry.start(self.fail)
            self._tasks.append(self._loop.create_task(self._reloader.run()))
            self._loop.add_signal_handler(signal.SIGHUP, self._reloader.look_now)

    def fail(self, error: Exception) -> None:
        """A model can not be served: say so and leave. A half-working server would only look healthy."""
        self.error = error
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Last: how the drain goes can be watched to its end.
        if self._metrics is not None and self._metrics_task is not None:
            self._metrics.stop()
            await self._metrics_task

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals.append(sig)
        if self._loop is None or len(self._signals) > 2:
            # Asked three times: whatever still holds on to the process, it ends as if there were no handler.
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        elif len(self._signals) == 2:
            self.exit_code = 128 + sig
            self._loop.call_soon_threadsafe(self._hurry.set)
        else:
            self._loop.call_soon_threadsafe(self._start_drain, sig)

    def _start_drain(self, sig: int) -> None:
        logger.info("drain.started", extra={"signal": signal.Signals(sig).name})
        # Nobody is sent to a server that was never ready, so nobody has to be kept.
        delay = 0.0 if sig == signal.SIGINT or not self._registry.is_ready else self._reloader.config.drain_delay
        self._registry.leave()
        self._tasks.append(asyncio.get_running_loop().create_task(self._drain(delay)))

    async def _drain(self, delay: float) -> None:
        await self._wait(delay)
        self._registry.drain()
        deadline = time.monotonic() + self._reloader.config.drain_timeout
        # Requests are counted, not signalled, so this looks again and again.
        while self._registry.num_open_requests and time.monotonic() < deadline and not self._hurry.is_set():
            await self._wait(POLL_SECONDS)
        logger.info("drain.finished", extra={"aborted": self._registry.num_open_requests})
        # What still runs ends with an error event, which uvicorn lets out before it exits; but WebSockets it closes at once.
        await asyncio.to_thread(self._registry.stop, 1 if self._hurry.is_set() else 10)
        deadline = time.monotonic() + LAST_EVENTS_SECONDS
        while self._registry.num_open_requests and time.monotonic() < deadline and not self._hurry.is_set():
            await self._wait(POLL_SECONDS)
        self.should_exit = True

    async def _wait(self, seconds: float) -> None:
        """Wait, unless there is a hurry."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)


class _MetricsPort:
    """The second listener: metrics and probes."""

    def __init__(self, bound: socket.socket, config: uvicorn.Config) -> None:
        self.socket = bound
        self._server = _MetricsServer(config)

    async def run(self) -> None:
        await self._server.serve(sockets=[self.socket])

    async def wait_until_started(self) -> None:
        # uvicorn has a flag and no event.
        while not self._server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def stop(self) -> None:
        self._server.should_exit = True


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(config: Config, path: Path) -> int:
    """Serve until a signal; return the exit code.

    0 after a drain, 2 if a model of the configuration can not be served, 128 and the signal's number if a second signal cut the
    drain short. Raise ConfigError if the address can not be had, or the tokens can not be read.
    """
    setup_logging()
    sys.setswitchinterval(SWITCH_SECONDS)
    tokens = BearerTokens(named_tokens(config.bearer_tokens, config.bearer_tokens_dir))
    bound = _bind(config.host, config.port, "HOST, PORT")
    metrics_bound = None if config.metrics_port is None else _bind(config.host, config.metrics_port, "HOST, METRICS_PORT")
    _allow_open_files(config.max_connections + OTHER_FILES)
    metrics = Metrics(config.metrics_aliases)
    metrics.build_info.labels(
        package_version("tfoai"), platform.python_version(), package_version("torch"), package_version("transformers")
    ).set(1)
    registry = Registry(config)
    app = create_app(config, registry, metrics, tokens)
    metrics_port = None
    if metrics_bound is not None:
        metrics_app = create_metrics_app(config, registry, metrics)
        metrics_port = _MetricsPort(metrics_bound, uvicorn_config(metrics_app, config, metrics))
    models = ModelReload(registry, lambda error: server.fail(error))
    reloader = Reloader(path, config, metrics, models, tokens.replace)
    server = _Server(uvicorn_config(app, config, metrics), registry, reloader, metrics_port)
    metrics.http_connections.set_function(lambda: len(server.server_state.connections))
    server.run(sockets=[bound])
    if server.error is not None:
        return _report(server.error, path)
    return server.exit_code


def uvicorn_config(app: Any, config: Config, metrics: Metrics) -> uvicorn.Config:
    """Return how uvicorn serves an application: our limits, and nothing that it would print by itself."""
    limits = ConnectionLimits(
        header_timeout=config.header_timeout,
        body_timeout=config.body_timeout,
        write_timeout=config.write_timeout,
        max_connections=config.max_connections,
        max_header_bytes=config.max_header_bytes,
        always_served=PUBLIC_PATHS,
        on_refused=lambda reason: metrics.connections_refused.labels(reason).inc(),
        refusal=connection_refusal,
    )
    http, websocket = protocol_classes(limits)
    return uvicorn.Config(
        app,
        http=http,
        ws=websocket,
        ws_max_size=config.max_body_bytes,
        # Events are small: compressing each by itself gains little, and costs memory for every connection.
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        timeout_keep_alive=config.keep_alive_timeout,  # type: ignore[arg-type]  # only ever given to call_later
        timeout_graceful_shutdown=5,
        server_header=False,
    )


def _bind(host: str, port: int, place: str) -> socket.socket:
    """Return a listening address; raise ConfigError. Done before anything slow, so that a taken port is known at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(place, f"{host} port {port}: {reason}", "an address of this machine and a free port") from error
    return bound


def _allow_open_files(wanted: int) -> None:
    """Raise the soft limit on open files as far as it may go; many systems start processes with 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < possible:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < wanted:
        logger.warning("server.few_files", extra={"limit": possible, "wanted": wanted, "key": "MAX_CONNECTIONS"})


def _report(error: Exception, path: Path) -> int:
    if isinstance(error, ConfigError):
        print(f"tfoai: {path}: {error}", file=sys.stderr)
        return 2
    logger.error("load.failed", exc_info=error)
    return 1
