"""Tokens from a mounted directory: names, contents, and what is refused without showing a token."""

from pathlib import Path

import pytest

from app.errors import ConfigError
from app.tokens import named_tokens, read_directory
from tests.support.mounts import mount

SECRET = "sk-very-secret"


def test_a_mounted_secret_and_its_swap(tmp_path: Path) -> None:
    directory = mount(tmp_path / "tokens", {"alice": f"{SECRET}\n", "bob.2": "sk-bob"})
    assert read_directory(directory) == {"alice": SECRET, "bob.2": "sk-bob"}
    mount(directory, {"alice": "sk-new"})
    assert read_directory(directory) == {"alice": "sk-new"}


def test_a_plain_directory(tmp_path: Path) -> None:
    (tmp_path / "alice").write_text(f"  {SECRET}\r\n")
    (tmp_path / ".hidden").write_text("not a token of ours")
    (tmp_path / "folder").mkdir()
    assert read_directory(tmp_path) == {"alice": SECRET}


def test_both_sources_together(tmp_path: Path) -> None:
    (tmp_path / "alice").write_text(SECRET)
    assert named_tokens(("a", "b"), str(tmp_path)) == {"BEARER_TOKENS[0]": "a", "BEARER_TOKENS[1]": "b", "alice": SECRET}
    assert named_tokens(("a",), None) == {"BEARER_TOKENS[0]": "a"}
    assert named_tokens(None, None) is None, "no authorization only when nothing is configured"


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, "without a file"),
        ({"alice": ""}, "alice with something else"),
        ({"alice": f"{SECRET} {SECRET}"}, "alice with something else"),
        ({"alice": f"{SECRET}\nsk-2"}, "one per file"),
        ({"alice": f"{SECRET}é"}, "alice with something else"),
        ({"alice": SECRET * 1000}, "more than 4096 bytes"),
        ({"al ice": SECRET}, "a file named 'al ice'"),
        ({"good": "sk-good", "alice": "\0"}, "alice with"),
    ],
    ids=str,
)
def test_what_can_not_be_used_is_named_and_not_shown(tmp_path: Path, files: dict[str, str], text: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=r"^BEARER_TOKENS_DIR: ") as caught:
        read_directory(tmp_path)
    assert text in str(caught.value)
    assert "very-secret" not in str(caught.value) and caught.value.__cause__ is None


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        read_directory(tmp_path / "no")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="No such file or directory"):
        read_directory(tmp_path)
