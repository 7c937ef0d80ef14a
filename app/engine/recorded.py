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

import enum
import logging
import threading
import time
import warnings
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from app.engine import attention, linear
from app.engine.attention import Attention, KVMemory, Part
from app.engine.draw import best_tokens
from app.engine.dynamic import Decodes, DynamicBatch, Plan, Prompts

logger = logging.getLogger("tfoai.engine")

# A batch is padded to its longest context, and its prompts to the longest of them. That must not make more of it than this,
# beyond a few blocks and tokens that cost nothing.
_MOST_PADDING = 2.0
_FREE_BLOCKS = 64
_FREE_TOKENS = 256
# New tokens x context of all prompts, padding included. What is larger takes so long that Python does not matter, and a way to
# attend that makes no mask.
_MOST_SCORES = 2**20
# Largest difference of logits, as a share of the largest logit: the operators are the same, but sums may be split otherwise.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# (length, new tokens) of sequences. A step is recorded with the first of each, and must then be right for the others.
_ONE = (((17, 1),), ((1, 1),), ((5, 1),), ((70, 1),))
_MANY = (
    ((17, 1), (1, 1), (30, 1)),
    ((1, 1), (16, 1)),
    ((33, 1), (2, 1), (80, 1), (17, 1), (64, 1)),
    ((20, 1),) * 11,
)
_PROMPTS = (((20, 20), (40, 7)), ((33, 33),), ((2, 2), (16, 16), (90, 20)), ((70, 3), (17, 2), (5, 4)))
_MIXED = (
    ((17, 1), (1, 1), (20, 20), (40, 7)),
    ((33, 33), (5, 1)),
    ((2, 2), (64, 1), (16, 16), (90, 20), (80, 1), (9, 1)),
)
Step = Callable[..., tuple[Tensor, Tensor]]
# torch keeps what is being traced in places that all threads share.
_one_at_a_time = threading.Lock()


class NotRecordableError(Exception):
    """The model's forward depends on its data in ways that no recording can hold; the text says how."""


class _Kind(enum.Enum):
    """What a step is made of; each has a recording of its own, because modelling code may do one thing for one token and
    another for several."""

    ONE = enum.auto()
    MANY = enum.auto()
    PROMPTS = enum.auto()
    MIXED = enum.auto()

    @classmethod
    def of(cls, plan: Plan) -> "_Kind":
        if not plan.prompts:
            return cls.ONE if len(plan.decodes) == 1 else cls.MANY
        return cls.MIXED if plan.decodes else cls.PROMPTS


_EXAMPLES = {_Kind.ONE: _ONE, _Kind.MANY: _MANY, _Kind.PROMPTS: _PROMPTS, _Kind.MIXED: _MIXED}


