"""Recorded decode steps: for every architecture, they give what its forwards give, and what can not be recorded is not."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from app.engine import dynamic, linear
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


def parts_of(*lengths: int | tuple[int, int], first: int = 0) -> list[Part]:
    """Return sequences of so many tokens, of which the last one is new, or the last few: (length, new tokens)."""
    blocks = iter(range(first, NUM_BLOCKS))
    sizes = [(one, 1) if isinstance(one, int) else one for one in lengths]
    return [Part([next(blocks) for _ in range(0, length, 16)], length - num_new, num_new) for length, num_new in sizes]


def tokens_of(parts: list[Part]) -> list[int]:
    return [(7 * place) % VOCAB_SIZE for place in range(sum(part.num_new for part in parts))]


@torch.inference_mode()
def plain(made: PagedRunner, token_ids: list[int], parts: list[Part]) -> Tensor:
    """Return the logits behind the last token of each part."""
    model: Any = made._model
    positions = torch.tensor([[position for part in parts for position in range(part.num_computed, part.length)]])
    with running(made.attention.batch(parts, torch.device("cpu")), made.memory):
        logits = model(input_ids=torch.tensor([token_ids]), position_ids=positions, use_cache=False).logits[0]
    return logits[torch.tensor([part.num_new for part in parts]).cumsum(0) - 1]


@torch.inference_mode()
def replayed(made: PagedRunner, token_ids: list[int], parts: list[Part], completes: list[bool] | None = None) -> Tensor:
    completes = completes or [True] * len(parts)
    assert made._recorded is not None and made._recorded.takes(parts, completes)
    logits, best = made._recorded.run(token_ids, parts, completes)
    assert best.tolist() == [logits.argmax(dim=-1).tolist(), [1] * sum(completes)]
    return logits


# Numbers and lengths of sequences that no recording was made or tried with: decoding, prompts, both in any order.
BATCHES: list[tuple[int | tuple[int, int], ...]] = [
    *((9,), (100,), (3, 90), (40, 16, 17, 31), (2,) * 23),
    *(((50, 50),), ((12, 12), (31, 31)), ((48, 16), (70, 2))),
    *((9, (20, 20)), ((20, 20), 9), ((33, 8), 40, (2, 2), 1, (64, 64))),
]


@pytest.mark.parametrize("kind", PAGED)
def test_logits_and_memory_are_those_of_a_forward(kind: str) -> None:
    made, other = runner(tiny_model(kind)), runner(tiny_model(kind))
    for lengths in BATCHES:
        parts = parts_of(*lengths)
        token_ids = tokens_of(parts)
        torch.testing.assert_close(replayed(made, token_ids, parts), plain(other, token_ids, parts), rtol=1e-4, atol=1e-4)
    for layer, pair in made.memory.layers.items():
        for got, expected in zip(pair, other.memory.layers[layer], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_logits_are_those_of_the_sequences_that_complete() -> None:
    made, other = runner(tiny_model("qwen3")), runner(tiny_model("qwen3"))
    parts = parts_of((20, 20), 9, (33, 8), 40)
    got = replayed(made, tokens_of(parts), parts, [False, True, True, True])
    torch.testing.assert_close(got, plain(other, tokens_of(parts), parts)[1:], rtol=1e-4, atol=1e-4)
    assert made._recorded is not None
    # Nothing is wanted of a prompt's first chunks, and no recording was made for that.
    assert not made._recorded.takes(parts_of((20, 20)), [False])
    assert not made._recorded.takes(parts_of(9, 40), [True, False])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_are_recorded_too(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    race(monkeypatch, "onednn", "onednn")
    model = tiny_model("qwen3").to(dtype)
    assert quicken(model) == "onednn, onednn"
    made = runner(model)
    for lengths in ((20,), (5, 33, 18), ((20, 20),), (5, (33, 3))):
        parts = parts_of(*lengths)
        token_ids = tokens_of(parts)
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

    def takes(*parts: Part) -> bool:
        return steps.takes(parts, [True] * len(parts))

    assert takes(*parts_of(20, 20, 90))
    assert not takes(*parts_of(*[10] * 20), Part(list(range(20, 40)), 319, 1))
    assert takes(Part([0], 0, 2), Part(list(range(20)), 0, 319))
    assert not takes(*parts_of(*[(10, 10)] * 8), Part(list(range(20, 40)), 0, 319))
    # So long that its attention wants no mask.
    assert not takes(Part(list(range(200)), 0, 3199))


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
    bias = dynamic.decode_bias

    def fixed(position: Tensor, lengths: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
        return bias(position, torch.full_like(lengths, 17), window, dtype)

    monkeypatch.setattr(dynamic, "decode_bias", fixed)
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
