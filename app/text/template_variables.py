"""Owns what a chat template can be told besides messages and tools: which variables it reads, and how much to reason.

Knows no HTTP and renders nothing.
"""

import re
from collections.abc import Iterable

from jinja2 import Environment, TemplateSyntaxError, meta

from app.errors import UnsupportedParameter

# What transformers and jinja give every template, or take for themselves: not for senders of requests to set.
_RESERVED = frozenset(
    (
        *("messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
        *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "sanitize_control_tokens", "conversation", "self", "raise_exception", "strftime_now"),
        *("range", "dict", "lipsum", "cycler", "joiner", "namespace"),
    )
)
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_SWITCHES = ("enable_thinking", "thinking")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def names_read(sources: Iterable[str]) -> frozenset[str]:
    """Return the names that templates read and do not set themselves. One that can not be parsed reads nothing."""
    # It only parses: rendering is for the sandbox of transformers.
    environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)
    names: set[str] = set()
    for source in sources:
        try:
            names |= meta.find_undeclared_variables(environment.parse(_GENERATION.sub("", source)))
        except TemplateSyntaxError:
            continue
    return frozenset(names)


def variables_of(names: Iterable[str]) -> frozenset[str]:
    """Return those of the names that a template reads that a request may set by `chat_template_kwargs`."""
    return frozenset(name for name in names if name not in _RESERVED and not name.endswith("_token"))


def thinking_variables(thinks: bool, variables: frozenset[str], source: str, *, reasons: bool) -> dict[str, object]:
    """Return the variables that turn a template's `thinking` on or off; raise UnsupportedParameter if none does.

    A model without a switch thinks, or does not, already.
    """
    switch = next((name for name in _SWITCHES if name in variables), None)
    if switch is not None:
        return {switch: thinks}
    if thinks == reasons:
        return {}
    if not thinks and "reasoning_effort" in variables and re.search(r"""["']none["']""", source):
        return {"reasoning_effort": "none"}
    known = "can not be kept from thinking" if reasons else "does not think"
    raise UnsupportedParameter(
        f"`thinking.type` {'enabled' if thinks else 'disabled'} is not supported by this model: it {known}.", param="thinking"
    )


def effort_variables(effort: str, variables: frozenset[str], source: str, *, reasons: bool) -> dict[str, object]:
    """Return the variables that make a template ask for this `reasoning_effort`; raise UnsupportedParameter if none does.

    A template with an effort takes low, medium and high, and others that it names; one with a switch is off for none and on for
    the rest. A model that does not reason has an effort of none already.
    """
    if "reasoning_effort" in variables:
        if effort in ("low", "medium", "high") or re.search(rf"""["']{effort}["']""", source):
            return {"reasoning_effort": effort}
    else:
        switch = next((name for name in _SWITCHES if name in variables), None)
        if switch is not None:
            return {switch: effort != "none"}
        if effort == "none" and not reasons:
            return {}
    known = "low, medium and high" if "reasoning_effort" in variables else "none of its values" if reasons else "none only"
    raise UnsupportedParameter(
        f"`reasoning_effort` {effort!r} is not supported by this model: its chat template takes {known}.",
        param="reasoning_effort",
    )
