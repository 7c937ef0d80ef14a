"""Owns checking one value, or one object, of config.json against its type, and the words when it does not fit. Knows no key."""

import difflib
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from app.config_keys import expected_text
from app.errors import ConfigError
from app.strict_json import CUT, at_key, show


def fields_of(cls: type[Struct]) -> list[msgspec.structs.FieldInfo]:
    """Return the fields of a struct, its own before those of its base: the order in which people are told of them."""
    return sorted(msgspec.structs.fields(cls), key=lambda info: info.name not in cls.__annotations__)


def options_of(raw: Any, place: str, known: dict[str, Any], refused: Iterable[str] = (), why: str = "") -> dict[str, Any]:
    """Check a free object; null is an empty one, as it was in the old server."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(place, show(raw), "an object or null")
    for key, value in raw.items():
        if key in refused:
            raise ConfigError(at_key(place, key), "a key that is not allowed here", f"it to be absent: {why}")
        if key in known:
            value_of(value, known[key], at_key(place, key))
    return dict(raw)


def value_of(raw: Any, type_: Any, place: str) -> Any:
    """Return a value as its type has it; raise ConfigError with the place and what was expected."""
    try:
        return msgspec.convert(raw, type_)
    except msgspec.ValidationError:
        raise ConfigError(place, show(raw), expected_text(type_)) from None


def refuse_unknown(raw: dict[str, Any], known: Iterable[str], place: str) -> None:
    """Raise ConfigError for the first key that is not known, with the one that was meant if it can be guessed."""
    names = {name.upper(): name for name in known}
    for key in raw:
        if key in names.values():
            continue
        near = difflib.get_close_matches(key[:CUT].upper(), names, n=1)
        known_keys = ", ".join(name for name in names.values() if not name.startswith("$"))
        hint = f'a known key; did you mean "{names[near[0]]}"?' if near else f"one of {known_keys}"
        raise ConfigError(at_key(place, key), "an unknown key", hint)
