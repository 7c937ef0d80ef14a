"""Whatever tokens are drawn, an answer held to the grammar of its format is read as the calls that were asked for."""

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest

from app.text.call_grammar import call_grammar, spelled_call
from app.text.constraint import Constraint, Reasoning
from app.text.formats import REASONING_FORMATS, TOOL_FORMATS, ToolFormat
from app.text.grammar import GrammarCompiler
from app.text.tokenizer import Tokenizer
from tests.support.tiny import EOS, byte_tokenizer
from tests.text.test_formats import cut, meaning, parser_of, read

SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 6},
            "days": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
            "unit": {"enum": ["C", "F", None]},
            "at": {
                "type": "object",
                "properties": {"x": {"type": "boolean"}},
                "required": ["x"],
                "additionalProperties": False,
            },
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}


def compiler_of(format: ToolFormat, *, as_tokens: bool) -> GrammarCompiler:
    """A model of bytes, whose markers are tokens of their own, or spelled like all other text."""
    hf = byte_tokenizer()
    if as_tokens:
        hf.add_special_tokens({"additional_special_tokens": [*format.opens, *format.markers]})
    return GrammarCompiler(Tokenizer(hf), len(hf), frozenset({EOS}))


def draw(compiler: GrammarCompiler, lark: str, rng: random.Random, limit: int = 3000) -> str:
    """Return a text of random tokens, as a model with random weights would write it."""
    grammar = compiler.compile_here(Constraint("lark", lark, "tools"))
    matcher = grammar.start()
    masks = np.zeros((1, grammar.mask_words), dtype=np.int32)
    ids: list[int] = []
    while not matcher.is_complete and len(ids) < limit:
        assert grammar.fill([matcher], masks) == [None]
        allowed = np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))
        choices = [int(token_id) for token_id in allowed if token_id != EOS]
        if matcher.is_accepting and (not choices or rng.random() < 0.5):
            break
        token_id = rng.choice(choices)
        matcher.accept(token_id)
        ids.append(token_id)
    return compiler._tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("as_tokens", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("name", TOOL_FORMATS)
class TestGrammars:
    def test_required(self, name: str, as_tokens: bool) -> None:
        format = TOOL_FORMATS[name]
        compiler = compiler_of(format, as_tokens=as_tokens)
        lark = call_grammar(format, SCHEMAS, marker=compiler.marker, must_call=True, single=False)
        rng = random.Random(name)
        seen = set()
        for _ in range(12):
            text = draw(compiler, lark, rng)
            answer, _ = read(parser_of(name, schemas=SCHEMAS), [text])
            assert answer.tool_calls and answer.content == "", text
            for call in answer.tool_calls:
                assert call.is_whole, text
                jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
                seen.add(call.name)
            pieces = cut(text, [rng.randrange(len(text)) for _ in range(8)])
            assert meaning(read(parser_of(name, schemas=SCHEMAS), pieces)[0]) == meaning(answer)
        assert seen == set(SCHEMAS)

    def test_one_call(self, name: str, as_tokens: bool) -> None:
        format = TOOL_FORMATS[name]
        compiler = compiler_of(format, as_tokens=as_tokens)
        lark = call_grammar(format, {"now": SCHEMAS["now"]}, marker=compiler.marker, must_call=True, single=True)
        for seed in range(4):
            (call,) = read(parser_of(name, schemas=SCHEMAS), [draw(compiler, lark, random.Random(seed))])[0].tool_calls
            assert call.name == "now" and json.loads(call.arguments) == {}

    def test_what_may_be_a_call_is_a_whole_one(self, name: str, as_tokens: bool) -> None:
        """With `tool_choice` auto: text, and calls only in their exact form."""
        format = TOOL_FORMATS[name]
        compiler = compiler_of(format, as_tokens=as_tokens)
        lark = call_grammar(format, SCHEMAS, marker=compiler.marker, must_call=False, single=True)
        grammar = compiler.compile_here(Constraint("lark", lark, "tools"))
        call, wrong = (
            spelled_call(format.spelling, "weather", {"city": "Ulm", "unit": unit}, SCHEMAS["weather"]) for unit in "CK"
        )
        texts = {
            call: True,
            wrong: False,
            call.replace("weather", "whether"): False,
        }
        if name == "harmony":
            texts["<|channel|>analysis<|message|>hm<|end|><|start|>assistant" + call] = as_tokens
            texts["<|channel|>final<|message|>Hello."] = True
        else:
            texts |= {"Hello.": True, "": True}
            if not format.is_bare:
                texts |= {"Hello. " + call: True, call + "x": False}
        for text, is_legal in texts.items():
            matcher = grammar.start()
            ids = compiler._tokenizer.encode(text, add_special_tokens=False)
            assert (all(matcher.native.consume_token(one) for one in ids) and matcher.is_accepting) == is_legal, text
            if is_legal and call in text:
                answer, _ = read(parser_of(name, schemas=SCHEMAS), [text])
                assert [one.name for one in answer.tool_calls] == ["weather"] and answer.tool_calls[0].is_whole


def test_reasoning_comes_before() -> None:
    format, reasoning = TOOL_FORMATS["hermes"], REASONING_FORMATS["think"]
    compiler = compiler_of(format, as_tokens=True)
    lark = call_grammar(format, SCHEMAS, marker=compiler.marker, must_call=True, single=True)
    grammar = compiler.compile_here(
        Constraint("lark", lark, "tools", reasoning=Reasoning(reasoning.open, reasoning.close, False))
    )
    text = "<think>\nwell\n</think>\n\n" + spelled_call(format.spelling, "now", {}, {})
    matcher = grammar.start()
    assert all(matcher.native.consume_token(one) for one in compiler._tokenizer.encode(text, add_special_tokens=False))
    assert matcher.is_complete
    answer, _ = read(parser_of("hermes", schemas=SCHEMAS), [text])
    assert answer.reasoning == "well" and answer.tool_calls[0].is_whole
