"""Recorded decode steps: for every architecture, they give what its forwards give, and what can not be recorded is not."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from app.engine import linear, recorded
from app.engine.attention import Part, running
from app.engine.linear import quicken
from app.engine.paged import PagedRunner
from app.engine.verify import verify
from tests.engine.test_linear import race
from tests.engine.test_paged import PAGED
from tests.support.tiny import VOCAB_SIZE, tiny_model

NUM_BLOCKS = 40


def runner(model: Any) -> PagedRunner:
    verified = verify(model)
    made = PagedRunner(model, verified.attention, NUM_BLOCKS, verified.memory)
    made.record_decode_steps(8, 512)
    for pair in made.memory.layers.values():
        for tensor in pair:
            tensor.normal_(generator=torch.Generator().manual_seed(1))
    return made


def parts_of(*lengths: int, first: int = 0) -> list[Part]:
    blocks = iter(range(first, NUM_BLOCKS))
    return [Part([next(blocks) for _ in range(0, length, 16)], length - 1, 1) for length in lengths]


@torch.inference_mode()
def plain(made: PagedRunner, token_ids: list[int], parts: list[Part]) -> Tensor:
    model: Any = made._model
    positions = torch.tensor([[part.num_computed for part in parts]])
    with running(made.attention.batch(parts, torch.device("cpu")), made.memory):
        return model(input_ids=torch.tensor([token_ids]), position_ids=positions, use_cache=False).logits[0]


@torch.inference_mode()
def replayed(made: PagedRunner, token_ids: list[int], parts: list[Part]) -> Tensor:
    assert made._recorded is not None and made._recorded.takes(parts)
    logits, best = made._recorded.run(token_ids, parts)
    assert best.tolist() == [logits.argmax(dim=-1).tolist(), [1] * len(parts)]
    return logits


@pytest.mark.parametrize("kind", PAGED)
def test_logits_and_memory_are_those_of_a_forward(kind: str) -> None:
    """For numbers and lengths of sequences that no recording was made or tried with."""
    made, other = runner(tiny_model(kind)), runner(tiny_model(kind))
    for lengths in ((9,), (100,), (3, 90), (40, 16, 17, 31), (2,) * 23):
        parts, token_ids = parts_of(*lengths), [(7 * place) % VOCAB_SIZE for place in range(len(lengths))]
        torch.testing.assert_close(replayed(made, token_ids, parts), plain(other, token_ids, parts), rtol=1e-4, atol=1e-4)
    for layer, pair in made.memory.layers.items():
        for got, expected in zip(pair, other.memory.layers[layer], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_are_recorded_too(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    race(monkeypatch, "onednn", "onednn")
    model = tiny_model("qwen3").to(dtype)
    assert quicken(model) == "onednn, onednn"
    made = runner(model)
    for lengths in ((20,), (5, 33, 18)):
        parts, token_ids = parts_of(*lengths), list(range(len(lengths)))
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        got, expected = replayed(made, token_ids, parts), plain(made, token_ids, parts)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_what_others_left_in_memory_does_not_matter() -> None:
    made = runner(tiny_model("mistral"))
    parts = parts_of(1, 30, 49, first=10)
    before = replayed(made, [5, 6, 7], parts)
    own = {block for part in parts for block in part.block_table}
    for pair in made.memory.layers.values():
        for tensor in pair:
            tensor[[block for block in range(NUM_BLOCKS) if block not in own]] = torch.nan
            # Blocks that a new token begins still hold what an earlier sequence wrote.
            tensor[[parts[0].block_table[-1], parts[2].block_table[-1]]] = torch.nan
    assert torch.equal(replayed(made, [5, 6, 7], parts), before)


def test_a_batch_that_padding_would_blow_up_is_left_to_a_forward() -> None:
    made = runner(tiny_model("llama"))
    steps = made._recorded
    assert steps is not None
    assert steps.takes(parts_of(20, 20, 90))
    assert not steps.takes([*parts_of(*[10] * 20), Part(list(range(20, 40)), 319, 1)])
    assert not steps.takes([Part([0], 0, 2)])


def test_a_forward_that_looks_at_its_data_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    original = model.model.embed_tokens.forward

    def forward(ids: Tensor) -> Tensor:
        return original(ids) * (2.0 if ids.sum() > 10**6 else 1.0)

    monkeypatch.setattr(model.model.embed_tokens, "forward", forward)
    made = runner(model)
    assert made._recorded is None
    assert "Converting a tensor to a Python boolean" in vars(caplog.records[-1])["error"]


def test_a_recording_that_is_wrong_for_other_lengths_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if something of the first example were fixed in it."""
    bias = recorded.decode_bias

    def fixed(position: Tensor, lengths: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
        return bias(position, torch.full_like(lengths, 17), window, dtype)

    monkeypatch.setattr(recorded, "decode_bias", fixed)
    assert runner(tiny_model("llama"))._recorded is None
    assert "differ" in vars(caplog.records[-1])["error"]


def test_it_is_gone_with_its_model() -> None:
    """What `torch.jit.trace` returns would stay: 25 MB for eight layers, at each reload."""
    made = runner(tiny_model("qwen3"))
    weight = weakref.ref(made._model.lm_head.weight)
    step: Any = made._recorded
    recording = weakref.ref(step)
    del made, step
    gc.collect()
    assert weight() is None and recording() is None


def test_a_library_without_the_packed_product_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted form is made when something is recorded with it, and not before."""
    linear._scripted.cache_clear()
    race(monkeypatch, "transposed", "torch")
    model = tiny_model("llama")
    quicken(model)
    assert runner(model)._recorded is not None
    assert linear._scripted.cache_info().currsize == 0
