"""Owns logits -> tokens and logprobs: one pass over a batch, each row with its own parameters. Knows no model, no schedule.

Order of operations, as in transformers' `generate`: min_tokens, the model's own logits processors, logit_bias, penalties,
allowed and forbidden tokens, the grammar's mask, temperature, top_k, top_p, min_p. Logprobs are taken from the raw
logits, before all of it, in float32.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from functools import partial

import torch

from app.engine.beam import BeamSearch
from app.engine.constraints import Constraints, is_constrained
from app.engine.draw import GREEDY_BELOW, best_tokens, draw_others
from app.engine.restrictions import is_restricted, restrict, restrict_beams
from app.engine.runner import Sampled
from app.engine.sequence import NothingAllowedError, Sequence, TokenLogprobs

# Positions of a prompt that are scored at once.
PROMPT_LOGPROBS_SLICE = 256
# Below this a division by the repetition penalty leaves the range of float32; with room for that by the temperature after it.
LEAST_REPETITION_PENALTY = 1e-20

_NOT_FINITE = "the model's logits are not finite"

# (input_ids [rows, length], scores [rows, vocabulary]) -> scores
Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ProcessorFactory = Callable[[Sequence], list[Processor]]


class NotFiniteError(Exception):
    """The model gave no usable logits (NaN, or nothing but infinities)."""


class BatchSampler:
    """Samples every row of a batch at once.

    `processors` makes transformers' logits processors for a sequence, which the model's generation config may ask for, or the
    sequence's own parameters (`SamplingParams.has_own_options`). With `for_all` False they are made for the latter only.
    """

    def __init__(self, processors: ProcessorFactory | None = None, *, for_all: bool = True) -> None:
        self._processors = processors
        self._for_all = for_all
        self._constraints = Constraints()

    def sample(
        self, logits: torch.Tensor, sequences: SequenceOf[Sequence], best: torch.Tensor | None = None
    ) -> list[Sampled | Exception]:
        """Sample from `logits` [rows, vocabulary], `Sequence.num_rows` rows each; the results are in the sequences' order.

        `best`, if it is known, is `best_tokens(logits)`: all that is needed where nobody wants anything else.
        """
        if best is not None and all(map(self._takes_the_best, sequences)):
            return [
                Sampled([token]) if is_finite else NotFiniteError(_NOT_FINITE)
                for token, is_finite in zip(*best.tolist(), strict=True)
            ]
        return self._sample(logits, sequences)

    def _takes_the_best(self, seq: Sequence) -> bool:
        """Whether a sequence's next token is the one with the largest logit, and that is all there is to say of it."""
        if seq.takes_the_best is None:
            params = seq.params
            changes = self._changes_scores(seq) or seq.num_rows > 1
            seq.takes_the_best = params.temperature <= GREEDY_BELOW and params.logprobs is None and not changes
        return seq.takes_the_best

    @torch.inference_mode()
    def _sample(self, logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> list[Sampled | Exception]:
        results: list[Sampled | Exception | None] = [None] * len(sequences)
        rows: list[int] = []
        single: list[int] = []
        row = 0
        for index, seq in enumerate(sequences):
            if seq.num_rows > 1:
                results[index] = self._advance_beams(logits[row : row + seq.num_rows], seq)
            else:
                rows.append(row)
                single.append(index)
            row += seq.num_rows
        if single:
            chosen = logits if len(rows) == logits.shape[0] else logits[rows]
            for index, result in zip(single, self._sample_rows(chosen, [sequences[i] for i in single]), strict=True):
                results[index] = result
        return results  # type: ignore[return-value]  # every place is filled by now

    @torch.inference_mode()
    def prompt_logprobs(self, seq: Sequence, logits: torch.Tensor) -> list[TokenLogprobs | None]:
        first = seq.num_computed_tokens + 1
        targets = seq.token_ids[first : min(first + logits.shape[0], seq.num_decoder_prompt_tokens)]
        entries: list[TokenLogprobs | None] = [None] if seq.num_computed_tokens == 0 else []
        # In slices: a float32 copy of all of a long prompt's logits could be more memory than there is.
        for start in range(0, len(targets), PROMPT_LOGPROBS_SLICE):
            part = targets[start : start + PROMPT_LOGPROBS_SLICE]
            chosen = torch.tensor(part, device=logits.device)
            rows = logits[start : start + len(part)].float()
            entries += _token_logprobs(rows, chosen, [seq.params.prompt_logprobs or 0] * len(part), ranked=True)
        return entries

    def _advance_beams(self, logits: torch.Tensor, seq: Sequence) -> Sampled | Exception:
        try:
            if seq.beam_search is None:
                seq.beam_search = BeamSearch(seq, self._processors_of_beams(seq))
            if not torch.isfinite(logits.max()):
                raise NotFiniteError(_NOT_FINITE)
            seq.beam_search.advance(logits.float())
        except Exception as error:
            return error
        return Sampled(seq.beam_search.result, done=True) if seq.beam_search.is_done else Sampled([])

    def _processors_of_beams(self, seq: Sequence) -> list[Processor]:
        processors = self._processors(seq) if self._processors else []
        return [*processors, partial(restrict_beams, seq)] if is_restricted(seq.params) else processors

    def _takes_processors(self, seq: Sequence) -> bool:
        return self._processors is not None and (self._for_all or seq.params.has_own_options)

    def _sample_rows(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[Sampled | Exception]:
        raw = logits.float()
        scores = raw.clone() if any(map(self._changes_scores, sequences)) else raw
        errors: dict[int, Exception] = {}
        for row, seq in enumerate(sequences):
            try:
                self._process(scores, row, seq)
            except Exception as error:
                errors[row] = error
        constrained = [row for row, seq in enumerate(sequences) if is_constrained(seq)]
        if constrained:
            otherwise = raw if self._processors is not None and self._for_all else None
            errors = self._constraints.apply(scores, constrained, sequences, otherwise) | errors
        tokens, best_is_finite = best_tokens(scores)
        draw_others(tokens, scores, sequences)
        # One read from the device for everything the step decides.
        tokens_list, finite = torch.stack([tokens, best_is_finite]).tolist()
        wants = [row for row, seq in enumerate(sequences) if seq.params.logprobs is not None]
        logprobs: dict[int, TokenLogprobs] = {}
        if wants:
            entries = _token_logprobs(raw[wants], tokens[wants], [sequences[row].params.logprobs or 0 for row in wants])
            logprobs = dict(zip(wants, entries, strict=True))
            for row in wants:
                asked = sequences[row].params.logprob_token_ids
                if asked:
                    logprobs[row] = replace(logprobs[row], asked=_logprobs_of(raw[row], asked))
        results: list[Sampled | Exception] = []
        for row, seq in enumerate(sequences):
            if row in errors:
                results.append(errors[row])
            elif not finite[row]:
                results.append(_why_not_finite(raw[row], seq))
            else:
                if seq.token_counts is not None:
                    seq.token_counts[tokens_list[row]] += 1
                results.append(Sampled([tokens_list[row]], [logprobs[row]] if row in logprobs else None))
        return results

    def _changes_scores(self, seq: Sequence) -> bool:
        params = seq.params
        return bool(
            self._takes_processors(seq)
            or params.logit_bias
            or params.repetition_penalty != 1.0
            or params.frequency_penalty
            or params.presence_penalty
            or params.min_tokens
            or params.grammar is not None
            or is_restricted(params)
        )

    def _process(self, scores: torch.Tensor, row: int, seq: Sequence) -> None:
        """Apply what changes one row's scores, in place."""
        params = seq.params
        if params.stop_token_ids and seq.num_generation_tokens < params.min_tokens:
            # First, as in transformers: a forced end of the sequence comes after it and wins.
            scores[row, torch.tensor(sorted(params.stop_token_ids), device=scores.device)] = -torch.inf
        if self._takes_processors(seq):
            if seq.processors is None:
                assert self._processors is not None
                seq.processors = self._processors(seq)
            if seq.processors:
                input_ids = torch.tensor([seq.token_ids], device=scores.device)
                processed = scores[row : row + 1]
                for processor in seq.processors:
                    processed = processor(input_ids, processed)
                scores[row] = processed[0]
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=scores.device)
            scores[row, ids] += torch.tensor(list(params.logit_bias.values()), device=scores.device)
        if params.repetition_penalty != 1.0:
            # CTRL's penalty (Keskar et al., 2019), over every token the decoder has seen, as in transformers.
            seen = torch.tensor(sorted(set(seq.token_ids)), device=scores.device)
            values = scores[row, seen]
            penalty = max(params.repetition_penalty, LEAST_REPETITION_PENALTY)
            scores[row, seen] = torch.where(values < 0, values * penalty, values / penalty)
        if params.frequency_penalty or params.presence_penalty:
            # OpenAI: logit -= frequency_penalty * count + presence_penalty * [count > 0], generation tokens only.
            if seq.token_counts is None:
                seq.token_counts = torch.zeros(scores.shape[-1], device=scores.device)
                for token_id in seq.generation_ids:
                    seq.token_counts[token_id] += 1
            scores[row] -= params.frequency_penalty * seq.token_counts + params.presence_penalty * (seq.token_counts > 0)
        if is_restricted(params):
            restrict(scores[row], seq)


def _why_not_finite(raw: torch.Tensor, seq: Sequence) -> Exception:
    """Return the error for a row without a token to choose; `raw` [vocabulary] are its logits."""
    if is_restricted(seq.params) and torch.isfinite(raw.max()):
        return NothingAllowedError("`allowed_token_ids` and `bad_words` leave no token to go on with.")
    return NotFiniteError(_NOT_FINITE)


def _logprobs_of(logits: torch.Tensor, token_ids: tuple[int, ...]) -> tuple[float, ...]:
    """Return the logprobs of some tokens, from `logits` [vocabulary]."""
    return tuple(logits.log_softmax(dim=-1)[torch.tensor(token_ids, device=logits.device)].tolist())


def _token_logprobs(
    logits: torch.Tensor, chosen: torch.Tensor, num_top: list[int], *, ranked: bool = False
) -> list[TokenLogprobs]:
    """Return the logprob of `chosen` [rows] and of the `num_top[row]` best tokens, from `logits` [rows, vocabulary]."""
    logprobs = logits.log_softmax(dim=-1)
    columns = logprobs.gather(-1, chosen.unsqueeze(-1))
    own = columns.squeeze(-1).tolist()
    # As vLLM counts them: a token that is as likely as another one is behind it.
    ranks = (logprobs >= columns).sum(dim=-1).tolist() if ranked else [0] * len(own)
    width = min(max(num_top), logits.shape[-1])
    values, ids = logprobs.topk(width, dim=-1)
    return [
        TokenLogprobs(token_id, logprob, tuple(zip(row_ids[:count], row_values[:count], strict=True)), rank=rank)
        for token_id, logprob, row_ids, row_values, count, rank in zip(
            chosen.tolist(), own, ids.tolist(), values.tolist(), num_top, ranks, strict=True
        )
    ]
