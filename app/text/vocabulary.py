"""Owns what each token of a tokenizer stands for, as bytes, for grammars. Knows no grammar and no HTTP.

A grammar is only as good as this table: it is checked against what the tokenizer itself decodes.
"""

from dataclasses import dataclass

from app.text.tokenizer import Tokenizer

# Whatever a tokenizer does to texts when it decodes them shows in one of these.
_SAMPLES = (
    '{"name": "Zoë 🙂", "list": [1, -2.5e3, true, null]}\n',
    "  two  spaces\tand\n\n lines , it 's . ( all ) ; we 've ! don 't ?",
    "!\"#$%&'()*+,-./0123456789:;<=>?@ABCXYZ[\\]^_`abcxyz{|}~ 日本語 Привет naïve",
)


class UnmappedTokenizerError(Exception):
    """What the tokens of a tokenizer stand for can not be told token by token."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`tokens[i]` is what token i adds to a text; empty for ids that are no token. `markers` are tokens that are no text.

    `drops_first_space` if a space at the very beginning of a decoded text disappears, as with SentencePiece. `spelled` are the
    characters and bytes that have a token of their own.
    """

    tokens: list[bytes]
    markers: frozenset[int]
    drops_first_space: bool
    spelled: frozenset[bytes]

    def spells(self, char: str) -> bool:
        """Whether a character can be written; a tokenizer without byte fallback has only those that it was trained with."""
        data = char.encode()
        return data in self.spelled or all(bytes([byte]) in self.spelled for byte in data)


def read_vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """Return what the ids below `size` stand for; raise UnmappedTokenizerError."""
    tokens = tokenizer.all_token_bytes(size)
    markers = tokenizer.markers
    drops_first_space = False
    for sample in _SAMPLES:
        ids = tokenizer.encode(sample, add_special_tokens=False)
        joined = b"".join(tokens[token_id] for token_id in ids if token_id < size).decode(errors="replace")
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        if joined.lstrip(" ") != decoded.lstrip(" "):
            raise UnmappedTokenizerError(f"it decodes {decoded[:60]!r} where its tokens spell {joined[:60]!r}")
        drops_first_space |= joined.startswith(" ") and not sample.startswith(" ") and not decoded.startswith(" ")
    spelled = frozenset(token for token_id, token in enumerate(tokens) if len(token) <= 4 and token_id not in markers)
    return Vocabulary(tokens, markers, drops_first_space, spelled)
