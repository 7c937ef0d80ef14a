"""Every error is a whole OpenAI error object, and the tree in the docstring is the tree in the code."""

import re

import pytest

import app.errors
from app.errors import ConfigError, ContextLengthExceeded, ModelNotFound, RequestError, RequestTooLarge, TfoaiError


def tree() -> list[type[Exception]]:
    found, todo = [], [TfoaiError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += [sub for sub in kind.__subclasses__() if sub.__module__ == "app.errors"]
    return found


def test_the_drawing_shows_every_class_with_its_status() -> None:
    drawn = dict(re.findall(r"([A-Z]\w+) +(\d{3})?", app.errors.__doc__.partition("\n\n")[2]))
    for kind in tree():
        assert kind.__name__ in drawn or kind is TfoaiError
        if issubclass(kind, RequestError) and kind is not RequestError:
            assert drawn[kind.__name__] == str(kind.status)


@pytest.mark.parametrize("kind", [kind for kind in tree() if issubclass(kind, RequestError)], ids=lambda kind: kind.__name__)
def test_bodies_have_all_four_keys(kind: type[RequestError]) -> None:
    if kind is ModelNotFound:
        error = kind("x")
    elif kind is RequestTooLarge:
        error = kind(10, None)
    elif kind is ContextLengthExceeded:
        error = kind(10, 8, 4, what="prompt", param="prompt")
    else:
        error = kind("message", param="p")
    body = error.body()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert isinstance(body["message"], str)
    assert body["code"] is None or isinstance(body["code"], str)
    assert 400 <= kind.status < 600


def test_config_errors_are_one_line() -> None:
    assert str(ConfigError("A.B", "two\nlines", "one")) == "A.B: found two lines; expected one"
    assert str(ConfigError("", "nothing", "a file")) == "found nothing; expected a file"
