"""Grammars of a model's own tokens: what masks allow is in the language, what is not enforced is refused, work is bounded."""

import asyncio
import json
import random
import re
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.grammar import Grammar, GrammarError, Matcher
from app.errors import InvalidRequest, QueueFull, UnsupportedParameter
from app.text import grammar as grammar_module
from app.text import matching
from app.text.constraint import Constraint, Reasoning
from app.text.grammar import GrammarCompiler
from app.text.tokenizer import Tokenizer
from tests.support.hostile import HOSTILE
from tests.support.schemas import SCHEMAS, validate
from tests.support.tiny import EOS, VOCAB_SIZE, byte_tokenizer

TOKENIZER = Tokenizer(byte_tokenizer())


def make_compiler(**more: Any) -> GrammarCompiler:
    return GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset({EOS}), **more)


COMPILER = make_compiler()


def compiled(kind: Any, value: Any, **more: Any) -> Grammar:
    return COMPILER.compile_here(Constraint(kind, value, "p", **more))


def allowed(grammar: Grammar, *matchers: Matcher) -> list[set[int]]:
    masks = np.zeros((len(matchers), grammar.mask_words), np.int32)
    for error in grammar.fill(matchers, masks):
        if error is not None:
            raise error
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    return [set(np.flatnonzero(row).tolist()) - {EOS} for row in bits]


def accepts(grammar: Grammar, text: str) -> bool:
    matcher = grammar.start()
    for token_id in TOKENIZER.encode(text):
        if matcher.is_complete or token_id not in allowed(grammar, matcher)[0]:
            return False
        matcher.accept(token_id)
    return matcher.is_accepting


def write(grammar: Grammar, seed: int, max_tokens: int = 400) -> tuple[str, bool]:
    """Write a random text, ending half of the time where it may; return it, and whether it is complete."""
    rng = random.Random(seed)
    matcher = grammar.start()
    ids: list[int] = []
    while len(ids) < max_tokens and not matcher.is_complete:
        choices = sorted(allowed(grammar, matcher)[0])
        if matcher.is_accepting and (not choices or rng.random() < 0.5):
            break
        ids.append(rng.choice(choices))
        matcher.accept(ids[-1])
    return TOKENIZER.decode(ids), matcher.is_accepting


