"""Owns the paged runner: one forward over a ragged batch, KV memory in blocks. Knows no scheduling policy and no sampling.

It serves every causal model that takes an attention function and position ids. Whether a model does so faithfully is not
believed but tried, by `verify.py`, when the model is loaded.
"""

import logging
from collections.abc import Sequence as SequenceOf
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.engine import attention
from app.engine.attention import Attention, KVMemory, PagedBatch, Part
from app.engine.graphs import CudaRecorder, DecodeGraphs
from app.engine.recorded import RecordedSteps
from app.engine.runner import ForwardOutput
from app.engine.scheduler import ScheduledSequence
from app.engine.varlen import VarlenAttention

logger = logging.getLogger("tfoai.engine")

# Their rotary embedding changes with the longest sequence of a batch, so neighbours would matter.
_BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}


class UnsuitableModelError(Exception):
    """The model can not run in paged batches; the text says why."""


def check_suitable(model: PreTrainedModel) -> None:
    """Raise UnsuitableModelError for a model that does not even take what a paged batch gives it."""
    parameters = signature(model.forward).parameters
    if model.config.is_encoder_decoder:
        raise UnsuitableModelError("it is an encoder-decoder model")
    if "position_ids" not in parameters:
        raise UnsuitableModelError("its forward takes no position_ids")
    if not {"logits_to_keep", "kwargs"} & parameters.keys():
        raise UnsuitableModelError("its forward takes no logits_to_keep")
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if rope.get("rope_type") in _BATCH_DEPENDENT_ROPE:
        raise UnsuitableModelError(f"its rotary embedding ({rope['rope_type']}) depends on the whole batch")


class PagedRunner:
    """Computes batches for one model, with `num_blocks` blocks of KV memory.

    Blocks are given to sequences by the scheduler's ledger (`Sequence.block_table`). The runner itself keeps nothing per
    sequence, so a step can be repeated and a sequence dropped at any time. Raise UnsuitableModelError if the model can not.
    """

    name = "paged"
    supports_chunked_prefill = True

    def __init__(self, model: PreTrainedModel, way: Attention, num_blocks: int, like: KVMemory | None = None) -> None:
        check_suitable(model)
        self._model = cast(Any, model)
        self.attention = way
        self.num_blocks = num_blocks
        # One more than the ledger knows of: padding of CUDA graphs is written there.
        self.memory = KVMemory(num_blocks + 1, like)
        self._recorded: DecodeGraphs | RecordedSteps | None = None
        model.set_attn_implementation(attention.NAME)
        if model.config._attn_implementation != attention.NAME:
            raise UnsuitableModelError("it takes no attention function")

    @torch.inference_mode()
    def forward(self, batch: SequenceOf[ScheduledSequence]) -> ForwardOutput:
        input_ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        prompt_rows: dict[int, slice] = {}
        for scheduled in batch:
            seq = scheduled.seq
            start, end = seq.num_computed_tokens, seq.num_computed_tokens + scheduled.num_new_tokens
            if seq.params.prompt_logprobs is not None and seq.num_generation_tokens == 0:
                prompt_rows[seq.seq_id] = slice(len(wanted), len(wanted) + end - start)
                wanted += range(len(input_ids), len(input_ids) + end - start)
            elif scheduled.completes:
                wanted.append(len(input_ids) + end - start - 1)
            input_ids += seq.token_ids[start:end]
            positions += range(start, end)
        parts = [Part(s.seq.block_table, s.seq.num_computed_tokens, s.num_new_tokens) for s in batch]
        if self._recorded is not None and not prompt_rows:
            completes = [scheduled.completes for scheduled in batch]
            if self._recorded.takes(parts, completes):
                logits, best = self._recorded.run(input_ids, parts, completes)
                return ForwardOutput(logits, best=best)
        device = self._model.device
        logits = self._logits(
            torch.tensor([input_ids], device=device),
            torch.tensor([positions], device=device),
            self.attention.batch(parts, device),
            torch.tensor(wanted, dtype=torch.long, device=device),
        )
        return _sorted_out(batch, logits, prompt_rows)

    def release(self, seq_id: int) -> None:
        """Nothing is kept per sequence."""

    @torch.inference_mode()
    def record_decode_steps(self, max_num_seqs: int, max_length: int) -> None:
        """Make CUDA graphs for decode steps of up to so many sequences and tokens, or on a CPU recorded steps for any number.

        Without them if the model refuses.
        """
        devices = {parameter.device for parameter in self._model.parameters()}
        try:
            if devices == {torch.device("cpu")} and self._model._compiled_call_impl is None:
                self._recorded = RecordedSteps(self._model, self.memory, self.attention)
            elif isinstance(self.attention, VarlenAttention) and len(devices) == 1:
                self._recorded = DecodeGraphs(
                    self._logits,
                    CudaRecorder(self._model.device),
                    max_num_seqs=max_num_seqs,
                    max_blocks=min(self.num_blocks, -(-max_length // self.attention.block_size)),
                    block_size=self.attention.block_size,
                    spare_block=self.num_blocks,
                )
        except Exception as error:  # whatever modelling code does that a recording can not hold
            logger.warning("steps.not_recorded", extra={"error": f"{type(error).__name__}: {error}"})
            if self._model.device.type == "cuda":
                torch.cuda.synchronize(self._model.device)

    def _logits(self, input_ids: Tensor, positions: Tensor, batch: PagedBatch, wanted: Tensor | int = 0) -> Tensor:
        """Return the logits of the `wanted` rows [rows], or of all of them (0, as transformers has it)."""
        with attention.running(batch, self.memory):
            logits: Tensor = self._model(
                input_ids=input_ids, position_ids=positions, use_cache=False, logits_to_keep=wanted, return_dict=True
            ).logits
        return logits[0]


def _sorted_out(batch: SequenceOf[ScheduledSequence], logits: Tensor, prompt_rows: dict[int, slice]) -> ForwardOutput:
    """Split the wanted rows into prompt logits and the rows to sample from."""
    if not prompt_rows:
        return ForwardOutput(logits)
    prompt_logits = {seq_id: logits[rows] for seq_id, rows in prompt_rows.items()}
    row, sampled = 0, []
    for scheduled in batch:
        rows = prompt_rows.get(scheduled.seq.seq_id)
        width = 1 if rows is None else rows.stop - rows.start
        if scheduled.completes:
            sampled.append(row + width - 1)
        row += width if rows is not None or scheduled.completes else 0
    return ForwardOutput(logits[sampled], prompt_logits)
