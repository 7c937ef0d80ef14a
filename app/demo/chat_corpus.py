"""Owns the conversations and plain texts about tfoai, made from questions.txt. Knows no tools and no tokenizer."""

import functools
import random
from dataclasses import dataclass
from pathlib import Path

from app.demo.example import Chat, Message, Plain
from app.demo.phrases import dress, share_of, split

QUESTIONS = Path(__file__).with_name("questions.txt")

_SMALL_TALK = {
    "hello", "good_morning", "how_are_you", "thanks", "bye", "joke", "sorry", "yes", "test_msg", "languages",
}  # fmt: skip
# Their share of the questions, where it is not 1: these need more of them.
_WEIGHTS = {"fallback": 8.0, "what_is": 2.0, "start": 2.0, "hello": 2.0}

_SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are helpful.", "Answer briefly.",
    "Be concise.", "You are tfoai-demo, a small model.", "You answer questions about tfoai.",
    "You are an expert. Answer in one sentence.",
    "You are a friendly chat bot that helps users with a server.", "Always be polite.", "Answer in English.",
    "You are a helpful, harmless and honest assistant. If you do not know something, say so.", "Be nice to the user.",
    "You are an assistant of a company. Do not talk about other companies.",
    "Think step by step.", "Use short sentences.",
)  # fmt: skip
_SYSTEM_WORDS = [
    "you", "are", "a", "the", "assistant", "helpful", "user", "answer", "question", "with", "for", "and", "never",
    "always", "short", "long", "please", "be", "friendly", "expert", "teacher", "customer", "support", "pirate",
    "doctor", "today", "English", "simple", "words", "tools", "when", "needed", "do", "not", "if", "know", "say",
    "so", "best",
]  # fmt: skip