class RecordedSteps:
    """Runs steps of a model that lies on a CPU, and so does its KV memory.

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
            self._steps = {kind: self._record(memory, way, kind) for kind in _Kind}
        logger.info("steps.recorded", extra={"seconds": round(time.monotonic() - start, 2)})

    def takes(self, parts: SequenceOf[Part], completes: SequenceOf[bool]) -> bool:
        """Whether a batch is one that padding does not make much larger; `completes` says of which parts logits are wanted."""
        decodes = [part for part in parts if part.num_new == 1]
        prompts = [part for part in parts if part.num_new > 1]
        if not (all(completes) if not prompts else any(completes)):
            return False
        if not self._fits(decodes) or not self._fits(prompts):
            return False
        if not prompts:
            return True
        num_new = [part.num_new for part in prompts]
        padded = len(prompts) * max(num_new)
        most = max(part.num_blocks(self._block_size) for part in prompts) * self._block_size
        return padded <= _MOST_PADDING * sum(num_new) + _FREE_TOKENS and padded * most <= _MOST_SCORES

    def run(self, token_ids: SequenceOf[int], parts: SequenceOf[Part], completes: SequenceOf[bool]) -> tuple[Tensor, Tensor]:
        """Return the logits [sequences that complete, vocabulary] of one step, and `ForwardOutput.best` for them."""
        plan = Plan.of(token_ids, parts, completes, self._block_size)
        inputs = self._inputs(plan)
        owner = _owned(inputs)
        try:
            return self._steps[_Kind.of(plan)](*inputs, *self._memory, *self._weights)
        finally:
            del owner

    def _fits(self, parts: list[Part]) -> bool:
        widths = [part.num_blocks(self._block_size) for part in parts]
        return len(parts) * max(widths, default=0) <= _MOST_PADDING * sum(widths) + _FREE_BLOCKS

    def _inputs(self, plan: Plan) -> list[Tensor]:
        """Return the arguments of a step, without memory and weights."""
        (num_decodes, decode_width), (num_prompts, prompt_width) = plan.widths()
        needed = max(num_decodes * decode_width, num_prompts * prompt_width) * self._numbers_per_block
        if needed > self._rooms[0].numel():
            self._rooms = [room.new_empty(needed * 5 // 4) for room in self._rooms]
        inputs = [plan.fresh(), *self._rooms]
        if plan.decodes:
            inputs += [plan.decode_rows(), self._position(decode_width)]
        if plan.prompts:
            inputs += [*plan.prompt_tensors(self._position(prompt_width)), plan.wanted_rows()]
        return inputs

    def _position(self, num_blocks: int) -> Tensor:
        if num_blocks not in self._positions:
            self._positions[num_blocks] = torch.arange(num_blocks * self._block_size)
        return self._positions[num_blocks]

    def _step_of(self, kind: _Kind) -> Step:
        """Return what is recorded; all that changes is an argument, in the order of `_inputs`."""

        def step(fresh: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
            given = iter(rest)
            rooms = [next(given) for _ in self._rooms]
            decodes = None if kind is _Kind.PROMPTS else Decodes(next(given), next(given))
            prompts, wanted = None, 0
            if kind in (_Kind.PROMPTS, _Kind.MIXED):
                prompts = Prompts(*(next(given) for _ in range(5)))
                wanted = next(given)  # type: ignore[assignment]
            tensors = [next(given) for _ in self._memory]
            heads = {id(tensor): number for tensor, number in zip(tensors, self._heads, strict=True)}
            layers = iter(tensors)
            memory = KVMemory.of({layer: (next(layers), next(layers)) for layer in self._layers})
            batch = DynamicBatch(decodes, prompts, fresh, rooms, block_size=self._block_size, heads=heads)
            with attention.running(batch, memory):
                logits = self._logits(batch.ids.unsqueeze(0), batch.positions.unsqueeze(0), wanted)
            return logits, best_tokens(logits)

        return step

    def _logits(self, ids: Tensor, positions: Tensor, wanted: Tensor | int = 0) -> Tensor:
        logits: Tensor = self._model(
            input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=wanted, return_dict=True
        ).logits[0]
        return logits

    def _record(self, like: KVMemory, way: Attention, kind: _Kind) -> Step:
        """Return the step that the first example of its kind makes, if it is right for all of them."""
        size, examples = self._block_size, _EXAMPLES[kind]
        num_blocks = max(sum(-(-length // size) for length, _ in example) for example in examples)
        memory = KVMemory(num_blocks, like)
        for tensor in self._tensors(memory):
            tensor.normal_()
        recorded: Step | None = None
        for example in examples:
            blocks = iter(range(memory.num_blocks))
            parts = [
                Part([next(blocks) for _ in range(0, length, size)], length - num_new, num_new) for length, num_new in example
            ]
            ids = [1 + number % 7 for number in range(sum(part.num_new for part in parts))]
            positions = [position for part in parts for position in range(part.num_computed, part.length)]
            last = torch.tensor([part.num_new for part in parts]).cumsum(0) - 1
            with attention.running(way.batch(parts, torch.device("cpu")), memory):
                plain = self._logits(torch.tensor([ids]), torch.tensor([positions]), last)
            inputs = self._inputs(Plan.of(ids, parts, [True] * len(parts), size))
            inputs += [*self._tensors(memory), *self._weights]
            recorded = recorded or _recorded(self._step_of(kind), inputs)
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


def _compare(recorded: Tensor, best: Tensor, plain: Tensor) -> None:
    difference = (recorded.float() - plain.float()).abs().max() / plain.float().abs().max()
    if recorded.shape != plain.shape or not difference <= _TOLERANCE[plain.dtype]:
        raise NotRecordableError(f"its logits differ by {difference:.2%} from a forward's")
    if not torch.equal(best, best_tokens(recorded)):
        raise NotRecordableError("its best tokens are not those of its logits")
