"""Owns beam search for one sequence, step by step, with the result of transformers' `generate(num_beams=...)`.

Knows no model: the runner gives it logits for its beams, and asks it which beam each new one continues.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from app.engine.sequence import Sequence

# transformers' stand-in for minus infinity in beam scores.
_NEVER = -1.0e9


@dataclass(frozen=True, slots=True)
class _Beam:
    ids: list[int]
    score: float


class BeamSearch:
    """The running and the finished beams of one sequence.

    After each `advance`, `parents[i]` is the beam (of the step before) that beam i continues, `token_ids[i]` all its tokens,
    the prompt's among them, and `best_ids` the generation tokens of the best one. When `is_done`, `result` holds the answer.

    The rules, from the transformers documentation of `num_beams`, `length_penalty` and `early_stopping`: each step keeps the
    best (1 + number of stop tokens) x num_beams continuations; those among the first num_beams that end are finished with
    score sum(logprobs) / length ** length_penalty; the best num_beams that do not end run on. `early_stopping` True stops when
    num_beams are finished, False when the best running beam can not beat the worst finished one at its present length,
    "never" likewise at the length that is best for it.
    """

    def __init__(self, seq: Sequence, processors: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]) -> None:
        self._params = seq.params
        self._prompt_ids = list(seq.token_ids)
        self._processors = processors
        # All beams start from the same prompt: only the first may be continued in the first step.
        self._running = [_Beam([], 0.0 if beam == 0 else _NEVER) for beam in range(seq.params.num_beams)]
        self._finished: list[_Beam] = []
        self.parents = list(range(seq.params.num_beams))
        self.is_done = False

    @property
    def token_ids(self) -> list[list[int]]:
        return [self._prompt_ids + beam.ids for beam in self._running]

    @property
    def best_ids(self) -> list[int]:
        return list(self._running[0].ids)

    @property
    def result(self) -> list[int]:
        """The answer: the params' `choice`-th best finished beam, and where too few have finished, running ones after them."""
        return list([*self._finished, *self._running][self._params.choice].ids)

    def advance(self, logits: torch.Tensor) -> None:
        """Take the step that `logits` [num_beams, vocabulary] (float32) allow."""
        params = self._params
        num_beams = params.num_beams
        scores = logits.log_softmax(dim=-1)
        if self._processors:
            input_ids = torch.tensor(self.token_ids, device=logits.device)
            for processor in self._processors:
                scores = processor(input_ids, scores)
        scores = scores + torch.tensor([beam.score for beam in self._running], device=logits.device).unsqueeze(-1)
        num_candidates = max(2, 1 + len(params.stop_token_ids)) * num_beams
        values, indices = scores.flatten().topk(min(num_candidates, scores.numel()))
        length = len(self._running[0].ids) + 1
        out_of_length = length >= params.max_tokens
        may_finish = not (params.early_stopping is True and len(self._finished) == num_beams)
        candidates: list[tuple[_Beam, int]] = []
        for rank, (score, index) in enumerate(zip(values.tolist(), indices.tolist(), strict=True)):
            parent, token_id = divmod(index, scores.shape[-1])
            beam = _Beam([*self._running[parent].ids, token_id], score)
            if not out_of_length and token_id not in params.stop_token_ids:
                candidates.append((beam, parent))
            elif rank < num_beams and may_finish:
                self._finished.append(_Beam(beam.ids, score / length**params.length_penalty))
        self._finished = sorted(self._finished, key=lambda beam: -beam.score)[:num_beams]
        candidates = candidates[:num_beams]
        if not candidates or out_of_length:
            self.is_done = True
            return
        while len(candidates) < num_beams:  # nearly all continuations ended; what fills the place never wins
            candidates.append((_Beam(candidates[0][0].ids, _NEVER), candidates[0][1]))
        self._running = [beam for beam, _ in candidates]
        self.parents = [parent for _, parent in candidates]
        self.is_done = self._can_stop(length)

    def _can_stop(self, length: int) -> bool:
        params = self._params
        if len(self._finished) < params.num_beams:
            return False
        if params.early_stopping is True:
            return True
        best_length = params.max_tokens if params.early_stopping == "never" and params.length_penalty > 0 else length
        best_possible: float = self._running[0].score / best_length**params.length_penalty
        return best_possible <= self._finished[-1].score
