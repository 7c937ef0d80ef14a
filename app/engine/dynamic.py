"""Owns batches whose sizes are all read from tensors, so that a recorded step with one holds for any. Knows no recording.

The numbers of a step go from plain lists to tensors in NumPy: torch's operators, called from Python, would each give the
interpreter's lock away.
"""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from app.engine.attention import AttentionOptions, Part
from app.engine.gather import HeadsFirst, Tables, attend_decode, attend_prompts, decode_bias, gather, padded_tables

# The columns of what is told of each decoding sequence, before those of its block table: token, position, slot, length.
_NUM_COLUMNS = 4


class Decodes:
    """Sequences with one new token each.

    `rows` [sequences, columns + blocks]; `position` [blocks x block size] counts from 0.
    """

    def __init__(self, rows: Tensor, position: Tensor) -> None:
        self.ids, self.positions, self.slots, self._lengths = rows[:, :_NUM_COLUMNS].unbind(1)
        self.tables = Tables(rows[:, _NUM_COLUMNS:])
        self.num_seqs = rows.shape[0]
        self._position = position
        self._biases: dict[int | None, Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        window = options.sliding_window
        if window not in self._biases:
            self._biases[window] = decode_bias(self._position, self._lengths, window, query.dtype)
        return attend_decode(query, key, value, self._biases[window], options)


class Prompts:
    """Sequences with several new tokens each, padded to the longest for attention only.

    `tokens` [tokens, 3]: id, position, slot; `tables` [sequences, blocks]; `position` as above; `where` [sequences, longest]:
    the token at each place, padding included; `back` [tokens]: the place of each token.
    """

    def __init__(self, tokens: Tensor, tables: Tensor, position: Tensor, where: Tensor, back: Tensor) -> None:
        self.ids, self.positions, self.slots = tokens.unbind(1)
        self.tables = Tables(tables)
        self.num_seqs = tables.shape[0]
        self._position = position
        self._where = where
        self._back = back
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        window = options.sliding_window
        if window not in self._masks:
            own = self.positions[self._where].unsqueeze(-1)
            visible = self._position <= own
            if window is not None:
                visible = visible & (self._position > own - window)
            self._masks[window] = visible.unsqueeze(1)
        padded = query.index_select(0, self._where.flatten()).view(*self._where.shape, *query.shape[1:]).transpose(1, 2)
        attended = attend_prompts(padded, key, value, self._masks[window], options)
        return attended.transpose(1, 2).flatten(0, 1).index_select(0, self._back)


class DynamicBatch(HeadsFirst):
    """A PagedBatch of decoding sequences, prompts, or both, in this order.

    `fresh` as in HeadsFirst; `rooms`: memory for gathered keys and values; `heads`: the number of KV heads of each layer's
    memory, by its id.
    """

    def __init__(
        self,
        decodes: Decodes | None,
        prompts: Prompts | None,
        fresh: Tensor,
        rooms: SequenceOf[Tensor],
        *,
        block_size: int,
        heads: dict[int, int],
    ) -> None:
        self._parts: list[Decodes | Prompts] = [part for part in (decodes, prompts) if part is not None]
        super().__init__(_joined([part.slots for part in self._parts]), fresh, block_size)
        self.ids = _joined([part.ids for part in self._parts])
        self.positions = _joined([part.positions for part in self._parts])
        self._rooms = rooms
        self._heads = heads

    def num_heads(self, memory: Tensor) -> int:
        """Return what a shape would say, which while recording is no number to look things up by."""
        return self._heads[id(memory)]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
        outputs = []
        for part, own in zip(self._parts, self._split(query), strict=True):
            key, value = (
                gather(memory, part.tables.rows(self.num_heads(memory)), part.num_seqs, room)
                for memory, room in zip((keys, values), self._rooms, strict=True)
            )
            outputs.append(part.attend(own, key, value, options))
        return _joined(outputs)

    def _split(self, query: Tensor) -> tuple[Tensor, ...]:
        if len(self._parts) == 1:
            return (query,)
        num_decodes = self._parts[0].num_seqs
        return query[:num_decodes], query[num_decodes:]


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


@dataclass(slots=True)
class Plan:
    """Which parts of a batch decode and which are prompts, in plain numbers."""

    block_size: int
    decodes: list[tuple[int, Part]] = field(default_factory=list)
    prompts: list[tuple[SequenceOf[int], Part]] = field(default_factory=list)
    # For each sequence that completes, in the batch's order, the row of its last token.
    wanted: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, token_ids: SequenceOf[int], parts: SequenceOf[Part], completes: SequenceOf[bool], block_size: int) -> "Plan":
        """`token_ids` are the new tokens of all parts, back to back."""
        plan = cls(block_size)
        num_decodes = sum(1 for part in parts if part.num_new == 1)
        start, num_prompt_tokens = 0, 0
        for part, is_wanted in zip(parts, completes, strict=True):
            if part.num_new == 1:
                row = len(plan.decodes)
                plan.decodes.append((token_ids[start], part))
            else:
                num_prompt_tokens += part.num_new
                row = num_decodes + num_prompt_tokens - 1
                plan.prompts.append((token_ids[start : start + part.num_new], part))
            start += part.num_new
            if is_wanted:
                plan.wanted.append(row)
        return plan

    def widths(self) -> Iterator[tuple[int, int]]:
        """Yield the number of sequences, and of blocks of the longest, of those that decode and of the prompts."""
        for pairs in (self.decodes, self.prompts):
            yield len(pairs), max((part.num_blocks(self.block_size) for _, part in pairs), default=0)

    def fresh(self) -> Tensor:
        parts = [part for _, part in (*self.decodes, *self.prompts)]
        return _tensor([block for part in parts if (block := part.fresh_block(self.block_size)) is not None])

    def decode_rows(self) -> Tensor:
        """Return the `rows` of Decodes."""
        tables = padded_tables([part for _, part in self.decodes], self.block_size)
        return _tensor(
            [
                [token, part.num_computed, *part.slots(self.block_size), part.length, *table]
                for (token, part), table in zip(self.decodes, tables, strict=True)
            ]
        )

    def prompt_tensors(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the arguments of Prompts."""
        tokens: list[tuple[int, int, int]] = []
        where: list[list[int]] = []
        back: list[int] = []
        longest = max(part.num_new for _, part in self.prompts)
        for index, (ids, part) in enumerate(self.prompts):
            first = len(tokens)
            tokens += zip(ids, range(part.num_computed, part.length), part.slots(self.block_size), strict=True)
            where.append([min(first + place, len(tokens) - 1) for place in range(longest)])
            back += range(index * longest, index * longest + part.num_new)
        return (
            _tensor(tokens),
            _tensor(padded_tables([part for _, part in self.prompts], self.block_size)),
            position,
            _tensor(where),
            _tensor(back),
        )

    def wanted_rows(self) -> Tensor:
        return _tensor(self.wanted)


def _tensor(numbers: SequenceOf[int] | SequenceOf[SequenceOf[int]]) -> Tensor:
    return torch.from_numpy(np.array(numbers, dtype=np.int64))
