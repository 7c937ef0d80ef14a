"""Owns the objects of /v1/decisions (openai-python: types/decision.py, types/decision_create_params.py) and /v1/systemone.

What is asked about becomes one text; images are refused.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from app.errors import InvalidRequest, UnsupportedParameter

REFUSED: dict[str, str] = {}
SYSTEM_ONE_REFUSED = {"assets": "this server reads text only."}
# OpenAI's limits of a part of type input_json.
MAX_JSON_DEPTH = 32
MAX_JSON_VALUES = 10_000
MAX_JSON_BYTES = 256 * 1024

Part = dict[str, Any]
_Instructions = str | Annotated[list[Part], Meta(min_length=1)]


class InputItem(msgspec.Struct, forbid_unknown_fields=True):
    """A message, a call of a tool or its output; which of the fields it has depends on its `type`."""

    type: Literal["message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"] = "message"
    role: Literal["user", "developer", "system", "assistant"] | None = None
    content: str | list[Part] | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[Part] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class _Question(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    instructions: _Instructions
    name: str | None = None


class Predicate(_Question, tag="predicate"):
    """How likely is a statement about the input?"""


class ChoiceOption(msgspec.Struct, forbid_unknown_fields=True):
    value: str | bool
    description: str | None = None


class Choice(_Question, tag="choice"):
    """Which of the options fits the input best? A text and a boolean that reads the same are two options."""

    choices: Annotated[list[ChoiceOption], Meta(min_length=2)]


class Level(msgspec.Struct, forbid_unknown_fields=True):
    label: str
    description: str | None = None


class Score(_Question, tag="score"):
    """Which of the levels, lowest first, has the input?"""

    levels: Annotated[list[Level], Meta(min_length=2)]


class PromptCacheOptions(msgspec.Struct, forbid_unknown_fields=True):
    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class DecisionRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=512)]
    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    questions: Annotated[list[Predicate | Choice | Score], Meta(min_length=1)]
    prompt_cache_key: str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    safety_identifier: Annotated[str, Meta(max_length=128)] | None = None

    def check(self) -> None:
        """Raise InvalidRequest for options that are not distinct."""
        for index, question in enumerate(self.questions):
            if isinstance(question, Choice):
                values = [(type(option.value), option.value) for option in question.choices]
                if len(set(values)) < len(values):
                    place = f"questions.[{index}].choices"
                    raise InvalidRequest(f"`{place}` has the same value twice; each must be unique.", param=place)

    @property
    def state(self) -> str:
        """The input as one text; raise InvalidRequest or UnsupportedParameter for what is none."""
        if isinstance(self.input, str):
            return self.input
        texts, calls = [], dict[str, str]()
        shows_roles = any(item.role != "user" for item in self.input)
        for index, item in enumerate(self.input):
            place = f"input.[{index}]"
            text = _item_text(item, calls, place)
            texts.append(f"[{_heading(item, calls)}]\n{text}" if shows_roles else text)
        return "\n\n".join(texts)

    def question_texts(self) -> list[str]:
        """What each question asks, in words."""
        return [
            text_of(question.instructions, f"questions.[{index}].instructions") for index, question in enumerate(self.questions)
        ]


def _heading(item: InputItem, calls: dict[str, str]) -> str:
    if item.type == "message":
        return str(item.role)
    name = calls[item.call_id or ""]
    return f"call of {name}" if item.type.endswith("call") else f"output of {name}"


def _item_text(item: InputItem, calls: dict[str, str], place: str) -> str:
    """Return an item's text; `calls` maps the ids of the calls so far to their tools, and gets this one."""
    if item.type == "message":
        if item.role is None or item.content is None:
            missing = "role" if item.role is None else "content"
            raise InvalidRequest(f"A message needs a `{missing}`.", param=f"{place}.{missing}")
        return text_of(item.content, f"{place}.content")
    if not item.call_id:
        raise InvalidRequest("A call and its output need a `call_id`.", param=f"{place}.call_id")
    if item.type.endswith("call"):
        written = item.arguments if item.type == "function_call" else item.input
        if item.name is None or written is None:
            missing = "name" if item.name is None else "arguments" if item.type == "function_call" else "input"
            raise InvalidRequest(f"A {item.type} needs `{missing}`.", param=f"{place}.{missing}")
        calls[item.call_id] = item.name
        return written
    if item.output is None:
        raise InvalidRequest(f"A {item.type} needs `output`.", param=f"{place}.output")
    if item.call_id not in calls:
        raise InvalidRequest(f"No call before it has the id {item.call_id[:100]!r}.", param=f"{place}.call_id")
    return text_of(item.output, f"{place}.output")


