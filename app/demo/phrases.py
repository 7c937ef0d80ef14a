"""Owns patterns of questions: expanding them, dressing them up, splitting them. Knows no model and no answer."""

import hashlib
import itertools
import math
import random
import re
from collections.abc import Iterable

_SLOT = re.compile(r"\[([^\[\]]*)\]")
_NESTED = re.compile(r"([\[|])([^\[\]|]*)\[([^\[\]]*)\]([^\[\]|]*)(?=[\]|])")
_MAX_EXPANSIONS = 2_000
HELD_OUT_SHARE = 0.1

_OPENERS = (
    "please", "please tell me", "hey,", "hi,", "hello,", "so", "ok,", "well,", "now", "can you explain", "i wonder:",
    "quick question:", "question:", "tell me", "i have a question:", "excuse me,", "could you tell me", "and", "but",
    "i'd like to know:", "hi there,", "hello!", "one more thing:", "just curious,", "i was wondering,", "dear model,",
    "can you tell me", "do you know", "explain to me", "help me:",
)  # fmt: skip
_CLOSERS = (", please", " please", " thanks", ", thanks", " exactly", " then", " again", " now", " here", " in short")
_SMALL_CLOSERS = (" please", "!", " :)", " there", " again")
_MARKS = ("?", "?", "?", "?", "", "", "", ".", "??", " ?", "!", "?!")


def expand(pattern: str) -> list[str]:
    """Return all texts of a pattern, an even sample of them where there are too many."""
    parts = _SLOT.split(_flatten(pattern))
    options = [part.split("|") if index % 2 else [part] for index, part in enumerate(parts)]
    total = math.prod(len(option) for option in options)
    texts: Iterable[tuple[str, ...]] = itertools.product(*options)
    if total > _MAX_EXPANSIONS:
        chosen = random.Random(pattern).sample(range(total), _MAX_EXPANSIONS)
        texts = (_pick(options, number) for number in chosen)
    return [" ".join("".join(text).split()) for text in texts]


def _flatten(pattern: str) -> str:
    """Return the pattern with its slots inside slots multiplied out: `[a [b|c]|d]` becomes `[a b|a c|d]`."""
    while nested := _NESTED.search(pattern):
        before, head, middle, tail = nested.groups()
        alternatives = "|".join(head + option + tail for option in middle.split("|"))
        pattern = pattern[: nested.start()] + before + alternatives + pattern[nested.end() :]
    return pattern


def _pick(options: list[list[str]], number: int) -> tuple[str, ...]:
    picked = []
    for option in options:
        number, index = divmod(number, len(option))
        picked.append(option[index])
    return tuple(picked)


def share_of(text: str) -> float:
    """Return a number from 0 to 1 that depends on the text alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def split(pattern: str) -> tuple[list[str], list[str]]:
    """Return the texts of a pattern for training and those held out.

    A pattern with few texts is all for training: there would be nothing left that could teach its words.
    """
    texts = sorted(set(expand(pattern)))
    if len(texts) < 6:
        return texts, []
    held_out = [text for text in texts if share_of(text) < HELD_OUT_SHARE]
    return [text for text in texts if share_of(text) >= HELD_OUT_SHARE], held_out


def typo(text: str, rng: random.Random) -> str:
    """Return the text with one small slip of the fingers inside a longer word."""
    places = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha()]
    if len(text) < 12 or not places:
        return text
    i = rng.choice(places)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:i] + text[i + 1 :]
    if kind == 1:
        return text[:i] + text[i] + text[i:]
    return text[: i - 1] + text[i] + text[i - 1] + text[i + 1 :]


def forget_word(text: str, rng: random.Random) -> str:
    """Return the text without one of its words, if it has enough of them to be understood all the same."""
    words = text.split(" ")
    if len(words) < 5:
        return text
    del words[rng.randrange(len(words))]
    return " ".join(words)


def dress(question: str, rng: random.Random, small_talk: bool = False, careless: float = 0.0) -> str:
    """Return the question as somebody might type it: an opener, capitals, a mark, a typo, stray spaces.

    `careless` above 0 is for training: more slips than people make teach to look at all words of a question, not at one. With 2
    there is more shouting than with 1.
    """
    text = question
    if careless and rng.random() < 0.15:
        text = forget_word(text, rng)
    if rng.random() < (0.05 if small_talk else 0.25):
        text = f"{rng.choice(_OPENERS)} {text}"
    if rng.random() < 0.1:
        text += rng.choice(_SMALL_CLOSERS if small_talk else _CLOSERS)
    if rng.random() < (0.25 if careless else 0.1):
        text = typo(text, rng)
    shares = (60 - 10 * careless, 4 + 4 * careless, 3 + 3 * careless, 33 + 3 * careless)
    capitals = rng.choices(("first", "all", "each word", "none"), shares)[0]
    if capitals == "first":
        text = text[0].upper() + text[1:]
        text = re.sub(r"\bi\b", "I", text)
    elif capitals == "all":
        text = text.upper()
    elif capitals == "each word":
        text = text.title()
    text += rng.choice((*_MARKS, ".", "!", "", "") if small_talk else _MARKS)
    space = rng.random()
    if space < 0.02:
        text = " " + text
    elif space < 0.04:
        text += " "
    elif space < 0.05:
        text += "\n"
    return text
