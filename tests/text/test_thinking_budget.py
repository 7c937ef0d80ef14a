"""Owns the tests of how long a model may think: thoughts end in time, and nothing else is held to anything."""

import asyncio
import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AddedToken

from app.engine.grammar import Grammar, GrammarError, Matcher
from app.text.constraint import Constraint, Reasoning
from app.text.grammar import GrammarCompiler
from app.text.matching import MIN_ROWS
from app.text.tokenizer import Tokenizer
from tests.support.tiny import EOS, byte_tokenizer
from tests.text.test_grammar import COMPILER, TOKENIZER, allowed

THINK = {is_open: Reasoning("<think>", "</think>", is_open) for is_open in (False, True)}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


def budgeted(num_tokens: int, *, is_open: bool = False, inner: Grammar | None = None) -> Grammar:
    return asyncio.run(COMPILER.with_budget(inner, THINK[is_open], num_tokens, "p"))


def dictate(grammar: Grammar, text: str) -> str:
    """Return what becomes of a text that a model wants to write, token by token, where it can not always."""
    matcher = grammar.start()
    written: list[int] = []
    for token_id in TOKENIZER.encode(text):
        while token_id not in (possible := allowed(grammar, matcher)[0]):
            (only,) = possible
            matcher.accept(only)
            written.append(only)
        matcher.accept(token_id)
        written.append(token_id)
    while len(possible := allowed(grammar, matcher)[0]) == 1:
        (only,) = possible
        matcher.accept(only)
        written.append(only)
    return TOKENIZER.decode(written)


class TestAlone:
    @pytest.mark.parametrize(
        ("is_open", "num_tokens", "text", "written"),
        [
            (True, 3, "abcdef", "abc</think>def"),
            (True, 3, "abc", "abc</think>"),
            (True, 3, "ab</think>cdef", "ab</think>cdef"),
            (False, 3, "abcdef", "abcdef"),
            (False, 3, "<think>abcdef", "<think>abc</think>def"),
            (False, 3, "\n<think>ab</think>cdef", "\n<think>ab</think>cdef"),
            (False, 4, "<think>ab</think>c<think>defgh", "<think>ab</think>c<think>de</think>fgh"),
            (False, 3, "<think>abcd<think>ef", "<think>abc</think>d<think></think>ef"),
            (True, 2, "aéb", "aé</think>b"),  # é has two bytes, each of them a token here
            (True, 1, "🙂b", "🙂</think>b"),
        ],
    )
    def test_what_is_written(self, is_open: bool, num_tokens: int, text: str, written: str) -> None:
        assert dictate(budgeted(num_tokens, is_open=is_open), text) == written

    @settings(max_examples=60, deadline=None)
    @given(st.text("ab é🙂<>/think\n", max_size=30), st.integers(1, 12), st.booleans())
    def test_no_thought_is_longer(self, text: str, num_tokens: int, is_open: bool) -> None:
        written = dictate(budgeted(num_tokens, is_open=is_open), text)
        thoughts = ("<think>" if is_open else "") + written
        for part in thoughts.split("<think>")[1:]:
            assert len(part.partition("</think>")[0].encode()) <= num_tokens + 3, "those that end a character"
        rest = iter(written)
        assert all(char in rest for char in text), "all that the model wanted is there, in its order"

    def test_the_end_may_come_but_not_within_a_marker(self) -> None:
        matcher = budgeted(2, is_open=True).start()
        ends = []
        for token_id in TOKENIZER.encode("ab</think>"):
            ends.append(matcher.is_accepting)
            matcher.accept(token_id)
        assert ends == [True, True] + [False] * len("</think>")
        assert matcher.is_accepting and not matcher.is_complete

    def test_another_token_than_the_forced_one_is_an_error(self) -> None:
        matcher = budgeted(1, is_open=True).start()
        matcher.accept(TOKENIZER.encode("a")[0])
        with pytest.raises(GrammarError):
            matcher.accept(TOKENIZER.encode("a")[0])


