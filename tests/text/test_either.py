"""Answers that are calls or JSON: which of them is told by the beginning, and both are read as they were written."""

import json
import random
from typing import Any

import jsonschema
import pytest

from app.text.answer_parser import EitherParser
from app.text.call_grammar import call_grammar, spelled_call
from app.text.constraint import Reasoning
from app.text.formats import TOOL_FORMATS
from tests.text.test_call_grammar import SCHEMAS, compiler_of, draw
from tests.text.test_formats import cut, meaning, parser_of, read

MARKED = [name for name, format in TOOL_FORMATS.items() if not format.is_bare and name != "harmony"]
ANSWER = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "<tool_call>"]}},
    "required": ["a"],
    "additionalProperties": False,
}


def either(name: str, reasoning: Reasoning | None = None) -> EitherParser:
    return EitherParser(TOOL_FORMATS[name].opens[0], parser_of(name, schemas=SCHEMAS), reasoning)


@pytest.mark.parametrize("as_tokens", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("name", MARKED)
def test_what_is_drawn_is_one_of_the_two(name: str, as_tokens: bool) -> None:
    format = TOOL_FORMATS[name]
    compiler = compiler_of(format, as_tokens=as_tokens)
    rule = f"answer: %json {json.dumps(ANSWER)}"
    lark = call_grammar(format, SCHEMAS, marker=compiler.marker, must_call=False, single=True, answer=rule)
    rng, seen = random.Random(name), set()
    for _ in range(16):
        text = draw(compiler, lark, rng)
        answer, _ = read(either(name), [text])
        if answer.tool_calls:
            (call,) = answer.tool_calls
            assert call.is_whole and answer.content == ""
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
        else:
            assert answer.content == text
            jsonschema.validate(json.loads(text), ANSWER)
        seen.add(bool(answer.tool_calls))
        pieces = cut(text, [rng.randrange(len(text)) for _ in range(8)])
        assert meaning(read(either(name), pieces)[0]) == meaning(answer)
    assert seen == {True, False}


def test_reasoning_comes_before_either() -> None:
    call = spelled_call(TOOL_FORMATS["hermes"].spelling, "now", {}, {})
    quoting = json.dumps({"a": f"say <think>, {call}"})
    for is_open, opening in ((True, ""), (False, "<think>")):
        reasoning = Reasoning("<think>", "</think>", is_open)
        for text, calls, content in ((call, [("now", "{}", True)], ""), (quoting, [], quoting)):
            whole = f"{opening}Well, <tool_call>?</think>\n\n{text}"
            options: dict[str, Any] = {"schemas": SCHEMAS, "starts_in_reasoning": is_open}
            for pieces in ([whole], list(whole), cut(whole, [3, 20, 31, 40])):
                parser = EitherParser("<tool_call>", parser_of("hermes", **options), reasoning)
                answer, _ = read(parser, pieces)
                assert meaning(answer) == (content, "Well, <tool_call>?", calls)


def test_an_answer_that_breaks_off_is_given_as_far_as_it_came() -> None:
    for text in ("", "<tool_", '{"a": "<to'):
        assert meaning(read(either("hermes"), list(text))[0]) == (text, "", [])
