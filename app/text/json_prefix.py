"""Owns making whole what is the beginning of a JSON object: what of it is certain. Knows no HTTP and no formats of calls."""

import json

_CLOSERS = {"{": "}", "[": "]"}


def whole_of(text: str) -> str:
    """Return the JSON text of the object that `text` begins, with those of its values that have ended; `{}` if there are none.

    A number at the end may go on, so it has not ended; of an object or a list inside, what has ended is kept.
    """
    certain = 0  # where what is certain ends; nothing is opened or closed behind it
    open_: list[str] = []
    last = ""  # the last character that is no space and in no string
    in_string = escaped = False
    for at, char in enumerate(text):
        if in_string:
            if escaped or char == "\\":
                escaped = not escaped
            elif char == '"':
                in_string = False
                if open_ and (last == ":" or open_[-1] == "["):
                    certain = at + 1
            continue
        if char == '"':
            in_string = True
            continue
        if char.isspace():
            continue
        if char in _CLOSERS:
            open_.append(char)
            certain = at + 1
        elif char in "}]" and open_:
            open_.pop()
            certain = at + 1
        elif char == ",":
            certain = at
        last = char
    whole = text[:certain] + "".join(_CLOSERS[char] for char in reversed(open_))
    try:
        return whole if isinstance(json.loads(whole), dict) else "{}"
    except (ValueError, RecursionError):
        return "{}"
