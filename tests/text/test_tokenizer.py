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
