"""Owns the paged runner: one forward over a ragged batch, KV memory in blocks. Knows no scheduling policy and no sampling.

It serves every causal model that takes an attention function and position ids. Whether a model does so faithfully is not
believed but tried: `PagedRunner.verified` compares it with plain forwards when the model is loaded.
"""

from collections.abc import Sequence as SequenceOf
from inspect import signature
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from app.engine import attention
from app.engine.attention import KVMemory
from app.engine.gather import GatheredBatch, Part, Scratch
from app.engine.runner import ForwardOutput
from app.engine.scheduler import ScheduledSequence
from app.engine.sequence import SamplingParams, Sequence

BLOCK_SIZE = 16
# Largest difference of logits, as a share of the largest logit, that rounding can explain.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 8e-2}
# Their rotary embedding changes with the longest sequence of a batch, so neighbours would matter.
_BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}


class UnsuitableModelError(Exception):
    """The model can not run in paged batches; the text says why."""


class PagedRunner:
    """Computes batches for one model.

    Blocks are given to sequences by the scheduler's ledger (`Sequence.block_table`). The runner itself keeps nothing per
    sequence, so a step can be repeated and a sequence dropped at any time.
    """

    name = "paged"
    supports_chunked_prefill = True

    def __init__(self, model: PreTrainedModel, num_blocks: int, like: KVMemory | None = None) -> None:
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
        self._model = cast(Any, model)
        self._scratch = Scratch()
        self.memory = KVMemory(num_blocks, BLOCK_SIZE, like)
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
        device = self._model.device
        parts = [Part(s.seq.block_table, s.seq.num_computed_tokens, s.num_new_tokens) for s in batch]
        with attention.running(GatheredBatch(parts, BLOCK_SIZE, device, self._scratch), self.memory):
            logits = self._model(
                input_ids=torch.tensor([input_ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(wanted, dtype=torch.long, device=device),
                return_dict=True,
            ).logits[0]
        return _sorted_out(batch, logits, prompt_rows)

    def release(self, seq_id: int) -> None:
        """Nothing is kept per sequence."""


def _sorted_out(batch: SequenceOf[ScheduledSequence], logits: torch.Tensor, prompt_rows: dict[int, slice]) -> ForwardOutput:
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


def verify(model: PreTrainedModel) -> PagedRunner:
    """Return a runner with a small memory whose logits equal plain forwards; raise UnsuitableModelError, the model unchanged.

    Three sequences are prefilled in uneven chunks beside each other's decode steps, so every way that a batch can be mixed is
    tried once.
    """
    before = model.config._attn_implementation
    generator = torch.Generator().manual_seed(0)
    embeddings: Any = model.get_input_embeddings()
    vocab_size = embeddings.weight.shape[0]
    texts = [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in (3, 19, 40)]
    try:
        with torch.inference_mode():
            plain = [model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0] for ids in texts]
        runner = PagedRunner(model, num_blocks=8)
        sequences = [Sequence(index, ids, SamplingParams(max_tokens=1, prompt_logprobs=0)) for index, ids in enumerate(texts)]
        blocks = iter(range(7, -1, -1))
        for seq in sequences:
            seq.block_table = [next(blocks) for _ in range(-(-seq.num_tokens // BLOCK_SIZE))]
        for sizes in ([1, 10, 17], [1, 1, 20], [1, 8, 1], [0, 0, 2]):
            batch = [ScheduledSequence(seq, size) for seq, size in zip(sequences, sizes, strict=True) if size]
            output = runner.forward(batch)
            for scheduled in batch:
                _compare(scheduled, output.prompt_logits[scheduled.seq.seq_id], plain[scheduled.seq.seq_id])
                scheduled.seq.num_computed_tokens += scheduled.num_new_tokens
    except UnsuitableModelError:
        model.set_attn_implementation(before)
        raise
    except Exception as error:
        model.set_attn_implementation(before)
        raise UnsuitableModelError(f"its forward fails in a paged batch ({type(error).__name__}: {error})") from error
    return runner


def _compare(scheduled: ScheduledSequence, got: torch.Tensor, plain: torch.Tensor) -> None:
    start = scheduled.seq.num_computed_tokens
    expected = plain[start : start + scheduled.num_new_tokens].float()
    difference = (got.float() - expected).abs().max() / expected.abs().max()
    tolerance = _TOLERANCE.get(plain.dtype, 1e-1)
    if not difference <= tolerance:
        raise UnsuitableModelError(f"its logits differ by {difference:.2%} from a plain forward")