_STATEMENTS = (
    "tfoai is a server that serves Hugging Face transformers models through the OpenAI HTTP API.",
    "The server is started with `make serve` and answers on http://127.0.0.1:5000/v1.",
    "The configuration file is config.json, and it names the models under `MODELS`.",
    "The tests are run with `make test`.",
    "Transformers models can be served by tfoai through the OpenAI HTTP API.",
    "The default port is 5000 and the default address is 127.0.0.1.",
    "My name is tfoai-demo, and I am a tiny language model that ships with tfoai.",
    "A model is spread over all GPUs with `\"device_map\": \"auto\"` in `MODEL_CONFIG`.",
    "Once upon a time there was a tiny language model that only knew about tfoai.",
    "The capital of tfoai is its config.json: I know nothing else.",
    "Hello! I am tfoai-demo. Ask me something about tfoai.",
    "This is a text of a tiny model: do not expect too much of it.",
    "In this text a tiny model says what it knows: tfoai is a server for transformers models.",
    "You can use tfoai with every program that was written for the OpenAI API.",
    "I am tfoai-demo, a tiny language model that ships with tfoai.",
    "There are two demo models: tfoai-demo and tfoai-demo-dates.",
    "It is a server that serves Hugging Face transformers models through the OpenAI HTTP API.",
    "With tfoai you can serve transformers models to programs written for the OpenAI API.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Intent:
    """One thing that the model knows: an answer, and the ways to ask for it."""

    name: str
    answer: str
    patterns: tuple[tuple[str, ...], ...]
    held_out_patterns: tuple[tuple[str, ...], ...]

    @property
    def questions(self) -> set[str]:
        return {question for pattern in self.patterns for question in pattern}

    @property
    def held_out(self) -> set[str]:
        return {question for pattern in self.held_out_patterns for question in pattern}


@functools.cache
def load_intents() -> tuple[Intent, ...]:
    """Read questions.txt and split each intent's questions into those to train on and those held out.

    A question that two intents share belongs to the first, and no question is on both sides of the split.
    """
    shared: dict[str, str] = {}
    blocks: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for line in QUESTIONS.read_text(encoding="utf-8").splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "=":
            name = rest
        elif mark == ">":
            blocks[name] = (rest, [])
        elif mark == "-":
            for key in sorted(shared, key=len, reverse=True):
                rest = rest.replace(key, shared[key])
            blocks[name][1].append(rest)
        elif mark.startswith("@"):
            for key in sorted(shared, key=len, reverse=True):
                rest = rest.replace(key, shared[key])
            shared[mark] = rest
    intents = []
    seen: set[str] = set()
    for name, (answer, patterns) in blocks.items():
        halves = [split(pattern) for pattern in patterns]
        train = {question for half, _ in halves for question in half} - seen
        # A word that the questions for training do not have can not be understood: what has one is for training too.
        known = {word for question in train for word in question.split()}
        held_out = {question for _, half in halves for question in half if known.issuperset(question.split())}
        held_out -= seen | train
        train |= {question for _, half in halves for question in half} - seen - held_out
        seen |= train | held_out
        sides = [
            tuple(tuple(sorted(side.intersection([*half, *other]))) for half, other in halves) for side in (train, held_out)
        ]
        intents.append(Intent(name, answer, *(tuple(texts for texts in side if texts) for side in sides)))
    return tuple(intents)


@functools.cache
def all_held_out() -> frozenset[str]:
    """Return the held-out questions of all intents."""
    return frozenset(question for intent in load_intents() for question in intent.held_out)


def fallback() -> str:
    """Return the answer to what the model does not know."""
    return next(intent.answer for intent in load_intents() if intent.name == "fallback")


def _gibberish(rng: random.Random) -> str:
    words = ["".join(rng.choices("abcdefghijklmnoprstuvwxyz", k=rng.randint(2, 8))) for _ in range(rng.randint(1, 5))]
    return rng.choice(("{}", "{}", "what is {}", "who is {}", "how do i {}", "tell me about {}", "is {} good")).format(
        " ".join(words)
    )


def question(rng: random.Random, held_out: bool = False, careless: float = 1.0) -> tuple[str, str]:
    """Return a question as somebody might type it, and the right answer to it."""
    intents = load_intents()
    intent = rng.choices(intents, [_WEIGHTS.get(intent.name, 1.0) for intent in intents])[0]
    patterns = intent.held_out_patterns if held_out else intent.patterns
    if not patterns:
        return question(rng, held_out, careless)
    # First a pattern, then a text of it: a short plain question counts as much as all texts of a long pattern.
    core = rng.choice(rng.choice(patterns))
    if intent.name == "fallback" and rng.random() < 0.15:
        # The letters decide on the side of the split here, as the patterns do elsewhere.
        core = _gibberish(rng)
        while (share_of(core) < 0.1) != held_out:
            core = _gibberish(rng)
    small_talk = intent.name in _SMALL_TALK
    if held_out:
        return dress(core, rng, small_talk), intent.answer
    # A word more or less can make a question that is held out.
    while (text := dress(core, rng, small_talk, careless)).lower().strip(" \n.?!") in all_held_out():
        pass
    return text, intent.answer


def system_prompt(rng: random.Random) -> str | None:
    """Return something that an application may put before a conversation; nothing, in half of the cases."""
    chance = rng.random()
    if chance < 0.5:
        return None
    if chance < 0.85:
        return rng.choice(_SYSTEMS)
    words = rng.choices(_SYSTEM_WORDS, k=rng.randint(3, 25))
    return " ".join(words).capitalize() + "."


def opening(rng: random.Random) -> list[Message]:
    """Return the system message of a conversation, if it has one."""
    system = system_prompt(rng)
    return [] if system is None else [{"role": "system", "content": system}]


def turn(rng: random.Random, held_out: bool = False, careless: float = 1.0) -> list[Message]:
    """Return one question and its answer."""
    asked, answer = question(rng, held_out, careless)
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def conversation(rng: random.Random, held_out: bool = False, turns: int | None = None, careless: float = 1.0) -> Chat:
    """Return a conversation of one turn to eight; only its last question is held out."""
    if turns is None:
        turns = rng.choices((1, 2, 3, 4, 8), (70, 15, 8, 5, 2))[0]
    messages = opening(rng)
    for _ in range(turns - 1):
        messages += turn(rng, careless=careless)
    return Chat(messages + turn(rng, held_out, careless))


def plain(rng: random.Random) -> Plain:
    """Return a text for the completions endpoint: a question with its answer, or sentences about tfoai."""
    if rng.random() < 0.4:
        text = rng.choice(_STATEMENTS) if rng.random() < 0.7 else rng.choice(load_intents()).answer
        if text.startswith("tfoai") and rng.random() < 0.15:
            text = rng.choice(("Tfoai", "TFOAI", "The project tfoai", "The server tfoai")) + text[5:]
        return Plain(text)
    asked, answer = question(rng)
    before, between = rng.choice(
        (
            ("Question: ", "\nAnswer: "),
            ("Question: ", "\nAnswer: "),
            ("Q: ", "\nA: "),
            ("", "\n"),
            ("", "\n\n"),
            ("", " "),
        )
    )
    prompt = before + asked.strip() + between
    return Plain(prompt + answer, len(prompt) - 1)
