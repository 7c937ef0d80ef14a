"""Owns the contract between the engine's loop and whatever computes logits. Knows no scheduling policy and no sampling."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from app.engine.scheduler import ScheduledSequence
from app.engine.sequence import Sequence, TokenLogprobs

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class ForwardOutput:
    """Logits of one forward step.

    `logits` is [rows, vocabulary], in any float dtype: for each scheduled sequence that completes, in the batch's order, the
    row(s) after its last token (`Sequence.num_rows` of them). `prompt_logits` maps seq_id -> [tokens computed in this step,
    vocabulary] for the sequences that asked for prompt logprobs. `best` is `draw.best_tokens` of the logits where the runner
    computes it on the way, else None.
    """

    logits: "torch.Tensor"
    prompt_logits: dict[int, "torch.Tensor"] = field(default_factory=dict)
    best: "torch.Tensor | None" = None


class Runner(Protocol):
    """Computes one step for a batch.

    `forward` must be repeatable: until the engine advances `num_computed_tokens`, it may be called again for the same tokens
    (whole batch or parts of it), after an error in between. `release` drops what is kept for a sequence; unknown ids are fine.
    """

    name: str
    supports_chunked_prefill: bool

    def forward(self, batch: SequenceOf[ScheduledSequence]) -> ForwardOutput: ...

    def release(self, seq_id: int) -> None: ...


@dataclass(slots=True)
class Sampled:
    """What the sampler chose for one sequence in one step; beam search has nothing to say (no tokens) until it is done."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    done: bool = False


class Sampler(Protocol):
    """Turns logits into tokens, one result per sequence; one that can not be sampled gets its error, the others go on."""

    def sample(
        self, logits: "torch.Tensor", sequences: SequenceOf[Sequence], best: "torch.Tensor | None" = None
    ) -> list[Sampled | Exception]:
        """`best` is that of ForwardOutput."""
        ...

    def prompt_logprobs(self, seq: Sequence, logits: "torch.Tensor") -> list[TokenLogprobs | None]:
        """Score the prompt tokens that `logits` ([tokens of this step, vocabulary]) predict; the very first token has None."""
        ...
