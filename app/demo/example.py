"""Owns the shape of a training example. Knows no text and no tokenizer."""

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Tool = dict[Any, Any]


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation that ends with the answer of the assistant that is to be learned."""

    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)

    @property
    def prompt(self) -> list[Message]:
        return self.messages[:-1]

    @property
    def answer(self) -> Message:
        return self.messages[-1]


@dataclass(frozen=True, slots=True)
class Plain:
    """A text without roles, and the place in it from which on it is to be learned."""

    text: str
    start: int = 0
