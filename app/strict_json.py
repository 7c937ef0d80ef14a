"""Owns reading JSON strictly, and naming places and values of it in one line. Knows no key of any file.

Python's json module silently takes repeated keys, NaN and half surrogates; here they are errors with a place.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from app.errors import ConfigError

# Longest part of a key or value that a message shows.
CUT = 80


def read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("", "no such file", "a configuration file; config.example.json is one to start from") from None
    except IsADirectoryError:
        raise ConfigError("", "a directory", "a configuration file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "a path that can not be opened"
        raise ConfigError("", reason, "a readable configuration file") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("", f"bytes that are not UTF-8 at offset {error.start}", "UTF-8 text") from None


class _Repeated(dict[str, Any]):
    """An object of the file that has a key twice; json alone would silently keep the last value."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    seen: set[str] = set()
    repeated = _Repeated(result)
    repeated.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return repeated


def parse_json(text: str) -> Any:
    if not text.strip():
        raise ConfigError("", "an empty file", "a JSON object")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        found = f"invalid JSON at line {error.lineno}, column {error.colno} ({error.msg})"
    except RecursionError:
        found = "values nested too deep"
    except ValueError:
        found = "a number with too many digits"  # Python's own limit on int(); the position is lost
    raise ConfigError("", found, "a JSON object")


def check_tree(root: dict[str, Any]) -> None:
    """Refuse what Python's json takes and JSON or later code does not: repeated keys, NaN, half characters."""
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        place, value = stack.pop()
        if isinstance(value, dict):
            secret = place.startswith("BEARER_TOKENS")
            if isinstance(value, _Repeated):
                raise ConfigError(place if secret else at_key(place, value.key), "the same key twice", "every key once")
            for key, child in reversed(value.items()):
                at = place if secret else at_key(place, key)
                _refuse_half_characters(key, at)
                stack.append((at, child))
        elif isinstance(value, list):
            stack.extend((f"{place}[{i}]", child) for i, child in reversed(list(enumerate(value))))
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(place, "NaN or a number that is infinite", "a finite number")
        elif isinstance(value, str):
            _refuse_half_characters(value, place)


def _refuse_half_characters(text: str, place: str) -> None:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ConfigError(place, "half of a surrogate pair", "Unicode text")


def at_key(place: str, key: str) -> str:
    """Extend a dotted JSON path; a key that would make it ambiguous goes in brackets and quotes."""
    if re.fullmatch(rf"[\w$:/@+-]{{1,{CUT}}}", key, re.ASCII):
        return f"{place}.{key}" if place else key
    return f"{place}[{_quote(key)}]"


def _quote(text: str) -> str:
    # Escapes keep control characters and line separators out of terminals and of the one line.
    quoted = json.dumps(text[:CUT], ensure_ascii=not text[:CUT].isprintable())
    return quoted if len(text) <= CUT and len(quoted) <= CUT + 2 else f'{quoted[:CUT]}..."'


def show(value: Any) -> str:
    """Show a value that was found; of lists and objects only the kind, because they can hold secrets."""
    if isinstance(value, str):
        return _quote(value)
    if value is None or isinstance(value, bool | int | float):
        shown = json.dumps(value)
        return shown if len(shown) <= CUT else f"{shown[:CUT]}..."
    return kind_of(value)


def kind_of(value: Any) -> str:
    if isinstance(value, str):
        return "a string" if value else "an empty string"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if value is None:
        return "null"
    return "a boolean" if isinstance(value, bool) else "a number"
