"""Owns the conversations with tools: tool lists in OpenAI's JSON, questions that fit one of them, calls and results.

Names and values that is_held_out() marks appear in evaluation only. Knows no tokenizer and no template.
"""

import random
from dataclasses import dataclass
from typing import Any

from app.demo import chat_corpus
from app.demo import tool_words as words
from app.demo.example import Chat, Message, Plain, Tool
from app.demo.tool_families import FAMILIES, Family
from app.demo.tool_values import integer, result, value_of

_NOTES = (
    "The city and state, e.g. San Francisco, CA", "Name of the thing", "City and country e.g. Bogota, Colombia",
    "A value", "What it is about", "As a string", "The id to use", "Optional", "",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a tool. `value` is what the question says it is, None if the question does not say."""

    name: str
    type: str
    value: Any = None
    required: bool = True
    enum: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A tool and a question that asks for it."""

    tool: Tool
    question: str
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        name: str = self.tool["function"]["name"]
        return name


def _schema(name: str, description: str, parameters: list[Parameter], rng: random.Random) -> Tool:
    properties: dict[str, Any] = {}
    for parameter in parameters:
        properties[parameter.name] = {"type": parameter.type}
        if parameter.enum:
            properties[parameter.name]["enum"] = list(parameter.enum)
        if rng.random() < 0.4:
            properties[parameter.name]["description"] = rng.choice(_NOTES)
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    required = [parameter.name for parameter in parameters if parameter.required]
    if required or rng.random() < 0.5:
        schema["required"] = required
    if rng.random() < 0.2:
        schema["additionalProperties"] = False
    function: dict[str, Any] = {"name": name, "parameters": schema}
    if description:
        function["description"] = description
    return {"type": "function", "function": function}


def _arguments(parameters: list[Parameter]) -> dict[str, Any]:
    """Required ones first, as the template lists them; a required enum that is not said takes its first value."""
    arguments: dict[str, Any] = {}
    for parameter in sorted(parameters, key=lambda parameter: not parameter.required):
        if parameter.value is not None:
            arguments[parameter.name] = parameter.value
        elif parameter.required:
            arguments[parameter.name] = parameter.enum[0]
    return arguments


def everyday(rng: random.Random, held_out: bool = False, family: Family | None = None) -> Request:
    """Return a request for one of the everyday tools. Their names are known; the values may be held out."""
    family = family or rng.choice(FAMILIES)
    asked = rng.choice(family.questions)
    parameters: list[Parameter] = []
    values: list[str] = []
    taken: set[str] = set()
    for index, slot in enumerate(family.slots):
        type_, value, enum = value_of(slot.kind, rng, held_out)
        values.append(str(value))
        mentioned = f"{{{index}}}" in asked
        if not mentioned and rng.random() < 0.5:
            continue
        name = rng.choice([name for name in slot.names if name not in taken])
        taken.add(name)
        # A free text that nobody gave can not be required; an enum can, and takes its first value.
        required = not slot.optional or rng.random() < 0.25 if mentioned else bool(enum) and rng.random() < 0.3
        parameters.append(Parameter(name, type_, value if mentioned else None, required, enum))
    description = rng.choice(family.descriptions) if rng.random() < 0.8 else ""
    tool = _schema(rng.choice(family.names), description, parameters, rng)
    return Request(tool, _careless(asked.format(*values), rng), _arguments(parameters))


def made_up(rng: random.Random, held_out: bool = False) -> Request:
    """Return a request for a tool with a composed name (`archive_invoice`) or an invented one (`zorb_flint`)."""
    invented = rng.random() < 0.25
    while True:
        verb = words.nonce(rng, held_out) if invented else rng.choice(words.VERBS)
        noun = words.nonce(rng, held_out) if invented or rng.random() < 0.15 else rng.choice(words.NOUNS)
        name = rng.choice(("{0}_{1}", "{0}_{1}", "{0}_{1}", "{0}_the_{1}", "{1}_{0}", "{0}_{1}_v2")).format(verb, noun)
        if words.is_held_out(name) == held_out:
            break
    parameters: list[Parameter] = []
    for _ in range(rng.choices((0, 1, 2, 3), (8, 45, 32, 15))[0]):
        key = rng.choice(words.PARAMETERS) if rng.random() < 0.87 else words.nonce(rng, held_out)
        if key not in {parameter.name for parameter in parameters}:
            kind = rng.choice(
                ("city", "name", "word", "word", "id", "int", "int", "number", "bool", "enum", "enum", "text", "date")
            )
            type_, value, enum = value_of(kind, rng, held_out)
            parameters.append(Parameter(key, type_, value, rng.random() < 0.75, enum))
    asked = _ask(verb, noun, name, parameters, rng)
    unsaid = rng.random()
    if unsaid < 0.3:
        type_, value, enum = value_of(rng.choice(("word", "int", "enum", "bool")), rng, held_out)
        key = rng.choice([key for key in words.PARAMETERS if key not in {parameter.name for parameter in parameters}])
        parameters.append(Parameter(key, type_, None, bool(enum) and unsaid < 0.1, enum))
    description = (
        rng.choice(("{} a {}", "{} the {}", "{}s a {} for the user", "Use it to {} one {}")).format(verb, noun).capitalize()
    )
    tool = _schema(name, description if rng.random() < 0.6 else "", parameters, rng)
    return Request(tool, asked, _arguments(parameters))


def _ask(verb: str, noun: str, name: str, parameters: list[Parameter], rng: random.Random) -> str:
    said = []
    exact = rng.random() < 0.3
    style = rng.choice(("{} {}", "{} {}", "{} = {}", "{}={}", "{}: {}", "{} is {}")) if exact else "{} {}"
    for parameter in rng.sample(parameters, len(parameters)) if rng.random() < 0.3 else parameters:
        key = parameter.name if exact else parameter.name.replace("_", " ")
        value = str(parameter.value).lower() if isinstance(parameter.value, bool) else str(parameter.value)
        if " " in value:
            quote = rng.choice("\"'")
            value = quote + value + quote
        said.append(style.format(key, value))
    # "and" between words of a value would be ambiguous, so values of several words are quoted above.
    listed = rng.choice((" and ", ", ")).join(said)
    what = rng.choice(
        (f"{verb} the {noun}", f"{verb} a {noun}", f"{verb} {noun}", f"{verb} my {noun}", f"please {verb} the {noun}")
    )
    if not said:
        asked = rng.choice((what, what, f"call {name}", f"use {name}", f"run {name} please", f"can you {what}"))
    elif exact or rng.random() < 0.2:
        asked = rng.choice(("call {} with {}", "use {} with {}", "run {}: {}", "use the tool {} with {}", "{} {}")).format(
            name, listed
        )
    elif len(parameters) == 1 and rng.random() < 0.5:
        value = said[0][len(parameters[0].name) + 1 :]
        asked = rng.choice(("{} {}", "{} for {}", "{} with {}", "{}: {}", "can you {} {}", "I want to {} {}")).format(
            what, value
        )
    else:
        asked = rng.choice(
            ("{} with {}", "{} with {}", "{}, {}", "{}: {}", "can you {} with {}", "i want to {} with {}")
        ).format(what, listed)
    asked += rng.choice((".", "", "", " please", "?", "!")) if not exact else rng.choice(("", "", ".", " please"))
    return asked[0].upper() + asked[1:] if rng.random() < 0.7 else asked


def _careless(asked: str, rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.15:
        asked = asked.rstrip(".?")
    elif chance < 0.25:
        asked = asked[0].lower() + asked[1:]
    if rng.random() < 0.1:
        asked = rng.choice(("Hi, ", "Please: ", "Hello! ", "Hey, ", "ok, ", "And ", "Can you help? ")) + asked
    return asked


def request(rng: random.Random, held_out: bool = False) -> Request:
    """Return an everyday request or one for a made-up tool."""
    return everyday(rng, held_out) if rng.random() < 0.4 else made_up(rng, held_out)


def _tool_set(wanted: Request, rng: random.Random, held_out: bool) -> list[Tool]:
    """Return one to four tools (now and then more), the wanted one among them, no two of which do the same."""
    tools = [wanted.tool]
    taken = _family_words(wanted.name)
    for _ in range(rng.choices((0, 1, 2, 3, 7), (40, 25, 18, 14, 3))[0]):
        other = request(rng, held_out)
        if not taken & _family_words(other.name):
            taken |= _family_words(other.name)
            tools.append(other.tool)
    rng.shuffle(tools)
    return tools


def _family_words(name: str) -> set[str]:
    """What a name is about: two tools that share a word of it, or are of the same family, can not be told apart."""
    for family in FAMILIES:
        if name in family.names:
            return {family.names[0], *(word for known in family.names for word in known.split("_") if len(word) > 3)}
    return {word for word in name.split("_") if word not in ("the", "v2")}


def call_message(wanted: Request) -> Message:
    """Return the assistant's message that makes the call."""
    function = {"name": wanted.name, "arguments": wanted.arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def _exchange(wanted: Request, rng: random.Random, held_out: bool = False) -> list[Message]:
    """Return a question, the call, the tool's answer and the assistant's sentence about it."""
    found = result(rng, held_out)
    return [
        {"role": "user", "content": wanted.question},
        call_message(wanted),
        {"role": "tool", "content": found},
        {"role": "assistant", "content": f"The result is: {found}"},
    ]


def conversation(rng: random.Random, held_out: bool = False, kind: str | None = None) -> Chat:
    """Return a conversation with tools. `kind` is "call" (the answer is a call), "result" (of a call), "talk" (a question
    that needs no tool) or "unfit" (one that needs a tool that is not there)."""
    kind = kind or rng.choices(("call", "result", "talk", "unfit"), (68, 12, 12, 8))[0]
    wanted = request(rng, held_out)
    tools = _tool_set(wanted, rng, held_out)
    messages = chat_corpus.opening(rng)
    if rng.random() < 0.12:
        messages += chat_corpus.turn(rng)
    if rng.random() < 0.06:
        messages += _exchange(wanted, rng)
        taken = set().union(*(_family_words(tool["function"]["name"]) for tool in tools))
        while taken & _family_words(wanted.name):
            wanted = request(rng, held_out)
        tools = [*tools, wanted.tool]
    if kind == "unfit":
        tools = [tool for tool in tools if tool["function"]["name"] != wanted.name]
        answer = chat_corpus.fallback()
        return Chat([*messages, {"role": "user", "content": wanted.question}, {"role": "assistant", "content": answer}], tools)
    if kind == "talk":
        return Chat(messages + chat_corpus.turn(rng, held_out), tools)
    if kind == "result":
        return Chat(messages + _exchange(wanted, rng, held_out), tools)
    return Chat([*messages, {"role": "user", "content": wanted.question}, call_message(wanted)], tools)


def copying(rng: random.Random) -> Plain:
    """Return words and the same words again, with other marks between them: the shortest lesson in copying."""
    real = rng.choice((words.WORDS, words.CITIES, words.NAMES, words.NOUNS, words.PARAMETERS))
    lesson = [rng.choice((words.nonce(rng), rng.choice(real), str(integer(rng, False)))) for _ in range(rng.randint(3, 14))]
    first, second = rng.choice((" ", '", "', "_", ", ", '": "')), rng.choice((" ", '", "', "_", ", ", '": "'))
    head = first.join(lesson) + rng.choice(("\n", " = ", "\n\n"))
    return Plain(head + second.join(lesson), len(head))
