"""Owns recorded decode steps on a CPU: a model's forward as a flat list of operators, run without Python. Knows no scheduling.

A decode step of a small model is a thousand short operators, and most of its time is Python between them, with the
interpreter's lock held. torch's tracer writes down the operators of one forward, and TorchScript's interpreter then runs them,
for any number of sequences and any length, while other threads serve HTTP. What a recording can not hold is Python that depends
on the data. Such a model is told by the tracer's warnings, or by the comparison with its forward, and goes on without.

Every operator that Python calls gives the interpreter's lock away and has to get it back, from a thread that may keep it for
milliseconds. So a step is one call: its numbers are put together in NumPy, and the best tokens are a part of the recording. Nor
may anything inside ask for the lock: torch does when a tensor that Python knows gets its second owner in C++, or loses it, so
all arguments have a second one for as long as they may be used (`_owned`).
"""

import logging
import threading
import time
import warnings
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from app.engine import attention, linear
from app.engine.attention import Attention, AttentionOptions, KVMemory, Part
from app.engine.gather import HeadsFirst, Tables, attend_decode, decode_bias, gather
from app.engine.sampler import best_tokens

logger = logging.getLogger("tfoai.engine")

# A batch is padded to its longest context. It must not make more of it than this, beyond a few blocks that cost nothing.
_MOST_PADDING = 2.0
_FREE_BLOCKS = 64
# Largest difference of logits, as a share of the largest logit: the operators are the same, but sums may be split otherwise.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# Lengths of sequences: a step is recorded with the first of each, and must then be right for the others.
_ONE = ((17,), (1,), (5,), (70,))
_MANY = ((17, 1, 30), (1, 16), (33, 2, 80, 17, 64), (20,) * 11)
Step = Callable[..., tuple[Tensor, Tensor]]
# The columns of what a step is told of each sequence, before those of its block table: token, position, slot, length.
_NUM_COLUMNS = 4
# The arguments of a step before memory and weights: that table, fresh blocks, positions, rooms for keys and for values.
_NUM_INPUTS = 5
# torch keeps what is being traced in places that all threads share.
_one_at_a_time = threading.Lock()


class NotRecordableError(Exception):
    """The model's forward depends on its data in ways that no recording can hold; the text says how."""


class _Batch(HeadsFirst):
    """A PagedBatch of one new token per sequence, whose sizes are all read from tensors, so that a recording holds for any.

    `tables` [sequences, blocks]; `lengths` [sequences]; `position` [blocks x block size] counts from 0; `rooms`: memory for
    gathered keys and values; `heads`: the number of KV heads of each layer's memory, by its id.
    """

    def __init__(
        self,
        slots: Tensor,
        fresh: Tensor,
        tables: Tensor,
        lengths: Tensor,
        position: Tensor,
        *rooms: Tensor,
        block_size: int,
        heads: dict[int, int],
    ) -> None:
        super().__init__(slots, fresh, block_size)
        self._tables = Tables(tables)
        self._lengths = lengths
        self._position = position
        self._rooms = rooms
        self._heads = heads
        self._biases: dict[int | None, Tensor] = {}

    def num_heads(self, memory: Tensor) -> int:
        """Return what a shape would say, which while recording is no number to look things up by."""
        return self._heads[id(memory)]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
        window = options.sliding_window
        if window not in self._biases:
            self._biases[window] = decode_bias(self._position, self._lengths, window, query.dtype)
        key, value = (
            gather(memory, self._tables.rows(self.num_heads(memory)), self._lengths.shape[0], room)
            for memory, room in zip((keys, values), self._rooms, strict=True)
        )
        return attend_decode(query, key, value, self._biases[window], options)


