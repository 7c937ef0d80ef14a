"""Owns `no_repeat_ngram_size` for one sequence, with the result of transformers' processor and a step's cost that stays small.

Knows no request. transformers looks at the whole text at every step; here each token is looked at once.
"""

import torch

from app.engine.sequence import Sequence


class NgramBlocker:
    """Forbids the tokens that would make an n-gram of the decoder's tokens, the prompt's among them, come twice."""

    def __init__(self, seq: Sequence, size: int) -> None:
        self._seq = seq
        self._size = size
        # The tokens that have followed each (size - 1) tokens; those of the first `_num_seen` tokens are noted.
        self._followers: dict[tuple[int, ...], list[int]] = {}
        self._num_seen = 0

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Set what is forbidden to -inf in `scores` [1, vocabulary], in place. May be called again for the same tokens."""
        ids, before = self._seq.token_ids, self._size - 1
        for index in range(max(self._num_seen, before), len(ids)):
            self._followers.setdefault(tuple(ids[index - before : index]), []).append(ids[index])
        self._num_seen = len(ids)
        if len(ids) >= before:
            forbidden = self._followers.get(tuple(ids[len(ids) - before :]))
            if forbidden:
                scores[0, torch.tensor(forbidden, device=scores.device)] = -torch.inf
        return scores
