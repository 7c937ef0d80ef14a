"""Owns the way from a constraint to a compiled grammar of one model: off the event loop, in bounded time, remembered. Knows no
HTTP and no scheduling.

llguidance refuses what it can not enforce and bounds its own work; what it leaves open (time, depth, how much is kept) is
bounded here. It is imported with the first constraint, and so is the table of tokens made: models that are never constrained
pay nothing.
"""

import asyncio
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from app.engine.grammar import Grammar
from app.errors import InvalidRequest, QueueFull, UnsupportedParameter
from app.text.constraint import OPTIONS, Constraint, Reasoning
from app.text.thinking_budget import ThinkingBudget
from app.text.vocabulary import UnmappedTokenizerError, read_vocabulary

if TYPE_CHECKING:
    from app.text.matching import GrammarTokens
    from app.text.tokenizer import Tokenizer

T = TypeVar("T")

COMPILE_SECONDS = 10.0
# Compilations that may be under way for one model, those included that nobody waits for any more.
MAX_COMPILATIONS = 4
CACHE_BYTES = 64 * 2**20
# What a grammar takes in memory, roughly: docs/benchmarks.md.
_BYTES_PER_GRAMMAR = 20_000
_BYTES_PER_SOURCE_BYTE = 400
# The compiler recurses as deep as rules refer to rules: the 20,000 of the largest source fit in here, and 1,000 in the usual 8
# MiB do not. It is address space, not memory, until it is used.
_STACK_BYTES = 512 * 2**20


