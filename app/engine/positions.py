"""Owns telling a decoder where each row of a batch stands, which transformers takes for the same everywhere. Knows no caches.

Decoders with embedded positions (BART and its relatives) count them from the length of the cache, for all rows at once. Here
their module for positions is asked for each row's own. Decoders with relative positions (T5) need none of this.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn


class _Current(threading.local):
    positions: Sequence[int] | None = None


class RowPositions:
    """While `at` is entered, `module`, a decoder's `embed_positions`, embeds one new token per row at the given positions.

    On the thread that has entered it, and on no other.
    """

    def __init__(self, module: nn.Module) -> None:
        self._original: Any = module.forward
        self._signature = signature(self._original)
        self._current = _Current()
        module.forward = self._forward

    @contextmanager
    def at(self, positions: Sequence[int]) -> Iterator[None]:
        self._current.positions = positions
        try:
            yield
        finally:
            self._current.positions = None

    def _forward(self, *args: Any, **kwargs: Any) -> Tensor:
        positions = self._current.positions
        if positions is None:
            result: Tensor = self._original(*args, **kwargs)
            return result
        if "position_ids" in self._signature.parameters:
            bound = self._signature.bind(*args, **kwargs)
            bound.arguments["position_ids"] = torch.tensor(positions, device=bound.arguments["position_ids"].device)
            embedded: Tensor = self._original(*bound.args, **bound.kwargs)
            return embedded.reshape(len(positions), 1, -1)
        # Rows at the same position are asked for together.
        rows_of: dict[int, list[int]] = {}
        for row, position in enumerate(positions):
            rows_of.setdefault(position, []).append(row)
        parts = {position: self._at(position, rows, *args, **kwargs) for position, rows in rows_of.items()}
        order = [row for rows in rows_of.values() for row in rows]
        together = torch.cat([part.expand(len(rows_of[position]), -1, -1) for position, part in parts.items()])
        return together[torch.tensor(order, device=together.device).argsort()]

    def _at(self, position: int, rows: list[int], *args: Any, **kwargs: Any) -> Tensor:
        bound = self._signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if isinstance(value, Tensor):
                bound.arguments[name] = value[rows]
        bound.arguments["past_key_values_length"] = position
        result: Tensor = self._original(*bound.args, **bound.kwargs)
        return result
