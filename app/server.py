"""Owns the process: config -> registry -> application -> uvicorn, signals, drain, exit code. Knows no request."""

import asyncio
import logging
import platform
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

import uvicorn

from app.api.app import create_app
from app.config import Config
from app.errors import ConfigError
from app.logs import setup_logging
from app.metrics import Metrics
from app.registry import Registry
from app.versions import package_version

logger = logging.getLogger("tfoai.server")

POLL_SECONDS = 0.05


class _Server(uvicorn.Server):
    """uvicorn, but a signal first drains: nothing new is admitted, what runs may finish, then the server exits."""

    def __init__(self, config: uvicorn.Config, registry: Registry, drain_timeout: float) -> None:
        super().__init__(config)
        self._registry = registry
        self._drain_timeout = drain_timeout
        self._drain_task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.error: Exception | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            logger.info("server.listening", extra={"url": _url(self)})
            self._registry.start(self._fail)

    def _fail(self, error: Exception) -> None:
        """A model can not be loaded: say so and leave. A half-working server would only look healthy."""
        self.error = error
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain_task is not None or self._loop is None:
            self.should_exit = self.force_exit = True  # asked twice
            return
        logger.info("drain.started", extra={"signal": signal.Signals(sig).name})
        self._registry.drain()
        self._drain_task = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        deadline = time.monotonic() + self._drain_timeout
        # Requests are counted, not signalled, so this looks again and again.
        while self._registry.num_open_requests and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        logger.info("drain.finished", extra={"aborted": self._registry.num_open_requests})
        # What still runs ends with an error event, which uvicorn lets out before it exits.
        await asyncio.to_thread(self._registry.stop)
        self.should_exit = True


def _url(server: uvicorn.Server) -> str:
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(config: Config, path: Path) -> int:
    """Serve until a signal; return the exit code: 0 after a drain, 2 if a model of the configuration can not be served.

    Raise ConfigError if the address can not be had.
    """
    setup_logging()
    bound = _bind(config.host, config.port)
    metrics = Metrics()
    metrics.build_info.labels(
        package_version("tfoai"), platform.python_version(), package_version("torch"), package_version("transformers")
    ).set(1)
    registry = Registry(config)
    server = _Server(
        uvicorn.Config(
            create_app(config, registry, metrics),
            log_config=None,
            access_log=False,
            # Above the usual idle time of load balancers (60 s), or they meet closed connections.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            server_header=False,
        ),
        registry,
        config.drain_timeout,
    )
    server.run(sockets=[bound])
    if server.error is not None:
        return _report(server.error, path)
    return 0


def _bind(host: str, port: int) -> socket.socket:
    """Return a listening address; raise ConfigError. Done before anything slow, so that a taken port is known at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            "HOST, PORT", f"{host} port {port}: {reason}", "an address of this machine and a free port"
        ) from error
    return bound


def _report(error: Exception, path: Path) -> int:
    if isinstance(error, ConfigError):
        print(f"tfoai: {path}: {error}", file=sys.stderr)
        return 2
    logger.error("load.failed", exc_info=error)
    return 1
