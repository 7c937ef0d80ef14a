"""Owns what a text may be held to: JSON, a JSON schema, a regular expression, a choice, a grammar; each as Lark text. Knows no
compiler.

All of them become one language, llguidance's dialect of Lark, so that they can be put together. This module is light: the API
makes constraints, `grammar.py` compiles them.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from app.errors import InvalidRequest, UnsupportedParameter
from app.text.json_schema import constraining

# Bytes of what the client sent.
MAX_SOURCE_BYTES = 128 * 1024
MAX_CHOICES = 2000
# llguidance draws tokens as the model spells them, and does not insist on its own spelling of what is certain.
OPTIONS = '\n%llguidance {"no_forcing": true}'
# Between the tokens of JSON: nothing, a space, or a new line with its indent. With more, a model could write white space for
# ever.
_SPACED = {"whitespace_pattern": r"( |\n[ \t]{0,40})"}
_COMPACT = {"whitespace_flexible": False}
# No \u: a key could be spelled with it so that nothing recognizes it as one of `properties`.
_ESCAPES = {"json_allowed_escapes": 'nrbtf\\"'}
# Attributes of rules that the engine has no means to honour.
_ATTRIBUTE = re.compile(r"^[ \t]*[\w-]+\[[^\]\n]*\b(stop|temperature)\b[^\]\n]*\][ \t]*:", re.MULTILINE)

Kind = Literal["json_object", "json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The markers around a model's reasoning; `is_open` if its prompt ends inside of it."""

    open: str
    close: str
    is_open: bool


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a text is held to, as the client sent it in its parameter `param`; nothing is checked yet.

    `value` is None for "json_object", the schema or its JSON text for "json_schema", a text for "regex" (the whole text has to
    match) and "lark", a list of texts for "choice". `compact` takes the white space out of JSON. With `reasoning`, the model
    may reason before.

    "lark" is the entry for grammars that are made elsewhere, for tool calls say: rules, `start` among them, with `%json {...}`
    for a JSON schema (checked as any other), `<[id]>` for one token by its id and "..." for text; `GrammarCompiler.marker` says
    how a marker such as `<tool_call>` is written.
    """

    kind: Kind
    value: Any
    param: str
    compact: bool = False
    reasoning: Reasoning | None = None

    @property
    def key(self) -> str:
        """The same for constraints that make the same grammar."""
        reasoning = None if self.reasoning is None else [self.reasoning.open, self.reasoning.close, self.reasoning.is_open]
        return json.dumps([self.kind, self.value, self.compact, reasoning], ensure_ascii=False, separators=(",", ":"))

    def to_lark(self) -> tuple[str, frozenset[str]]:
        """Return the grammar without the reasoning, and characters that its texts can not do without.

        Raise InvalidRequest for what is malformed or too large, UnsupportedParameter for what can not be enforced.
        """
        size = len(self.key.encode())
        if size > MAX_SOURCE_BYTES:
            raise InvalidRequest(f"`{self.param}` has {size} bytes; at most {MAX_SOURCE_BYTES} are possible.", param=self.param)
        if self.kind in ("json_object", "json_schema"):
            schema = self._json({"type": "object"} if self.kind == "json_object" else self._schema())
            return f"start: %json {schema}{OPTIONS}", frozenset(schema + '{}[]",:\\0123456789+-.eE')
        if self.kind == "choice":
            return self._choice()
        if not isinstance(self.value, str) or not self.value:
            raise InvalidRequest(f"`{self.param}` must be a text that is not empty.", param=self.param)
        # What of a pattern stands for itself is not known here; letters and digits mostly do.
        literal = frozenset(char for char in self.value if char.isalnum())
        return self._regex() if self.kind == "regex" else self._lark(), literal

    def answer_rule(self) -> str:
        """Return the rule `answer` for a grammar in which calls of tools are the other way to answer.

        Raise UnsupportedParameter for what is not JSON: only that can be told from a call by its beginning.
        """
        if self.kind not in ("json_object", "json_schema"):
            raise UnsupportedParameter(
                f"`{self.param}` beside `tools` that may be called can only ask for JSON.", param=self.param
            )
        schema = {"type": "object"} if self.kind == "json_object" else self._schema()
        return f"answer: %json {json.dumps(schema, ensure_ascii=False)}"

    def _schema(self) -> Any:
        if not isinstance(self.value, str):
            return self.value
        try:
            return json.loads(self.value)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"`{self.param}` is a text, but not of JSON: {error}.", param=self.param) from error

    def _json(self, schema: Any) -> str:
        checked = constraining(schema, self.param)
        if isinstance(checked, bool):
            checked = {"allOf": [checked]}
        options = (_COMPACT if self.compact else _SPACED) | _ESCAPES
        return json.dumps(checked | {"x-guidance": options}, ensure_ascii=False, separators=(",", ":"))

    def _choice(self) -> tuple[str, frozenset[str]]:
        choices = self.value
        if not isinstance(choices, list) or not choices or not all(isinstance(text, str) and text for text in choices):
            raise InvalidRequest(f"`{self.param}` must be a list of texts, none of them empty.", param=self.param)
        if len(choices) > MAX_CHOICES:
            raise InvalidRequest(
                f"`{self.param}` has {len(choices)} choices; at most {MAX_CHOICES} are possible.", param=self.param
            )
        # As one terminal, which costs as much for a thousand as for one; as rules each would be an alternative to keep.
        return f"start: CHOICE\nCHOICE: {' | '.join(map(_quoted, choices))}{OPTIONS}", frozenset("".join(choices))

    def _regex(self) -> str:
        escaped = re.sub(r"\\.|/|\n", _escape_for_lark, self.value, flags=re.DOTALL)
        return f"start: /{escaped}/{OPTIONS}"

    def _lark(self) -> str:
        text: str = self.value
        attribute = _ATTRIBUTE.search(text)
        if attribute:
            raise UnsupportedParameter(
                f"The attribute `{attribute[1]}` of a rule is not supported in `{self.param}`.", param=self.param
            )
        parts: list[str] = []
        end = 0
        for match in re.finditer(r"%json\s*", text):
            if match.start() < end:
                continue  # inside of a schema
            try:
                schema, length = json.JSONDecoder().raw_decode(text[match.end() :])
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"`{self.param}` has a %json that no JSON follows: {error}.", param=self.param) from error
            parts += [text[end : match.end()], self._json(schema)]
            end = match.end() + length
        return "".join([*parts, text[end:], OPTIONS])


def _escape_for_lark(match: re.Match[str]) -> str:
    found = match[0]
    return {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}.get(found, found)


def _quoted(text: str) -> str:
    # Lark's strings are JSON's, but for the control characters that JSON takes as they are.
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))
