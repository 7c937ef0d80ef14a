"""torch.compile as an option: the same logits, and one readable line where it can not be."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from app.engine import attention
from app.engine.compiling import compile_model
from app.engine.verify import verify
from app.errors import ConfigError
from tests.support.tiny import tiny_model


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    AttentionInterface.register(attention.NAME, attention.paged_attention)
    torch.compiler.reset()


def with_backend(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """Let dynamo trace as ever and hand its graphs to another compiler than the C++ one, which takes a minute."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model, **options: original(model, backend=backend, **options))


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_a_compiled_model_still_runs_in_paged_batches(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    with_backend(monkeypatch, backend)
    model, ids = tiny_model(kind), torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        expected = model(ids).logits
        assert compile_model(model, "MODELS.m") > 0
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert graphs
    seen = len(graphs)
    assert verify(model).name == "paged"
    assert len(graphs) > seen, "paged batches run compiled too"


def test_an_encoder_decoder_model(monkeypatch: pytest.MonkeyPatch) -> None:
    with_backend(monkeypatch, "eager")
    assert compile_model(tiny_model("t5"), "MODELS.m") > 0


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler\nfound " + "x" * 1000)

    with_backend(monkeypatch, broken)
    with pytest.raises(ConfigError) as error:
        compile_model(tiny_model("llama"), "MODELS.m")
    assert str(error.value).startswith("MODELS.m.COMPILE") and "no C++ compiler" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_with_the_real_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, ids = tiny_model("llama", num_hidden_layers=1), torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        expected = model(ids).logits
        compile_model(model, "MODELS.m")
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
