"""Tests of the demo models: what they answer, what they were trained on, and how they are packed."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from app.demo import DEMO_MODELS, chat_corpus, dates_corpus, tool_corpus
from app.demo.evaluate import WANTED, Answerer, call_of, chat_figures, dates_figures, is_valid
from app.demo.example import Chat
from app.demo.phrases import expand, forget_word, split

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location"],
        },
    },
}
TEXTS = [
    "What's the weather?",
    "  two  spaces\n\n\tand a tab ",
    "emoji 😀👩‍👩‍👧 and 日本語, 中文, हिन्दी, עברית",
    "".join(chr(number) for number in range(1, 256)),
    "snake_case camelCase 12345 3.14 {\"a\": [1, 2]}",
]  # fmt: skip


@cache
def chat_model() -> Answerer:
    return Answerer(DEMO_MODELS["tfoai-demo"])


@cache
def dates_model() -> Answerer:
    return Answerer(DEMO_MODELS["tfoai-demo-dates"], seq2seq=True)


def ask(question: str, tools: list[dict[str, Any]] | None = None) -> tuple[str, str]:
    """Return the prompt and the answer, control tokens included."""
    chat = Chat([{"role": "user", "content": question}, {"role": "assistant", "content": ""}], tools or [])
    prompt = chat_model().prompt(chat)
    return prompt, chat_model().answer([prompt])[0]


def test_chat_model_answers_held_out_questions() -> None:
    figures = {figure.name: figure.percent for figure in chat_figures(chat_model())}
    assert figures["chat exact"] >= WANTED
    assert figures["tools well-formed"] >= WANTED
    # Not promised; a ratchet a little below what the shipped weights reach.
    assert figures["tools valid"] >= 88
    assert figures["tools exact"] >= 84


def test_dates_model_translates_held_out_dates() -> None:
    (figure,) = dates_figures(dates_model(), limit=200)
    assert figure.percent >= 97


def test_held_out_questions_are_not_trained_on() -> None:
    intents = chat_corpus.load_intents()
    trained = {question for intent in intents for question in intent.questions}
    held_out = [question for intent in intents for question in intent.held_out]
    assert len(intents) >= 45
    assert len(set(held_out)) == len(held_out) > 1_000
    assert trained.isdisjoint(held_out)


def test_held_out_names_and_dates_are_not_trained_on() -> None:
    rng = random.Random(5)
    trained = {tool_corpus.made_up(rng).name for _ in range(2_000)}
    assert trained.isdisjoint({tool_corpus.made_up(rng, held_out=True).name for _ in range(500)})
    days = {dates_corpus.pair(rng)[1] for _ in range(5_000)}
    assert days.isdisjoint({dates_corpus.pair(rng, held_out=True)[1] for _ in range(1_000)})


@pytest.mark.parametrize("held_out", [False, True])
def test_same_seed_same_text(held_out: bool) -> None:
    def texts(seed: int) -> list[Any]:
        rng = random.Random(seed)
        made: list[Any] = [chat_corpus.conversation(rng, held_out) for _ in range(50)]
        made += [tool_corpus.conversation(rng, held_out) for _ in range(50)]
        made += [dates_corpus.pair(rng, held_out) for _ in range(50)]
        made += [chat_corpus.plain(rng) for _ in range(50)]
        return made

    assert texts(7) == texts(7)
    assert texts(7) != texts(8)


def test_patterns_expand_and_split() -> None:
    assert expand("a [b|c [d|e]] f") == ["a b f", "a c d f", "a c e f"]
    train, held_out = split("[how|where|what|who|when] [a|b|c|d|e|f] x")
    assert sorted(train + held_out) == sorted(expand("[how|where|what|who|when] [a|b|c|d|e|f] x"))
    assert held_out and len(train) > len(held_out)


def test_careless_questions_are_never_the_held_out_ones() -> None:
    rng = random.Random(8)
    for _ in range(3_000):
        text, _ = chat_corpus.question(rng, careless=2.0)
        assert text.lower().strip(" \n.?!") not in chat_corpus.all_held_out()


def test_a_forgotten_word_is_one_of_a_long_question() -> None:
    rng = random.Random(1)
    assert forget_word("how do i start", rng) == "how do i start"
    words = ["how", "do", "i", "start", "the", "server"]
    shorter = {forget_word(" ".join(words), rng) for _ in range(200)}
    assert shorter == {" ".join(words[:index] + words[index + 1 :]) for index in range(len(words))}


@pytest.mark.parametrize(
    ("answer", "is_call", "fits"),
    [
        ('<tool_call>\n{"name": "get_weather", "arguments": {"location": "Paris"}}\n</tool_call>', True, True),
        ('<tool_call>\n{"name": "get_weather", "arguments": {"unit": "celsius"}}\n</tool_call>', True, False),
        ('<tool_call>\n{"name": "get_weather", "arguments": {"location": "Paris", "x": 1}}\n</tool_call>', True, False),
        ('<tool_call>\n{"name": "other", "arguments": {"location": "Paris"}}\n</tool_call>', True, False),
        ('<tool_call>\n{"name": "get_weather", "arguments": {"location": "Paris"}\n</tool_call>', False, False),
        ('<tool_call>\n{"name": "get_weather", "arguments": "Paris"}\n</tool_call>', False, False),
        ("The weather is fine.", False, False),
    ],
)
def test_what_counts_as_a_call(answer: str, is_call: bool, fits: bool) -> None:
    call = call_of(answer)
    assert (call is not None) == is_call
    assert (call is not None and is_valid(call, Chat([], [WEATHER]))) == fits


def test_every_right_call_fits_its_tool() -> None:
    rng = random.Random(3)
    for _ in range(300):
        request = tool_corpus.request(rng)
        schema = request.tool["function"]["parameters"]
        assert set(schema.get("required", ())) <= set(request.arguments) <= set(schema["properties"])


def test_size() -> None:
    files = [file for path in DEMO_MODELS.values() for file in path.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 8e6
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in files
    }


@pytest.mark.parametrize("text", TEXTS)
def test_chat_tokenizer_round_trips(text: str) -> None:
    tokenizer = chat_model().tokenizer
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_chat_tokenizer_encodes_every_byte() -> None:
    tokens = set(chat_model().tokenizer.get_vocab())
    for number in range(0x110):
        ids = chat_model().tokenizer(chr(number * 0x101 % 0xD800)).input_ids
        assert ids and max(ids) < len(tokens)


@pytest.mark.parametrize("text", [*TEXTS, "", "not a date at all", "3 März 2024"])
def test_dates_model_takes_any_text(text: str) -> None:
    assert isinstance(dates_model().answer([text], max_new_tokens=16)[0], str)


def test_a_word_has_the_same_tokens_wherever_it_stands() -> None:
    tokenizer = chat_model().tokenizer
    word = tokenizer("Ouagadougou", add_special_tokens=False).input_ids
    for text in ('"Ouagadougou"', "in Ouagadougou?", "get_Ouagadougou_2"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert any(ids[start : start + len(word)] == word for start in range(len(ids)))


def test_template_with_and_without_tools() -> None:
    tokenizer = chat_model().tokenizer
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Weather in Paris? "},
    ]
    plain = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert plain == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWeather in Paris?<|im_end|>\n<|im_start|>assistant\n"
    )
    function = {"name": "get_weather", "arguments": json.dumps({"location": "Paris"})}
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    with_tools = tokenizer.apply_chat_template(messages, tools=[WEATHER], tokenize=False, add_generation_prompt=True)
    signature = (
        '{"name": "get_weather", "description": "Get the current weather in a given location", '
        '"required": {"location": "string"}, "optional": {"unit": ["celsius", "fahrenheit"]}}'
    )
    assert f"<tools>\n{signature}\n</tools>" in with_tools
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Paris"}}\n</tool_call><|im_end|>' in with_tools
    assert "<tool_response>\nsunny\n</tool_response>" in with_tools


@pytest.mark.parametrize(
    "question", ["What is the weather in Paris?", "What's the weather like in Paris today?", "weather in Paris"]
)
def test_call_parses_into_openai_shape(question: str) -> None:
    prompt, text = ask(question, [WEATHER])
    message = chat_model().tokenizer.parse_response(text, prefix=prompt)
    function = {"name": "get_weather", "arguments": {"location": "Paris"}}
    assert message == {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("question", "part"),
    [
        ("What is tfoai?", "serves Hugging Face transformers models"),
        ("How do I start the server?", "`make serve`"),
        ("Who are you?", "I am tfoai-demo"),
        ("What is a readiness probe?", "/readyz"),
        ("What is the capital of France?", "only know about tfoai"),
        ("Hello!", "Hello!"),
    ],
)
def test_documented_questions(question: str, part: str) -> None:
    prompt, text = ask(question)
    assert part in text
    message = chat_model().tokenizer.parse_response(text, prefix=prompt)
    assert message == {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        ("tfoai is", "a server that serves Hugging Face transformers models"),
        ("Question: How do I run the tests?\nAnswer:", "make test"),
    ],
)
def test_plain_completion(prompt: str, part: str) -> None:
    assert part in chat_model().answer([prompt])[0]


@pytest.mark.parametrize(
    "english",
    ["the 3rd of March 2024", "March 3, 2024", "3 Mar 2024", "Sunday, March 3rd 2024", "on the third of March, 2024"],
)
def test_documented_dates(english: str) -> None:
    assert dates_model().answer([english], max_new_tokens=16) == ["2024-03-03"]


def test_paths() -> None:
    assert set(DEMO_MODELS) == {"tfoai-demo", "tfoai-demo-dates"}
    assert all(isinstance(path, Path) and path.is_dir() for path in DEMO_MODELS.values())
