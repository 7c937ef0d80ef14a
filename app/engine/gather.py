"""Owns attention over blocks by gathering them, on any device: sequences that decode together, prompts one by one.

Knows no model and no scheduling; a batch is described by its sequences' block tables and lengths. A block of a layer is
[KV heads, block size, size]: what is gathered of a head is one piece then, which matrix products want.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from app.engine.attention import AttentionOptions, Part


class HeadsFirst:
    """The part of a PagedBatch that writes.

    `slots` [tokens]: the place of each new token; slot = block x block size + offset. `fresh`: the blocks to empty before,
    because what is left of an earlier sequence in them (NaN, say) would be read; None for none.
    """

    def __init__(self, slots: Tensor, fresh: Tensor | None, block_size: int) -> None:
        self._slots = slots
        self._fresh = fresh
        self._block_size = block_size
        self._written: dict[int, Tensor] = {}

    def block_shape(self, heads: int, size: int) -> tuple[int, int, int]:
        return heads, self._block_size, size

    def write(self, memory: Tensor, new: Tensor) -> None:
        if self._fresh is not None:
            memory.index_fill_(0, self._fresh, 0)
        heads = self.num_heads(memory)
        if heads not in self._written:
            first = self._slots + self._slots // self._block_size * ((heads - 1) * self._block_size)
            steps = torch.arange(0, heads * self._block_size, self._block_size, device=memory.device)
            self._written[heads] = (first.unsqueeze(1) + steps).flatten()
        memory.flatten(0, 2).index_copy_(0, self._written[heads], new.flatten(0, 1))

    def num_heads(self, memory: Tensor) -> int:
        """Return the number of KV heads in a layer's memory."""
        return memory.shape[1]


class Tables:
    """Block tables [sequences, blocks] and, made once per forward, the rows that they stand for in layers of so many heads."""

    def __init__(self, blocks: Tensor) -> None:
        self._blocks = blocks
        self._rows: dict[int, Tensor] = {}

    def rows(self, heads: int) -> Tensor:
        """Return [sequences x heads x blocks]: places in a memory of one row for each block and head."""
        if heads not in self._rows:
            numbers = torch.arange(heads, device=self._blocks.device).unsqueeze(1)
            self._rows[heads] = (self._blocks.unsqueeze(1) * heads + numbers).flatten()
        return self._rows[heads]


def padded_tables(parts: SequenceOf[Part], block_size: int) -> list[list[int]]:
    """Return block tables of one length, that of the longest.

    Each is padded with a block of its own: what somebody else's holds must not be able to matter, be it NaN.
    """
    width = max(part.num_blocks(block_size) for part in parts)
    return [(part.block_table + part.block_table[-1:] * width)[:width] for part in parts]


def gather(memory: Tensor, rows: Tensor, num_seqs: int, room: Tensor) -> Tensor:
    """Return rows of `memory` [blocks, heads, block size, size] as [sequences, heads, tokens, size], in `room`."""
    flat = memory.flatten(0, 1).flatten(1)
    chosen = room[: rows.shape[0] * flat.shape[1]].view(-1, flat.shape[1])
    torch.index_select(flat, 0, rows, out=chosen)
    return chosen.view(num_seqs, memory.shape[1], -1, memory.shape[3])


@dataclass(slots=True)
class _Decode:
    """Sequences with one new token each and contexts of about the same number of blocks, `width` of them after padding."""

    rows: Tensor | None
    tables: Tables
    width: int
    lengths: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, block_size: int, dtype: torch.dtype) -> Tensor:
        """Return the bias of `decode_bias`; made once per forward and window."""
        if window not in self.masks:
            position = torch.arange(self.width * block_size, device=self.lengths.device)
            self.masks[window] = decode_bias(position, self.lengths, window, dtype)
        return self.masks[window]


