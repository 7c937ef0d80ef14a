"""Owns texts -> ids for embedding: the model's prompts, lower case, shortening. Knows no pooling and no HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.errors import InvalidRequest

if TYPE_CHECKING:
    from app.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class EncodedSentence:
    """Ids with special tokens; the first `num_prompt_tokens` belong to the model's prompt."""

    ids: tuple[int, ...]
    num_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceEncoder:
    """Encodes texts as the model was trained to see them. `prompts` are texts that go before a text, by name."""

    tokenizer: "Tokenizer"
    do_lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None

    def prompt(self, name: str | None) -> str:
        """Return the prompt of that name, for None the default one; raise InvalidRequest for an unknown name."""
        if name is None:
            return self.prompts.get(self.default_prompt_name or "", "")
        if name not in self.prompts:
            has = ", ".join(sorted(self.prompts)) or "none"
            raise InvalidRequest(f"This model has no prompt {name[:100]!r}; it has {has[:500]}.", param="prompt_name")
        return self.prompts[name]

    def encode(self, texts: Sequence[str], *, prompt: str = "", max_tokens: int | None = None) -> list[EncodedSentence]:
        """Return the ids of `prompt + text` for each text; `max_tokens` cuts a text's end, not the special tokens around it."""
        num_prompt_tokens = self._length(prompt) if prompt else 0
        # All at once: the Rust library then uses several threads, and a call costs more than a short text.
        encoded = self.tokenizer.hf(
            [self._prepared(prompt + text) for text in texts],
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,
        )
        return [
            EncodedSentence(tuple(ids if max_tokens is None else _shortened(ids, mask, max_tokens)), num_prompt_tokens)
            for ids, mask in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        ]

    def _prepared(self, text: str) -> str:
        # Python's way of writing small letters is that of the Rust library that does it for sentence-transformers.
        return text.lower() if self.do_lower_case else text

    def _length(self, prompt: str) -> int:
        """Count the prompt's tokens with the special ones before it, without one behind it (sentence-transformers' rule)."""
        ids = self.tokenizer.encode(self._prepared(prompt))
        return len(ids) - (1 if ids and ids[-1] in self.tokenizer.hf.all_special_ids else 0)


def _shortened(ids: list[int], special: list[int], max_tokens: int) -> list[int]:
    """Cut the text's last tokens; `special` is 1 for the tokens that the tokenizer has put around it."""
    if len(ids) <= max_tokens:
        return ids
    num_before = special.index(0) if 0 in special else len(ids)
    num_behind = special[::-1].index(0) if 0 in special else 0
    kept = ids[: max(num_before, max_tokens - num_behind)]
    return [*kept, *ids[len(ids) - num_behind :]][:max_tokens]
