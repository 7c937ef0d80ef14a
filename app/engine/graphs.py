"""Owns CUDA graphs of decode steps: one for each batch size of a short list, replayed from fixed buffers. Knows no scheduling.

A decode step of a large model is a few hundred short kernels; launched one by one they leave the device waiting for Python. A
graph launches them all at once. The batch is padded to the next size there is; the padding writes to a block that is nobody's.
"""

import bisect
import logging
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch
from torch import Tensor

from app.engine.attention import Part
from app.engine.draw import best_tokens
from app.engine.varlen import VarlenBatch

logger = logging.getLogger("tfoai.engine")

# (input ids [1, tokens], positions [1, tokens], batch) -> logits [tokens, vocabulary]
Forward = Callable[[Tensor, Tensor, VarlenBatch], Tensor]
# () -> logits [tokens, vocabulary], their best tokens [2, tokens]
Step = Callable[[], tuple[Tensor, Tensor]]

# Columns of a row before its block table.
_TOKEN, _POSITION, _SLOT, _LENGTH, _BLOCKS = range(5)


def batch_sizes(max_num_seqs: int) -> list[int]:
    """Return the sizes that get a graph: close together where batches are small, and the largest batch there can be."""
    sizes = [1, 2, 4, *range(8, 257, 8), *range(288, 1025, 32)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


class CudaRecorder:
    """Records steps as CUDA graphs that share their memory, and copies to the device without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()

    def record(self, step: Step) -> Step:
        """Return a function that repeats what `step` did, on what the buffers then hold."""
        # Kernels are chosen and libraries set up at the first calls, which a graph can not hold.
        side: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = step()

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return output

        return replay

    def staging(self, rows: Tensor) -> "Staging":
        return Staging(rows, self._device)


class Staging:
    """Rows on the host and on the device. Pinned, so that the copy does not wait; two on the host in turn, because the copy of
    the step before may still be under way."""

    def __init__(self, rows: Tensor, device: torch.device) -> None:
        self.device_rows = rows.to(device)
        self._host = [rows.clone().pin_memory() for _ in range(2)]
        self._copied: list[Any] = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def next_host_rows(self) -> Tensor:
        self._turn = 1 - self._turn
        self._copied[self._turn].synchronize()
        return self._host[self._turn]

    def copy(self, size: int) -> None:
        self.device_rows[:size].copy_(self._host[self._turn][:size], non_blocking=True)
        self._copied[self._turn].record()


class DecodeGraphs:
    """Runs decode steps of up to `max_num_seqs` sequences, each with at most `max_blocks` blocks of `block_size` tokens.

    `spare_block` is a block of the KV memory that no sequence gets. `forward` must do the same work for the same shapes, and
    must not wait for the device. Raise whatever recording raises: the caller then goes on without graphs.
    """

    def __init__(
        self, forward: Forward, recorder: Any, *, max_num_seqs: int, max_blocks: int, block_size: int, spare_block: int
    ) -> None:
        self._forward = forward
        self._block_size = block_size
        self._max_blocks = max_blocks
        # What a padding row reads and writes: one token in the spare block.
        self._padding = torch.full((_BLOCKS + max_blocks,), spare_block, dtype=torch.int32)
        self._padding[:_BLOCKS] = torch.tensor([0, 0, spare_block * block_size, 1])
        self._sizes = batch_sizes(max_num_seqs)
        largest = self._sizes[-1]
        self._staging = recorder.staging(self._padding.repeat(largest, 1))
        self._starts = torch.arange(largest + 1, dtype=torch.int32, device=self._staging.device_rows.device)
        # The largest first: the smaller ones then fit into the memory that it has taken.
        self._steps = {size: recorder.record(self._step(size)) for size in reversed(self._sizes)}
        logger.info("graphs.captured", extra={"batch_sizes": len(self._sizes), "largest": largest})

    def takes(self, parts: SequenceOf[Part], completes: SequenceOf[bool]) -> bool:
        """Whether a batch is a decode step that there is a graph for; `completes` says of which parts logits are wanted."""
        most = self._max_blocks * self._block_size
        are_short = all(part.num_new == 1 and part.length <= most for part in parts)
        return len(parts) <= self._sizes[-1] and are_short and all(completes)

    def run(self, token_ids: SequenceOf[int], parts: SequenceOf[Part], completes: SequenceOf[bool]) -> tuple[Tensor, Tensor]:
        """Return the logits [sequences, vocabulary] of one decode step, and `ForwardOutput.best` for them.

        They hold until the next call.
        """
        size = self._sizes[bisect.bisect_left(self._sizes, len(parts))]
        host = self._staging.next_host_rows()
        rows = [self._row(token, part) for token, part in zip(token_ids, parts, strict=True)]
        width = max(len(row) for row in rows)
        # Behind a sequence's own blocks the kernel reads nothing, so what is left there from before does not matter.
        host[: len(rows), :width] = torch.tensor([row + row[-1:] * (width - len(row)) for row in rows], dtype=torch.int32)
        host[len(rows) : size] = self._padding
        self._staging.copy(size)
        logits, best = self._steps[size]()
        return logits[: len(parts)], best[:, : len(parts)]

    def _row(self, token: int, part: Part) -> list[int]:
        (slot,) = part.slots(self._block_size)
        return [token, part.num_computed, slot, part.length, *part.block_table[: self._max_blocks]]

    def _step(self, size: int) -> Step:
        rows = self._staging.device_rows[:size]

        def step() -> tuple[Tensor, Tensor]:
            batch = VarlenBatch(
                rows[:, _SLOT].long(),
                self._starts[: size + 1],
                rows[:, _LENGTH].contiguous(),
                rows[:, _BLOCKS:].contiguous(),
                max_new=1,
                max_length=self._max_blocks * self._block_size,
                block_size=self._block_size,
            )
            logits = self._forward(rows[:, _TOKEN].long().unsqueeze(0), rows[:, _POSITION].long().unsqueeze(0), batch)
            return logits, best_tokens(logits)

        return step
