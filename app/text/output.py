"""Owns one sequence's way from engine outputs to text deltas with their tokens. Knows no HTTP shapes."""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from app.engine.sequence import FinishReason, StepOutput, TokenLogprobs
from app.text.detokenizer import Detokenizer
from app.text.stop import StopChecker

if TYPE_CHECKING:
    from app.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TokenAlternative:
    """One of the most likely tokens at a position; `data` are the bytes it stands for, which may be part of a character."""

    token_id: int
    text: str
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenText(TokenAlternative):
    """A token of the sequence; `offset` is the character position in the sequence's text at which it starts."""

    offset: int
    top: tuple[TokenAlternative, ...] = ()


@dataclass(slots=True)
class TextDelta:
    """What one step adds to a sequence's text. `tokens` are filled when logprobs were asked for."""

    text: str
    tokens: list[TokenText] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What a request says of its texts: where they stop, whether what stopped them is shown, and whether special tokens are.

    `skip_special_tokens` None leaves that to DECODE_CONFIG.
    """

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool | None = None


# For requests that say nothing.
PLAIN_OUTPUT = OutputOptions()


class OutputProcessor:
    """Joins detokenizer and stop checker for one sequence.

    Each token is handled by itself, so the text, the cut at a stop string and the number of tokens counted do not depend on
    how many tokens an engine step, or a slow reader, puts together. `kept_special_ids` are special tokens that stay in the
    text for parsers that need them.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        *,
        context_ids: tuple[int, ...] = (),
        options: OutputOptions = PLAIN_OUTPUT,
        stop_token_ids: frozenset[int] = frozenset(),
        kept_special_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        decode = partial(tokenizer.decode, skip_special_tokens=options.skip_special_tokens, kept_special_ids=kept_special_ids)
        self._detokenizer = Detokenizer(decode, context_ids)
        self._stop = StopChecker(options.stop, include=options.include_stop)
        # Tokens that end the text and are no part of it.
        self._silent_ids = frozenset() if options.include_stop else stop_token_ids
        self._tokens: list[TokenText] = []
        self._num_chars_seen = 0
        self._num_chars_given = 0
        self.num_tokens = 0
        self.is_done = False

    @property
    def stop_text(self) -> str | None:
        """The stop string that ended the text, None if none has."""
        return self._stop.matched

    def process(self, output: StepOutput) -> TextDelta:
        """Take one engine output; `is_done` when the sequence has ended, be it for the engine or for a stop string."""
        delta = TextDelta("")
        ends_with_stop_token = output.finish_reason is FinishReason.STOP
        for index, token_id in enumerate(output.token_ids):
            self.num_tokens += 1
            if output.logprobs is not None:
                self._tokens.append(self.token_text(output.logprobs[index], self._num_chars_seen))
            if ends_with_stop_token and index == len(output.token_ids) - 1 and token_id in self._silent_ids:
                break
            self._add(delta, self._detokenizer.add([token_id]))
            if self._stop.stopped:
                break
        if not self._stop.stopped and output.finish_reason is not None:
            self._add(delta, self._detokenizer.flush())
            if not self._stop.stopped:
                delta.text += self._stop.flush()
        self._num_chars_given += len(delta.text)
        if self._stop.stopped:
            delta.finish_reason = FinishReason.STOP
            delta.tokens = [token for token in self._tokens if token.offset < self._num_chars_given]
            self.is_done = True
        elif output.finish_reason is not None:
            delta.finish_reason = output.finish_reason
            delta.tokens = self._tokens
            self.is_done = True
        else:
            # Tokens whose text is still held back wait with it: a stop string may yet take them away.
            delta.tokens = [token for token in self._tokens if token.offset < self._num_chars_given]
            self._tokens = self._tokens[len(delta.tokens) :]
        return delta

    def _add(self, delta: TextDelta, text: str) -> None:
        self._num_chars_seen += len(text)
        delta.text += self._stop.add(text)

    def token_text(self, entry: TokenLogprobs, offset: int, num_top: int | None = None) -> TokenText:
        """Return a token with its alternatives, or the `num_top` best of them."""
        own = self._alternative(entry.token_id, entry.logprob)
        return TokenText(
            own.token_id,
            own.text,
            own.data,
            own.logprob,
            offset,
            tuple(self._alternative(*pair) for pair in entry.top[:num_top]),
        )

    def _alternative(self, token_id: int, logprob: float) -> TokenAlternative:
        data = self._tokenizer.token_bytes(token_id)
        return TokenAlternative(token_id, self._tokenizer.token_string(token_id), data, logprob)
