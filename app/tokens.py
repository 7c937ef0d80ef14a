"""Owns reading bearer tokens from where operators put them: config.json, a mounted directory. Keeps nothing, knows no HTTP.

A mounted Secret is a directory of links: `name -> ..data/name`, `..data -> ..2026_11_23_10_00_00.123`. Kubernetes replaces it
by making a new directory and renaming a new `..data` over the old one, so the files of one `..data` belong together.
"""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from app.config_keys import BearerToken, expected_text
from app.errors import ConfigError

KEY = "BEARER_TOKENS_DIR"
_MAX_BYTES = 4096
# The keys that a Secret may have; they become names of clients in the log.
_CLIENT_NAME = re.compile(r"[-._a-zA-Z0-9]{1,253}")


def named_tokens(tokens: Sequence[str] | None, directory: str | None) -> dict[str, str] | None:
    """Return client name -> token from both sources; None if neither is configured, which means no authorization.

    Raise ConfigError, never with a token in it. Tokens of the file have their place as a name.
    """
    if tokens is None and directory is None:
        return None
    named = {f"BEARER_TOKENS[{i}]": token for i, token in enumerate(tokens or ())}
    if directory is not None:
        named |= read_directory(Path(directory))
    return named


def read_directory(directory: Path) -> dict[str, str]:
    """Return file name -> token of every file; raise ConfigError if one can not be used or there is none.

    Hidden files and directories are passed over: they are Kubernetes' own.
    """
    place = directory / "..data"
    # Resolved once: a swap in the middle must not mix two generations.
    root = Path(os.path.realpath(place)) if place.is_symlink() else directory
    try:
        names = sorted(name for name in os.listdir(root) if not name.startswith("."))
        files = {name: root / name for name in names if not stat.S_ISDIR(os.stat(root / name).st_mode)}
        tokens = {name: _token(name, path) for name, path in files.items()}
    except OSError as error:
        raise ConfigError(KEY, f"{directory}: {error.strerror}", "a directory whose files can be read") from None
    if not tokens:
        raise ConfigError(KEY, f"{directory} without a file, which lets nobody in", "at least one file with a token")
    return tokens


def _token(name: str, path: Path) -> str:
    if not _CLIENT_NAME.fullmatch(name):
        raise ConfigError(KEY, f"a file named {name[:80]!r}", "names of letters, digits, '-', '_' and '.'")
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ConfigError(KEY, f"{name} with more than {_MAX_BYTES} bytes", "one token per file")
    try:
        return msgspec.convert(data.decode("ascii").strip(), BearerToken)
    except (UnicodeDecodeError, msgspec.ValidationError):
        # `from None` keeps the token out of tracebacks.
        raise ConfigError(KEY, f"{name} with something else", f"{expected_text(BearerToken)}, one per file") from None
