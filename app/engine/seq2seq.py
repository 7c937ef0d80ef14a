"""Owns the runner of encoder-decoder models: one forward of the decoder for all sequences that run, whatever their lengths.

Weights and modelling code stay untouched. Whether a model does so faithfully is tried when it is loaded (`verify_seq2seq`);
those that do not go on one by one (`sequential.py`). Knows no scheduling and no sampling.
"""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from app.engine.paged import UnsuitableModelError
from app.engine.positions import RowPositions
from app.engine.rows import DecoderRows, Pair
from app.engine.runner import ForwardOutput
from app.engine.scheduler import ScheduledSequence
from app.engine.sequence import SamplingParams, Sequence
from app.engine.sequential import SequentialRunner
from app.engine.verify import TOLERANCE

# Tokens, padding included, that the encoder reads in one forward; a longer text is read alone.
MAX_ENCODER_TOKENS = 4096
# How much of that may be padding, as a share of the texts.
_PADDING = 0.5


@dataclass(slots=True)
class _State:
    """What is kept of a sequence: its row, and the logits [vocabulary] after its first `num_tokens` tokens."""

    row: int
    num_tokens: int
    logits: Tensor


class Seq2SeqRunner:
    """Reads new texts in padded batches, then decodes all sequences together, one row of `DecoderRows` each."""

    name = "seq2seq"
    supports_chunked_prefill = False

    def __init__(self, model: PreTrainedModel, generation_config: GenerationConfig) -> None:
        self._model = cast(Any, model)
        self._generation_config = generation_config
        self._rows = DecoderRows()
        self._states: dict[int, _State] = {}
        embed_positions = getattr(self._model.get_decoder(), "embed_positions", None)
        self._positions = None if embed_positions is None else RowPositions(embed_positions)

    @torch.inference_mode()
    def forward(self, batch: SequenceOf[ScheduledSequence]) -> ForwardOutput:
        sequences = [scheduled.seq for scheduled in batch]
        # Some may be computed already, in a step that then failed for others.
        missing = [seq for seq in sequences if not self._knows(seq, seq.num_tokens)]
        running = [seq for seq in missing if self._knows(seq, seq.num_tokens - 1)]
        begun = {seq.seq_id for seq in running}
        if running:
            self._decode(running)
        for group in _groups([seq for seq in missing if seq.seq_id not in begun]):
            self._begin(group)
        return ForwardOutput(torch.stack([self._states[seq.seq_id].logits for seq in sequences]))

    @torch.inference_mode()
    def release(self, seq_id: int) -> None:
        state = self._states.pop(seq_id, None)
        if state is None:
            return
        moved = self._rows.remove(state.row)
        for other in self._states.values():
            if other.row == moved:
                other.row = state.row

    def _knows(self, seq: Sequence, num_tokens: int) -> bool:
        state = self._states.get(seq.seq_id)
        return state is not None and state.num_tokens == num_tokens

    def _decode(self, sequences: list[Sequence]) -> None:
        """Compute the last token of each sequence."""
        # In the order of the rows: if these are all of them, nothing has to be copied.
        sequences = sorted(sequences, key=lambda seq: self._states[seq.seq_id].row)
        states = [self._states[seq.seq_id] for seq in sequences]
        step = self._rows.begin([state.row for state in states])
        # The encoder's states are read from nowhere, because what is made of them is in the cache; their shape is looked at.
        encoded = torch.zeros((), device=self._model.device, dtype=self._model.dtype)
        positions = nullcontext() if self._positions is None else self._positions.at([seq.num_tokens - 1 for seq in sequences])
        with positions:
            logits: Tensor = self._model(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded.expand(len(sequences), step.num_source, self._width)),
                attention_mask=step.encoder_mask,
                decoder_input_ids=torch.tensor([seq.token_ids[-1:] for seq in sequences], device=self._model.device),
                decoder_attention_mask=step.decoder_mask,
                past_key_values=step.cache,
                use_cache=True,
                return_dict=True,
            ).logits[:, -1]
        step.end()
        for seq, state, row in zip(sequences, states, logits.float(), strict=True):
            state.num_tokens, state.logits = seq.num_tokens, row

    def _begin(self, sequences: list[Sequence]) -> None:
        """Read the texts of sequences that have equally many decoder tokens, and compute all of these."""
        for seq in sequences:
            self.release(seq.seq_id)  # what is there is of another step, which failed
        device, pad = self._model.device, self._model.config.pad_token_id or 0
        texts = [list(seq.encoder_ids or ()) for seq in sequences]
        longest = max(map(len, texts))
        kwargs: dict[str, Any] = {
            "use_cache": True,
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts], device=device),
        }
        encoder_ids = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in texts], device=device)
        kwargs = self._model._prepare_text_encoder_decoder_kwargs_for_generation(
            encoder_ids, kwargs, "input_ids", self._generation_config
        )
        self._width: int = kwargs["encoder_outputs"].last_hidden_state.shape[-1]
        token_ids = torch.tensor([seq.token_ids for seq in sequences], device=device)
        outputs = self._model(decoder_input_ids=token_ids, return_dict=True, **kwargs)
        cache = outputs.past_key_values
        own, cross = _pairs(cache.self_attention_cache), _pairs(cache.cross_attention_cache)
        for index, (seq, logits) in enumerate(zip(sequences, outputs.logits[:, -1].float(), strict=True)):
            row = self._rows.add(own, cross, index, len(texts[index]))
            self._states[seq.seq_id] = _State(row, seq.num_tokens, logits)


