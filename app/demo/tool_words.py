"""Owns the words that tools and their arguments are made of, and which of them are held out. Knows no tool."""

import random
from pathlib import Path

from app.demo.phrases import HELD_OUT_SHARE, share_of


def _read() -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("words.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, words = line.partition(": ")
            lists.setdefault(name, []).extend(words.split(", "))
    return lists


_LISTS = _read()
VERBS, NOUNS, PARAMETERS = _LISTS["VERBS"], _LISTS["NOUNS"], _LISTS["PARAMETERS"]
CITIES, NAMES, WORDS, TEXTS = _LISTS["CITIES"], _LISTS["NAMES"], _LISTS["WORDS"], _LISTS["TEXTS"]
CURRENCIES, LANGUAGES = _LISTS["CURRENCIES"], _LISTS["LANGUAGES"]
ONSETS, VOWELS, CODAS = _LISTS["ONSETS"], _LISTS["VOWELS"], ["", "", "", *_LISTS["CODAS"]]
ENUMS: tuple[tuple[str, ...], ...] = (
    ("celsius", "fahrenheit"), ("low", "medium", "high"), ("small", "medium", "large"), ("json", "csv", "xml"),
    ("open", "closed"), ("asc", "desc"), ("red", "green", "blue"), ("day", "week", "month"), ("metric", "imperial"),
    ("public", "private"), ("fast", "slow"), ("left", "right"), ("pdf", "html", "text"),
    ("economy", "business", "first"),
)  # fmt: skip


def nonce(rng: random.Random, held_out: bool = False) -> str:
    """Return a made-up word, one of the held-out ones or none of them."""
    while True:
        syllables = rng.choice((1, 2, 2, 2))
        word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))
        if len(word) > 2 and is_held_out(word) == held_out:
            return word


def is_held_out(value: str) -> bool:
    """Say whether the name of a tool, a made-up word or a number is for evaluation only.

    Real words are not: many are one token, and a token that no training text has can not be copied.
    """
    return share_of("tools:" + value) < HELD_OUT_SHARE
