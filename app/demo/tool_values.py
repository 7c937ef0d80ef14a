"""Owns values: what arguments are, by kind, and what tools answer. Knows no tool and no conversation."""

import json
import random
from typing import Any

from app.demo import tool_words as words

Value = tuple[str, Any, tuple[str, ...]]

_ID_PREFIXES = ("", "", "A-", "ORD-", "X", "#", "U")


def integer(rng: random.Random, held_out: bool, low: int = 1) -> int:
    """Return a number of one to five digits; those of three and more are on one side of the split."""
    while True:
        number = rng.randint(low, 10 ** rng.randint(1, 5))
        if number < 100 or words.is_held_out(str(number)) == held_out:
            return number


def _known_or_nonce(known: list[str], share: float, rng: random.Random, held_out: bool, capital: bool = False) -> str:
    # Evaluation is mostly about words that training does not have.
    if rng.random() < (share / 2 if held_out else share):
        return rng.choice(known)
    word = words.nonce(rng, held_out)
    return word.capitalize() if capital else word


def word(rng: random.Random, held_out: bool) -> str:
    """Return an everyday word or a made-up one."""
    return _known_or_nonce(words.WORDS, 0.5, rng, held_out)


def _string(kind: str, rng: random.Random, held_out: bool) -> str:
    match kind:
        case "city":
            return _known_or_nonce(words.CITIES, 0.6, rng, held_out, capital=True)
        case "name":
            return _known_or_nonce(words.NAMES, 0.5, rng, held_out, capital=True)
        case "word" | "room":
            return word(rng, held_out)
        case "words":
            return " ".join(word(rng, held_out) for _ in range(rng.randint(1, 3)))
        case "text":
            if rng.random() < 0.5:
                return rng.choice(words.TEXTS)
            return " ".join(word(rng, held_out) for _ in range(rng.randint(2, 4)))
        case "email":
            host = rng.choice(("example.com", "mail.org", words.nonce(rng, held_out) + ".net"))
            return f"{words.nonce(rng, held_out)}@{host}"
        case "symbol":
            return "".join(rng.choices("ABCDEFGHIKLMNOPRSTUVX", k=rng.randint(2, 4)))
        case "clock":
            return rng.choice((f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}", f"{rng.randint(1, 12)} pm"))
        case "date":
            return f"20{rng.randint(10, 49)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        case "currency":
            return rng.choice(words.CURRENCIES)
        case "language":
            return rng.choice(words.LANGUAGES)
    raise ValueError(f"unknown kind of value: {kind}")


def _number(rng: random.Random, held_out: bool) -> Value:
    number = integer(rng, held_out)
    if rng.random() < 0.3:
        return "number", round(number + rng.randint(1, 9) / 10, 1), ()
    return rng.choice(("number", "integer")), number, ()


def _enum(kind: str, rng: random.Random, held_out: bool) -> Value:
    if kind == "temperature_unit":
        enum = words.ENUMS[0]
    elif kind == "on_off":
        enum = ("on", "off")
    elif rng.random() < 0.3:
        enum = tuple(dict.fromkeys(words.nonce(rng, held_out) for _ in range(3)))
    else:
        enum = rng.choice(words.ENUMS)
    return "string", rng.choice(enum), enum


def value_of(kind: str, rng: random.Random, held_out: bool) -> Value:
    """Return the JSON type, a value and the enum of a kind."""
    match kind:
        case "id":
            number = integer(rng, held_out, 10)
            if rng.random() < 0.4:
                return "integer", number, ()
            return "string", rng.choice(_ID_PREFIXES) + str(number), ()
        case "int":
            return "integer", integer(rng, held_out), ()
        case "amount" | "number":
            return _number(rng, held_out)
        case "bool":
            return "boolean", rng.random() < 0.5, ()
        case "enum" | "temperature_unit" | "on_off":
            return _enum(kind, rng, held_out)
    return "string", _string(kind, rng, held_out), ()


def result(rng: random.Random, held_out: bool = False) -> str:
    """Return what a tool may answer: a few words or a small JSON object."""
    one, two = words.nonce(rng, held_out), rng.choice(words.WORDS)
    number, low = integer(rng, held_out), rng.randint(-20, 40)
    city, sky = rng.choice(words.CITIES), rng.choice(("sunny", "cloudy", "rain", "windy", "clear", two))
    if rng.random() < 0.4:
        keys = ("temperature", "unit", "status", "id", "name", "value", "total", "city", "result", "price", "condition")
        values = (one, two, number, low, city, sky)
        return json.dumps({key: rng.choice(values) for key in rng.sample(keys, rng.randint(1, 3))})
    return rng.choice(
        (
            f"{number}", f"{number} {two}", f"{one} {two}", f"{low} degrees and {sky}", f"{one.capitalize()} is {two}",
            f"order {number} is {two}", "done", "ok", f"{number / 10}", f"{two}, {one}", f"{low} C, {sky}",
            f"error: {one} not found", f"the {two} {one} has {number}", f"{city}: {number}", f"{low} degrees", sky,
            "true", f"{low}°C and {sky}", f"{low} °C", f"It is {sky} in {city}.", f"{city}: {low}°C, {sky}",
        )
    )  # fmt: skip
