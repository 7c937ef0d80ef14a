"""Owns COMPATIBILITY "lenient": what a request can not have is left out, and the answer names it. Knows no endpoint.

Strict, the default, refuses such a request. Lenient is for clients that send parameters nobody can take out of them. It never
leaves out what the answer is about (the model, the messages, the prompt), and a wrong value is an error in both.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

from app.api.compatibility import NAMES
from app.api.request_state import RequestState
from app.errors import Inapplicable, RequestError, UnknownParameter, UnsupportedParameter

# What a request is about: without it there is nothing to answer.
ESSENTIAL = frozenset({"model", "messages", "prompt", "input", "questions", "state"})
MAX_IGNORED = 64

_Parameters = ParamSpec("_Parameters")
_INDEX = re.compile(r"\[(\d{1,9})\]")
_UNFIT_FOR_HEADERS = re.compile(r"[^A-Za-z0-9_.\[\]-]")


def may_be_lenient(handler: Callable[_Parameters, Awaitable[Any]]) -> Callable[_Parameters, Awaitable[Any]]:
    """Wrap a handler that has `request` and `context`: run it again without what it refuses, if the configuration says so."""

    @wraps(handler)
    async def handle(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> Any:
        request: Any = kwargs["request"]
        context: Any = kwargs["context"]
        state = RequestState.of(request.scope)
        while True:
            try:
                return await handler(*args, **kwargs)
            except (UnknownParameter, UnsupportedParameter, Inapplicable) as error:
                if not (context.is_lenient and _ignore(state.ignored, error)):
                    raise
                context.metrics.parameters_ignored.labels(_metric_name(state.ignored[-1])).inc()
                context.end(state)  # it may have been admitted before it was refused
                state.generation = None

    return handle


def _metric_name(place: str) -> str:
    name = place.split(".", 1)[0]
    return name if name in NAMES else "unknown"


def _ignore(ignored: list[str], error: RequestError) -> bool:
    """Note that the parameter of an error is left out; False if it can not be, or has been in vain."""
    place = error.param
    if not place or place in ignored or len(ignored) >= MAX_IGNORED or place.split(".", 1)[0] in ESSENTIAL:
        return False
    ignored.append(place)
    return True


def leave_out(body: MutableMapping[str, Any], places: Sequence[str]) -> None:
    """Take the parameters at `places` (`tools.[0].function.strict`) out of a decoded body; those that are not there are not."""
    for place in places:
        *path, last = place.split(".")
        part: Any = body
        for step in path:
            index = _INDEX.fullmatch(step)
            if index and isinstance(part, list) and int(index[1]) < len(part):
                part = part[int(index[1])]
            elif isinstance(part, dict):
                part = part.get(step)
            else:
                part = None
        if isinstance(part, dict):
            part.pop(last, None)


def header_of(ignored: Sequence[str]) -> bytes:
    """Return the value of `x-tfoai-ignored`."""
    return ", ".join(_UNFIT_FOR_HEADERS.sub("?", place) for place in ignored).encode()
