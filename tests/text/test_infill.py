"""Owns the tests of fill-in-the-middle: which form a tokenizer's tokens show, and what the prompts of each are."""

from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from app.errors import ConfigError
from app.text.infill import CAUSAL_FORMATS, Infill, find_infill
from app.text.tokenizer import Tokenizer
from tests.support.fakes import ids_of
from tests.support.tiny import BOS, EOS, byte_tokenizer


def byte_level(*tokens: str, append_eos: bool = False) -> Tokenizer:
    hf = byte_tokenizer(append_eos=append_eos)
    hf.add_special_tokens({"additional_special_tokens": list(tokens)})
    return Tokenizer(hf)


def sentence_piece(*tokens: str) -> Tokenizer:
    """As Code Llama's: a space is put before a text, and <s> before a prompt."""
    pieces = ["<unk>", "<s>", "</s>", *tokens, "▁", *"abcxy\n☺", "▁a", "▁x", "▁☺"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab=vocab, merges=[("▁", "a"), ("▁", "x"), ("▁", "☺")], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    hf.add_special_tokens({"additional_special_tokens": list(tokens)})
    from tokenizers.processors import TemplateProcessing

    hf.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(hf)


def found(tokenizer: Tokenizer, template: str | None = None, *, is_encoder_decoder: bool = False) -> Infill:
    infill = find_infill(tokenizer, template, is_encoder_decoder=is_encoder_decoder, path="MODELS.m")
    assert infill is not None
    return infill


def spelled(tokenizer: Tokenizer, ids: list[int]) -> str:
    return "".join(tokenizer.decode([token_id], skip_special_tokens=False) for token_id in ids)


@pytest.mark.parametrize("format", CAUSAL_FORMATS, ids=lambda format: format.name)
def test_every_family(format: Any) -> None:
    tokenizer = byte_level(*format.tokens, *format.ends)
    infill = found(tokenizer)
    ids = infill.prompt_ids("def f():", "\n    return x")
    assert spelled(tokenizer, ids) == format.template.replace("{prefix}", "def f():").replace("{suffix}", "\n    return x")
    # Each of its tokens is one id, so it is no text that a user could have written.
    vocabulary = tokenizer.hf.get_vocab()
    assert {vocabulary[token] for token in format.tokens} <= set(ids)
    assert infill.end_ids == {vocabulary[token] for token in (*format.tokens, *format.ends)}


def test_without_such_tokens_there_is_none() -> None:
    assert find_infill(byte_level(), None, is_encoder_decoder=False, path="") is None
    assert find_infill(byte_level("<fim_prefix>", "<fim_suffix>"), None, is_encoder_decoder=False, path="") is None
    # A decoder-only model is not trained on T5's gaps, nor the other way round.
    assert find_infill(byte_level("<extra_id_0>"), None, is_encoder_decoder=False, path="") is None
    assert find_infill(byte_level(*CAUSAL_FORMATS[0].tokens), None, is_encoder_decoder=True, path="") is None


def test_token_ids_as_prefix() -> None:
    tokenizer = byte_level(*CAUSAL_FORMATS[1].tokens)
    assert found(tokenizer).prompt_ids(ids_of("ab"), "c") == found(tokenizer).prompt_ids("ab", "c")


def test_code_llama_puts_no_space_before_the_suffix() -> None:
    tokenizer = sentence_piece("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    ids = found(tokenizer).prompt_ids("a", "x")
    assert tokenizer.spell(ids) == ["<s>", "▁<PRE>", "▁a", "▁<SUF>", "x", "▁<MID>"]
    assert tokenizer.spell(found(tokenizer).prompt_ids("a", " x"))[4:-1] == ["▁x"]
    assert tokenizer.spell(sorted(found(tokenizer).end_ids)) == ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]


def test_t5_has_a_gap_in_the_encoders_text() -> None:
    tokenizer = byte_level("<extra_id_0>", "<extra_id_1>", append_eos=True)
    infill = found(tokenizer, is_encoder_decoder=True)
    ids = infill.prompt_ids("a", "b")
    gap, second = tokenizer.hf.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_1>"])
    assert ids == [*ids_of("a"), gap, *ids_of("b"), EOS]
    # The decoder writes the gap's sign first.
    assert infill.end_ids == {second}


class TestTemplate:
    def test_names_the_tokens_and_their_order(self) -> None:
        tokenizer = byte_level("<S>", "<P>", "<M>", *CAUSAL_FORMATS[0].tokens)
        infill = found(tokenizer, "<S>{suffix}<P>{prefix}<M>")
        assert spelled(tokenizer, infill.prompt_ids("a", "b")) == "<S>b<P>a<M>"
        assert infill.end_ids == set(tokenizer.hf.convert_tokens_to_ids(["<S>", "<P>", "<M>"]))

    def test_an_empty_one_switches_it_off(self) -> None:
        assert find_infill(byte_level(*CAUSAL_FORMATS[0].tokens), "", is_encoder_decoder=False, path="") is None

    def test_of_tokens_that_are_not_there_is_a_configuration_error(self) -> None:
        with pytest.raises(ConfigError, match=r"MODELS\.m\.FIM_TEMPLATE"):
            found(sentence_piece(), "<nothing>{prefix}<such>{suffix}")

    def test_braces_of_a_user_are_text(self) -> None:
        tokenizer = byte_level(*CAUSAL_FORMATS[1].tokens)
        ids = found(tokenizer).prompt_ids("{suffix}", "{prefix}")
        assert spelled(tokenizer, ids) == "<fim_prefix>{suffix}<fim_suffix>{prefix}<fim_middle>"


def test_a_prompt_begins_as_the_tokenizer_begins_texts() -> None:
    tokenizer = sentence_piece("<P>", "<S>")
    assert found(tokenizer, "<P>{prefix}<S>{suffix}").prompt_ids("a", "x")[0] == BOS
