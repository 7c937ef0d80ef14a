"""Owns grammars of answers that call tools, in Lark, made from how a format of app/text/formats.py spells its calls.

Knows no compiler: `marker` says how Lark writes a marker of a model, as its token where it is one. Knows no HTTP.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.text.call_arguments import Rules, escaped
from app.text.formats import Spelling, ToolFormat

Marker = Callable[[str], str]


def call_grammar(
    format: ToolFormat,
    schemas: Mapping[str, Mapping[str, Any]],
    *,
    marker: Marker,
    must_call: bool,
    single: bool,
    answer: str = "",
) -> str:
    """Return the grammar of an answer that may, or `must_call`, end in calls of these functions, `single`: in one.

    `schemas` are those of their arguments by name. Reasoning before it is not part of it, but for harmony. With `answer`, a
    rule of that name, it is calls or that, and nothing else. The format must not be a bare one then.
    """
    parts, spelling, arguments = Parts(format, marker), format.spelling, Rules()
    opener = format.opens[0] if format.opens and not format.is_bare else ""
    before_first = (spelling.begin + spelling.before_name).removeprefix(opener)
    single = single or format.name == "harmony"  # whose calls end the answer
    more = "" if single else f" ({parts.text(spelling.between)} call)*"
    rules = [f"calls: first{more} {parts.text(spelling.end)}", _alternatives("first", len(schemas))]
    rules += [] if single else [_alternatives("call", len(schemas))]
    for index, (name, schema) in enumerate(schemas.items()):
        after = f"arguments_{index} {parts.text(spelling.after_arguments)}"
        rules.append(f"first_{index}: {parts.text(before_first + name + spelling.after_name)} {after}")
        if not single:
            rules.append(f"call_{index}: {parts.text(spelling.before_name + name + spelling.after_name)} {after}")
        arguments |= spelling.arguments.rules(f"arguments_{index}", schema, parts)
    rules += [f"{name}: {definition}" for name, definition in arguments.items()]
    if format.name == "harmony":
        return "\n".join([*_harmony_start(parts, must_call, answer), *rules])
    if must_call:
        return "\n".join([f"start: {parts.text(opener)} calls", *rules])
    if answer:
        return "\n".join([f"start: answer | {parts.text(opener)} calls", answer, *rules])
    return "\n".join([*_start(parts, format, opener), *rules])


def _alternatives(rule: str, count: int) -> str:
    return f"{rule}: " + " | ".join(f"{rule}_{index}" for index in range(count))


def _start(parts: "Parts", format: ToolFormat, opener: str) -> Sequence[str]:
    """Text, or text and calls; what opens a call can not be written in any other way, so that none is half a call."""
    without = "".join(map(_without, format.opens))
    if format.is_bare:
        return "start: (PLAIN | calls)?", f"PLAIN: /\\s*[^\\s{{](?s:.*)/{without}"
    plain = f"PLAIN: /(?s:.+)/{without}"
    if parts.is_token(opener):
        return f"start: PLAIN? ({parts.text(opener)} calls)?", plain
    return "start: PLAIN? | opened calls", f"opened[lazy]: /(?s:.*){escaped(opener)}/", plain


def _harmony_start(parts: "Parts", must_call: bool, answer: str) -> Sequence[str]:
    """Harmony's answers are messages: some that reason, and then the answer or a call."""
    plain = "PLAIN: /(?s:.*)/" + "".join(map(_without, ("<|end|>", "<|channel|>", "<|start|>", "<|call|>", "<|return|>")))
    final = f"final: {parts.text('<|channel|>final<|message|>')} {'answer' if answer else 'PLAIN'}"
    next_message = parts.text("<|end|><|start|>assistant")
    reasoning = f"reasoning: {parts.text('<|channel|>analysis<|message|>')} PLAIN {next_message}"
    # Where a text ends can not be told if the marker behind it is text too; but it is a token of all models that know it.
    rules = [reasoning] if parts.is_token("<|end|>") else []
    before = "reasoning? " if rules else ""
    if must_call:
        return f"start: {before}calls", *rules, *([plain] if rules else [])
    kept = [plain] if rules or not answer else []
    return f"start: {before}(final | calls)", *rules, final, *kept, *([answer] if answer else [])


def _without(marker: str) -> str:
    """Return the part of a terminal that keeps a marker out of it, in whatever tokens it is spelled."""
    return f" & ~/(?s:.*){escaped(marker)}(?s:.*)/"


class Parts:
    """Writes texts of one format for Lark (call_arguments.Lark): its markers as the tokens that they are, the rest as text."""

    def __init__(self, format: ToolFormat, marker: Marker) -> None:
        markers = sorted((*format.opens, *format.markers), key=len, reverse=True)
        self._markers = re.compile("(" + "|".join(map(re.escape, markers)) + ")")
        self._marker = marker

    def is_token(self, marker: str) -> bool:
        return self._marker(marker).startswith("<[")

    def text(self, text: str) -> str:
        pieces = [piece for piece in self._markers.split(text) if piece]
        return " ".join(
            self._marker(piece) if self._markers.fullmatch(piece) else json.dumps(piece, ensure_ascii=False) for piece in pieces
        )


def spelled_call(spelling: Spelling, name: str, arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return one call as the model would write it."""
    written = spelling.arguments.spelled(arguments, schema)
    return (
        spelling.begin + spelling.before_name + name + spelling.after_name + written + spelling.after_arguments + spelling.end
    )
