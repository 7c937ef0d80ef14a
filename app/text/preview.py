"""Owns what /tokenize shows of a conversation: its prompt's ids under options that chatting itself does not have.

Knows no HTTP, and nothing of transformers but the tokenizer it is handed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError, meta

from app.errors import InvalidRequest, UnsupportedParameter

if TYPE_CHECKING:
    from app.text.chat import ChatTemplate
    from app.text.tokenizer import Tokenizer

# What transformers itself gives to a template; everything else that a template reads is its own switch.
_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
_FUNCTIONS = frozenset({"raise_exception", "strftime_now"})
_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class PreviewOptions:
    """How to render; the defaults are what /v1/chat/completions does. `variables` are the template's own switches."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


def preview(
    tokenizer: "Tokenizer",
    chat: "ChatTemplate",
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] | None,
    options: PreviewOptions,
) -> list[int]:
    """Return the prompt's ids; raise InvalidRequest for what the template refuses or does not have."""
    if options == PreviewOptions():
        return chat.render(messages, tools)[0]  # the very ids that the chat endpoint computes
    if not chat.exists:
        raise InvalidRequest("This model has no chat template.", param="model", code="unsupported_model")
    sources = _sources(tokenizer, bool(tools))
    _check_variables(tokenizer, sources, options.variables)
    if tools and not any("tools" in source for source in sources):
        raise UnsupportedParameter("This model's chat template knows no tools.", param="tools")
    knows_developer = any("developer" in source for source in sources)
    try:
        ids: list[int] = tokenizer.hf.apply_chat_template(  # type: ignore[assignment]  # a list of ids, as asked for
            [message if knows_developer else _without_developer(message) for message in messages],
            tools=list(tools) if tools else None,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
            **options.variables,
        )
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        text = " ".join(str(error).split())[:300]
        raise InvalidRequest(f"The model's chat template refuses these messages: {text}", param="messages") from error
    return ids


def _sources(tokenizer: "Tokenizer", with_tools: bool) -> list[str]:
    """Return the template that transformers would take: the one for tools or the default where there are several."""
    template = tokenizer.hf.chat_template
    if isinstance(template, dict):
        return [template["tool_use"] if with_tools and "tool_use" in template else template.get("default", "")]
    return [template or ""]


def _check_variables(tokenizer: "Tokenizer", sources: Sequence[str], variables: Mapping[str, Any]) -> None:
    """Refuse a variable that the template does not read: it would be ignored in silence."""
    if not variables:
        return
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701  # it parses here and renders nothing
    read: set[str] = set()
    try:
        for source in sources:
            # Transformers' own tag around the assistant's words, which this environment does not know.
            read |= meta.find_undeclared_variables(environment.parse(_GENERATION_TAG.sub("", source)))
    except TemplateError as error:
        raise UnsupportedParameter(
            "This model's chat template can not be searched for variables.", param="chat_template_kwargs"
        ) from error
    own = sorted(read - _GIVEN - _FUNCTIONS - set(environment.globals) - set(tokenizer.hf.special_tokens_map))
    for name in variables:
        if name not in own:
            has = f"it has {', '.join(own)}" if own else "it has none"
            raise UnsupportedParameter(
                f"This model's chat template has no variable `{name[:100]}`; {has[:300]}.",
                param=f"chat_template_kwargs.{name[:100]}",
            )


def _without_developer(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "role": "system"} if message["role"] == "developer" else message
