"""Owns the transformers tokenizer of one model: encode, decode, single tokens as text and bytes. Knows no chat, no streams."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from app.errors import ConfigError

_BYTE_OF_CHAR = {char: byte for byte, char in bytes_to_unicode().items()}


class Tokenizer:
    """Wraps one tokenizer for use from several threads: nothing here changes its state after construction."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, decode_config: Mapping[str, Any] | None = None) -> None:
        self.hf = tokenizer
        # A null leaves the choice to the tokenizer.
        self._decode_config = {key: value for key, value in (decode_config or {}).items() if value is not None}
        self._skip_special_tokens = self._decode_config.pop("skip_special_tokens", True)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_byte_level = False
        # Set where the Rust library does it all: asked directly, it takes a third to decode (once or twice for every token)
        # and half to encode.
        self._decoder: Any = None
        self._encoder: Any = None
        if backend is not None:
            # Set for good, because changing them while another thread encodes is an error in the Rust library.
            backend.no_truncation()
            backend.no_padding()
            self._is_byte_level = _uses_byte_level(backend.decoder)
            if _only_decodes_by(tokenizer) and not self._decode_config:
                self._decoder = backend
            if _only_encodes_by(tokenizer):
                backend.encode_special_tokens = tokenizer.split_special_tokens
                self._encoder = backend
        self.vocab_size = len(tokenizer)
        added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = frozenset(added) | frozenset(tokenizer.all_special_ids)
        # Tokens that are looked for in texts as they are, whatever the others are spelled in.
        self._added = {token_id: str(token) for token_id, token in tokenizer.added_tokens_decoder.items()}
        self._is_char_per_byte = isinstance(tokenizer, ByT5Tokenizer)
        self.token_bytes = lru_cache(maxsize=65536)(self._token_bytes)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a plain prompt, with the special tokens that the model was trained to see around it."""
        ids: list[int]
        if self._encoder is not None:
            ids = self._encoder.encode(text, add_special_tokens=add_special_tokens).ids
        else:
            ids = self.hf(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return ids

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool | None = None,
        kept_special_ids: frozenset[int] = frozenset(),
    ) -> str:
        """Return the text of ids, with or without special tokens; None leaves that to DECODE_CONFIG, which leaves them out.

        `kept_special_ids` stay in the text even where the others are left out.
        """
        skip = self._skip_special_tokens if skip_special_tokens is None else skip_special_tokens
        if skip and kept_special_ids:
            token_ids = [one for one in token_ids if one not in self.special_ids or one in kept_special_ids]
            skip = False
        if self._decoder is not None:
            text: str = self._decoder.decode(token_ids, skip_special_tokens=skip)
            return text
        return str(self.hf.decode(list(token_ids), skip_special_tokens=skip, **self._decode_config))

    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return the ids of a word at the beginning of a line and behind a space, which may be the same."""
        texts = [word] if word[:1].isspace() else [word, " " + word]
        found = (tuple(self.encode(text, add_special_tokens=False)) for text in texts)
        return list(dict.fromkeys(ids for ids in found if ids))

    @cached_property
    def affixes(self) -> tuple[list[int], list[int]]:
        """The special tokens that the model was trained to see before and behind a plain prompt."""
        plain, whole = self.encode("a", add_special_tokens=False), self.encode("a")
        num_more = len(whole) - len(plain)
        start = next((start for start in range(num_more + 1) if whole[start : start + len(plain)] == plain), num_more)
        return whole[:start], whole[start + len(plain) :]

    def spell(self, token_ids: Sequence[int]) -> list[str]:
        """Return the tokens as the vocabulary spells them (`Ġthe`, `▁the`), not as text."""
        return [token if isinstance(token, str) else "" for token in self.hf.convert_ids_to_tokens(list(token_ids))]

    def describe(self) -> dict[str, Any]:
        """Return the tokenizer's facts by their names in tokenizer_config.json."""
        hf = self.hf
        names = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
        named = {name: getattr(hf, name, None) for name in names}
        template = hf.chat_template
        return {
            "tokenizer_class": type(hf).__name__,
            "vocab_size": self.vocab_size,
            **named,
            "additional_special_tokens": [token for token in hf.all_special_tokens if token not in named.values()],
            "padding_side": hf.padding_side,
            "truncation_side": hf.truncation_side,
            "chat_template": template.get("default") if isinstance(template, dict) else template,
        }

    def token_string(self, token_id: int) -> str:
        """Return one token as text; a part of a character as `bytes:\\xe2\\x82`, OpenAI's spelling for it."""
        data = self.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    @property
    def markers(self) -> frozenset[int]:
        """Ids of tokens that are no text: special ones, and those added that look like them (`<tool_call>`, `[INST]`)."""
        looks = {token_id for token_id, token in self._added.items() if token[:1] + token[-1:] in ("<>", "[]")}
        return frozenset(self.special_ids | looks)

    def all_token_bytes(self, size: int) -> list[bytes]:
        """Return what the ids below `size` stand for; empty for ids that are no token."""
        return [self._token_bytes(token_id) for token_id in range(size)]

    def _token_bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self.hf.convert_ids_to_tokens(token_id)
        if not isinstance(token, str):  # ids between the tokenizer's last token and the model's embedding size
            return b""
        if token_id in self.special_ids:
            return token.encode()
        if self._is_char_per_byte:
            return token.encode("latin-1")
        if self._is_byte_level and all(char in _BYTE_OF_CHAR for char in token):
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])  # SentencePiece's byte fallback
        return token.replace("\u2581", " ").encode()  # SentencePiece writes a space as U+2581


def _only_decodes_by(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `decode` of this tokenizer is the one that only hands ids to the Rust library and cleans nothing up."""
    own = type(tokenizer)
    return (
        issubclass(own, TokenizersBackend)
        and own.decode is PreTrainedTokenizerBase.decode
        and own._decode is TokenizersBackend._decode
        and not tokenizer.clean_up_tokenization_spaces
    )


def _only_encodes_by(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether calling this tokenizer with a text only hands it to the Rust library."""
    own = type(tokenizer)
    return (
        issubclass(own, TokenizersBackend)
        and own.__call__ is PreTrainedTokenizerBase.__call__
        and own._encode_plus is TokenizersBackend._encode_plus
        and not hasattr(tokenizer, "_switch_to_input_mode")  # sets special tokens by language first
    )


def _uses_byte_level(decoder: Any) -> bool:
    if decoder is None:
        return False
    description = json.loads(decoder.__getstate__())
    parts = description.get("decoders", [description])
    return any(part.get("type") == "ByteLevel" for part in parts)


def load_tokenizer(source: str, tokenizer_config: Mapping[str, Any], decode_config: Mapping[str, Any], path: str) -> Tokenizer:
    """Load the tokenizer of `source` (a path or hub id); raise ConfigError under the JSON path `path`."""
    place = f"{path}.TOKENIZER_CONFIG"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **tokenizer_config)
    except Exception as error:  # whatever the libraries underneath raise for broken files
        text = " ".join(str(error).split())[:300]
        raise ConfigError(
            place, f'a tokenizer of "{source}" that can not be loaded ({text})', "a tokenizer that transformers can load"
        ) from error
    if not tokenizer("tfoai", add_special_tokens=False)["input_ids"]:
        # transformers 5 makes an empty tokenizer of the model's usual class where there are no files for one.
        raise ConfigError(place, f'no tokenizer files in "{source}"', "a tokenizer beside the model's weights")
    return Tokenizer(tokenizer, decode_config)
