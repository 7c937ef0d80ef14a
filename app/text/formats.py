"""Owns the table of formats in which models call tools and reason, and telling from a chat template which ones a model has.

A format says how to read its calls, and how one is spelled, from which grammars are made. Knows no tokenizers and no HTTP.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal

from app.text import calls, dialects
from app.text.call_arguments import Arguments, JsonArguments, TaggedArguments
from app.text.calls import Calls
from app.text.gemma_arguments import GemmaArguments


@dataclass(frozen=True, slots=True)
class Spelling:
    """How calls are written: `begin`, calls with `between` between them, `end`.

    A call is `before_name`, its name, `after_name`, `arguments`, `after_arguments`.
    """

    begin: str = ""
    before_name: str = ""
    after_name: str = ""
    after_arguments: str = ""
    between: str = ""
    end: str = ""
    arguments: Arguments = JsonArguments()  # noqa: RUF009 - it has no state


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """`opens` are the markers before calls, behind which `read` reads on (harmony has a parser of its own).

    `is_bare`: a call may also be how an answer begins, without a marker. `seen` are texts that all templates of such models
    have. `markers` are what else the model may write: where they are
    special tokens, they must not be left out of the text. A call's id is "call_" and `id_length` characters, or nine of them.
    """

    name: str
    opens: tuple[str, ...]
    read: Callable[[Calls], Generator[None, None, bool]] | None
    seen: tuple[str, ...]
    spelling: Spelling
    markers: tuple[str, ...] = ()
    is_bare: bool = False
    id_length: int = 24


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """`open` and `close` are around what the model thinks; its prompt may already end with `open`."""

    name: str
    open: str
    close: str
    seen: tuple[str, ...]


def _json_spelling(
    before: str, key: Literal["arguments", "parameters"], after: str, *, begin: str = "", between: str = "", end: str = ""
) -> Spelling:
    return Spelling(begin, f'{before}{{"name": "', f'", "{key}": ', "}" + after, between, end)


# The first whose texts are all seen in the chat template is the model's: the special ones come before those they look like.
_TOOL_FORMATS = (
    ToolFormat(
        "harmony",
        (),
        None,
        seen=("<|channel|>", "<|message|>", "<|start|>"),
        spelling=Spelling(
            before_name="<|channel|>commentary to=functions.",
            after_name=" <|constrain|>json<|message|>",
            # <|call|>, which comes then, ends the answer and is no part of it.
        ),
        markers=("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"),
    ),
    ToolFormat(
        "deepseek_v3",
        ("<｜tool▁calls▁begin｜>",),
        calls.deepseek_calls,
        seen=("<｜tool▁calls▁begin｜>", "```json"),
        spelling=Spelling(
            begin="<｜tool▁calls▁begin｜>",
            before_name="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            after_name="\n```json\n",
            after_arguments="\n```<｜tool▁call▁end｜>",
            between="\n",
            end="<｜tool▁calls▁end｜>",
        ),
        markers=("<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
    ),
    ToolFormat(
        "deepseek_v31",
        ("<｜tool▁calls▁begin｜>",),
        calls.deepseek_calls,
        seen=("<｜tool▁calls▁begin｜>",),
        spelling=Spelling(
            begin="<｜tool▁calls▁begin｜>",
            before_name="<｜tool▁call▁begin｜>",
            after_name="<｜tool▁sep｜>",
            after_arguments="<｜tool▁call▁end｜>",
            end="<｜tool▁calls▁end｜>",
        ),
        markers=("<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
    ),
    ToolFormat(
        "mistral_v11",
        ("[TOOL_CALLS]",),
        calls.mistral_calls,
        seen=("[TOOL_CALLS]", "[ARGS]"),
        spelling=Spelling(before_name="[TOOL_CALLS]", after_name="[ARGS]"),
        markers=("[ARGS]", "[CALL_ID]"),
        id_length=9,
    ),
    ToolFormat(
        "mistral",
        ("[TOOL_CALLS]",),
        calls.mistral_calls,
        seen=("[TOOL_CALLS]",),
        spelling=_json_spelling("", "arguments", "", begin="[TOOL_CALLS][", between=", ", end="]"),
        id_length=9,
    ),
    ToolFormat(
        "gemma4",
        ("<|tool_call>",),
        lambda found: dialects.gemma_call(found, '<|"|>', "<tool_call|>"),
        seen=("<|tool_call>", "<tool_call|>"),
        spelling=Spelling(before_name="<|tool_call>call:", arguments=GemmaArguments('<|"|>'), after_arguments="<tool_call|>"),
        markers=("<tool_call|>", '<|"|>'),
    ),
    ToolFormat(
        "functiongemma",
        ("<start_function_call>",),
        lambda found: dialects.gemma_call(found, "<escape>", "<end_function_call>"),
        seen=("<start_function_call>", "<escape>"),
        spelling=Spelling(
            before_name="<start_function_call>call:",
            arguments=GemmaArguments("<escape>"),
            after_arguments="<end_function_call>",
        ),
        markers=("<end_function_call>", "<escape>"),
    ),
    ToolFormat(
        "qwen_xml",
        ("<tool_call>",),
        dialects.tagged_call,
        seen=("<tool_call>", "<function=", "<parameter="),
        spelling=Spelling(
            before_name="<tool_call>\n<function=",
            after_name=">\n",
            arguments=TaggedArguments(),
            after_arguments="</function>\n</tool_call>",
            between="\n",
        ),
        markers=("</tool_call>",),
    ),
    ToolFormat(
        "hermes",
        ("<tool_call>",),
        dialects.tagged_call,
        seen=("<tool_call>", "arguments"),
        spelling=_json_spelling("<tool_call>\n", "arguments", "\n</tool_call>", between="\n"),
        markers=("</tool_call>",),
    ),
    ToolFormat(
        "llama3",
        ("<|python_tag|>",),
        calls.bare_call,
        seen=("<|start_header_id|>", '"parameters": '),
        spelling=_json_spelling("", "parameters", "", between="; "),
        is_bare=True,
    ),
)
_REASONING_FORMATS = (
    ReasoningFormat("harmony", "<|channel|>analysis<|message|>", "<|end|>", seen=("<|channel|>", "<|message|>", "<|start|>")),
    ReasoningFormat("gemma4", "<|channel>thought\n", "<channel|>", seen=("<|channel>", "<channel|>")),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]", seen=("[THINK]", "[/THINK]")),
    ReasoningFormat("think", "<think>", "</think>", seen=("</think>",)),
)
# Templates that look like one of the formats above and are another one, which is not in the table.
_FOREIGN = ("<arg_key>",)

TOOL_FORMATS = {format.name: format for format in _TOOL_FORMATS}
REASONING_FORMATS = {format.name: format for format in _REASONING_FORMATS}


def tool_format_of(template: str) -> ToolFormat | None:
    """Return the format in which a model with this chat template calls tools, if it is known."""
    if any(text in template for text in _FOREIGN):
        return None
    return next((format for format in _TOOL_FORMATS if all(text in template for text in format.seen)), None)


def reasoning_format_of(template: str) -> ReasoningFormat | None:
    """Return the format in which a model with this chat template reasons, if it does."""
    return next((format for format in _REASONING_FORMATS if all(text in template for text in format.seen)), None)
