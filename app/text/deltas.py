"""Owns what an answer is made of as it arrives: text, reasoning and tool calls in pieces. Knows no formats and no HTTP."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Content:
    """More of the answer's text; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the text that the model thinks before it answers; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool call begins. `index` counts the calls of one answer from 0; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of a call's arguments; never empty."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is whole: its arguments together are one JSON object. A call that the answer's end cuts off has no CallEnd."""

    index: int


ChatDelta = Content | Reasoning | CallBegin | CallArguments | CallEnd


@dataclass(slots=True)
class ToolCall:
    """One call that the model made; `arguments` is a JSON text, as OpenAI sends it, cut off where `is_whole` is false."""

    id: str
    name: str
    arguments: str = ""
    is_whole: bool = False


@dataclass(slots=True)
class ChatAnswer:
    """All deltas of one answer together."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def add(self, delta: ChatDelta) -> None:
        match delta:
            case Content(text):
                self.content += text
            case Reasoning(text):
                self.reasoning += text
            case CallBegin(_, id, name):
                self.tool_calls.append(ToolCall(id, name))
            case CallArguments(index, text):
                self.tool_calls[index].arguments += text
            case CallEnd(index):
                self.tool_calls[index].is_whole = True

    @property
    def has_called(self) -> bool:
        """Whether the answer ends in tool calls, every one of them whole."""
        return bool(self.tool_calls) and all(call.is_whole for call in self.tool_calls)
