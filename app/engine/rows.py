"""Owns the keys and values of encoder-decoder sequences that decode together, one row each. Knows no model and no scheduling.

Rows are aligned at their right ends: a step appends one column to all of them at once, in place, and a sequence that comes in
beside longer ones has its columns further to the right than it would have alone. What is left of a row is masked.
"""

from collections.abc import Sequence as SequenceOf
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

# Columns that the longest row does not need, as a share of those that it does, and how many are no matter.
_WASTE = 0.5
_FREE_COLUMNS = 16
# Keys and values, [rows, heads, columns, head size] each.
Pair = tuple[Tensor, Tensor]


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's rows while a step runs: writes the new column where it stays."""

    def __init__(self, keys: Tensor, values: Tensor, num_columns: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._whole = keys, values
        self._num_columns = num_columns
        self.keys, self.values = keys[:, :, :num_columns], values[:, :, :num_columns]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Pair:
        end = self._num_columns + key_states.shape[2]
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, self._num_columns : end] = new
        return self._whole[0][:, :, :end], self._whole[1][:, :, :end]

    def get_seq_length(self) -> int:
        return self._num_columns


class DecoderRows:
    """Rows 0 to `num_rows` - 1. `lengths[row]` is how many decoder tokens a row has, `sources[row]` how many encoder tokens."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.sources: list[int] = []
        self.num_columns = 0
        self._own: list[Pair] = []
        self._cross: list[Pair] = []

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    def add(self, own: SequenceOf[Pair], cross: SequenceOf[Pair], row: int, num_source: int) -> int:
        """Take over `row` of every layer's `own` keys and values, of as many columns as the sequence has tokens, and of those
        of the encoder's text, of which the first `num_source` columns count. Return the new row's number."""
        length, place = own[0][0].shape[2], self.num_rows
        self._make_room(own, cross, place + 1, length, num_source)
        if length > self.num_columns:
            self._shift(range(place), length - self.num_columns)
            self.num_columns = length
        for mine, theirs in zip(self._own, own, strict=True):
            for room, new in zip(mine, theirs, strict=True):
                # What another sequence has left here would be read behind a mask, and no mask stops NaN.
                room[place].zero_()
                room[place, :, self.num_columns - length : self.num_columns] = new[row]
        for mine, theirs in zip(self._cross, cross, strict=True):
            for room, new in zip(mine, theirs, strict=True):
                room[place].zero_()
                room[place, :, :num_source] = new[row, :, :num_source]
        self.lengths.append(length)
        self.sources.append(num_source)
        return place

    def remove(self, row: int) -> int:
        """Drop a row; the last one takes its place. Return the number that the last one had."""
        last = self.num_rows - 1
        if row != last:
            for pair in (*self._own, *self._cross):
                for room in pair:
                    room[row] = room[last]
            self.lengths[row], self.sources[row] = self.lengths[last], self.sources[last]
        self.lengths.pop()
        self.sources.pop()
        if not self.lengths:  # all memory is given back
            self.num_columns, self._own, self._cross = 0, [], []
        return last

    def begin(self, rows: SequenceOf[int]) -> "Step":
        """Prepare a step of one token for these rows; nothing is changed until it ends."""
        self._make_room(self._own, self._cross, self.num_rows, self.num_columns + 1, max(self.sources))
        return Step(self, rows)

    def tensors(self, rows: SequenceOf[int]) -> tuple[list[Pair], list[Pair]]:
        """Return the keys and values of some rows, own and cross: views where these are all rows, else copies."""
        num_source = max(self.sources[row] for row in rows)
        if list(rows) == list(range(self.num_rows)):
            own = [(keys[: self.num_rows], values[: self.num_rows]) for keys, values in self._own]
            cross = [(keys[: self.num_rows], values[: self.num_rows]) for keys, values in self._cross]
        else:
            index = torch.tensor(rows, device=self._own[0][0].device)
            own = [(keys.index_select(0, index), values.index_select(0, index)) for keys, values in self._own]
            cross = [(keys.index_select(0, index), values.index_select(0, index)) for keys, values in self._cross]
        return own, [(keys[:, :, :num_source], values[:, :, :num_source]) for keys, values in cross]

    def advance(self, rows: SequenceOf[int], own: SequenceOf[Pair]) -> None:
        """Take note of the column that a step has written for `rows` in `own`."""
        others = sorted(set(range(self.num_rows)) - set(rows))
        if others:
            column = self.num_columns
            index = torch.tensor(rows, device=own[0][0].device)
            for mine, theirs in zip(self._own, own, strict=True):
                for room, new in zip(mine, theirs, strict=True):
                    room[index, :, column] = new[:, :, column]
            self._shift(others, 1)
        self.num_columns += 1
        for row in rows:
            self.lengths[row] += 1
        longest = max(self.lengths)
        if self.num_columns > (1 + _WASTE) * longest + _FREE_COLUMNS:
            self._shift(range(self.num_rows), longest - self.num_columns)
            self.num_columns = longest

    def _shift(self, rows: SequenceOf[int], by: int) -> None:
        """Move the columns of some rows to the right, or to the left if `by` is negative."""
        if not rows or by == 0:
            return
        start, end = max(0, -by), self.num_columns
        for pair in self._own:
            for room in pair:
                for row in rows:
                    room[row, :, start + by : end + by] = room[row, :, start:end].clone()

    def _make_room(
        self, own: SequenceOf[Pair], cross: SequenceOf[Pair], num_rows: int, num_columns: int, num_source: int
    ) -> None:
        """Let there be room for so many rows like these, of so many columns."""
        self._own = _grown(self._own, own, num_rows, max(num_columns, self.num_columns))
        self._cross = _grown(self._cross, cross, num_rows, num_source)


def _grown(rooms: list[Pair], like: SequenceOf[Pair], num_rows: int, num_columns: int) -> list[Pair]:
    """Return rooms that are large enough: where they grow, twice what is needed, so that it seldom happens."""
    if not rooms:
        return [(_room(keys, num_rows, num_columns), _room(values, num_rows, num_columns)) for keys, values in like]
    rows, columns = rooms[0][0].shape[0], rooms[0][0].shape[2]
    if num_rows <= rows and num_columns <= columns:
        return rooms
    rows_now = rows if num_rows <= rows else 2 * num_rows
    columns_now = columns if num_columns <= columns else 2 * num_columns
    grown = [(_room(keys, rows_now, columns_now), _room(values, rows_now, columns_now)) for keys, values in rooms]
    for old, new in zip(rooms, grown, strict=True):
        for before, after in zip(old, new, strict=True):
            after[:rows, :, :columns] = before
    return grown


def _room(like: Tensor, num_rows: int, num_columns: int) -> Tensor:
    return like.new_zeros(num_rows, like.shape[1], num_columns, like.shape[3])


class Step:
    """One step of some rows: what the model is given, and `end` when it has computed it."""

    def __init__(self, all_rows: DecoderRows, rows: SequenceOf[int]) -> None:
        self._all = all_rows
        self._rows = rows
        self._own, cross = all_rows.tensors(rows)
        self.num_source = cross[0][0].shape[2]
        device, num_columns = cross[0][0].device, all_rows.num_columns
        lengths = torch.tensor([all_rows.lengths[row] for row in rows], device=device).unsqueeze(1)
        sources = torch.tensor([all_rows.sources[row] for row in rows], device=device).unsqueeze(1)
        # [rows, columns] and [rows, encoder tokens], 1 for what is seen.
        self.decoder_mask = (torch.arange(num_columns + 1, device=device) >= num_columns - lengths).long()
        self.encoder_mask = (torch.arange(self.num_source, device=device) < sources).long()
        self.cache = EncoderDecoderCache(
            Cache(layers=[_Layer(keys, values, num_columns) for keys, values in self._own]),
            Cache(layers=[_Layer(keys, values, self.num_source) for keys, values in cross]),
        )

    def end(self) -> None:
        """Take over what was computed."""
        self._all.advance(self._rows, self._own)
