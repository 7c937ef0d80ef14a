"""Owns chat messages -> prompt ids, and which parser reads the model's answer.

Templates are the tokenizer's own, rendered by transformers. Knows no HTTP shapes: messages and tools come as the plain
dictionaries that templates expect.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, cast

from jinja2 import TemplateError

from app.errors import ConfigError, InvalidRequest, UnsupportedParameter
from app.text.answer_parser import (
    AnswerParser,
    ConstrainedParser,
    EitherParser,
    MarkerParser,
    PlainParser,
    TemplateParser,
    new_call_id,
)
from app.text.call_grammar import spelled_call
from app.text.constraint import Constraint, Reasoning
from app.text.deltas import ChatAnswer
from app.text.formats import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    ReasoningFormat,
    ToolFormat,
    reasoning_format_of,
    tool_format_of,
)
from app.text.harmony import HarmonyParser
from app.text.reasoning import reasoning_of
from app.text.template_variables import effort_variables, names_read, thinking_variables, variables_of
from app.text.tokenizer import Tokenizer

# Characters at the end of a prompt that a marker and the white space behind it can take.
_REASONING_TAIL = 200


class ChatTemplate:
    """Renders conversations for one model and parses its answers.

    `tool_format` and `reasoning_format` are names of app/text/formats.py, "none", or "auto": the tokenizer's own response
    template where it has one, else what the chat template shows. `path` is the model's place in config.json, for ConfigError.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, tool_format: str = "auto", reasoning_format: str = "auto", path: str = "MODELS"
    ) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.hf.chat_template
        sources = list(template.values()) if isinstance(template, dict) else [template or ""]
        self._source = "\n".join(sources)
        self.exists = bool(template)
        names = names_read(sources)
        self.variables, self._reads_documents = variables_of(names), "documents" in names
        self._knows_tools = any("tools" in source for source in sources)
        self._knows_developer = any("developer" in source for source in sources)
        added = tokenizer.hf.added_tokens_decoder.values()
        self._control_tokens = [
            token.content for token in added if token.special or (token.content in self._source and not token.content.isspace())
        ]
        self._is_explicit = (tool_format, reasoning_format) != ("auto", "auto")
        seen_tools, seen_reasoning = tool_format_of(self._source), reasoning_format_of(self._source)
        self.tool_format: ToolFormat | None = _named(TOOL_FORMATS, tool_format, seen_tools, f"{path}.TOOL_FORMAT")
        self.reasoning_format: ReasoningFormat | None = _named(
            REASONING_FORMATS, reasoning_format, seen_reasoning, f"{path}.REASONING_FORMAT"
        )

    @property
    def response_template(self) -> dict[str, Any] | None:
        """The tokenizer's own, unless the configuration names a format."""
        template: dict[str, Any] | None = getattr(self._tokenizer.hf, "response_template", None)
        return None if self._is_explicit else template

    @property
    def can_call_tools(self) -> bool:
        template = self.response_template
        has_format = self.tool_format is not None if template is None else "tool_calls" in template.get("fields", {})
        return self._knows_tools and has_format

    @property
    def _is_harmony(self) -> bool:
        return any(format is not None and format.name == "harmony" for format in (self.tool_format, self.reasoning_format))

    @property
    def reasons(self) -> bool:
        """Whether the model's answers may have reasoning in them."""
        fields = (self.response_template or {}).get("fields", {})
        return self.reasoning_format is not None or any(
            name in fields for name in ("reasoning_content", "reasoning", "thinking")
        )

    @cached_property
    def spelled_format(self) -> ToolFormat | None:
        """The format whose spelling of calls is the model's.

        A response template says only how calls are read, so the spelling is that of the first format whose calls it reads.
        """
        if self.response_template is None:
            return self.tool_format
        preferred = [] if self.tool_format is None else [self.tool_format]
        return next((format for format in (*preferred, *TOOL_FORMATS.values()) if self._reads(format)), None)

    def _reads(self, format: ToolFormat) -> bool:
        # What is a text must be read as one, also where it looks like a number.
        arguments, types = {"a": 1, "b": "1"}, {"a": {"type": "integer"}, "b": {"type": "string"}}
        schema = {"type": "object", "properties": types}
        parser, answer = self.parser("", [{"type": "function", "function": {"name": "f", "parameters": schema}}]), ChatAnswer()
        for delta in (*parser.feed(spelled_call(format.spelling, "f", arguments, schema)), *parser.finish()):
            answer.add(delta)
        if not answer.has_called or answer.content:
            return False
        (call,) = answer.tool_calls
        return call.name == "f" and json.loads(call.arguments) == arguments

    @property
    def kept_special_ids(self) -> frozenset[int]:
        """The special tokens that must stay in an answer's text for its parser."""
        if self.response_template is not None:
            return self._tokenizer.special_ids
        formats = (self.tool_format, self.reasoning_format)
        markers = {marker for format in formats if format is not None for marker in _markers(format)}
        added = self._tokenizer.hf.get_added_vocab()
        return self._tokenizer.special_ids & {added[marker] for marker in markers if marker in added}

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        *,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> tuple[list[int], str]:
        """Return the prompt's ids, ending where the assistant's answer begins or goes on, and as the text that `parser` wants.

        What the template refuses is the sender's InvalidRequest. Text of users can not forge control tokens: it is encoded as
        plain text wherever it spells one.
        """
        if not self.exists:
            raise InvalidRequest(
                "This model has no chat template, so it can not chat. Use /v1/completions with a plain prompt.",
                param="model",
                code="unsupported_model",
            )
        if tools and not self.can_call_tools:
            raise UnsupportedParameter(
                "This model can not call tools: its chat template has no tools, or writes calls in a format that is not known "
                "here (TOOL_FORMAT in the server's configuration names one).",
                param="tools",
            )
        variables = dict(variables or {})
        self._refuse_control_tokens_in_keys(messages, "messages")
        self._refuse_control_tokens_in_keys(tools, "tools")
        self._refuse_control_tokens_in_keys(variables, "chat_template_kwargs")
        try:
            ids = self._tokenizer.hf.apply_chat_template(
                [self._for_template(message) for message in messages],
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=True,
                return_dict=False,
                sanitize_control_tokens=True,
                **variables,
            )
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            message = " ".join(str(error).split())[:300]
            raise InvalidRequest(f"The model's chat template refuses these messages: {message}", param="messages") from error
        prompt_ids = cast(list[int], ids)
        reasoning = self.reasoning_format
        if self.response_template is None and reasoning is None and self.tool_format is None:
            return prompt_ids, ""
        text = self._tokenizer.decode(prompt_ids, skip_special_tokens=False)
        if self.response_template is None and reasoning is not None and not self._is_harmony:
            # All that matters to the parser is whether the answer begins inside of reasoning.
            begun = messages[-1].get("content") if continue_final_message else ""
            opened = isinstance(begun, str) and begun.rfind(reasoning.open) > begun.rfind(reasoning.close)
            text = reasoning.open if opened or text.rstrip().endswith(reasoning.open.rstrip()) else ""
        return prompt_ids, text

    def checked_variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a request tells the template; raise UnsupportedParameter for what it would ignore."""
        for name in variables:
            if name not in self.variables:
                known = ", ".join(sorted(self.variables)) or "nothing"
                raise UnsupportedParameter(
                    f"`chat_template_kwargs`: this model's chat template does not read {name[:100]!r}; it reads {known[:500]}.",
                    param=f"chat_template_kwargs.{name[:100]}",
                )
        return dict(variables)

    def effort_variables(self, effort: str) -> dict[str, object]:
        """Return the template's variables for a `reasoning_effort`; raise UnsupportedParameter where it has none for it."""
        return effort_variables(effort, self.variables, self._source, reasons=self.reasons)

    def verbosity_variables(self, verbosity: str, param: str) -> dict[str, object]:
        """Return the template's variables for a verbosity; raise UnsupportedParameter where it has none, but for "medium"."""
        if "verbosity" in self.variables:
            return {"verbosity": verbosity}
        if verbosity == "medium":  # which asks for nothing
            return {}
        raise UnsupportedParameter(
            f"`{param}` {verbosity!r} is not supported by this model: its chat template does not read it.", param=param
        )

    def document_variables(self, documents: Sequence[Mapping[str, Any]]) -> dict[str, object]:
        """Return what the template is told of documents to answer from; raise UnsupportedParameter where it reads none."""
        if not self._reads_documents:
            raise UnsupportedParameter(
                "`documents` is not supported by this model: its chat template does not read it.", param="documents"
            )
        self._refuse_control_tokens_in_keys(documents, "documents")
        return {"documents": [dict(document) for document in documents]}

    def thinking_variables(self, thinks: bool) -> dict[str, object]:
        """Return the template's variables that turn thinking on or off; raise UnsupportedParameter where it has none for it."""
        return thinking_variables(thinks, self.variables, self._source, reasons=self.reasons)

    def _for_template(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] == "developer" and not self._knows_developer:
            return {**message, "role": "system"}
        return message

    def _refuse_control_tokens_in_keys(self, value: Any, param: str) -> None:
        """transformers marks control tokens in values; in the keys of objects, which templates write out too, it does not."""
        for key in _keys(value):
            found = next((token for token in self._control_tokens if token in key), None)
            if found is not None:
                raise InvalidRequest(f"A key in `{param}` has the model's control token {found!r} in it.", param=param)

    def reasoning(self, prefix: str) -> Reasoning | None:
        """Return how the model reasons before it answers a rendered prompt, as grammars take it; None if it does not.

        Of harmony it is None too: there it is a message of its own, not a block before the answer.
        """
        format = self.reasoning_format
        if self.response_template is not None:
            return reasoning_of(self.response_template, prefix[-_REASONING_TAIL:])
        if format is None or self._is_harmony:
            return None
        return Reasoning(format.open.strip(), format.close.strip(), is_open=prefix.endswith(format.open))

    def parser(
        self,
        prefix: str,
        tools: Sequence[dict[str, Any]] | None,
        constraint: Constraint | None = None,
        *,
        names: frozenset[str] | None = None,
        limit: int | None = None,
    ) -> AnswerParser:
        """Return the parser for one answer to a rendered prompt; `prefix` is the text that `render` gave with it.

        Without `tools` nothing is taken for a call. `names` are the only ones that may be called; at most `limit` calls are
        made. What else looks like a call is content. An answer that is held to a `constraint` is content to the letter,
        whatever it looks like, but for the reasoning before it; with tools, it is that or calls.
        """
        if constraint is not None and tools and not self._is_harmony and self.spelled_format is not None:
            calls_parser = self.parser(prefix, tools, names=names, limit=limit)
            return EitherParser(self.spelled_format.opens[0], calls_parser, constraint.reasoning)
        if constraint is not None and not tools:
            return PlainParser() if constraint.reasoning is None else ConstrainedParser(constraint.reasoning)
        if self.response_template is not None:
            return TemplateParser(self._hf_parser(prefix, tools), names=names, limit=limit)
        schemas = None
        if tools:
            schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
        reasoning, calls = self.reasoning_format, self.tool_format
        if self._is_harmony:
            new_id = partial(new_call_id, 24)
            return HarmonyParser(prefix=prefix, schemas=schemas, names=names, limit=limit, new_id=new_id)
        if reasoning is None and (calls is None or schemas is None):
            return PlainParser()
        in_reasoning = reasoning is not None and prefix.endswith(reasoning.open)
        return MarkerParser(calls, reasoning, starts_in_reasoning=in_reasoning, schemas=schemas, names=names, limit=limit)

    def _hf_parser(self, prefix: str, tools: Sequence[dict[str, Any]] | None) -> Any:
        template = self.response_template
        assert template is not None
        if not tools:
            fields = {name: field for name, field in template["fields"].items() if name != "tool_calls"}
            template = {**template, "fields": fields}
        return self._tokenizer.hf.get_response_parser(template, prefix=prefix, tools=list(tools) if tools else None)


def _named(table: Mapping[str, Any], name: str, seen: Any, path: str) -> Any:
    if name == "auto":
        return seen
    if name == "none":
        return None
    if name not in table:
        raise ConfigError(path, f'"{name}"', " or ".join(f'"{known}"' for known in ("auto", "none", *table)))
    return table[name]


def _markers(format: ToolFormat | ReasoningFormat) -> tuple[str, ...]:
    if isinstance(format, ToolFormat):
        return (*format.opens, *format.markers)
    return (format.open.split("\n")[0], format.open, format.close)


def _keys(value: Any) -> Iterator[str]:
    """Yield the keys of all objects in a value, however deep: without recursion, for it comes from outside."""
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, Mapping):
            yield from map(str, inner)
            left += inner.values()
        elif isinstance(inner, (list, tuple)):
            left += inner