class GrammarCompiler:
    """Compiles constraints for one model. `starts_text` if what it generates is a text of its own (encoder-decoder models)."""

    def __init__(
        self, tokenizer: "Tokenizer", vocab_size: int, eos_token_ids: frozenset[int], *, starts_text: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(token_id for token_id in eos_token_ids if token_id < vocab_size)
        self._starts_text = starts_text
        self._lock = threading.Lock()
        self._preparing = threading.Lock()
        self._tokens: GrammarTokens | None = None
        self._cache: OrderedDict[str, tuple[Grammar, int]] = OrderedDict()
        self._num_cached_bytes = 0
        self._running: dict[str, Future[Grammar]] = {}

    async def compile(self, constraint: Constraint) -> Grammar:
        """Return the grammar, made off the event loop or remembered.

        Raise InvalidRequest for what is malformed, too large or takes too long, UnsupportedParameter for what can not be
        enforced, or not on this model, and QueueFull when too much is being compiled.
        """
        if self._tokens is None:
            # A second or so, once; no part of anybody's limit.
            await asyncio.to_thread(self._ready, constraint.param)
        end = asyncio.get_running_loop().time() + COMPILE_SECONDS
        while (found := self._find_or_begin(constraint)) is None:
            try:
                await self._wait_for_any(end)
            except TimeoutError:
                message = "Too many grammars are being compiled. Please retry."
                raise QueueFull(message, param=constraint.param, retry_after=1) from None
        if not isinstance(found, Future):
            return found
        try:
            return await _result(found, end)
        except TimeoutError:
            raise InvalidRequest(
                f"`{constraint.param}` takes more than {COMPILE_SECONDS:.0f} seconds to compile. Please simplify it.",
                param=constraint.param,
            ) from None

    def compile_here(self, constraint: Constraint) -> Grammar:
        """As `compile`, in the caller's thread, without its limit of time and without remembering."""
        from app.text.matching import InvalidGrammarError

        tokens = self._ready(constraint.param)
        body, chars = constraint.to_lark()
        missing = sorted(char for char in chars if not tokens.vocabulary.spells(char))
        if missing:
            raise UnsupportedParameter(
                f"This model can not honour `{constraint.param}`: its tokenizer can not spell {' '.join(missing[:8])}",
                param=constraint.param,
            )
        head = self._head(tokens, constraint.reasoning)
        try:
            return tokens.compile([("start", head), ("body", body)] if head else [("start", body)])
        except InvalidGrammarError as error:
            raise InvalidRequest(
                f"`{constraint.param}` can not be compiled: {error}", param=constraint.param, code="invalid_grammar"
            ) from error

    async def with_budget(self, grammar: Grammar | None, reasoning: Reasoning, num_tokens: int, param: str) -> Grammar:
        """Return a grammar that ends the model's thoughts after `num_tokens` tokens, and is otherwise `grammar`, or allows
        anything; raise UnsupportedParameter for `param` where the model's tokens can not be told one by one.
        """
        tokens = await asyncio.to_thread(self._ready, param)
        closings = tokens.spellings(reasoning.close)
        if not closings:
            raise UnsupportedParameter(
                f"This model can not honour `{param}`: its tokenizer can not spell {reasoning.close}", param=param
            )
        opening, close = reasoning.open.encode(), reasoning.close.encode()
        return tokens.budgeted(grammar, ThinkingBudget(num_tokens, opening, close, closings, reasoning.is_open))

    def marker(self, text: str) -> str:
        """Return how Lark writes a marker: as its token where it is one, else as text. Slow at the first call."""
        return self._ready("tools").marker(text)

    def _head(self, tokens: "GrammarTokens", reasoning: Reasoning | None) -> str:
        """Return the grammar of what may come before `@body`; empty if nothing may."""
        # The decoder of such a tokenizer takes the space away, and models are used to begin with it.
        space = '" "? ' if self._starts_text and tokens.vocabulary.drops_first_space else ""
        if reasoning is None:
            return f"start: {space}@body{OPTIONS}" if space else ""
        close, close_text = tokens.marker(reasoning.close), re.sub(r"([.^$*+?()\[\]{}|\\/])", r"\\\1", reasoning.close)
        if close.startswith("<["):
            block = f"TEXT {close}\nTEXT: /(?s:.*)/ & ~/(?s:.*){close_text}(?s:.*)/"
        else:
            block = f"ended\nended[lazy]: /(?s:.*){close_text}/"
        opening = "block gap" if reasoning.is_open else f"({tokens.marker(reasoning.open)} block gap)?"
        return f"start: {space}{opening} @body\ngap: GAP?\nGAP: /[ \\n]{{1,4}}/\nblock: {block}{OPTIONS}"

    def _find_or_begin(self, constraint: Constraint) -> Grammar | Future[Grammar] | None:
        """Return the grammar, or what will be it; None if there is no room to begin."""
        key = constraint.key
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key][0]
            if key not in self._running:
                if len(self._running) >= MAX_COMPILATIONS:
                    return None
                self._running[key] = _with_deep_stack(lambda: self._compile_and_remember(key, constraint))
            return self._running[key]

    async def _wait_for_any(self, end: float) -> None:
        """Wait until one of the compilations has ended; raise TimeoutError at `end`."""
        with self._lock:
            running = [asyncio.ensure_future(_result(future, end)) for future in self._running.values()]
        if not running:
            return  # they ended between the question and now
        done, others = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
        if all(isinstance(task.exception(), TimeoutError) for task in done):
            raise TimeoutError

    def _compile_and_remember(self, key: str, constraint: Constraint) -> Grammar:
        try:
            grammar = self.compile_here(constraint)
            size = _BYTES_PER_GRAMMAR + _BYTES_PER_SOURCE_BYTE * len(key)
            with self._lock:
                self._cache[key] = grammar, size
                self._num_cached_bytes += size
                while self._num_cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                    _, (_, dropped) = self._cache.popitem(last=False)
                    self._num_cached_bytes -= dropped
            return grammar
        finally:
            with self._lock:
                del self._running[key]

    def _ready(self, param: str) -> "GrammarTokens":
        from app.text.matching import GrammarTokens

        with self._preparing:
            if self._tokens is None:
                try:
                    vocabulary = read_vocabulary(self._tokenizer, self._vocab_size)
                except UnmappedTokenizerError as error:
                    raise UnsupportedParameter(
                        f"This model can not honour `{param}`: what its tokens stand for can not be told one by one ({error}).",
                        param=param,
                    ) from error
                self._tokens = GrammarTokens(vocabulary, self._eos_token_ids, self._tokenizer)
            return self._tokens


async def _result(future: Future[T], end: float) -> T:
    """Wait for what a thread makes until the loop's time `end`; it goes on when the wait is over, since others may wait too."""
    waited = asyncio.wrap_future(future)
    waited.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may end when nobody waits any more
    async with asyncio.timeout_at(end):
        return await asyncio.shield(waited)


_stack_size_lock = threading.Lock()


def _with_deep_stack(function: Callable[[], T]) -> Future[T]:
    """Call a function in a thread of its own, which does not keep the process alive, on a stack of _STACK_BYTES."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    with _stack_size_lock:
        usual = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=run, name="grammar", daemon=True).start()
        finally:
            threading.stack_size(usual)
    return future
