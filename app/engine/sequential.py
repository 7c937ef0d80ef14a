"""Owns the sequential runner: any model that transformers can generate with, causal or encoder-decoder, one sequence at a time.

Each sequence has the model's own Cache object and is fed as `generate` feeds it, so every architecture works that
`generate` works for. It is the fallback for what a batched runner can not carry. Knows no scheduling and no sampling. It is the
only module that calls transformers' private helpers for a forward's inputs; transformers is pinned for that reason.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from inspect import signature
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from app.engine.runner import ForwardOutput
from app.engine.scheduler import ScheduledSequence
from app.engine.sequence import Sequence


@dataclass(slots=True)
class _State:
    """What is kept between the steps of one sequence: the arguments of its next forward, its cache among them."""

    kwargs: dict[str, Any]
    num_tokens: int = 0
    logits: torch.Tensor | None = None


class SequentialRunner:
    """Runs the sequences of a batch one after the other; `Sequence.num_beams` rows of one sequence run together."""

    name = "sequential"
    # Not every architecture (recurrent ones, for instance) can continue a prompt in pieces.
    supports_chunked_prefill = False

    def __init__(self, model: PreTrainedModel, generation_config: GenerationConfig) -> None:
        # Any, because the helpers that generate() is made of have no annotations to check against.
        self._model = cast(Any, model)
        self._generation_config = generation_config
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self._accepts_position_ids = "position_ids" in signature(self._model.forward).parameters
        self._supports_logits_to_keep = bool(self._model._supports_logits_to_keep())
        self._states: dict[int, _State] = {}

    @torch.inference_mode()
    def forward(self, batch: SequenceOf[ScheduledSequence]) -> ForwardOutput:
        rows: list[torch.Tensor] = []
        prompt_logits: dict[int, torch.Tensor] = {}
        for scheduled in batch:
            seq = scheduled.seq
            logits = self._forward_one(seq)
            rows.append(logits[:, -1].float())
            if seq.params.prompt_logprobs is not None and seq.num_generation_tokens == 0:
                prompt_logits[seq.seq_id] = logits[0]
        return ForwardOutput(torch.cat(rows), prompt_logits)

    def release(self, seq_id: int) -> None:
        self._states.pop(seq_id, None)

    def _forward_one(self, seq: Sequence) -> torch.Tensor:
        """Return logits [rows, positions, vocabulary] for the sequence's tokens that are not yet computed."""
        # Taken out until the step has succeeded: an error may leave a cache half written.
        state = self._states.pop(seq.seq_id, None)
        if state is not None and state.num_tokens == seq.num_tokens and state.logits is not None:
            # Computed already, in a batch that then failed for another sequence.
            self._states[seq.seq_id] = state
            return state.logits
        rows = [seq.token_ids] if seq.beam_search is None else seq.beam_search.token_ids
        is_first = state is None or state.num_tokens != seq.num_computed_tokens
        if state is None or is_first:  # a new sequence, or one whose last step failed: compute everything
            state = self._new_state(seq)
            rows = rows if len(rows) == seq.num_rows else rows * seq.num_rows
        else:
            if seq.beam_search is not None:
                self._reorder_cache(state.kwargs, seq.beam_search.parents)
            rows = [ids[state.num_tokens :] for ids in rows]
        input_ids = torch.tensor(rows, device=self._model.device)
        inputs = self._model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=input_ids.shape[1], is_first_iteration=is_first, **state.kwargs
        )
        outputs = self._model(**inputs, return_dict=True)
        state.kwargs = self._model._update_model_kwargs_for_generation(
            outputs, state.kwargs, is_encoder_decoder=self._is_encoder_decoder
        )
        state.num_tokens = seq.num_tokens
        logits: torch.Tensor = outputs.logits
        state.logits = logits
        self._states[seq.seq_id] = state
        return logits

    def _new_state(self, seq: Sequence) -> _State:
        kwargs: dict[str, Any] = {"use_cache": True}
        device = self._model.device
        if self._supports_logits_to_keep and seq.params.prompt_logprobs is None:
            kwargs["logits_to_keep"] = 1
        if self._is_encoder_decoder:
            encoder_ids = torch.tensor([seq.encoder_ids], device=device)
            kwargs["attention_mask"] = torch.ones_like(encoder_ids)
            kwargs = self._model._prepare_text_encoder_decoder_kwargs_for_generation(
                encoder_ids, kwargs, "input_ids", self._generation_config
            )
            if seq.num_rows > 1:
                _, kwargs = self._model._expand_inputs_for_generation(
                    expand_size=seq.num_rows, is_encoder_decoder=True, input_ids=None, **kwargs
                )
        elif self._accepts_position_ids:
            kwargs["position_ids"] = torch.arange(seq.num_tokens, device=device).expand(seq.num_rows, -1)
        max_length = seq.num_decoder_prompt_tokens + seq.params.max_tokens
        mode = GenerationMode.BEAM_SEARCH if seq.num_rows > 1 else GenerationMode.GREEDY_SEARCH
        self._model._prepare_cache_for_generation(self._generation_config, kwargs, mode, seq.num_rows, max_length)
        return _State(kwargs)

    def _reorder_cache(self, kwargs: dict[str, Any], parents: list[int]) -> None:
        name = "past_key_values" if "past_key_values" in kwargs else "cache_params"
        index = torch.tensor(parents, device=self._model.device)
        if hasattr(self._model, "_reorder_cache"):
            kwargs[name] = self._model._reorder_cache(kwargs[name], index)
        else:
            kwargs[name].reorder_cache(index)
