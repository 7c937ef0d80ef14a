"""Owns which tokens a request forbids: those outside of `allowed_token_ids`, and those that would complete a bad word.

Only rows of requests that ask for it come here. Knows no text: words come as ids.
"""

from collections.abc import Sequence as SequenceOf

import torch

from app.engine.sequence import SamplingParams, Sequence


def is_restricted(params: SamplingParams) -> bool:
    return bool(params.allowed_token_ids is not None or params.bad_words_ids)


class Restrictions:
    """What the parameters of one sequence forbid, made ready for scores of a vocabulary on a device."""

    def __init__(self, params: SamplingParams, vocab_size: int, device: torch.device) -> None:
        forbidden = torch.zeros(vocab_size, dtype=torch.bool)
        if params.allowed_token_ids is not None:
            forbidden.fill_(True)
            forbidden[list(params.allowed_token_ids)] = False
        forbidden[[word[0] for word in params.bad_words_ids if len(word) == 1]] = True
        self._forbidden = forbidden.to(device)
        # A word of several tokens is cut short before its last one, and only where the others have just been written.
        self._words = [(list(word[:-1]), word[-1]) for word in params.bad_words_ids if len(word) > 1]

    def apply(self, scores: torch.Tensor, generation_ids: SequenceOf[int]) -> None:
        """Set what is forbidden after `generation_ids` to -inf in `scores` [vocabulary], in place."""
        scores.masked_fill_(self._forbidden, -torch.inf)
        last = [end for start, end in self._words if list(generation_ids[-len(start) :]) == start]
        if last:
            scores[torch.tensor(last, device=scores.device)] = -torch.inf


def restrict_beams(seq: Sequence, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the `scores` [beams, vocabulary] of a beam search, whose tokens are `input_ids` [beams, length], restricted."""
    start = seq.num_decoder_prompt_tokens
    if input_ids.shape[1] - start < seq.params.num_forced_tokens:
        return scores
    restrictions = Restrictions(seq.params, scores.shape[-1], scores.device)
    scores = scores.clone()
    for row, ids in zip(scores, input_ids[:, start:].tolist(), strict=True):
        restrictions.apply(row, ids)
    return scores


def restrict(scores: torch.Tensor, seq: Sequence) -> None:
    """Apply the restrictions of `seq` to its `scores` [vocabulary], in place; what the model's configuration dictates wins."""
    if seq.num_generation_tokens < seq.params.num_forced_tokens:
        return
    if seq.restrictions is None:
        seq.restrictions = Restrictions(seq.params, scores.shape[-1], scores.device)
    seq.restrictions.apply(scores, seq.generation_ids)
