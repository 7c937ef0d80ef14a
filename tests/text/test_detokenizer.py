"""Joined pieces are the text, for every way to cut a token sequence."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from app.text.detokenizer import WINDOW_TOKENS, Detokenizer
from app.text.tokenizer import Tokenizer
from tests.support.tiny import byte_tokenizer

BYTES = Tokenizer(byte_tokenizer())


def metaspace_tokenizer() -> Tokenizer:
    """SentencePiece's manner, as in T5 and Llama 2: `▁` for a space, bytes for what has no token, first space dropped."""
    pieces = [
        "<unk>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁Hello",
        "▁world",
        "lo",
        "日",
        "本",
        "🎉",
        "▁é",
    ]
    backend = Backend(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"))


METASPACE = metaspace_tokenizer()


def joined(tokenizer: Tokenizer, ids: Sequence[int], cuts: Sequence[int], context: Sequence[int] = ()) -> str:
    detokenizer = Detokenizer(tokenizer.decode, context)
    bounds = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    pieces = [detokenizer.add(ids[start:end]) for start, end in itertools.pairwise(bounds)]
    return "".join(pieces) + detokenizer.flush()


def is_one_piece_at_most(pieces: list[str]) -> bool:
    return all("\ufffd" not in piece for piece in pieces)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.integers(0, 258), max_size=40), st.lists(st.integers(0, 40), max_size=10))
@example(BYTES.encode("🎉日本 é"), [1, 2, 3, 5, 8])
def test_random_bytes_in_random_chunks(ids: list[int], cuts: list[int]) -> None:
    assert joined(BYTES, ids, cuts) == BYTES.decode(ids)


@settings(max_examples=1000, deadline=None)
@given(st.text(max_size=30), st.lists(st.integers(0, 120), max_size=20))
def test_random_text_in_random_chunks(text: str, cuts: list[int]) -> None:
    assert joined(BYTES, BYTES.encode(text), cuts) == text


# Whole characters as byte tokens, and word pieces. (Over invalid bytes SentencePiece's decoder takes back what it has said of
# the valid ones before them, so no stream can equal it there.)
UNITS = st.one_of(
    st.integers(258, 265).map(lambda piece: [piece]),
    st.characters(min_codepoint=32, exclude_categories=["Cs"]).map(lambda char: [2 + byte for byte in char.encode()]),
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(UNITS, max_size=15), st.lists(st.integers(0, 60), max_size=10))
def test_random_sentencepiece_tokens_in_random_chunks(units: list[list[int]], cuts: list[int]) -> None:
    ids = [token_id for unit in units for token_id in unit]
    assert joined(METASPACE, ids, cuts) == METASPACE.decode(ids)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab 🎉日é\u200d👩🏽", max_size=20))
def test_valid_text_never_shows_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(BYTES.decode)
    pieces = [detokenizer.add([token_id]) for token_id in BYTES.encode(text)]
    assert is_one_piece_at_most(pieces)
    assert "".join(pieces) == text
    assert detokenizer.flush() == ""


def test_an_incomplete_character_at_the_end_is_given_out_by_flush() -> None:
    detokenizer = Detokenizer(BYTES.decode)
    assert detokenizer.add(BYTES.encode("🎉")[:2]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_a_continuation_keeps_the_space_that_the_prompt_precedes() -> None:
    hello, world = METASPACE.hf.convert_tokens_to_ids(["▁Hello", "▁world"])
    assert Detokenizer(METASPACE.decode, [hello]).add([world]) == " world"
    assert Detokenizer(METASPACE.decode).add([world]) == "world"


def test_a_character_begun_in_the_prompt_is_given_out_whole() -> None:
    ids = BYTES.encode("🎉")
    detokenizer = Detokenizer(BYTES.decode, ids[:2])
    assert detokenizer.add(ids[2:]) == "🎉"


@pytest.mark.parametrize("length", [10, 400])
def test_each_step_decodes_a_bounded_number_of_tokens(length: int) -> None:
    sizes: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        sizes.append(len(ids))
        return BYTES.decode(ids)

    detokenizer = Detokenizer(decode)
    for token_id in BYTES.encode("abcdefghij" * (length // 10)):
        detokenizer.add([token_id])
    assert max(sizes) <= WINDOW_TOKENS
    assert len(sizes) <= length * 1.2, "a token is decoded once, and now and then once more"