class RecordedSteps:
    """Runs decode steps of a model that lies on a CPU, and so does its KV memory.

    `way` is how the model attends otherwise, to compare with. Raise NotRecordableError, or whatever tracing raises: the caller
    then goes on without.
    """

    def __init__(self, model: nn.Module, memory: KVMemory, way: Attention) -> None:
        self._model: Any = model
        self._layers = sorted(memory.layers)
        self._memory = self._tensors(memory)
        # Arguments too: what a recording keeps for itself, torch may compute with once and for all.
        self._weights = list({id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values())
        self._heads = [tensor.shape[1] for tensor in self._memory]
        self._block_size = way.block_size
        self._numbers_per_block = max(tensor[0].numel() for tensor in self._memory)
        self._owner = _owned([*self._memory, *self._weights])
        self._rooms = [self._memory[0].new_empty(0) for _ in range(2)]
        # By the number of blocks.
        self._positions: dict[int, Tensor] = {}
        start = time.monotonic()
        with _one_at_a_time, torch.inference_mode():
            # Modelling code may do one thing for one token and another for several.
            self._one, self._many = (self._record(memory, way, examples) for examples in (_ONE, _MANY))
        logger.info("steps.recorded", extra={"seconds": round(time.monotonic() - start, 2)})

    def takes(self, parts: SequenceOf[Part]) -> bool:
        """Whether a batch is a decode step that padding does not make much larger."""
        if any(part.num_new != 1 for part in parts):
            return False
        widths = [-(-part.length // self._block_size) for part in parts]
        return len(parts) * max(widths) <= _MOST_PADDING * sum(widths) + _FREE_BLOCKS

    def run(self, token_ids: SequenceOf[int], parts: SequenceOf[Part]) -> tuple[Tensor, Tensor]:
        """Return the logits [sequences, vocabulary] of one decode step, and `ForwardOutput.best` for them."""
        step = self._one if len(parts) == 1 else self._many
        inputs = self._inputs(token_ids, parts)
        owner = _owned(inputs)
        try:
            return step(*inputs, *self._memory, *self._weights)
        finally:
            del owner

    def _inputs(self, token_ids: SequenceOf[int], parts: SequenceOf[Part]) -> list[Tensor]:
        """Return the arguments of a step, without memory and weights."""
        size = self._block_size
        width = max(-(-part.length // size) for part in parts)
        # Padded with a block of its own: what somebody else's holds must not be able to matter, be it NaN.
        tables = [(part.block_table + part.block_table[-1:] * width)[:width] for part in parts]
        rows = [
            [token, part.num_computed, *part.slots(size), part.length, *table]
            for token, part, table in zip(token_ids, parts, tables, strict=True)
        ]
        fresh = [block for part in parts if (block := part.fresh_block(size)) is not None]
        if (needed := len(parts) * width * self._numbers_per_block) > self._rooms[0].numel():
            self._rooms = [room.new_empty(needed * 5 // 4) for room in self._rooms]
        if width not in self._positions:
            self._positions[width] = torch.arange(width * size)
        return [_tensor(rows), _tensor(fresh), self._positions[width], *self._rooms]

    def _step(self, rows: Tensor, fresh: Tensor, position: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what is recorded; all that changes is an argument, in the order of `_inputs`."""
        num_rooms = _NUM_INPUTS - 3
        tensors = rest[num_rooms : num_rooms + len(self._memory)]
        heads = {id(tensor): number for tensor, number in zip(tensors, self._heads, strict=True)}
        layers = iter(tensors)
        memory = KVMemory.of({layer: (next(layers), next(layers)) for layer in self._layers})
        ids, positions, slots, lengths = rows[:, :_NUM_COLUMNS].unbind(1)
        batch = _Batch(
            *(slots, fresh, rows[:, _NUM_COLUMNS:], lengths, position, *rest[:num_rooms]),
            block_size=self._block_size,
            heads=heads,
        )
        with attention.running(batch, memory):
            logits = self._logits(ids.unsqueeze(0), positions.unsqueeze(0))
        return logits, best_tokens(logits)

    def _logits(self, ids: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids=ids, position_ids=positions, use_cache=False, return_dict=True).logits[0]
        return logits

    def _record(self, like: KVMemory, way: Attention, examples: SequenceOf[SequenceOf[int]]) -> Step:
        """Return the step that the first example (lengths of sequences) makes, if it is right for all of them."""
        size = self._block_size
        memory = KVMemory(max(sum(-(-length // size) for length in lengths) for lengths in examples), like)
        for tensor in self._tensors(memory):
            tensor.normal_()
        recorded: Step | None = None
        for lengths in examples:
            blocks = iter(range(memory.num_blocks))
            parts = [Part([next(blocks) for _ in range(0, length, size)], length - 1, 1) for length in lengths]
            inputs = self._inputs([1 + number % 7 for number in range(len(lengths))], parts)
            ids, positions = (column.unsqueeze(0) for column in inputs[0][:, :2].unbind(1))
            with attention.running(way.batch(parts, torch.device("cpu")), memory):
                plain = self._logits(ids, positions)
            inputs += [*self._tensors(memory), *self._weights]
            recorded = recorded or _recorded(self._step, inputs)
            # Twice: torch rewrites a recording while it runs for the first time.
            for _ in range(2):
                _compare(*recorded(*inputs), plain)
        assert recorded is not None
        return recorded

    def _tensors(self, memory: KVMemory) -> list[Tensor]:
        return [tensor for layer in self._layers for tensor in memory.layers[layer]]


def _recorded(step: Step, inputs: list[Tensor]) -> Step:
    """Return what `step` does on `inputs` as a function of its own.

    By the parts that `torch.jit.trace` is made of: its own result stays in memory for ever, even when its model is gone.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph, *_ = torch._C._create_graph_by_tracing(step, tuple(inputs), lambda _: "", True, False, None, [])
    # `linear.py` asks whether there is one row, which is the same for all steps of a recording.
    doubts = [w for w in caught if issubclass(w.category, TracerWarning) and w.filename != linear.__file__]
    if doubts:
        raise NotRecordableError(f"{doubts[0].filename}:{doubts[0].lineno}: {str(doubts[0].message).partition('. ')[0]}")
    return cast(Step, torch._C._create_function_from_graph("step", graph))


def _owned(tensors: list[Tensor]) -> Any:
    """Return something that owns tensors in C++."""
    return torch._C.ScriptList(tensors)


def _tensor(numbers: list[int] | list[list[int]]) -> Tensor:
    return torch.from_numpy(np.array(numbers, dtype=np.int64))


def _compare(recorded: Tensor, best: Tensor, plain: Tensor) -> None:
    difference = (recorded.float() - plain.float()).abs().max() / plain.float().abs().max()
    if recorded.shape != plain.shape or not difference <= _TOLERANCE[plain.dtype]:
        raise NotRecordableError(f"its logits differ by {difference:.2%} from a forward's")
    if not torch.equal(best, best_tokens(recorded)):
        raise NotRecordableError("its best tokens are not those of its logits")
