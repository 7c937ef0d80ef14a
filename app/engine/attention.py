"""Owns paged attention under unmodified transformers models, through their public attention interface. Knows no scheduling.

A batch is ragged: all sequences' new tokens back to back in one row, nothing padded. The function registered here writes
their keys and values into the KV memory and lets the PagedBatch of the forward that is under way on this thread attend over
each sequence's own blocks: `gather.py` does so on every device, `varlen.py` with the flash kernels of torch on CUDA.
"""

import threading
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "tfoai_paged"


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's part of a batch: `num_new` tokens behind `num_computed` ones, all in the blocks of `block_table`."""

    block_table: list[int]
    num_computed: int
    num_new: int

    @property
    def length(self) -> int:
        return self.num_computed + self.num_new

    def num_blocks(self, block_size: int) -> int:
        """Return the number of blocks that its tokens take, the new ones included."""
        return -(-self.length // block_size)

    def slots(self, block_size: int) -> list[int]:
        """Return the places of the new tokens in KV memory."""
        return [
            self.block_table[position // block_size] * block_size + position % block_size
            for position in range(self.num_computed, self.length)
        ]

    def fresh_block(self, block_size: int) -> int | None:
        """Return the block that the new tokens begin and do not fill; None if there is none."""
        last = (self.length - 1) // block_size
        is_fresh = self.length % block_size and self.num_computed <= last * block_size
        return self.block_table[last] if is_fresh else None


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What a layer wants beside query, key and value.

    `sliding_window` counts the tokens that one sees, itself included. `sinks` [heads] are logits that take part in the softmax
    and have no value.
    """

    scaling: float | None = None
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


class PagedBatch(Protocol):
    """Where the tokens of one forward go and what they see. It alone knows the order of numbers within a block."""

    def block_shape(self, heads: int, size: int) -> tuple[int, int, int]:
        """Return the shape of a block of a layer that has so many KV heads of that size."""
        ...

    def write(self, memory: Tensor, new: Tensor) -> None:
        """Store `new` [tokens, KV heads, size] in a layer's `memory` [blocks, *block shape]."""
        ...

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
        """Attend from `query` [tokens, heads, size] over a layer's memory [blocks, *block shape].

        Return [tokens, heads, size of a value].
        """
        ...


class Attention(Protocol):
    """A way to attend over blocks. `block_size` is the number of tokens in a block."""

    name: str
    block_size: int

    def batch(self, parts: SequenceOf[Part], device: torch.device) -> PagedBatch: ...


class KVMemory:
    """Keys and values of every layer, `num_blocks` blocks each; layers may differ.

    A layer's memory is made when it first writes; `like` another memory, whose layers are known, all of it is made at once.
    """

    def __init__(self, num_blocks: int, like: "KVMemory | None" = None) -> None:
        self.num_blocks = num_blocks
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        for layer, (keys, values) in like.layers.items() if like else ():
            self.layers[layer] = self._zeros(keys, keys.shape[1:]), self._zeros(values, values.shape[1:])

    @classmethod
    def of(cls, layers: dict[int, tuple[Tensor, Tensor]]) -> "KVMemory":
        """Return a memory whose layers are there already."""
        keys, _ = next(iter(layers.values()))
        memory = cls(keys.shape[0])
        memory.layers = layers
        return memory

    def write(self, layer: int, batch: PagedBatch, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store `key` and `value` [tokens, heads, head size] where the batch says; return the layer's whole memory."""
        if layer not in self.layers:
            self.layers[layer] = (
                self._zeros(key, batch.block_shape(*key.shape[1:])),
                self._zeros(value, batch.block_shape(*value.shape[1:])),
            )
        keys, values = self.layers[layer]
        batch.write(keys, key)
        batch.write(values, value)
        return keys, values

    @property
    def bytes_per_block(self) -> int:
        return sum(tensor[0].nbytes for pair in self.layers.values() for tensor in pair)

    def _zeros(self, like: Tensor, block_shape: SequenceOf[int]) -> Tensor:
        return like.new_zeros(self.num_blocks, *block_shape)


class _Current(threading.local):
    batch: PagedBatch | None = None
    memory: KVMemory | None = None


_current = _Current()


class running:  # noqa: N801 - a context manager, used like a function
    """While entered, forwards on this thread attend as `batch` says."""

    def __init__(self, batch: PagedBatch, memory: KVMemory) -> None:
        self._batch, self._memory = batch, memory

    def __enter__(self) -> None:
        _current.batch, _current.memory = self._batch, self._memory

    def __exit__(self, *_: object) -> None:
        _current.batch = _current.memory = None


def paged_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend for one layer: `query` [1, heads, tokens, size], `key` and `value` [1, KV heads, tokens, size].

    Return [1, tokens, heads, size]. The arguments are those that transformers passes to every attention function; `s_aux` are
    attention sinks [heads].
    """
    batch, memory = _current.batch, _current.memory
    if batch is None or memory is None:
        raise RuntimeError("paged attention outside of a paged forward")
    layer: Any = module.layer_idx
    keys, values = memory.write(layer, batch, key[0].transpose(0, 1), value[0].transpose(0, 1))
    options = AttentionOptions(scaling, sliding_window, softcap, s_aux)
    return batch.attend(query[0].transpose(0, 1), keys, values, options).unsqueeze(0), None


# Registered for attention, and for masks on purpose not: without a mask function transformers builds none, and does not look
# at the positions either, which would make the host wait for the device.
AttentionInterface.register(NAME, paged_attention)
