"""Owns the words of the engine: SamplingParams, Sequence, StepOutput, FinishReason. Knows no torch and no scheduling."""

import enum
import random
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from app.engine.grammar import Grammar


class FinishReason(enum.StrEnum):
    """Why a sequence ended. The API shows STOP and LENGTH; a client never sees the other two as a finish reason."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class NothingAllowedError(Exception):
    """What a request allows leaves no token to go on with; the message may be shown to the client."""


class SequenceStatus(enum.Enum):
    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one sequence is continued; every value is already checked by the caller.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 are off. `max_tokens` counts generation tokens and may be 0
    (score the prompt only). `logprobs` is the number of alternatives wanted per generation token (0: only the sampled one,
    None: none at all), `prompt_logprobs` the same for prompt tokens; `logprob_token_ids` are tokens whose logprobs are wanted
    beside each generation token, likely or not (with `logprobs`). `choice` numbers the continuations of one prompt, so
    that n choices with one seed differ and still repeat. A token of `stop_token_ids` (the model's EOS among them, unless the
    request ignores it) ends the sequence and is counted. `num_beams` > 1 is beam search: greedy, all tokens at the end, no
    logprobs; `choice` is then the place of the answer among the best ones. The four after `stop_token_ids` are transformers'
    options; None leaves them to the model's configuration. Sequences with a lower `priority` are scheduled first. With a
    `grammar`, only what it allows is generated, after the first `num_forced_tokens` that the configuration dictates, and
    `stop_token_ids` are possible only where the text is complete. `allowed_token_ids` are the only tokens there are (None:
    all), and no sequence of `bad_words_ids` is completed, both after the first `num_forced_tokens` as well.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    choice: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    priority: int = 0
    grammar: "Grammar | None" = None
    num_forced_tokens: int = 0

    @property
    def has_own_options(self) -> bool:
        """Whether transformers' logits processors have to be made for this sequence, whatever the model's configuration is."""
        options = (
            self.no_repeat_ngram_size,
            self.encoder_no_repeat_ngram_size,
            self.forced_bos_token_id,
            self.forced_eos_token_id,
        )
        return options != (None, None, None, None)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities at one position, from the raw float32 logits.

    `top` holds the most likely (token id, logprob) pairs, best first; `asked` the logprobs of the params' `logprob_token_ids`.
    `rank` is how many tokens are as likely or likelier, 1 for the best; it is known of the tokens of prompts only.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    asked: tuple[float, ...] = ()
    rank: int = 0


@dataclass(slots=True)
class StepOutput:
    """What one engine step did for one sequence; the last one carries a finish reason.

    `logprobs` runs parallel to `token_ids` when the sequence asked for them. `prompt_logprobs` comes before the first token,
    in as many pieces as the prompt has chunks: one entry per prompt token in all, None for the first. `error` is set with
    FinishReason.ERROR. `num_cached_tokens` of the prompt came from the prefix cache. `scheduled_time` is when the sequence
    first joined a batch, on the monotonic clock.
    """

    seq_id: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    error: Exception | None = None
    num_cached_tokens: int = 0
    scheduled_time: float | None = None


class Sequence:
    """One continuation of one prompt, from submit to finish; owned by the engine thread once it is submitted.

    `token_ids` is what the decoder has seen: the prompt and what was generated (causal), or the decoder's start tokens and
    what was generated (encoder-decoder, whose prompt is in `encoder_ids`). The first `num_computed_tokens` of them are in
    the runner's cache. `prompt_ids` is always the prompt that the caller sent.
    """

    __slots__ = (
        "_rng",
        "beam_search",
        "block_hashes",
        "block_table",
        "encoder_ids",
        "finish_reason",
        "matcher",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_decoder_prompt_tokens",
        "num_named_blocks",
        "num_scored_tokens",
        "params",
        "processors",
        "prompt_ids",
        "restrictions",
        "salt",
        "scheduled_time",
        "seq_id",
        "status",
        "takes_the_best",
        "token_counts",
        "token_ids",
    )

    def __init__(
        self,
        seq_id: int,
        prompt_ids: SequenceOf[int],
        params: SamplingParams,
        *,
        decoder_start_ids: SequenceOf[int] | None = None,
        salt: str = "",
    ) -> None:
        self.seq_id = seq_id
        self.prompt_ids = tuple(prompt_ids)
        self.params = params
        self.encoder_ids = None if decoder_start_ids is None else self.prompt_ids
        self.token_ids = list(prompt_ids if decoder_start_ids is None else decoder_start_ids)
        self.num_decoder_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        # Prompt tokens that were in the prefix cache when the sequence was first scheduled.
        self.num_cached_tokens = 0
        # Prompt tokens whose logprobs are given out: a preempted prompt is computed again, but scored once.
        self.num_scored_tokens = 0
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self._rng: random.Random | None = None
        # On the monotonic clock, when it first joined a batch.
        self.scheduled_time: float | None = None
        # The ledger's: blocks in order, how many of them are named, and the chain of their names.
        self.block_table: list[int] = []
        self.num_named_blocks = 0
        self.block_hashes: list[bytes] = []
        self.salt = salt
        # Private to the sampler, kept here so that they die with the sequence.
        self.token_counts: Any = None
        self.processors: Any = None
        self.restrictions: Any = None
        self.takes_the_best: bool | None = None
        self.beam_search: Any = None
        # Where it is in its grammar, from the first token that the grammar decides; moved on by commits only.
        self.matcher: Any = None

    @property
    def rng(self) -> random.Random:
        """Its own random numbers; made when first asked for, because greedy sequences need none."""
        if self._rng is None:
            # A string seed is hashed whole, so neighbouring seeds and choices give unrelated streams; no seed reads the OS.
            seed = None if self.params.seed is None else f"{self.params.seed}/{self.params.choice}"
            self._rng = random.Random(seed)
        return self._rng

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_new_tokens(self) -> int:
        """Tokens that the runner has yet to compute: the prompt at first, then one."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def generation_ids(self) -> list[int]:
        return self.token_ids[self.num_decoder_prompt_tokens :]

    @property
    def num_generation_tokens(self) -> int:
        return len(self.token_ids) - self.num_decoder_prompt_tokens

    @property
    def num_rows(self) -> int:
        """Rows of logits that this sequence has in a batch."""
        return self.params.num_beams

    @property
    def is_beam_search(self) -> bool:
        return self.params.num_beams > 1

    @property
    def is_finished(self) -> bool:
        return self.status is SequenceStatus.FINISHED

    def finish(self, reason: FinishReason) -> None:
        self.status = SequenceStatus.FINISHED
        self.finish_reason = reason