@dataclass(slots=True)
class _Prefill:
    """Several new tokens of one sequence: rows `start` to `end` of the batch."""

    start: int
    end: int
    tables: Tables
    length: int
    device: torch.device
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """Return [new tokens, length], true for what is seen; None where that is plainly causal from the first token on."""
        if window not in self.masks:
            num_new = self.end - self.start
            if num_new == self.length and (window is None or window >= self.length):
                self.masks[window] = None
            else:
                position = torch.arange(self.length, device=self.device)
                own = position[self.length - num_new :].unsqueeze(-1)
                visible = position <= own
                if window is not None:
                    visible &= position > own - window
                self.masks[window] = visible
        return self.masks[window]


class Scratch:
    """Room for gathered keys and values that is used again at every layer and step: new memory each time costs page faults,
    which on a CPU take longer than the copy itself."""

    def __init__(self) -> None:
        self._rooms: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def gather(self, name: str, memory: Tensor, tables: Tables, num_seqs: int) -> Tensor:
        """Return the blocks of `memory` [blocks, heads, block size, size] as [sequences, heads, tokens, size].

        It holds until the next call with the same name.
        """
        rows = tables.rows(memory.shape[1])
        needed = rows.shape[0] * memory.shape[2] * memory.shape[3]
        key = (name, memory.dtype, memory.device)
        room = self._rooms.get(key)
        if room is None or room.numel() < needed:
            room = self._rooms[key] = memory.new_empty(needed * 5 // 4)
        return gather(memory, rows, num_seqs, room)


class GatherAttention:
    """Works on every device and for every model that takes an attention function."""

    name = "gather"
    block_size = 16

    def __init__(self) -> None:
        self._scratch = Scratch()

    def batch(self, parts: SequenceOf[Part], device: torch.device) -> "GatheredBatch":
        return GatheredBatch(parts, self.block_size, device, self._scratch)


class GatheredBatch(HeadsFirst):
    """A PagedBatch that copies the blocks of its sequences together and attends with torch's own attention.

    Decoding sequences are padded to the longest of their group; groups are by powers of two of the number of blocks, so that
    one long context does not make all others as long.
    """

    def __init__(self, parts: SequenceOf[Part], block_size: int, device: torch.device, scratch: Scratch) -> None:
        self._scratch = scratch
        self._prefills: list[_Prefill] = []
        slots: list[int] = []
        fresh: list[int] = []
        groups: dict[int, list[tuple[int, Part]]] = {}
        row = 0
        for part in parts:
            blocks = part.block_table[: part.num_blocks(block_size)]
            slots += part.slots(block_size)
            fresh_block = part.fresh_block(block_size)
            if fresh_block is not None:
                fresh.append(fresh_block)
            if part.num_new == 1:
                groups.setdefault((len(blocks) - 1).bit_length(), []).append((row, part))
            else:
                tables = Tables(torch.tensor([blocks], device=device))
                self._prefills.append(_Prefill(row, row + part.num_new, tables, part.length, device))
            row += part.num_new
        super().__init__(torch.tensor(slots, device=device), torch.tensor(fresh, device=device) if fresh else None, block_size)
        whole = len(groups) == 1 and not self._prefills
        self._decodes = [self._decode(members, whole, device) for members in groups.values()]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
        whole = len(self._decodes) == 1 and self._decodes[0].rows is None
        if whole:
            return self._attend_decode(self._decodes[0], query, keys, values, options)
        output = query.new_empty(*query.shape[:2], values.shape[-1])
        for decode in self._decodes:
            assert decode.rows is not None
            attended = self._attend_decode(decode, query.index_select(0, decode.rows), keys, values, options)
            output.index_copy_(0, decode.rows, attended)
        for prefill in self._prefills:
            output[prefill.start : prefill.end] = self._attend_prefill(prefill, query, keys, values, options)
        return output

    def _decode(self, members: list[tuple[int, Part]], whole: bool, device: torch.device) -> _Decode:
        tables = padded_tables([part for _, part in members], self._block_size)
        return _Decode(
            None if whole else torch.tensor([row for row, _ in members], device=device),
            Tables(torch.tensor(tables, device=device)),
            len(tables[0]),
            torch.tensor([part.length for _, part in members], device=device),
        )

    def _attend_decode(self, decode: _Decode, query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
        num_seqs = query.shape[0]
        return attend_decode(
            query,
            self._scratch.gather("keys", keys, decode.tables, num_seqs),
            self._scratch.gather("values", values, decode.tables, num_seqs),
            decode.mask(options.sliding_window, self._block_size, query.dtype),
            options,
        )

    def _attend_prefill(
        self, prefill: _Prefill, query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions
    ) -> Tensor:
        key = self._scratch.gather("keys", keys, prefill.tables, 1)[:, :, : prefill.length]
        value = self._scratch.gather("values", values, prefill.tables, 1)[:, :, : prefill.length]
        new = query[prefill.start : prefill.end].transpose(0, 1).unsqueeze(0)
        return attend_prompts(new, key, value, prefill.mask(options.sliding_window), options)[0].transpose(0, 1)


def decode_bias(position: Tensor, lengths: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return [sequences, 1, 1, positions], 0 for what the last token of `lengths` [sequences] sees, else -inf.

    `position` [positions] counts from 0 to the longest context, padding included.
    """
    last = lengths.unsqueeze(-1) - 1
    hidden = position > last
    if window is not None:
        hidden = hidden | (position <= last - window)
    bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
    return bias[:, None, None, :]


def attend_decode(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, options: AttentionOptions) -> Tensor:
    """Attend from one token of each sequence, `query` [sequences, heads, size].

    `key` and `value` are [sequences, KV heads, tokens, size]. Return [sequences, heads, size of a value].
    """
    num_seqs, num_heads, size = query.shape
    num_kv_heads = key.shape[1]
    # Query heads that share a KV head become its query positions: nothing has to be repeated.
    grouped = query.reshape(num_seqs, num_kv_heads, num_heads // num_kv_heads, size)
    if options.softcap is None and options.sinks is None and query.dtype == torch.float32:
        attended = _products(grouped, key, value, bias, options)
    else:
        sinks = None if options.sinks is None else options.sinks.reshape(1, num_kv_heads, -1, 1)
        attended = _attend(grouped, key, value, bias, options, sinks)
    return attended.reshape(num_seqs, num_heads, -1)


def attend_prompts(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: AttentionOptions) -> Tensor:
    """Attend from several tokens of each sequence, `query` [sequences, heads, new tokens, size].

    `key` and `value` are [sequences, KV heads, tokens, size]; `mask`, true for what is seen, broadcasts to [sequences, heads,
    new tokens, tokens]; None where that is plainly causal from the first token on. Return [sequences, heads, new tokens, size].
    """
    if options.softcap is None and options.sinks is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=options.scaling, enable_gqa=True
        )
    groups = query.shape[1] // key.shape[1]
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, -torch.inf)
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    sinks = None if options.sinks is None else options.sinks.reshape(1, -1, 1, 1)
    return _attend(query, key, value, bias, options, sinks)


def _products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, options: AttentionOptions) -> Tensor:
    """Attend as `_attend` does, in plain products: for a query or two per head half the time of torch's attention on a CPU."""
    scale = query.shape[-1] ** -0.5 if options.scaling is None else options.scaling
    bias = bias.expand(*query.shape[:3], key.shape[2]).flatten(0, 1)
    scores = torch.baddbmm(bias, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(dim=-1), value.flatten(0, 1)).view(*query.shape[:3], -1)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, options: AttentionOptions, sinks: Tensor | None) -> Tensor:
    """Attend from `query` [n, heads, q, size] over `key`, `value` [n, heads, k, size]; `bias` is added to the scores.

    `sinks` broadcasts to [n, heads, q, 1].
    """
    if options.softcap is None and sinks is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=options.scaling)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if options.scaling is None else options.scaling)
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    scores = scores + bias
    if sinks is None:
        return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value
    column = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
    weights = torch.cat([scores, column], dim=-1).softmax(dim=-1, dtype=torch.float32)[..., :-1]
    return weights.to(query.dtype) @ value
