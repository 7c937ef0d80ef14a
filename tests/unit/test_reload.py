"""Reload of config.json and tokens: all of a change or nothing, and models by load-then-swap or by replacing."""

import asyncio
import gc
import json
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.config import ModelSettings, load_config
from app.engine.sequence import SamplingParams
from app.errors import ConfigError
from app.loading import Loaded
from app.metrics import Metrics
from app.model_reload import ModelReload
from app.registry import ModelState, Registry
from app.reload import Reloader
from tests.support.fakes import FakeLoader, FakeRunner
from tests.support.mounts import mount


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.005)


class Loads(FakeLoader):
    """Keeps the names it loaded; `broken` names fail; `gates` hold a name's loading up."""

    def __init__(self) -> None:
        super().__init__(FakeRunner(answer=None))
        self.names: list[str] = []
        self.broken: set[str] = set()
        self.gates: dict[str, threading.Event] = {}

    def __call__(self, name: str, settings: ModelSettings, path: str, on_progress: Callable[[float], None]) -> Loaded:
        self.names.append(name)
        if name in self.gates:
            self.gates[name].wait(10)
        if name in self.broken:
            raise ConfigError(path, "a broken model", "a whole one")
        return super().__call__(name, settings, path, on_progress)


class Server:
    """What the process has of all this, without HTTP."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self.path = directory / "config.json"
        self.write(config)
        self.loads = Loads()
        self.lost: list[Exception] = []
        self.tokens: list[Any] = []
        self.metrics = Metrics()
        started = load_config(self.path)
        self.registry = Registry(started, load=self.loads)
        self.models = ModelReload(self.registry, self.lost.append)
        self.reloader = Reloader(self.path, started, self.metrics, self.models, self.tokens.append)

    def write(self, config: dict[str, Any] | str) -> None:
        self.path.write_text(config if isinstance(config, str) else json.dumps(config))

    async def start(self) -> "Server":
        self.registry.start(lambda error: pytest.fail(str(error)))
        await until(lambda: self.registry.is_ready)
        return self

    def states(self) -> dict[str, str]:
        return {name: str(model.state) for name, model in self.registry.models.items()}

    def metric(self, name: str, *labels: str) -> float:
        metric = getattr(self.metrics, name)
        value: float = (metric.labels(*labels) if labels else metric)._value.get()
        return value


def models(**entries: dict[str, Any]) -> dict[str, Any]:
    return {name: {"NAME": name, "TYPE": "CausalLM", "MODEL_DEVICE": "cpu", **entry} for name, entry in entries.items()}


def config(**more: Any) -> dict[str, Any]:
    return {"MODELS": models(a={}), "DRAIN_TIMEOUT": 5, **more}


@pytest.fixture
async def server(tmp_path: Path) -> Server:
    return await Server(tmp_path, config()).start()


async def test_nothing_changed(server: Server) -> None:
    await server.reloader.check_config()
    server.write(json.dumps(config(), indent=4))  # other bytes, the same meaning
    await server.reloader.check_config()
    assert server.loads.names == ["a"]
    assert server.metric("reloads", "config", "failure") == 0
    server.registry.stop()


async def test_models_are_added_changed_and_removed_in_one_swap(server: Server) -> None:
    old = server.registry.models["a"]
    server.loads.gates["b"] = threading.Event()
    server.write(config(MODELS=models(a={"MAX_NUM_SEQS": 5}, b={})))
    task = asyncio.create_task(server.reloader.check_config())
    await until(lambda: server.loads.names == ["a", "a", "b"])
    assert server.registry.models == {"a": old}, "not before all are there"
    assert server.registry.is_ready
    server.loads.gates["b"].set()
    await task
    assert server.states() == {"a": "ready", "b": "ready"}
    assert server.registry.models["a"].capacity == 5 + 128
    await until(lambda: server.loads.engines[0].dead is not None)
    server.write(config(MODELS=models(b={})))
    await server.reloader.check_config()
    assert server.states() == {"b": "ready"}
    assert server.metric("reloads", "config", "success") == 2
    server.registry.stop()


async def test_a_model_that_can_not_be_loaded_changes_nothing(server: Server) -> None:
    old = server.registry.models["a"]
    server.loads.broken = {"c"}
    server.write(config(MODELS=models(a={"MAX_NUM_SEQS": 5}, b={}, c={}), BEARER_TOKENS=["x"], DRAIN_TIMEOUT=1))
    await server.reloader.check_config()
    assert server.registry.models == {"a": old} and server.registry.is_ready
    assert server.tokens == [] and server.reloader.config.drain_timeout == 5
    assert server.metric("last_reload_successful", "config") == 0
    assert server.metric("reloads", "config", "failure") == 1
    await until(lambda: [engine.dead is None for engine in server.loads.engines] == [True, False, False])
    # It is not tried again before something changes, or somebody asks.
    names = list(server.loads.names)
    await server.reloader.check_config()
    assert server.loads.names == names
    server.loads.broken = set()
    server.reloader.look_now()
    await server.reloader.check_config()
    assert server.states() == {"a": "ready", "b": "ready", "c": "ready"}
    assert server.metric("last_reload_successful", "config") == 1
    server.registry.stop()


@pytest.mark.parametrize(
    "content", ["", "{", '{"MODELS": {}}', '{"MODELS": {"a": {"NAME": "a", "TYPE": "x"}}}', '{"PROT": 1}'], ids=repr
)
async def test_a_file_that_is_wrong_changes_nothing(server: Server, content: str) -> None:
    old = dict(server.registry.models)
    server.write(content)
    await server.reloader.check_config()
    assert server.registry.models == old and server.registry.is_ready
    assert server.metric("last_reload_successful", "config") == 0
    server.write(config())
    await server.reloader.check_config()
    assert server.metric("last_reload_successful", "config") == 1
    server.registry.stop()


async def test_a_file_that_goes_away_changes_nothing(server: Server) -> None:
    server.path.unlink()
    await server.reloader.check_config()
    assert server.registry.is_ready and server.metric("last_reload_successful", "config") == 0
    server.registry.stop()


async def test_a_file_that_is_just_being_written_is_waited_for(server: Server) -> None:
    server.write("")
    task = asyncio.create_task(server.reloader.check_config())
    await asyncio.sleep(0.05)
    server.write(config(DRAIN_TIMEOUT=3))
    await task
    assert server.metric("reloads", "config", "failure") == 0
    assert server.reloader.config.drain_timeout == 3
    server.registry.stop()


async def test_what_needs_a_restart_is_said_and_taken_back(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.write(config(PORT=1234, HOST="0.0.0.0", MAX_QUEUE=7))
    await server.reloader.check_config()
    (warning,) = [record for record in caplog.records if record.msg == "config.restart_required"]
    assert warning.keys == "HOST,PORT"
    assert server.metric("restart_required") == 2
    assert server.registry.models["a"].capacity == 32 + 7, "what can change at once, does"
    server.reloader.look_now()
    await server.reloader.check_config()
    assert server.metric("restart_required") == 2, "it still does"
    server.write(config())
    await server.reloader.check_config()
    assert server.metric("restart_required") == 0
    server.registry.stop()


async def test_aliases_change_with_their_models(server: Server) -> None:
    server.write(config(MODELS=models(b={}), ALIASES={"gpt": "b"}))
    await server.reloader.check_config()
    assert server.registry.get("gpt") is server.registry.get("b")
    assert server.metric("restart_required") == 0
    server.write(config(MODELS=models(b={}), ALIASES={"gpt": "c"}))
    await server.reloader.check_config()
    assert server.registry.get("gpt") is server.registry.get("b"), "an alias for nothing is refused"
    server.registry.stop()


async def test_requests_of_the_old_model_finish_on_it(server: Server) -> None:
    old = server.registry.models["a"]
    gate = server.loads.runner.gate = threading.Event()
    old.num_open_requests += 1  # as the API counts it
    stream = old.admit(1).submit([5], SamplingParams(max_tokens=3))
    server.write(config(MODELS=models(a={"MAX_NUM_SEQS": 5})))
    await server.reloader.check_config()
    assert server.registry.models["a"] is not old
    assert server.loads.engines[0].dead is None, "it still has something to do"
    gate.set()
    tokens = [token async for output in stream for token in output.token_ids]
    assert len(tokens) == 3
    old.num_open_requests -= 1
    await until(lambda: server.loads.engines[0].dead is not None)
    await until(lambda: old.loaded_or_none is None)
    server.registry.stop()


async def test_what_does_not_finish_in_time_is_aborted(tmp_path: Path) -> None:
    server = await Server(tmp_path, config(DRAIN_TIMEOUT=0.1)).start()
    old = server.registry.models["a"]
    old.num_open_requests += 1
    stream = old.admit(1).submit([5], SamplingParams(max_tokens=10**6))
    server.write(config(DRAIN_TIMEOUT=0.1, MODELS=models(b={})))
    await server.reloader.check_config()
    outputs = [output async for output in stream]
    assert str(outputs[-1].finish_reason) == "abort"
    old.num_open_requests -= 1
    await until(lambda: old.loaded_or_none is None)
    server.registry.stop()


async def test_an_old_model_leaves_no_memory_behind(server: Server) -> None:
    runner = FakeRunner()
    server.loads.runner = runner
    server.write(config(MODELS=models(a={"MAX_NUM_SEQS": 5})))
    await server.reloader.check_config()
    kept = weakref.ref(server.loads.engines.pop())
    server.loads.runner = FakeRunner()
    server.write(config(MODELS=models(a={"MAX_NUM_SEQS": 6})))
    await server.reloader.check_config()
    gone = weakref.ref(runner)
    del runner
    await until(lambda: gc.collect() is not None and gone() is None and kept() is None)
    server.registry.stop()


async def test_replace_frees_the_old_model_first(tmp_path: Path) -> None:
    server = await Server(tmp_path, config(MODEL_RELOAD="replace", MODELS=models(a={}, b={}))).start()
    gate = server.loads.gates["a"] = threading.Event()
    server.write(config(MODEL_RELOAD="replace", MODELS=models(a={"MAX_NUM_SEQS": 5}, b={})))
    task = asyncio.create_task(server.reloader.check_config())
    await until(lambda: server.loads.names[2:] == ["a"])
    assert server.loads.engines[0].dead is not None
    assert server.states() == {"a": "loading", "b": "ready"}
    assert not server.registry.is_ready and server.registry.has_started and server.registry.is_alive
    gate.set()
    await task
    assert server.states() == {"a": "ready", "b": "ready"}
    server.registry.stop()


async def test_replace_brings_the_old_model_back_when_the_new_one_fails(tmp_path: Path) -> None:
    server = await Server(tmp_path, config(MODEL_RELOAD="replace", MODELS=models(a={}, b={}))).start()
    server.loads.broken = {"c"}
    server.write(config(MODEL_RELOAD="replace", MODELS=models(c={}, b={})))
    await server.reloader.check_config()
    assert server.states() == {"a": "ready", "b": "ready"}
    assert server.metric("last_reload_successful", "config") == 0
    assert server.lost == []
    server.loads.broken = {"a", "c"}
    server.reloader.look_now()
    await server.reloader.check_config()
    assert len(server.lost) == 1, "nothing to serve any more: the process has to know"
    server.registry.stop()


async def test_restart_leaves_the_models_to_the_next_start(tmp_path: Path) -> None:
    server = await Server(tmp_path, config(MODEL_RELOAD="restart")).start()
    server.write(config(MODEL_RELOAD="restart", MODELS=models(b={}), DRAIN_TIMEOUT=1))
    await server.reloader.check_config()
    assert server.states() == {"a": "ready"} and server.loads.names == ["a"]
    assert server.reloader.config.drain_timeout == 1
    assert server.metric("restart_required") == 1
    server.registry.stop()


async def test_weights_that_do_not_fit_are_refused_before_loading(server: Server, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    with (big / "model.safetensors").open("wb") as file:
        file.truncate(2**42)  # four terabytes, with nothing in them
    server.write(config(MODELS=models(a={"NAME": str(big)})))
    await server.reloader.check_config()
    assert server.loads.names == ["a"]
    assert server.states() == {"a": "ready"}
    assert server.metric("last_reload_successful", "config") == 0
    server.registry.stop()


async def test_no_reload_while_the_server_goes_down(server: Server) -> None:
    server.loads.gates["b"] = threading.Event()
    server.write(config(MODELS=models(b={})))
    task = asyncio.create_task(server.reloader.check_config())
    await until(lambda: server.loads.names == ["a", "b"])
    server.registry.drain()
    server.loads.gates["b"].set()
    await task
    assert server.states() == {"a": "draining"}
    assert server.registry.models["a"].state is ModelState.DRAINING
    server.registry.stop()


async def test_tokens_rotate(tmp_path: Path) -> None:
    directory = mount(tmp_path / "tokens", {"alice": "sk-1"})
    server = await Server(tmp_path, config(BEARER_TOKENS_DIR=str(directory))).start()
    await server.reloader.check_tokens()
    assert server.tokens == []
    mount(directory, {"alice": "sk-2", "bob": "sk-3"})
    await server.reloader.check_tokens()
    assert server.tokens == [{"alice": "sk-2", "bob": "sk-3"}]
    for broken in ({"alice": "sk-2", "bob": "two words"}, {}):
        mount(directory, broken)
        await server.reloader.check_tokens()
        assert len(server.tokens) == 1, "all of them or none"
        assert server.metric("last_reload_successful", "tokens") == 0
    mount(directory, {"bob": "sk-3"})
    await server.reloader.check_tokens()
    assert server.tokens[1:] == [{"bob": "sk-3"}]
    assert server.metric("last_reload_successful", "tokens") == 1
    assert server.metric("reloads", "tokens", "failure") == 2
    server.registry.stop()


async def test_tokens_of_the_file_rotate_and_never_vanish(tmp_path: Path) -> None:
    server = await Server(tmp_path, config(BEARER_TOKENS=["sk-1"])).start()
    server.write(config(BEARER_TOKENS=["sk-2"]))
    await server.reloader.check_config()
    assert server.tokens == [{"BEARER_TOKENS[0]": "sk-2"}]
    server.write(config())  # would open the server to everybody
    await server.reloader.check_config()
    assert len(server.tokens) == 1
    assert server.metric("last_reload_successful", "config") == 0
    server.registry.stop()


async def test_tokens_do_not_wait_for_models(tmp_path: Path) -> None:
    directory = mount(tmp_path / "tokens", {"alice": "sk-1"})
    more = {"BEARER_TOKENS_DIR": str(directory), "RELOAD_INTERVAL": 0.01}
    server = await Server(tmp_path, config(**more)).start()
    gate = server.loads.gates["b"] = threading.Event()
    task = asyncio.create_task(server.reloader.run())
    server.write(config(**more, MODELS=models(b={})))
    await until(lambda: server.loads.names == ["a", "b"])
    mount(directory, {"alice": "sk-2"})
    await until(lambda: server.tokens == [{"alice": "sk-2"}])
    gate.set()
    await until(lambda: server.states() == {"b": "ready"})
    task.cancel()
    server.registry.stop()


async def test_asked_by_a_signal_only(tmp_path: Path) -> None:
    server = await Server(tmp_path, config(RELOAD_INTERVAL=0)).start()
    task = asyncio.create_task(server.reloader.run())
    server.write(config(RELOAD_INTERVAL=0, MAX_QUEUE=1))
    await asyncio.sleep(0.1)
    assert server.registry.models["a"].capacity == 32 + 128
    server.reloader.look_now()
    await until(lambda: server.registry.models["a"].capacity == 33)
    task.cancel()
    server.registry.stop()