class TestLanguage:
    @pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
    def test_random_texts_satisfy_their_schema(self, schema: Any) -> None:
        grammar = compiled("json_schema", schema)
        finished = [text for text, is_complete in (write(grammar, seed) for seed in range(4)) if is_complete]
        assert len(finished) >= 2
        for text in finished:
            validate(json.loads(text), schema)

    @settings(max_examples=60, deadline=None)
    @given(st.recursive(st.none() | st.booleans() | st.integers(-9, 9), lambda part: st.lists(part, max_size=3)), st.randoms())
    def test_every_way_to_write_a_value_is_accepted(self, value: Any, rng: random.Random) -> None:
        """Each mask holds the next token of every legal text, whatever the white space."""
        text = re.sub(
            r"(?<=[,\[])|(?=[,\]])", lambda _: rng.choice(["", " ", "\n", "\n    "]), json.dumps(value, separators=(",", ":"))
        )
        text = re.sub(r"\[\s*\]", "[]", text)
        schema = {
            "$defs": {
                "v": {"anyOf": [{"type": ["null", "boolean", "integer"]}, {"type": "array", "items": {"$ref": "#/$defs/v"}}]}
            }
        }
        text = re.sub(r"\s+", lambda found: found[0][:5] if found[0].startswith("\n") else " ", text)
        text = re.sub(r"\n[ \n]*", "\n", text)
        assert accepts(compiled("json_schema", schema | {"$ref": "#/$defs/v"}), text), text

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8, unique=True), st.integers(0, 999))
    def test_choices(self, choices: list[str], seed: int) -> None:
        choices = [text.encode("utf-8", "ignore").decode() or "x" for text in choices]
        grammar = compiled("choice", choices)
        assert all(accepts(grammar, text) for text in choices)
        text, is_complete = write(grammar, seed)
        assert is_complete and text in choices

    @pytest.mark.parametrize(
        ("regex", "inside", "outside"),
        [
            (r"^\d{3}$", "123", "1234"),
            (r"a/b\/c", "a/b/c", "a/b"),
            ("a\nb|\\\n", "a\nb", "ab"),
            (r"(?i)yes", "YeS", "no"),
            (r"[\"\\]", '"', "a"),
            ("🙂{2}é?", "🙂🙂é", "🙂"),
            (r"\$[1-9]\d*(\.\d\d)?", "$12.50", "$012"),
        ],
    )
    def test_regular_expressions_hold_for_the_whole_text(self, regex: str, inside: str, outside: str) -> None:
        grammar = compiled("regex", regex)
        assert accepts(grammar, inside) and not accepts(grammar, outside)

    def test_white_space_can_not_go_on(self) -> None:
        grammar = compiled("json_object", None)
        for text in ("{  ", "{\n\n", '{"a" :  ', "{\n" + " " * 41, " {"):
            assert not accepts(grammar, text + "}"), text
        for text in ("{}", "{ }", '{\n    "a": [\n\t1 ]\n}'):
            assert accepts(grammar, text), text
        assert not accepts(compiled("json_object", None, compact=True), "{ }")

    @pytest.mark.parametrize(
        "text",
        ['{"ab":"x"}', '{"\\u0061b":"x"}', '{"ab":1,"ab":"x"}', '{"c":"x","ab":1}', '{"c":1}', '{"a\\ud800":"x"}'],
    )
    def test_further_keys_are_none_of_the_properties(self, text: str) -> None:
        schema = {"type": "object", "properties": {"ab": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
        grammar = compiled("json_schema", schema)
        assert not accepts(grammar, text) and accepts(grammar, '{"ab":1,"c":"x"}')

    @pytest.mark.parametrize(
        ("format", "right", "wrong"),
        [
            ("date", ["2024-02-29", "2000-02-29", "2023-12-31"], ["2023-02-29", "1900-02-29", "0000-01-01", "2023-13-01"]),
            ("date-time", ["2024-02-29T23:59:60Z"], ["2023-02-29T00:00:00Z", "2023-01-01", "2023-01-01T24:00:00Z"]),
            ("ipv4", ["255.0.10.1"], ["256.0.0.1", "1.2.3"]),
            ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
            ("email", ["a@b.c"], ["a@", "@b"]),
        ],
    )  # fmt: skip
    def test_formats(self, format: str, right: list[str], wrong: list[str]) -> None:
        grammar = compiled("json_schema", {"type": "string", "format": format})
        assert all(accepts(grammar, f'"{text}"') for text in right)
        assert not any(accepts(grammar, f'"{text}"') for text in wrong)

    @pytest.mark.parametrize("other", [0.001, 0.3, 0.999])
    @pytest.mark.parametrize("whole", [-3, 0, 1, 540])
    def test_a_whole_number_that_is_excluded_is_excluded(self, whole: int, other: float) -> None:
        for schema, number in (
            ({"exclusiveMinimum": whole, "maximum": whole + 1 + other}, whole),
            ({"exclusiveMaximum": whole, "minimum": whole - 1 - other}, whole),
        ):
            grammar = compiled("json_schema", {"type": "number"} | schema)
            assert not any(accepts(grammar, text) for text in (f"{number}", f"{number}.0", f"-{number}", f"{number}e0"))

    @pytest.mark.parametrize("min_processors", [1, 999])
    def test_matchers_of_different_grammars_share_a_batch(self, min_processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Made in a pool of threads, or one after the other."""
        monkeypatch.setattr(matching, "MIN_PROCESSORS", min_processors)
        monkeypatch.setattr(matching, "usable_cpus", lambda: 2)
        monkeypatch.setattr(matching, "MIN_ROWS", 2)
        compiler = make_compiler()
        first = compiler.compile_here(Constraint("choice", ["ab"], "p"))
        second = compiler.compile_here(Constraint("regex", "[0-9]b", "p"))
        sets = allowed(first, first.start(), second.start(), first.start())
        assert sets[0] == sets[2] == set(TOKENIZER.encode("a"))
        assert sets[1] == set(TOKENIZER.encode("0123456789"))

    def test_a_matcher_refuses_what_its_mask_forbids(self) -> None:
        grammar = compiled("choice", ["ab"])
        matcher, other = grammar.start(), grammar.start()
        with pytest.raises(GrammarError):
            matcher.accept(TOKENIZER.encode("z")[0])
        assert not matcher.is_complete
        assert allowed(grammar, other) == [set(TOKENIZER.encode("a"))]

    def test_a_schema_in_a_grammar_is_checked_as_any_other(self) -> None:
        with pytest.raises(UnsupportedParameter, match="patternProperties"):
            compiled("lark", 'start: "x" %json {"type": "object", "patternProperties": {}} | %json {"type": "null"}')
        grammar = compiled("lark", 'start: a "," b\na: %json {"enum": ["%json {", 1]}\nb: %json {"const": {"c": []}}')
        assert accepts(grammar, '"%json {",{"c":[]}') and accepts(grammar, '1,{"c":[]}')


class TestTokens:
    def test_special_tokens_are_no_text_and_can_be_named(self) -> None:
        hf = byte_tokenizer()
        hf.add_tokens(["<tool_call>", "  "])
        tokenizer = Tokenizer(hf)
        compiler = GrammarCompiler(tokenizer, len(hf), frozenset({EOS}))
        call, spaces = hf.convert_tokens_to_ids(["<tool_call>", "  "])
        assert compiler.marker("<tool_call>") == f"<[{call}]>" and compiler.marker("<none>") == '"<none>"'
        free = compiler.compile_here(Constraint("regex", "(?s:.*)", "p"))
        assert call not in allowed(free, free.start())[0] and spaces in allowed(free, free.start())[0]
        lark = f'start: {compiler.marker("<tool_call>")} %json {{"const": 1}}'
        named = compiler.compile_here(Constraint("lark", lark, "p"))
        matcher = named.start()
        assert allowed(named, matcher) == [{call}]
        matcher.accept(call)
        matcher.accept(tokenizer.encode("1")[0])
        assert matcher.is_complete

    def test_a_table_larger_than_the_tokenizer_is_never_chosen_from_behind_it(self) -> None:
        compiler = GrammarCompiler(TOKENIZER, VOCAB_SIZE + 61, frozenset({EOS}))
        grammar = compiler.compile_here(Constraint("regex", "(?s:.*)", "p"))
        assert grammar.mask_words == 10
        assert max(allowed(grammar, grammar.start())[0]) < VOCAB_SIZE

    def test_without_an_end_token(self) -> None:
        compiler = GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset())
        grammar = compiler.compile_here(Constraint("choice", ["a"], "p"))
        matcher = grammar.start()
        matcher.accept(TOKENIZER.encode("a")[0])
        assert matcher.is_complete


class TestReasoning:
    @pytest.mark.parametrize("is_token", [True, False])
    @pytest.mark.parametrize("is_open", [True, False])
    def test_the_constraint_begins_behind_it(self, is_token: bool, is_open: bool) -> None:
        hf = byte_tokenizer()
        if is_token:
            hf.add_tokens(["<think>", "</think>"])
        tokenizer = Tokenizer(hf)
        compiler = GrammarCompiler(tokenizer, len(hf), frozenset({EOS}))
        grammar = compiler.compile_here(Constraint("choice", ["yes"], "p", reasoning=Reasoning("<think>", "</think>", is_open)))

        def complete(text: str) -> bool:
            matcher = grammar.start()
            for token_id in tokenizer.encode(text):
                if matcher.is_complete or token_id not in allowed(grammar, matcher)[0]:
                    return False
                matcher.accept(token_id)
            return matcher.is_complete

        opening = "" if is_open else "<think>"
        assert complete(opening + 'hm, {"a": <no> yes</think>\n\nyes')
        assert complete(opening + "</think>yes")
        assert not complete(opening + "hm yes")
        assert not complete(opening + "hm</think>no")
        assert not complete(opening + "hm</think>hm</think>yes")
        assert complete("yes") is not is_open


class TestBounds:
    async def test_equal_constraints_are_compiled_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compiler = make_compiler()
        calls: list[str] = []
        original = compiler.compile_here
        monkeypatch.setattr(
            compiler, "compile_here", lambda constraint: (calls.append(constraint.key), original(constraint))[1]
        )
        same = [Constraint("choice", ["a"], param) for param in ("p", "q", "p")]
        first = await asyncio.gather(*(compiler.compile(constraint) for constraint in same))
        assert first[0] is first[1] is first[2] is await compiler.compile(same[0])
        await compiler.compile(Constraint("regex", "a", "p"))
        assert len(calls) == 2

    async def test_a_refusal_is_not_remembered_as_a_grammar(self) -> None:
        compiler = make_compiler()
        for _ in range(2):
            with pytest.raises(InvalidRequest):
                await compiler.compile(Constraint("regex", "(", "p"))
        assert not compiler._cache and not compiler._running

    async def test_the_cache_is_bounded_and_drops_what_was_not_used_for_longest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(grammar_module, "CACHE_BYTES", 110_000)
        compiler = make_compiler()
        first, second, third, fourth = (Constraint("choice", [text], "p") for text in "abcd")
        kept = [await compiler.compile(constraint) for constraint in (first, second, third)]
        assert await compiler.compile(first) is kept[0]
        await compiler.compile(fourth)
        assert list(compiler._cache) == [third.key, first.key, fourth.key]
        assert compiler._num_cached_bytes == sum(size for _, size in compiler._cache.values()) <= 110_000

    async def test_time_is_limited_and_so_is_what_runs_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(grammar_module, "COMPILE_SECONDS", 0.05)
        compiler = make_compiler()
        compiler.marker("x")
        gate = threading.Event()
        original = compiler.compile_here

        def slow(constraint: Constraint) -> Grammar:
            gate.wait(30)
            return original(constraint)

        monkeypatch.setattr(compiler, "compile_here", slow)
        constraints = [Constraint("choice", [str(index)], "p") for index in range(5)]
        for constraint in constraints[:4]:
            with pytest.raises(InvalidRequest, match="to compile"):
                await compiler.compile(constraint)
        with pytest.raises(QueueFull):
            await compiler.compile(constraints[4])
        gate.set()
        deadline = time.monotonic() + 10
        while compiler._running and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert await compiler.compile(constraints[0]) is not None

    async def test_more_at_once_than_may_be_compiled_wait_for_their_turn(self) -> None:
        for _ in range(5):
            compiler = make_compiler()
            grammars = await asyncio.gather(*(compiler.compile(Constraint("choice", [str(i)], "p")) for i in range(40)))
            assert len({id(grammar) for grammar in grammars}) == 40

    async def test_waiting_for_nothing_is_over_at_once(self) -> None:
        await make_compiler()._wait_for_any(asyncio.get_running_loop().time() + 10)

    async def test_the_event_loop_goes_on_meanwhile(self) -> None:
        compiler = make_compiler()
        lark = "start: " + " | ".join(f"r{index}" for index in range(800)) + "\n"
        lark += "\n".join(f'r{index}: "{index}" /a{{{index}}}b/' for index in range(800))
        work = asyncio.ensure_future(compiler.compile(Constraint("lark", lark, "p")))
        longest = 0.0
        while not work.done():
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - before)
        await asyncio.gather(work, return_exceptions=True)
        assert longest < 2

    @pytest.mark.parametrize("name", HOSTILE)
    async def test_hostile_sources_are_refused_or_bounded(self, name: str) -> None:
        """Also what could end the whole process, by recursion: it would end this one."""
        kind, make = HOSTILE[name]
        with suppress(InvalidRequest, GrammarError):
            grammar = await COMPILER.compile(Constraint(kind, make(), "p"))
            matcher = grammar.start()
            for _ in range(30):
                choices = allowed(grammar, matcher)[0]
                if matcher.is_complete or not choices:
                    break
                matcher.accept(max(choices))
