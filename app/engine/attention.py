"""Owns paged attention under unmodified transformers models, through their public attention interface. Knows no scheduling.

A batch is ragged: all sequences' new tokens back to back in one row, nothing padded. The function registered here writes
their keys and values into the KV memory and attends over each sequence's own blocks. Which blocks those are stands in the
PagedBatch of the forward that is under way on this thread.
"""

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "tfoai_paged"


@dataclass(slots=True)
class Prefill:
    """Several new tokens of one sequence: rows `start` to `end` of the batch, which attend to `slots` [context length]."""

    start: int
    end: int
    slots: torch.Tensor


@dataclass(slots=True)
class PagedBatch:
    """Where the tokens of one forward go and what they see.

    `write_slots` [tokens]: the place in KV memory of each new token. `decode_rows` [sequences]: the rows of the sequences with
    one new token; `decode_slots` [sequences, longest context] their contexts, padded with any slot, and `decode_lengths`
    [sequences] how much of it counts.
    """

    write_slots: torch.Tensor
    prefills: list[Prefill]
    decode_rows: torch.Tensor | None = None
    decode_slots: torch.Tensor | None = None
    decode_lengths: torch.Tensor | None = None


class KVMemory:
    """Keys and values of every layer, [slots, heads, head size] each; made when a layer first writes, so layers may differ.

    `like` another memory, whose layers are known, all of it is made at once.
    """

    def __init__(self, num_slots: int, like: "KVMemory | None" = None) -> None:
        self.num_slots = num_slots
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer, (keys, values) in like.layers.items() if like else ():
            self.layers[layer] = (keys.new_zeros(num_slots, *keys.shape[1:]), values.new_zeros(num_slots, *values.shape[1:]))

    def write(
        self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store `key` and `value` [tokens, heads, head size]; return the layer's whole memory."""
        if layer not in self.layers:
            self.layers[layer] = (
                key.new_zeros(self.num_slots, *key.shape[1:]),
                value.new_zeros(self.num_slots, *value.shape[1:]),
            )
        keys, values = self.layers[layer]
        keys.index_copy_(0, slots, key)
        values.index_copy_(0, slots, value)
        return keys, values

    @property
    def bytes_per_slot(self) -> int:
        return sum(tensor[0].nbytes for pair in self.layers.values() for tensor in pair)


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
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend for one layer: `query` [1, heads, tokens, size], `key` and `value` [1, KV heads, tokens, size].

    Return [1, tokens, heads, size]. The arguments are those that transformers passes to every attention function; `s_aux` are
    attention sinks [heads].
    """
    batch, memory = _current.batch, _current.memory
    if batch is None or memory is None:
        raise RuntimeError("paged attention outside of a paged forward")
    layer: Any = module.layer_idx
    keys, values = memory.write(layer, batch.write_slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    output = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    if batch.decode_rows is not None and batch.decode_slots is not None and batch.decode_lengths is not None:
        position = torch.arange(batch.decode_slots.shape[1], device=query.device)
        last = batch.decode_lengths.unsqueeze(-1) - 1
        visible = position <= last
        if sliding_window is not None:
            visible &= position > last - sliding_window
        attended = _attend(
            query[0, :, batch.decode_rows].transpose(0, 1).unsqueeze(2),
            keys[batch.decode_slots].transpose(1, 2),
            values[batch.decode_slots].transpose(1, 2),
            visible[:, None, None, :],
            scaling,
            softcap,
            s_aux,
        )
        output[batch.decode_rows] = attended[:, :, 0]
    for prefill in batch.prefills:
        num_new, length = prefill.end - prefill.start, prefill.slots.shape[0]
        position = torch.arange(length, device=query.device)
        own = torch.arange(length - num_new, length, device=query.device).unsqueeze(-1)
        visible = position <= own
        if sliding_window is not None:
            visible &= position > own - sliding_window
        attended = _attend(
            query[:, :, prefill.start : prefill.end],
            keys[prefill.slots].transpose(0, 1).unsqueeze(0),
            values[prefill.slots].transpose(0, 1).unsqueeze(0),
            visible,
            scaling,
            softcap,
            s_aux,
        )
        output[prefill.start : prefill.end] = attended[0].transpose(0, 1)
    return output.unsqueeze(0), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend from `query` [n, heads, q, size] over `key`, `value` [n, KV heads, k, size] where `visible` is true."""
    groups = query.shape[1] // key.shape[1]
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scaling, enable_gqa=groups > 1)
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if sinks is None:
        return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value
    column = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1).to(scores.dtype)
    weights = torch.cat([scores, column], dim=-1).softmax(dim=-1, dtype=torch.float32)[..., :-1]
    return weights.to(query.dtype) @ value


AttentionInterface.register(NAME, paged_attention)
# No mask is ever built: what a token sees stands in the PagedBatch.
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
