"""Owns scores -> token ids: the best, and those drawn by temperature, top_k, top_p and min_p. Knows no logits processors."""

import enum
from typing import Any

import torch

from app.engine.sequence import SamplingParams, Sequence

# Rows that keep few candidates are filtered in a top-k list of this length at most; the others need a sort of the vocabulary.
TOP_K_WITHOUT_SORT = 256
# Below this a division by the temperature leaves the range of float32, and the best token is certain anyway.
GREEDY_BELOW = 1e-5


def best_tokens(scores: torch.Tensor) -> torch.Tensor:
    """Return for each row of `scores` [rows, vocabulary] the token with the largest one, and 1 if that one is finite, else 0.

    [2, rows], whole numbers. NaN is larger than everything.
    """
    best = scores.max(dim=-1)
    return torch.stack([best.indices, torch.isfinite(best.values).long()])


def draw_others(tokens: torch.Tensor, scores: torch.Tensor, sequences: list[Sequence]) -> None:
    """Replace the best tokens [rows] of the rows that are not greedy; the greedy ones pay for nothing more.

    Which way a row is sampled depends on its own parameters alone, so that its result never depends on its neighbours.
    """
    groups: dict[_Method, list[int]] = {}
    for row, seq in enumerate(sequences):
        if seq.params.temperature > GREEDY_BELOW:
            groups.setdefault(_method(seq.params), []).append(row)
    for method, rows in groups.items():
        tokens[rows] = _draw(scores[rows], [sequences[row] for row in rows], method)


class _Method(enum.Enum):
    PLAIN = enum.auto()
    """The whole distribution, in the vocabulary's order."""
    TOP_K = enum.auto()
    """A list of the TOP_K_WITHOUT_SORT best tokens holds all that can be drawn."""
    SORT = enum.auto()
    """top_p or min_p over the whole vocabulary; sorted only where they leave more than such a list."""


def _method(params: SamplingParams) -> _Method:
    if params.top_k == 0 and params.top_p >= 1 and params.min_p <= 0:
        return _Method.PLAIN
    return _Method.TOP_K if 0 < params.top_k <= TOP_K_WITHOUT_SORT else _Method.SORT


def _draw(scores: torch.Tensor, sequences: list[Sequence], method: _Method) -> torch.Tensor:
    """Draw one token id per row of `scores` [rows, vocabulary]."""
    params = [seq.params for seq in sequences]
    scaled = scores / _column([p.temperature for p in params], scores.device)
    # One uniform number per row from the row's own generator.
    uniform = _column([seq.rng.random() for seq in sequences], scores.device, torch.float64)
    if method is _Method.PLAIN:
        return _invert(scaled, uniform)
    best, order = scaled.topk(min(TOP_K_WITHOUT_SORT, scaled.shape[-1]), dim=-1)
    if method is _Method.TOP_K:
        return _draw_ordered(best, order, params, uniform)
    # Whether the list of the best is enough is each row's own affair, so that its result never depends on its neighbours.
    total = scaled.logsumexp(dim=-1, keepdim=True)
    short = _holds_all(best, total, params).tolist()
    tokens = torch.empty(len(params), dtype=torch.long, device=scores.device)
    for enough in (True, False):
        rows = [row for row, holds in enumerate(short) if holds is enough]
        if rows:
            some, ids = (best[rows], order[rows]) if enough else scaled[rows].sort(dim=-1, descending=True)
            known = total[rows] if enough else None
            tokens[rows] = _draw_ordered(some, ids, [params[row] for row in rows], uniform[rows], known)
    return tokens


def _column(values: list[Any], device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device).unsqueeze(-1)


def _holds_all(best: torch.Tensor, total: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """Say for each row, [rows], whether its `best` [rows, n] tokens hold all that top_p and min_p leave; not with top_k.

    `total` [rows, 1] is the log of the sum over the whole vocabulary.
    """
    probabilities = (best - total).exp()
    top_p = _column([p.top_p for p in params], best.device)
    min_p = _column([p.min_p for p in params], best.device)
    # A little further than needed, because sums of floats are not exact.
    reached = (top_p < 1) & (probabilities.sum(dim=-1, keepdim=True) > top_p + 1e-4)
    reached |= probabilities[:, -1:] < min_p * probabilities[:, :1] * (1 - 1e-4)
    return (reached & _column([p.top_k == 0 for p in params], best.device, torch.bool)).squeeze(-1)


def _draw_ordered(
    ordered: torch.Tensor,
    order: torch.Tensor,
    params: list[SamplingParams],
    uniform: torch.Tensor,
    total: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw from scores [rows, n] in falling order, whose token ids are `order`, after top_k, top_p and min_p.

    `total` [rows, 1] is given where the scores are only the beginning of a vocabulary: the log of the sum over all of it.
    """
    device = ordered.device
    ordered = _filter(
        ordered,
        _column([p.top_k or ordered.shape[-1] for p in params], device, torch.long),
        _column([p.top_p for p in params], device),
        _column([p.min_p for p in params], device),
        total,
    )
    return order.gather(-1, _invert(ordered, uniform).unsqueeze(-1)).squeeze(-1)


def _invert(scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return for each row where the cumulative distribution passes its uniform number [rows, 1].

    In float64, because a float32 running sum over a large vocabulary never quite reaches 1.
    """
    cumulative = scores.softmax(dim=-1).double().cumsum(dim=-1)
    return (cumulative <= uniform * cumulative[:, -1:]).sum(dim=-1).clamp(max=scores.shape[-1] - 1)


def _filter(
    ordered: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor, total: torch.Tensor | None = None
) -> torch.Tensor:
    """Mask with -inf what top_k, top_p and min_p ([rows, 1] each) exclude; `ordered` [rows, n] is sorted, best first.

    Each filter sees the distribution that the one before has left, and the best token always stays.
    """
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    ordered = ordered.masked_fill(rank >= top_k, -torch.inf)
    probabilities = (ordered - (ordered.logsumexp(dim=-1, keepdim=True) if total is None else total)).exp()
    before = probabilities.cumsum(dim=-1) - probabilities
    ordered = ordered.masked_fill((before >= top_p) & (rank > 0), -torch.inf)
    probabilities = ordered.softmax(dim=-1)
    return ordered.masked_fill(probabilities < min_p * probabilities[:, :1], -torch.inf)
