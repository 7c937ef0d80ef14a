"""What tokens stand for, over the kinds of tokenizers that there are."""

from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from app.engine.grammar import Grammar
from app.errors import UnsupportedParameter
from app.text.constraint import Constraint
from app.text.grammar import GrammarCompiler
from app.text.tokenizer import Tokenizer
from app.text.vocabulary import UnmappedTokenizerError, read_vocabulary
from tests.support.tiny import byte_tokenizer

TEXTS = [f'hello world {{"a": [{index}, true, null]}}, how are you? naïve Zoë {chr(97 + index % 26)}' for index in range(300)]


def byte_level() -> PreTrainedTokenizerBase:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens(["    "])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def metaspace() -> PreTrainedTokenizerBase:
    """As Llama 2's: bytes for what has no token, and a space put before the text."""
    pieces = [
        "<unk>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *map(chr, range(33, 127)),
        "\u2581h",
        "\u2581{",
    ]
    backend = Backend(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def unigram(directory: Path) -> PreTrainedTokenizerBase:
    """As T5's, without bytes for what has no token."""
    (directory / "texts").write_text("\n".join(text.replace("{", "").replace("}", "") for text in TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "texts"), model_prefix=str(directory / "m"), vocab_size=90, hard_vocab_limit=False, minloglevel=2
    )
    return SentencePieceBackend(vocab_file=str(directory / "m.model"), unk_token="<unk>", eos_token="</s>")


def compiler(hf: PreTrainedTokenizerBase, *, starts_text: bool = False) -> GrammarCompiler:
    return GrammarCompiler(Tokenizer(hf), len(hf), frozenset({hf.eos_token_id}), starts_text=starts_text)


def accepts(hf: PreTrainedTokenizerBase, grammar: Grammar, ids: list[int]) -> bool:
    matcher = grammar.start()
    for token_id in ids:
        matcher.accept(token_id)
    return matcher.is_accepting


@pytest.mark.parametrize("make", [byte_tokenizer, byte_level, metaspace, ByT5Tokenizer])
def test_any_text_is_spelled(make: type) -> None:
    hf = make()
    vocabulary = read_vocabulary(Tokenizer(hf), len(hf))
    assert all(vocabulary.spells(char) for char in "{}\n\té🙂日")
    assert vocabulary.drops_first_space is (make is metaspace)
    text = '{"é": ["🙂 \\n", 1]}'
    ids = hf(text, add_special_tokens=False)["input_ids"]
    assert b"".join(vocabulary.tokens[token_id] for token_id in ids).decode().lstrip(" ") == text
    grammar = compiler(hf, starts_text=True).compile_here(
        Constraint("json_schema", {"type": "object", "additionalProperties": {"type": "array"}}, "p")
    )
    assert accepts(hf, grammar, ids)


def test_added_tokens_are_taken_as_they_are() -> None:
    hf = byte_level()
    assert read_vocabulary(Tokenizer(hf), len(hf)).tokens[hf.convert_tokens_to_ids("    ")] == b"    "


def test_a_space_that_decoding_takes_away_may_be_written(tmp_path: Path) -> None:
    hf = unigram(tmp_path)
    choice = Constraint("choice", ["hello", "world"], "p")
    ids = hf("hello", add_special_tokens=False)["input_ids"]
    assert hf.convert_ids_to_tokens(ids)[0].startswith("\u2581") and hf.decode(ids) == "hello"
    assert accepts(hf, compiler(hf, starts_text=True).compile_here(choice), ids)


def test_what_a_tokenizer_can_not_spell_is_refused_by_name(tmp_path: Path) -> None:
    hf = unigram(tmp_path)
    for constraint in (
        Constraint("json_object", None, "response_format"),
        Constraint("choice", ["hello", "日本"], "response_format"),
        Constraint("regex", "日+", "response_format"),
    ):
        with pytest.raises(UnsupportedParameter, match="can not spell") as refused:
            compiler(hf).compile_here(constraint)
        assert refused.value.param == "response_format"


def wordpiece() -> PreTrainedTokenizerBase:
    backend = Backend(
        models.WordPiece({piece: index for index, piece in enumerate(["[UNK]", "hello", "##s", "{", "}"])}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[UNK]")


def test_a_tokenizer_whose_tokens_do_not_add_up_is_refused() -> None:
    hf = wordpiece()
    with pytest.raises(UnmappedTokenizerError):
        read_vocabulary(Tokenizer(hf), len(hf))
    with pytest.raises(UnsupportedParameter, match="one by one"):
        compiler(hf).compile_here(Constraint("regex", "a", "p"))
