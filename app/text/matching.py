"""Owns llguidance: one model's tokens in its form, compiled grammars, matchers and their masks. Knows no constraints, no
caches.

The only module that imports the library. Nothing of it raises for what a grammar or a text does: matchers fall into an error
state, which is asked for here and raised, or reported, for the one sequence that it is about.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import llguidance

from app.engine.cpus import usable_cpus
from app.engine.grammar import Grammar, GrammarError, Matcher
from app.text.thinking_budget import BudgetMatcher, ThinkingBudget
from app.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from app.text.tokenizer import Tokenizer

# Per grammar and per step: a step must not hold up the other streams of its model. The units are the library's; by its own word
# lexers do 50,000 of fuel in a millisecond when they are built and 14,000 in a step, and parsers 20,000 items.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_items_in_row=2_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)


# From so many processors on, the masks of so many rows are made in a pool of threads.
MIN_PROCESSORS = 4
MIN_ROWS = 8


class InvalidGrammarError(Exception):
    """The library refuses a grammar; its message says why, for the one who wrote it."""


class GrammarTokens:
    """The tokens of one model as llguidance takes them; compiles grammars of them."""

    # What the library asks of an object that it takes tokens from.
    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, eos_token_ids: list[int], tokenizer: "Tokenizer") -> None:
        self.vocabulary = vocabulary
        self.tokens = vocabulary.tokens
        self.special_token_ids = sorted(token_id for token_id in vocabulary.markers if token_id < len(vocabulary.tokens))
        self.eos_token_id = eos_token_ids[0] if eos_token_ids else None
        self._tokenizer = tokenizer
        self._native = llguidance.LLTokenizer(cast(Any, self), eos_token=eos_token_ids or None)
        # On two processors one thread after the other takes half the time of the pool (docs/benchmarks.md).
        self._executor = llguidance.LLExecutor(min(usable_cpus() - 1, 32)) if usable_cpus() >= MIN_PROCESSORS else None

    def __call__(self, text: str | bytes) -> list[int]:
        """Encode a text; the library asks for it where a grammar insists on its own spelling."""
        if isinstance(text, bytes):
            text = text.decode(errors="ignore")
        return self._tokenizer.encode(text, add_special_tokens=False)

    def marker(self, text: str) -> str:
        """Return how Lark writes a marker: as its token where it is one, else as text."""
        data = text.encode()
        ids = [token_id for token_id in self.special_token_ids if self.tokens[token_id] == data]
        return f"<[{ids[0]}]>" if ids else json.dumps(text, ensure_ascii=False)

    def compile(self, grammars: Sequence[tuple[str, str]]) -> "CompiledGrammar":
        """Compile (name, Lark text) pairs; the first is where texts start, `@name` means another. Raise InvalidGrammarError."""
        source = json.dumps({"grammars": [{"name": name, "lark_grammar": lark} for name, lark in grammars]})
        matcher = llguidance.LLMatcher(self._native, source, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            # The first mask finds what no text could begin with, and what is too complex from the start.
            first = matcher.deep_copy()
            first.compute_bitmask()
            matcher = first if first.is_error() else matcher
        if matcher.is_error():
            raise InvalidGrammarError(_message(matcher))
        return CompiledGrammar(matcher, self.mask_words, self._executor)

    def spellings(self, marker: str) -> list[tuple[int, ...]]:
        """Return the tokens that write a marker, and what is left of it behind each of its bytes, where it is several tokens.

        None of it if the tokenizer would write something else.
        """
        spellings: list[tuple[int, ...]] = []
        for at in range(len(marker)):
            ids = tuple(self(marker[at:]))
            if not b"".join(self.tokens[token_id] for token_id in ids).endswith(marker[at:].encode()):
                return []
            spellings += [ids] * len(marker[at].encode())  # of a character that is cut, the whole comes once more
            if spellings and len(spellings[0]) == 1:
                break
        return spellings[:1] if spellings and len(spellings[0]) == 1 else spellings

    def budgeted(self, grammar: Grammar | None, budget: ThinkingBudget) -> "BudgetedGrammar":
        """Return a grammar whose thoughts end in time, and that otherwise is `grammar`, or allows anything."""
        return BudgetedGrammar(self, cast("CompiledGrammar | None", grammar), budget, self._executor)

    @property
    def mask_words(self) -> int:
        return (self._native.vocab_size + 31) // 32


class CompiledGrammar:
    """`app.engine.grammar.Grammar` by llguidance."""

    def __init__(self, start: llguidance.LLMatcher, mask_words: int, executor: llguidance.LLExecutor | None) -> None:
        self.mask_words = mask_words
        self._start = start
        self._executor = executor

    def start(self) -> "GrammarMatcher":
        return GrammarMatcher(self._start.deep_copy())

    def fill(self, matchers: Sequence[Matcher], masks: "NDArray[numpy.int32]") -> list[Exception | None]:
        assert masks.shape == (len(matchers), self.mask_words)
        return _fill(matchers, masks, self._executor)


class BudgetedGrammar:
    """`app.engine.grammar.Grammar` of what a model writes that may think for so long only; `inner` None allows anything."""

    def __init__(
        self,
        tokens: GrammarTokens,
        inner: CompiledGrammar | None,
        budget: ThinkingBudget,
        executor: llguidance.LLExecutor | None,
    ) -> None:
        self.mask_words = tokens.mask_words
        self._tokens = tokens.tokens
        self._inner = inner
        self._budget = budget
        self._executor = executor

    def start(self) -> "BudgetMatcher[GrammarMatcher]":
        return BudgetMatcher(self._budget, self._tokens, None if self._inner is None else self._inner.start())

    def fill(self, matchers: Sequence[Matcher], masks: "NDArray[numpy.int32]") -> list[Exception | None]:
        assert masks.shape == (len(matchers), self.mask_words)
        return _fill(matchers, masks, self._executor)


class GrammarMatcher:
    """`app.engine.grammar.Matcher` by llguidance."""

    def __init__(self, native: llguidance.LLMatcher) -> None:
        self.native = native

    def accept(self, token_id: int) -> None:
        if not self.native.consume_token(token_id):
            raise GrammarError(_message(self.native))

    @property
    def is_accepting(self) -> bool:
        return self.native.is_accepting()

    @property
    def is_complete(self) -> bool:
        return self.native.is_stopped() and not self.native.is_error()


def _fill(
    matchers: Sequence[Matcher], masks: "NDArray[numpy.int32]", executor: llguidance.LLExecutor | None
) -> list[Exception | None]:
    assert masks.flags.c_contiguous
    errors: list[Exception | None] = [None] * len(matchers)
    natives: list[tuple[llguidance.LLMatcher, int]] = []
    for row, matcher in enumerate(matchers):
        inner = matcher.inner if isinstance(matcher, BudgetMatcher) else cast(GrammarMatcher, matcher)
        if inner is None:
            masks[row] = -1
        else:
            natives.append((inner.native, row))
    start, width = masks.ctypes.data, 4 * masks.shape[1]
    if executor is not None and len(natives) >= MIN_ROWS:
        executor.unsafe_compute_mask_ptr(natives, start, width, len(matchers))
    else:
        for native, row in natives:
            native.unsafe_compute_mask_ptr(start + row * width, width)
    for native, row in natives:
        if native.is_error():
            errors[row] = GrammarError(_message(native))
    for row, matcher in enumerate(matchers):
        if isinstance(matcher, BudgetMatcher) and matcher.forced is not None:
            masks[row] = 0
            masks.view("uint32")[row, matcher.forced >> 5] = 1 << (matcher.forced & 31)
    return errors


def _message(matcher: llguidance.LLMatcher) -> str:
    """Return one line of what went wrong; what follows it in the library's text are excerpts and states."""
    lines = [line.strip() for line in matcher.get_error().splitlines()]
    text = next((line for line in lines if line and line != "<non-verbose/>"), "")
    # The library's word for a mask without a token.
    return "nothing that the model's tokens spell satisfies it" if text in ("", "NoExtensionBias") else text[:300]