def _pairs(cache: Any) -> list[Pair]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _groups(sequences: list[Sequence]) -> Iterator[list[Sequence]]:
    """Part new sequences into batches for the encoder: of equally many decoder tokens, and of about the same length."""
    group: list[Sequence] = []
    for seq in sorted(sequences, key=lambda seq: (seq.num_tokens, len(seq.encoder_ids or ()))):
        padded = (len(group) + 1) * len(seq.encoder_ids or ())
        texts = sum(len(other.encoder_ids or ()) for other in [*group, seq])
        fits = padded <= min(MAX_ENCODER_TOKENS, (1 + _PADDING) * texts)
        if group and not (fits and group[0].num_tokens == seq.num_tokens):
            yield group
            group = []
        group.append(seq)
    if group:
        yield group


def verify_seq2seq(model: PreTrainedModel, generation_config: GenerationConfig, start_ids: SequenceOf[int]) -> Seq2SeqRunner:
    """Return a runner whose logits equal those of sequences that run alone; raise UnsuitableModelError if they differ.

    Three sequences come and go at different steps, so that they are of different lengths on both sides.
    """
    try:
        runner, alone = Seq2SeqRunner(model, generation_config), SequentialRunner(model, generation_config)
        embeddings: Any = model.get_input_embeddings()
        generator = torch.Generator().manual_seed(0)

        def random_ids(count: int) -> list[int]:
            return [int(one) for one in torch.randint(embeddings.weight.shape[0], (count,), generator=generator)]

        sequences = [
            Sequence(number, random_ids(length), SamplingParams(max_tokens=8), decoder_start_ids=list(start_ids))
            for number, length in enumerate((19, 3, 40))
        ]
        for running in ((0,), (0, 1), (0, 1, 2), (1, 2), (0, 2), (0, 1, 2), (1,), (1, 2)):
            batch = [ScheduledSequence(sequences[number], sequences[number].num_new_tokens) for number in running]
            _compare(runner.forward(batch).logits, alone.forward(batch).logits, model.dtype)
            for scheduled in batch:
                seq = scheduled.seq
                seq.num_computed_tokens = seq.num_tokens
                seq.token_ids += random_ids(1)
            if running == (0, 1, 2):
                for one in (runner, alone):
                    one.release(0)
                sequences[0].num_computed_tokens = 0
        for number in range(len(sequences)):
            runner.release(number)
    except UnsuitableModelError:
        raise
    except Exception as error:
        raise UnsuitableModelError(f"its decoder fails in a batch ({type(error).__name__}: {error})") from error
    return runner


def _compare(batched: Tensor, alone: Tensor, dtype: torch.dtype) -> None:
    difference = (batched.float() - alone.float()).abs().max() / alone.float().abs().max()
    if not difference <= TOLERANCE.get(dtype, 1e-1):
        raise UnsuitableModelError(f"its logits differ by {difference:.2%} in a batch")
