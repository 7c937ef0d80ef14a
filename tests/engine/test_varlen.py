"""The batches for the flash kernels and for CUDA graphs, with kernels and graphs replaced: what they would be given is right.

The kernels themselves run only on a GPU: tests/engine/test_gpu.py.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from app.engine import attention, graphs, varlen
from app.engine.attention import KVMemory, Part
from app.engine.graphs import DecodeGraphs, batch_sizes
from app.engine.paged import PagedRunner
from app.engine.scheduler import ScheduledSequence
from app.engine.sequence import SamplingParams, Sequence
from app.engine.varlen import VarlenAttention
from app.engine.verify import _compare
from tests.support.tiny import tiny_model


def kernel(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None, window_size: tuple[int, int], enable_gqa: bool, seqused_k: Tensor, block_table: Tensor,
) -> Tensor:  # fmt: skip
    """What torch documents of varlen_attn, one sequence after the other."""
    assert {tensor.dtype for tensor in (cu_seq_q, cu_seq_k, seqused_k, block_table)} == {torch.int32}
    assert cu_seq_k.tolist() == [0, *seqused_k.cumsum(0).tolist()]
    assert enable_gqa == (query.shape[1] != key.shape[2]) and window_size[1] == 0
    output = torch.empty_like(query)
    for number, length in enumerate(seqused_k.tolist()):
        start, end = cu_seq_q[number], cu_seq_q[number + 1]
        assert end - start <= max_q and length <= max_k
        keys, values = (pool[block_table[number].long()].flatten(0, 1)[:length].transpose(0, 1) for pool in (key, value))
        position = torch.arange(length)
        own = position[length - (end - start) :].unsqueeze(-1)
        visible = (position <= own) & ((window_size[0] < 0) | (position >= own - window_size[0]))
        output[start:end] = scaled_dot_product_attention(
            query[start:end].transpose(0, 1), keys, values, attn_mask=visible, scale=scale, enable_gqa=enable_gqa
        ).transpose(0, 1)
    return output


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)


class Staging:
    def __init__(self, rows: Tensor) -> None:
        self.device_rows = rows
        self._host = rows.clone()

    def next_host_rows(self) -> Tensor:
        return self._host

    def copy(self, size: int) -> None:
        self.device_rows[:size] = self._host[:size]


class Recorder:
    """Replays by computing again."""

    def record(self, step: graphs.Step) -> graphs.Step:
        step()
        return step

    def staging(self, rows: Tensor) -> Staging:
        return Staging(rows)


@torch.inference_mode()
def recorded(*arguments: Any, **options: Any) -> DecodeGraphs:
    return DecodeGraphs(*arguments, **options)


def sequences(lengths: tuple[int, ...], block_size: int) -> list[Sequence]:
    generator = torch.Generator().manual_seed(3)
    blocks = iter(torch.randperm(40, generator=generator).tolist())
    made = []
    for index, length in enumerate(lengths):
        ids = torch.randint(3, 259, (length,), generator=generator).tolist()
        seq = Sequence(index, ids, SamplingParams(max_tokens=1, prompt_logprobs=0))
        seq.block_table = [next(blocks) for _ in range(-(-length // block_size))]
        made.append(seq)
    return made


@pytest.mark.parametrize("block_size", [4, 16, 256])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_ragged_batches_give_what_plain_forwards_give(kind: str, block_size: int) -> None:
    model = tiny_model(kind)
    made = sequences((3, 19, 70), block_size)
    with torch.inference_mode():
        plain = [model(input_ids=torch.tensor([seq.token_ids]), use_cache=False).logits[0] for seq in made]
    runner = PagedRunner(model, VarlenAttention(block_size), 40)
    for sizes in ((1, 10, 40), (1, 1, 27), (1, 8, 1), (0, 0, 2)):
        batch = [ScheduledSequence(seq, size) for seq, size in zip(made, sizes, strict=True) if size]
        output = runner.forward(batch)
        for scheduled in batch:
            _compare(scheduled, output.prompt_logits[scheduled.seq.seq_id], plain[scheduled.seq.seq_id])
            scheduled.seq.num_computed_tokens += scheduled.num_new_tokens


def test_soft_capping_and_sinks_are_refused() -> None:
    batch = VarlenAttention(16).batch([Part([0], 0, 3)], torch.device("cpu"))
    memory = torch.zeros(1, 16, 2, 8)
    for options in (attention.AttentionOptions(softcap=30.0), attention.AttentionOptions(sinks=torch.zeros(2))):
        with pytest.raises(NotImplementedError):
            batch.attend(torch.zeros(3, 2, 8), memory, memory, options)


def test_a_cpu_has_no_flash_kernels() -> None:
    assert varlen.varlen_attention(torch.device("cpu"), torch.bfloat16) is None


def test_the_probe_takes_the_smallest_block_size_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(query: Tensor, key: Tensor, *rest: Any, **options: Any) -> Tensor:
        if key.shape[1] % 64:
            raise RuntimeError("Paged KV cache block size must be divisible by 64")
        return kernel(query, key, *rest, **options)

    monkeypatch.setattr(varlen, "varlen_attn", picky)
    assert not [size for size in (64, 256) if not varlen._works(VarlenAttention(size), torch.device("cpu"), torch.float32)]
    with pytest.raises(RuntimeError):
        varlen._works(VarlenAttention(16), torch.device("cpu"), torch.float32)
    monkeypatch.setattr(varlen, "varlen_attn", lambda *args, **options: kernel(*args, **options) * 1.1)
    assert not varlen._works(VarlenAttention(64), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("most", [1, 2, 3, 8, 9, 32, 300])
def test_there_is_a_graph_for_every_batch_size(most: int) -> None:
    sizes = batch_sizes(most)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == most
    assert all(later - earlier <= 8 or earlier >= 256 for earlier, later in itertools.pairwise(sizes))


def test_a_graph_step_gives_what_the_plain_step_gives_for_every_number_of_sequences() -> None:
    model = tiny_model("qwen3")
    way = VarlenAttention(4)
    runner = PagedRunner(model, way, 40)
    made = sequences((5, 1, 12, 30, 9), way.block_size)
    for seq in made:
        seq.params = SamplingParams(max_tokens=1)
        if seq.num_tokens > 1:
            runner.forward([ScheduledSequence(seq, seq.num_tokens - 1)])
        seq.num_computed_tokens = seq.num_tokens - 1
    graphs_ = recorded(runner._logits, Recorder(), max_num_seqs=5, max_blocks=8, block_size=4, spare_block=40)
    # Long batches first, so that rows and block tables of an earlier step are left behind in the buffers.
    for count in (5, 3, 4, 1, 2, 5):
        chosen = made[:count]
        parts = [Part(seq.block_table, seq.num_computed_tokens, 1) for seq in chosen]
        expected = runner.forward([ScheduledSequence(seq, 1) for seq in chosen]).logits
        kept = {layer: keys[:40].clone() for layer, (keys, _) in runner.memory.layers.items()}
        assert graphs_.takes(parts, [True] * count)
        with torch.inference_mode():
            got, best = graphs_.run([seq.token_ids[-1] for seq in chosen], parts, [True] * count)
        assert best.tolist() == [got.argmax(dim=-1).tolist(), [1] * count]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        for layer, (keys, _) in runner.memory.layers.items():
            torch.testing.assert_close(keys[:40], kept[layer], rtol=1e-4, atol=1e-5)


def test_what_no_graph_can_do_is_not_taken() -> None:
    runner = PagedRunner(tiny_model("llama"), VarlenAttention(4), 8)
    graphs_ = recorded(runner._logits, Recorder(), max_num_seqs=2, max_blocks=2, block_size=4, spare_block=8)
    one = Part([0, 1], 4, 1)
    assert graphs_.takes([one, one], [True, True])
    assert not graphs_.takes([one, one], [True, False])
    assert not graphs_.takes([one, one, one], [True] * 3)
    assert not graphs_.takes([one, Part([0, 1], 3, 2)], [True, True])
    assert not graphs_.takes([Part([0, 1, 2], 8, 1)], [True])


def test_memory_knows_what_a_block_costs() -> None:
    runner = PagedRunner(tiny_model("llama"), VarlenAttention(4), 40)
    runner.forward([ScheduledSequence(sequences((3,), 4)[0], 3)])
    copy = KVMemory(2, runner.memory)
    assert copy.bytes_per_block == runner.memory.bytes_per_block == 2 * 2 * 4 * 32 * 4
