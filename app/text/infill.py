"""Owns fill-in-the-middle: a prefix and a suffix -> prompt ids, in the form that a family of models was trained on.

Which form a model knows is read from the tokens that its tokenizer has, or named by FIM_TEMPLATE. Knows no HTTP shapes.
"""

import re
from dataclasses import dataclass

from app.errors import ConfigError
from app.text.tokenizer import Tokenizer

_PLACES = re.compile(r"(\{prefix\}|\{suffix\})")
# A character that no piece of a SentencePiece vocabulary joins with others; Code Llama's reference code uses the same.
_MARK = "☺"


@dataclass(frozen=True, slots=True)
class InfillFormat:
    """`template` is tokens around `{prefix}` and `{suffix}`; what is generated after it is the middle.

    A token of `ends`, or one of the template's own, ends the middle like EOS. `joins_suffix`: the suffix goes on in the
    middle of a line, so a SentencePiece tokenizer may not put a space before it.
    """

    name: str
    template: str
    ends: tuple[str, ...] = ()
    joins_suffix: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(part for part in _PLACES.split(self.template) if part and not _PLACES.fullmatch(part))


# Where more than one fits a tokenizer, the first does. From the model cards and reference code of: Qwen2.5-Coder, CodeGemma and
# Granite 4; StarCoder 1 and 2, StableCode, Granite Code; SantaCoder; DeepSeek-Coder; Code Llama; Seed-Coder; Codestral.
CAUSAL_FORMATS = (
    InfillFormat(
        "qwen",
        "<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>",
        ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>", "<|endoftext|>"),
    ),
    InfillFormat(
        "starcoder",
        "<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>",
        ("<fim_pad>", "<repo_name>", "<file_sep>", "<|endoftext|>"),
    ),
    InfillFormat("santacoder", "<fim-prefix>{prefix}<fim-suffix>{suffix}<fim-middle>", ("<fim-pad>", "<|endoftext|>")),
    InfillFormat(
        "deepseek", "<｜fim▁begin｜>{prefix}<｜fim▁hole｜>{suffix}<｜fim▁end｜>", ("<|EOT|>", "<｜end▁of▁sentence｜>")
    ),
    InfillFormat("codellama", "▁<PRE>{prefix}▁<SUF>{suffix}▁<MID>", ("▁<EOT>",), joins_suffix=True),
    InfillFormat("seed", "<[fim-suffix]>{suffix}<[fim-prefix]>{prefix}<[fim-middle]>"),
    InfillFormat("codestral", "[SUFFIX]{suffix}[PREFIX]{prefix}", joins_suffix=True),
)
# T5's pre-training: the encoder reads a text with a gap, the decoder writes `<extra_id_0>` and what was in it.
SEQ2SEQ_FORMATS = (InfillFormat("t5", "{prefix}<extra_id_0>{suffix}", ("<extra_id_1>",)),)


class Infill:
    """Makes the prompts of one model. `end_ids` end the text that it generates."""

    def __init__(self, tokenizer: Tokenizer, format: InfillFormat) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.hf.get_vocab()
        self._joins_suffix = format.joins_suffix and tokenizer.spell(tokenizer.encode("a", add_special_tokens=False))[:1] == [
            "▁a"
        ]
        self._parts: list[str | list[int]] = [
            part if _PLACES.fullmatch(part) else _ids_of(part, tokenizer, vocabulary)
            for part in _PLACES.split(format.template)
            if part
        ]
        ends = {vocabulary[token] for token in format.ends if token in vocabulary}
        own = {token_id for part in self._parts if isinstance(part, list) and len(part) == 1 for token_id in part}
        # A decoder that writes the gap's own sign first has not come to the end with it.
        self.end_ids = frozenset(ends if format in SEQ2SEQ_FORMATS else ends | own)
        around = tokenizer.encode("")
        begins = around[:1] == [tokenizer.hf.bos_token_id]
        self._before, self._after = around[:begins], around[begins:]

    def prompt_ids(self, prefix: str | list[int], suffix: str) -> list[int]:
        """Return the prompt with the special tokens that begin and end a text of this model."""
        ids = list(self._before)
        for part in self._parts:
            if isinstance(part, list):
                ids += part
            elif part == "{suffix}":
                ids += self._suffix_ids(suffix)
            else:
                ids += self._tokenizer.encode(prefix, add_special_tokens=False) if isinstance(prefix, str) else prefix
        return ids + self._after

    def _suffix_ids(self, suffix: str) -> list[int]:
        if not self._joins_suffix:
            return self._tokenizer.encode(suffix, add_special_tokens=False)
        mark = self._tokenizer.encode(_MARK, add_special_tokens=False)
        return self._tokenizer.encode(_MARK + suffix, add_special_tokens=False)[len(mark) :]


def find_infill(tokenizer: Tokenizer, template: str | None, *, is_encoder_decoder: bool, path: str) -> Infill | None:
    """Return what the model fills gaps with: by `template` (FIM_TEMPLATE) or by its tokens; None if it has none.

    An empty template switches it off. Raise ConfigError for a template whose tokens the tokenizer does not have.
    """
    if template is not None:
        if not template:
            return None
        format = InfillFormat("configured", template, ("<|endoftext|>",))
        for token in format.tokens:
            ids = tokenizer.encode(token, add_special_tokens=False)
            if not ids or tokenizer.hf.unk_token_id in ids:
                raise ConfigError(
                    f"{path}.FIM_TEMPLATE", f'"{token}", which the tokenizer does not have', "tokens of the model"
                )
        return Infill(tokenizer, format)
    vocabulary = tokenizer.hf.get_vocab()
    formats = SEQ2SEQ_FORMATS if is_encoder_decoder else CAUSAL_FORMATS
    found = next((format for format in formats if all(token in vocabulary for token in format.tokens)), None)
    return None if found is None else Infill(tokenizer, found)


def _ids_of(token: str, tokenizer: Tokenizer, vocabulary: dict[str, int]) -> list[int]:
    return [vocabulary[token]] if token in vocabulary else tokenizer.encode(token, add_special_tokens=False)
