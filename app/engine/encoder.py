"""Owns EncoderRunner: padded batches through a transformers model and its pooling head. Knows no thread and no files."""

import inspect
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from app.engine.pooling_head import PoolingHead
from app.engine.pooling_job import PoolingInput


class EncoderRunner:
    """`num_dimensions` is the size of a whole vector. `can_pad` is found by comparing padded rows with plain ones."""

    name = "encoder"

    def __init__(self, model: PreTrainedModel, head: PoolingHead, *, include_prompt: bool = True) -> None:
        self._model = model
        self._head = head.to(model.device).eval()
        self._include_prompt = include_prompt
        pad = getattr(model.config.get_text_config(), "pad_token_id", None)
        # Some position embeddings count the tokens that are no padding, so it must be the model's own.
        self._pad_id: int = pad if isinstance(pad, int) and pad >= 0 else 0
        takes_cache = "use_cache" in inspect.signature(model.forward).parameters
        self._arguments: dict[str, Any] = {"use_cache": False} if takes_cache else {}
        self.can_pad = True
        self.num_dimensions = self._check()

    @torch.inference_mode()
    def forward(self, batch: SequenceOf[PoolingInput]) -> list[bytes | None]:
        vectors = self.vectors(batch)
        finite = vectors.isfinite().all(dim=1).tolist()
        results: list[bytes | None] = []
        for row, (one, is_finite) in enumerate(zip(batch, finite, strict=True)):
            vector = vectors[row]
            if one.dimensions is not None and one.dimensions < len(vector):
                vector = vector[: one.dimensions]
                if self._head.is_normalized:
                    vector = functional.normalize(vector, dim=0)
            results.append(vector.numpy().astype("<f4").tobytes() if is_finite else None)
        return results

    def vectors(self, batch: SequenceOf[PoolingInput]) -> Tensor:
        """Return float32 vectors [len(batch), num_dimensions] on the CPU."""
        longest = max(len(one.ids) for one in batch)
        ids = torch.full((len(batch), longest), self._pad_id)
        mask = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, one in enumerate(batch):
            ids[row, : len(one.ids)] = torch.tensor(one.ids)
            mask[row, : len(one.ids)] = 1
        counts = mask.bool()
        if not self._include_prompt:
            counts = counts.clone()
            for row, one in enumerate(batch):
                counts[row, : one.num_prompt_tokens] = False
        device = self._model.device
        outputs = self._model(input_ids=ids.to(device), attention_mask=mask.to(device), **self._arguments)
        hidden: Tensor = outputs.last_hidden_state
        # With a device_map, the last layer may be somewhere else than the first.
        vectors: Tensor = self._head(hidden.to(device), counts.to(device))
        return vectors.float().cpu()

    @torch.inference_mode()
    def _check(self) -> int:
        """Run three texts, alone and padded to one another; return the size of their vectors."""
        embeddings: Any = self._model.get_input_embeddings()
        vocab_size: int = embeddings.weight.shape[0]
        texts = [[(7 * position + length) % vocab_size for position in range(length)] for length in (3, 5, 9)]
        # The padding's id in the middle of a text would be taken for padding.
        inputs = [PoolingInput(tuple(token if token != self._pad_id else token + 1 for token in text)) for text in texts]
        alone = functional.normalize(torch.cat([self.vectors([one]) for one in inputs]), dim=-1)
        padded = functional.normalize(self.vectors(inputs), dim=-1)
        tolerance = 1e-3 if self._model.dtype == torch.float32 else 5e-2
        self.can_pad = bool(((alone - padded).abs() < tolerance).all())
        return alone.shape[1]