class TestWithAGrammar:
    @pytest.mark.parametrize("is_open", [False, True])
    @pytest.mark.parametrize("seed", range(5))
    def test_a_model_that_says_anything(self, is_open: bool, seed: int) -> None:
        """A thought that would go on for ever ends, and what follows is in the grammar."""
        constraint = Constraint("json_schema", SCHEMA, "p", reasoning=THINK[is_open])
        grammar = budgeted(20, is_open=is_open, inner=COMPILER.compile_here(constraint))
        matcher, chance, written = grammar.start(), random.Random(seed), list[int]()
        if not is_open:
            for token_id in TOKENIZER.encode("<think>"):
                assert token_id in allowed(grammar, matcher)[0]
                matcher.accept(token_id)
        while not matcher.is_complete:
            assert len(written) < 500
            written.append(chance.choice(sorted(allowed(grammar, matcher)[0] - {EOS})))
            matcher.accept(written[-1])
        thought, _, text = TOKENIZER.decode(written).partition("</think>")
        assert len(TOKENIZER.encode(thought)) <= 23
        assert json.loads(text)["a"] in (1, 2)

    def test_markers_in_what_follows_are_text(self) -> None:
        constraint = Constraint("json_schema", {"type": "string"}, "p", reasoning=THINK[False])
        grammar = budgeted(2, inner=COMPILER.compile_here(constraint))
        for text in ('"<think>abcdef"', '<think>a</think>"<think>abcdef"'):
            assert dictate(grammar, text) == text


class TestMarkersThatAreTokens:
    @pytest.fixture(params=[True, False], ids=["special", "not special"])
    def model(self, request: pytest.FixtureRequest) -> tuple[Tokenizer, GrammarCompiler]:
        hf = byte_tokenizer()
        hf.add_tokens([AddedToken(marker, special=request.param) for marker in ("<think>", "</think>")])
        tokenizer = Tokenizer(hf)
        return tokenizer, GrammarCompiler(tokenizer, len(hf), frozenset({EOS}))

    def test_the_token_comes_and_not_its_text(self, model: tuple[Tokenizer, GrammarCompiler]) -> None:
        tokenizer, compiler = model
        (opening,), (close,) = tokenizer.encode("<think>"), tokenizer.encode("</think>")
        a, less = *tokenizer.encode("a"), *tokenizer.encode("<")
        inner = compiler.compile_here(Constraint("choice", ["xy"], "p", reasoning=THINK[False]))
        for grammar in (None, inner):
            budgeted = asyncio.run(compiler.with_budget(grammar, THINK[False], 3, "p"))
            matcher = budgeted.start()
            for token_id in (opening, a, a, less):
                assert token_id in allowed(budgeted, matcher)[0]
                matcher.accept(token_id)
            assert allowed(budgeted, matcher)[0] == {close}
            matcher.accept(close)
            follows = allowed(budgeted, matcher)[0]
            assert tokenizer.encode("x")[0] in follows and (a in follows) is (grammar is None)


@pytest.mark.parametrize("rows", [3, MIN_ROWS + 3])
def test_masks_of_all_kinds_of_matchers_at_once(rows: int) -> None:
    inner = COMPILER.compile_here(Constraint("choice", ["xy"], "p"))
    free, forced, both = budgeted(5), budgeted(1, is_open=True), budgeted(5, inner=inner)
    matchers: list[Matcher] = []
    for index in range(rows):
        matchers.append((free, forced, both, inner)[index % 4].start())
        if index % 4 == 1:
            matchers[-1].accept(TOKENIZER.encode("a")[0])
    expected: list[Any] = [None, set(TOKENIZER.encode("<")), set(TOKENIZER.encode("x")), set(TOKENIZER.encode("x"))]
    for grammar in (free, inner):
        masks = np.zeros((rows, grammar.mask_words), np.int32)
        assert grammar.fill(matchers, masks) == [None] * rows
        found = allowed(grammar, *matchers)
        for index, row in enumerate(found):
            assert len(row) > 250 if expected[index % 4] is None else row == expected[index % 4]
