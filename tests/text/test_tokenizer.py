"""How a tokenizer decodes: as transformers does, without its detours where they change nothing."""

from typing import Any

import pytest

from app.text.tokenizer import Tokenizer
from tests.support.tiny import byte_tokenizer


@pytest.mark.parametrize("decode_config", [None, {}, {"skip_special_tokens": True, "clean_up_tokenization_spaces": None}])
def test_the_rust_library_is_asked_directly(monkeypatch: pytest.MonkeyPatch, decode_config: dict[str, Any] | None) -> None:
    hf = byte_tokenizer()
    tokenizer = Tokenizer(hf, decode_config)
    ids = tokenizer.encode("Hello , 日本")
    expected = hf.decode(ids, skip_special_tokens=True)

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise AssertionError("the long way")

    monkeypatch.setattr(type(hf), "_decode", refuse)
    assert tokenizer.decode(ids) == expected


def test_a_wish_of_decode_config_takes_the_way_that_honours_it() -> None:
    hf = byte_tokenizer()
    wish = {"clean_up_tokenization_spaces": True}
    ids = Tokenizer(hf).encode("Hello , you")
    assert Tokenizer(hf, wish).decode(ids) == hf.decode(ids, skip_special_tokens=True, **wish)


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_texts_are_encoded_as_transformers_does(monkeypatch: pytest.MonkeyPatch, add_special_tokens: bool) -> None:
    hf = byte_tokenizer(append_eos=True)
    texts = ["Hello , 日本", "", " two  spaces ", f"a {hf.eos_token} in the text", "\n\t\x00é"]
    expected = [hf(text, add_special_tokens=add_special_tokens)["input_ids"] for text in texts]

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the long way")

    tokenizer = Tokenizer(hf)
    monkeypatch.setattr(type(hf), "_encode_plus", refuse)
    assert [tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts] == expected


def test_a_tokenizer_of_languages_is_asked_by_its_own_way() -> None:
    """Its class sets the special tokens of the source language before it encodes."""

    class OfLanguages(type(byte_tokenizer())):  # type: ignore[misc]
        def _switch_to_input_mode(self) -> None:
            self.switched = True

    hf = OfLanguages(tokenizer_object=byte_tokenizer().backend_tokenizer)
    assert Tokenizer(hf).encode("hello") == byte_tokenizer().encode("hello")
    assert hf.switched