def text_of(content: str | Sequence[Part], place: str) -> str:
    """Return the text of a content; JSON in it becomes compact JSON text."""
    if isinstance(content, str):
        return content
    return "\n".join(_part_text(part, f"{place}.[{index}]") for index, part in enumerate(content))


def _part_text(part: Part, place: str) -> str:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "refusal"):
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise InvalidRequest(f"A part of type {kind!r} needs a text.", param=place)
        return text
    if kind == "input_json":
        return _json_text(part.get("data"), place)
    raise UnsupportedParameter(
        f"This server reads text and JSON only; a part of type {str(kind)[:40]!r} is not supported.", param=f"{place}.type"
    )


def _json_text(data: Any, place: str) -> str:
    items = data if isinstance(data, list) else [data]
    if not all(isinstance(item, dict) for item in items):
        raise InvalidRequest("`data` must be a JSON object or a list of objects.", param=f"{place}.data")
    check_json(data, f"{place}.data")
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    num_bytes = len(text.encode("utf-8", "surrogatepass"))
    if num_bytes > MAX_JSON_BYTES:
        raise InvalidRequest(f"`data` has {num_bytes} bytes; at most {MAX_JSON_BYTES} are possible.", param=f"{place}.data")
    return text


def check_json(data: Any, place: str) -> None:
    """Raise InvalidRequest for JSON that is too deep, or too much, to be written out."""
    num_values, level = 0, [data] if isinstance(data, dict | list) else []
    for _ in range(MAX_JSON_DEPTH):
        level = [child for value in level for child in (value.values() if isinstance(value, dict) else value)]
        num_values += len(level)
        level = [value for value in level if isinstance(value, dict | list)]
    if level or num_values > MAX_JSON_VALUES:
        found = f"{num_values} values" if num_values > MAX_JSON_VALUES else f"more than {MAX_JSON_DEPTH} levels"
        raise InvalidRequest(
            f"`{place}` has {found}; at most {MAX_JSON_VALUES} values and {MAX_JSON_DEPTH} levels are possible.", param=place
        )


class PredicateAnswer(msgspec.Struct, tag_field="type", tag="predicate"):
    name: str | None
    probability: float


class ChoiceProbability(msgspec.Struct):
    value: str | bool
    probability: float


class ChoiceAnswer(msgspec.Struct, tag_field="type", tag="choice"):
    """`confidence` is 0 where all options are as likely, and 1 where one is certain."""

    name: str | None
    choice: str | bool
    confidence: float
    probabilities: list[ChoiceProbability]


class ScoreProbability(msgspec.Struct):
    value: int
    label: str
    probability: float


class ScoreAnswer(msgspec.Struct, tag_field="type", tag="score"):
    """`score` is the expected level, counted from 0."""

    name: str | None
    score: float
    confidence: float
    probabilities: list[ScoreProbability]


class InputTokensDetails(msgspec.Struct):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class DecisionUsage(msgspec.Struct):
    """Nothing is generated, so there are no output tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Decision(msgspec.Struct):
    model: str
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer]
    usage: DecisionUsage


class SystemOneRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`questions` maps names to questions of type `noul`, `choice` or `score`, in the words of the System One API."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    state: str | dict[str, Any] | list[Any]
    questions: Annotated[dict[str, dict[str, Any]], Meta(min_length=1)]

    def check(self) -> None:
        check_json(self.state, "state")
        check_json(self.questions, "questions")


class SystemOneUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int = 0


class SystemOneAnswers(msgspec.Struct):
    model: str
    answers: dict[str, dict[str, Any]]
    usage: SystemOneUsage
