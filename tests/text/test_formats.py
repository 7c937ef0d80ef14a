"""Every format of tool calls and reasoning is read the same way however the text arrives, and nothing of it gets lost."""

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import config_keys
from app.text.answer_parser import AnswerParser, MarkerParser
from app.text.deltas import CallArguments, CallBegin, CallEnd, ChatAnswer, ChatDelta
from app.text.formats import REASONING_FORMATS, TOOL_FORMATS, reasoning_format_of, tool_format_of
from app.text.harmony import HarmonyParser

SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "array"}, "far": {"type": "boolean"}, "x": {}},
    },
    "now": {},
}
ARGUMENTS = {"city": 'Köln "am" <Rhein> 🎉', "days": [1, {"a": None}], "far": True}
TEXT = json.dumps(ARGUMENTS, ensure_ascii=False)
SPACED = json.dumps(ARGUMENTS, ensure_ascii=False, indent=2)


@dataclass
class Case:
    """What a model writes, and what it means; a call is its name and its arguments."""

    format: str
    text: str
    content: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    reasoning: str = ""
    is_whole: bool = True


WEATHER = ("weather", ARGUMENTS)
NOW = ("now", {})
CASES = [
    Case("hermes", f'<tool_call>\n{{"name": "weather", "arguments": {TEXT}}}\n</tool_call>', calls=[WEATHER]),
    Case("hermes", f'Well.\n<tool_call>{{"name":"weather","arguments":{SPACED}}}</tool_call>', "Well.", [WEATHER]),
    Case(
        "hermes",
        '<tool_call>{"name": "now", "arguments": {}}</tool_call>\n<tool_call>{"name": "now", "arguments": {}}\n</tool_call> ',
        calls=[NOW, NOW],
    ),
    Case("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', calls=[("f", {"a": 1})]),
    Case("hermes", '<tool_call>{"name": "now"}</tool_call>', calls=[NOW]),
    Case("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', calls=[("f", {"a": 1})]),
    Case("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call> Then.', "Then.", [("f", {"a": 1})]),
    Case("hermes", '<tool_call>{"name": "f\\u00e9", "arguments": {}}</tool_call>', calls=[("fé", {})]),
    Case("qwen_xml", "<tool_call>\n<function=now>\n</function>\n</tool_call>", calls=[NOW]),
    Case(
        "qwen_xml",
        "So: <tool_call>\n<function=weather>\n<parameter=city>\nKöln \"am\" <Rhein> 🎉\n</parameter>\n<parameter=days>\n"
        '[1, {"a": null}]\n</parameter>\n<parameter=far>\nTrue\n</parameter>\n</function>\n</tool_call>',
        "So:",
        [WEATHER],
    ),
    Case(
        "qwen_xml",
        "<tool_call><function=f><parameter=a>1</parameter><parameter=b>two\nlines</parameter></function></tool_call>",
        calls=[("f", {"a": "1", "b": "two\nlines"})],
    ),
    Case(
        "qwen_xml",
        "<tool_call><function=weather><parameter=x>1.5</parameter></function></tool_call>",
        calls=[("weather", {"x": "1.5"})],
    ),
    Case("llama3", f'{{"name": "weather", "parameters": {TEXT}}}', calls=[WEATHER]),
    Case("llama3", f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {TEXT}}}', calls=[WEATHER]),
    Case("llama3", '{"name": "now", "parameters": {}}; {"name": "f", "parameters": {"a": 1}}', calls=[NOW, ("f", {"a": 1})]),
    Case("llama3", '{"answer": 42, "name": null}', '{"answer": 42, "name": null}'),
    Case("llama3", 'JSON: {"name": "now", "parameters": {}}', 'JSON: {"name": "now", "parameters": {}}'),
    Case("mistral", f'[TOOL_CALLS] [{{"name": "weather", "arguments": {TEXT}, "id": "abcdefghi"}}]', calls=[WEATHER]),
    Case("mistral", '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]', calls=[NOW, NOW]),
    Case("mistral_v11", f"Hm.[TOOL_CALLS]weather[ARGS]{TEXT}[TOOL_CALLS]now[CALL_ID]abcdefg[ARGS]{{}}", "Hm.", [WEATHER, NOW]),
    Case(
        "deepseek_v3",
        "Look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        f"{SPACED}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{{}}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
        "Look.",
        [WEATHER, NOW],
    ),
    Case(
        "deepseek_v31",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{TEXT}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        calls=[WEATHER],
    ),
    Case(
        "functiongemma",
        '<start_function_call>call:weather{city:<escape>Köln "am" <Rhein> 🎉<escape>,days:[1,{a:null}],far:true}'
        "<end_function_call>",
        calls=[WEATHER],
    ),
    Case(
        "gemma4",
        'Ja. <|tool_call>call:weather{city:<|"|>Köln "am" <Rhein> 🎉<|"|>,days:[1,{a:None}],far:true}<tool_call|>'
        "<|tool_call>call:now{}<tool_call|>",
        "Ja.",
        [WEATHER, NOW],
    ),
    Case("harmony", "<|channel|>final<|message|>Hello.", "Hello."),
    Case(
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        f"<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{TEXT}<|call|>",
        "I look.",
        [WEATHER],
        "Hm.",
    ),
    Case("harmony", " to=functions.now<|channel|>commentary json<|message|>{}", calls=[NOW]),
    Case("harmony", "No channels < here.", "No channels < here."),
    Case("harmony", "<|channel|>final<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "a\nb"),
]  # fmt: skip
# What is no call, or breaks off: as it was written, or as far as it was.
BROKEN = [
    *(
        Case("hermes", text, text)
        for text in (
            "<tool_call>",
            "<tool_call>nonsense</tool_call>",
            "<tool_call>[1, 2]</tool_call>",
            '<tool_call>{"x": 1}</tool_call>',
            '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
            '<tool_call>{"name": "", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
            '<tool_call>{"name": "f", "argum',
            'a \n <tool_call> {"name": "f", "arguments": 5} </tool_call> b ',
            "1 < 2, <tool, <tool_cal",
        )
    ),
    Case("hermes", '<tool_call>{"name": "f", "arguments": {"a": "b', calls=[("f", '{"a": "b')], is_whole=False),
    Case(
        "hermes", '<tool_call>{"name": "f", "arguments": {a: 1}}</tool_call> x', "x", calls=[("f", "{a: 1}}")], is_whole=False
    ),
    Case("hermes", '<tool_call>x <tool_call>{"name": "now"}</tool_call>', "<tool_call>x", calls=[NOW]),
    Case("llama3", '{"name": "f", "param', '{"name": "f", "param'),
    Case("llama3", "<|python_tag|>print(1)", "<|python_tag|>print(1)"),
    Case("llama3", '{"name": "now", "parameters": {}}; {"a": 1}', '; {"a": 1}', [NOW]),
    Case("mistral", "[TOOL_CALLS] maybe", "[TOOL_CALLS] maybe"),
    Case("mistral", '[TOOL_CALLS][{"name": "now", "arguments": {}}, 5]', ", 5]", [NOW]),
    Case("deepseek_v3", "<｜tool▁calls▁begin｜>none<｜tool▁calls▁end｜>", "<｜tool▁calls▁begin｜>none<｜tool▁calls▁end｜>"),
    Case("gemma4", "<|tool_call>now{}<tool_call|>", "<|tool_call>now{}<tool_call|>"),
    Case("gemma4", '<|tool_call>call:f{a:<|"|>b', calls=[("f", '{"a": "b')], is_whole=False),
    Case("qwen_xml", "<tool_call><function=f><parameter=a>b", calls=[("f", '{"a": "b')], is_whole=False),
    Case("harmony", "<|channel|>commentary to=python<|message|>1+1<|call|>", "<|channel|>commentary to=python<|message|>1+1"),
    Case("harmony", '<|channel|>commentary to=functions.f<|message|>{"a"', calls=[("f", '{"a"')], is_whole=False),
]  # fmt: skip


def parser_of(name: str, **options: Any) -> AnswerParser:
    options = {"schemas": SCHEMAS, "limit": None} | options
    if name == "harmony":
        return HarmonyParser(prefix="<|start|>assistant", new_id=lambda: "call_1", **options)
    return MarkerParser(TOOL_FORMATS[name], REASONING_FORMATS["think"], **options)


def read(parser: AnswerParser, pieces: list[str]) -> tuple[ChatAnswer, list[ChatDelta]]:
    answer, deltas = ChatAnswer(), []
    for found in (*map(parser.feed, pieces), parser.finish()):
        deltas += found
    for delta in deltas:
        answer.add(delta)
    return answer, deltas


def meaning(answer: ChatAnswer) -> tuple[Any, ...]:
    """What an answer says, without the ids that are made up for it."""
    calls = [(call.name, call.arguments, call.is_whole) for call in answer.tool_calls]
    return answer.content, answer.reasoning, calls


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


@pytest.mark.parametrize("case", CASES + BROKEN, ids=lambda case: f"{case.format}: {case.text}"[:60])
def test_what_models_write(case: Case) -> None:
    answer, deltas = read(parser_of(case.format), [case.text])
    assert answer.content == case.content
    assert answer.reasoning == case.reasoning
    assert [call.name for call in answer.tool_calls] == [name for name, _ in case.calls]
    for call, (_, arguments) in zip(answer.tool_calls, case.calls, strict=True):
        assert call.is_whole == case.is_whole
        assert (call.arguments if isinstance(arguments, str) else json.loads(call.arguments)) == arguments
    # One by one, which is the most that it can be cut into.
    assert meaning(read(parser_of(case.format), list(case.text))[0]) == meaning(answer)
    begun = [delta.index for delta in deltas if isinstance(delta, CallBegin)]
    assert begun == list(range(len(case.calls)))
    assert [delta.index for delta in deltas if isinstance(delta, CallEnd)] == (begun if case.is_whole else [])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(CASES + BROKEN), st.sampled_from(CASES + BROKEN), st.lists(st.integers(0, 2000), max_size=12))
def test_every_chunking_gives_the_same_answer(first: Case, second: Case, places: list[int]) -> None:
    """Of two answers together, too, which no model would write; the first one's format reads both."""
    text = first.text + second.text
    whole, _ = read(parser_of(first.format), [text])
    assert meaning(read(parser_of(first.format), cut(text, places))[0]) == meaning(whole)


_PARTS = [
    *("<tool_call>", "</tool_call>", '{"name": "f", "arguments": {', '{"a": 1}', "}", "}}", "[", "]", ",", '"', "\\", ":"),
    *(" ", "\n", "<think>", "</think>", "[TOOL_CALLS]", "f", "[ARGS]", "<|python_tag|>", ";", "<function=f>"),
    *("<parameter=a>", "</parameter>", "</function>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "text", "tru"),
    *("function<｜tool▁sep｜>f\n```json\n", "<｜tool▁call▁end｜>", "call:f{", "a:", "<escape>", "<start_function_call>", "1.5"),
    *("<|tool_call>", '<|"|>', "<tool_call|>", "<|channel|>", "<|message|>", "final", "analysis", "commentary"),
    *(" to=functions.f", "<|start|>", "assistant", "<|end|>", "<|call|>"),
]  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from([*TOOL_FORMATS]),
    st.lists(st.sampled_from(_PARTS), max_size=14).map("".join),
    st.lists(st.integers(0, 500), max_size=8),
    st.booleans(),
)
def test_nonsense_is_read_the_same_however_it_arrives(name: str, text: str, places: list[int], offered: bool) -> None:
    options: dict[str, Any] = {} if offered else {"schemas": None}
    whole, _ = read(parser_of(name, **options), [text])
    pieces, _ = read(parser_of(name, **options), cut(text, places))
    assert meaning(pieces) == meaning(whole)
    assert meaning(read(parser_of(name, **options), list(text))[0]) == meaning(whole)
    for call in whole.tool_calls:
        assert offered and call.name
        if call.is_whole:
            assert isinstance(json.loads(call.arguments), dict)
    if not whole.tool_calls and name != "harmony" and "think>" not in text:
        assert whole.content == text


@pytest.mark.parametrize("name", [*TOOL_FORMATS])
def test_arguments_arrive_while_they_are_written(name: str) -> None:
    case = next(case for case in CASES if case.format == name and WEATHER in case.calls)
    parser = parser_of(name)
    seen: list[ChatDelta] = []
    steps = []
    for char in case.text:
        found = parser.feed(char)
        seen += found
        steps += [found] if any(isinstance(delta, CallArguments) for delta in found) else []
    assert len(steps) > len("Köln am Rhein"), "the arguments came late"
    first = next(delta for delta in seen if isinstance(delta, (CallBegin, CallArguments)))
    assert isinstance(first, CallBegin)


@pytest.mark.parametrize("name", [*TOOL_FORMATS])
def test_without_tools_calls_are_text(name: str) -> None:
    case = next(case for case in CASES if case.format == name and WEATHER in case.calls)
    answer, _ = read(parser_of(name, schemas=None), list(case.text))
    assert answer.tool_calls == []
    assert "weather" in answer.content


def test_no_more_calls_than_allowed_and_only_allowed_ones() -> None:
    text = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    other = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    answer, _ = read(parser_of("hermes", limit=1), [text + text])
    assert len(answer.tool_calls) == 1 and answer.content == text
    answer, _ = read(parser_of("hermes", names=frozenset({"now"})), [other + text])
    assert [call.name for call in answer.tool_calls] == ["now"] and answer.content == other


def test_ids_are_what_the_family_takes() -> None:
    text = '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]'
    first, second = read(parser_of("mistral"), [text])[0].tool_calls
    assert first.id != second.id and len(first.id) == len(second.id) == 9 and first.id.isalnum()
    (call,) = read(parser_of("hermes"), ['<tool_call>{"name": "now"}</tool_call>'])[0].tool_calls
    assert call.id.startswith("call_") and len(call.id) == 29


class TestReasoning:
    @pytest.mark.parametrize("name", [name for name in REASONING_FORMATS if name != "harmony"])
    @pytest.mark.parametrize("opened", [False, True], ids=["written", "opened by the prompt"])
    def test_is_apart_from_content(self, name: str, opened: bool) -> None:
        format = REASONING_FORMATS[name]
        text = ("" if opened else format.open) + f"\nlet me\n\nsee\n{format.close}\n\nSure. "
        for pieces in ([text], list(text)):
            answer, _ = read(MarkerParser(None, format, starts_in_reasoning=opened), pieces)
            assert (answer.reasoning, answer.content) == ("let me\n\nsee", "Sure. ")

    def test_cut_off(self) -> None:
        answer, _ = read(MarkerParser(None, REASONING_FORMATS["think"]), ["<think>let me </thi"])
        assert (answer.reasoning, answer.content) == ("let me </thi", "")

    def test_a_call_in_it_is_no_call(self) -> None:
        text = '<think>or <tool_call>{"name": "now"}</tool_call></think><tool_call>{"name": "f"}</tool_call>'
        answer, _ = read(parser_of("hermes"), [text])
        assert [call.name for call in answer.tool_calls] == ["f"]
        assert answer.reasoning == 'or <tool_call>{"name": "now"}</tool_call>'

    def test_before_a_call_without_marker(self) -> None:
        answer, _ = read(parser_of("llama3"), list('<think>hm</think>\n{"name": "now", "parameters": {}}'))
        assert answer.reasoning == "hm" and [call.name for call in answer.tool_calls] == ["now"] and answer.content == ""


SNIPPETS = {
    "harmony": "<|start|>assistant<|channel|>commentary to=functions.{{ name }} <|constrain|>json<|message|>",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ tool['type'] }}<｜tool▁sep｜>{{ name }}\\n```json\\n",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜>{{ arguments }}<｜tool▁call▁end｜>",
    "mistral_v11": '{{- "[TOOL_CALLS]" + name + "[ARGS]" + arguments }}',
    "mistral": '{{- "[TOOL_CALLS] [" }}{{ out[:-1] }}, "id": "',
    "gemma4": "<|tool_call>call:{{ name }}{ {{ arguments }} }<tool_call|>",
    "functiongemma": "<start_function_call>call:{{ name }}{key:<escape>value<escape>}<end_function_call>",
    "qwen_xml": "<tool_call>\n<function={{ name }}>\n<parameter={{ key }}>\n",
    "hermes": '<tool_call>\n{"name": "{{ name }}", "arguments": {{ arguments }} }\n</tool_call>',
    "llama3": """<|start_header_id|>assistant<|end_header_id|>{{ '{"name": "' + name + '", ' }}{{- '"parameters": ' }}""",
}


def test_a_chat_template_shows_the_format() -> None:
    assert set(SNIPPETS) == set(TOOL_FORMATS) == set(config_keys.TOOL_FORMATS)
    assert set(REASONING_FORMATS) == set(config_keys.REASONING_FORMATS)
    for name, snippet in SNIPPETS.items():
        found = tool_format_of(snippet)
        assert found is not None and found.name == name
    assert tool_format_of("<|im_start|>user {{ tools }}") is None
    assert tool_format_of("<tool_call>{{ name }}<arg_key>{{ arguments }}") is None, "another family's"
    assert reasoning_format_of("{{ content.split('</think>')[-1] }}") is REASONING_FORMATS["think"]
    assert reasoning_format_of("[THINK]{{ thinking }}[/THINK]") is REASONING_FORMATS["mistral"]
    assert reasoning_format_of("<|channel>thought\n{{ thinking }}<channel|>") is REASONING_FORMATS["gemma4"]
    assert reasoning_format_of(SNIPPETS["harmony"]) is REASONING_FORMATS["harmony"]
    assert reasoning_format_of("{{ content }}") is None


def test_no_marker_begins_with_another_one() -> None:
    """What `Reader.until` relies on."""
    for tools, reasoning in itertools.product(TOOL_FORMATS.values(), REASONING_FORMATS.values()):
        markers = [*tools.opens, reasoning.open]
        assert not any(a != b and a.startswith(b) for a in markers for b in markers)
