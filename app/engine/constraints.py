"""Owns the masks of a batch: what grammars do not allow becomes -inf in the scores. Knows no grammar and no sampling.

One copy to the device and one operation there serve all rows of a step that have a grammar.
"""

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from app.engine.grammar import Grammar, GrammarError, Matcher
from app.engine.sequence import Sequence


def is_constrained(seq: Sequence) -> bool:
    """Whether the next token of `seq` is its grammar's affair."""
    return seq.params.grammar is not None and seq.num_generation_tokens >= seq.params.num_forced_tokens


class Constraints:
    """Masks scores of one model; keeps the memory that masks are written to."""

    def __init__(self) -> None:
        self._host = torch.empty(0, 0, dtype=torch.int32)

    def apply(
        self, scores: torch.Tensor, rows: SequenceOf[int], sequences: SequenceOf[Sequence], otherwise: torch.Tensor | None
    ) -> dict[int, Exception]:
        """Set to -inf, in place, what the grammars of `rows` do not allow in `scores` [rows, vocabulary].

        A row with nothing left takes the allowed part of `otherwise` [rows, vocabulary], if that is given: the grammar is the
        request's and wins over what the model's own settings suppress. Return what went wrong, by row.
        """
        constrained = [sequences[row] for row in rows]
        grammar = constrained[0].params.grammar
        assert grammar is not None
        packed = self._buffer(len(rows), grammar.mask_words)
        errors = _fill(grammar, constrained, packed.numpy())
        forbidden = _unpack(packed.bitwise_not_(), scores.shape[-1], scores.device)
        whole = len(rows) == scores.shape[0]
        part = scores if whole else scores[rows]
        part.masked_fill_(forbidden, -torch.inf)
        if otherwise is not None:
            nothing_left = part.amax(dim=-1, keepdim=True) == -torch.inf
            part = torch.where(nothing_left & ~forbidden, otherwise if whole else otherwise[rows], part)
        if part is not scores:
            scores[rows] = part
        return {rows[index]: error for index, error in errors.items()}

    def _buffer(self, num_rows: int, num_words: int) -> torch.Tensor:
        """Return memory for packed masks. What it held is on the device since the step before read its result there."""
        if self._host.shape[0] < num_rows or self._host.shape[1] != num_words:
            pinned = torch.cuda.is_available()
            self._host = torch.zeros(max(8, 2 * num_rows), num_words, dtype=torch.int32, pin_memory=pinned)
        return self._host[:num_rows]


def _fill(grammar: Grammar, sequences: SequenceOf[Sequence], masks: "np.typing.NDArray[np.int32]") -> dict[int, Exception]:
    matchers = [_matcher(seq) for seq in sequences]
    errors = {index: error for index, error in enumerate(grammar.fill(matchers, masks)) if error is not None}
    bits = masks.view(np.uint32)
    for index, (seq, matcher) in enumerate(zip(sequences, matchers, strict=True)):
        accepting = matcher.is_accepting
        for token_id in seq.params.stop_token_ids:
            if token_id >= 32 * grammar.mask_words:
                continue
            # What ends a sequence is possible where its text is complete, and nowhere else.
            bit = np.uint32(1 << (token_id & 31))
            if accepting:
                bits[index, token_id >> 5] |= bit
            else:
                bits[index, token_id >> 5] &= ~bit
        if index not in errors and not bits[index].any():
            errors[index] = GrammarError("The grammar asks for text that this model's tokens can not spell.")
    return errors


def _matcher(seq: Sequence) -> Matcher:
    if seq.matcher is None:
        assert seq.params.grammar is not None
        seq.matcher = seq.params.grammar.start()
    matcher: Matcher = seq.matcher
    return matcher


def _unpack(packed: torch.Tensor, vocab_size: int, device: torch.device) -> torch.Tensor:
    """Return bits [rows, words] as booleans [rows, vocab_size] on the device; where the bits are too few, True."""
    if device.type == "cpu":  # numpy has a kernel for it, torch would take 20 times as long
        flat = torch.from_numpy(np.unpackbits(packed.numpy().view(np.uint8), axis=1, bitorder="little")).view(torch.bool)
    else:
        words = packed.to(device, non_blocking=True).unsqueeze(-1)
        flat = ((words >> torch.arange(32, dtype=torch.int32, device=device)) & 1).bool().flatten(1)
    missing = vocab_size - flat.shape[1]
    return torch.nn.functional.pad(flat, (0, missing), value=True) if missing > 0 else flat[:, :vocab_size]
