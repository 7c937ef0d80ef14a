"""Owns when an answer gets a grammar because of its tools, or of how long the model may think.

For tools: where one is needed, and where it only helps if nothing speaks against it. Shared by every endpoint that chats. Knows
neither grammars nor formats: text.call_constraint and text.grammar make them.
"""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from app.api.schemas.tools import OfferedTools
from app.engine.defaults import SamplingRequest
from app.errors import InvalidRequest, UnsupportedParameter
from app.registry import ServedModel
from app.text.call_constraint import call_constraint
from app.text.constraint import Constraint

if TYPE_CHECKING:
    from app.engine.grammar import Grammar


async def grammar_of_calls(
    model: ServedModel, offered: OfferedTools, prefix: str, request: SamplingRequest, answer: Constraint | None = None
) -> "Grammar | None":
    """Return what holds the answer to a rendered prompt, whose text is `prefix`, to the calls that the request wants, and
    otherwise to `answer`.

    None where there is nothing to hold it to, or where the parser alone takes care of it. Raise InvalidRequest or a subclass
    for what can not be enforced.
    """
    needed = offered.needs_grammar or answer is not None
    if not offered.wants_grammar and not needed:
        return None
    loaded = model.loaded
    if not needed and (request.contradicts_grammar or loaded.defaults.beams(request) > 1):
        return None  # which a grammar would contradict
    try:
        constraint = await asyncio.to_thread(
            call_constraint,
            loaded.chat,
            loaded.grammars.marker,
            offered.functions,
            prefix,
            must_call=offered.must_call,
            single=offered.limit == 1,
            param=offered.param if offered.needs_grammar or answer is None else answer.param,
            answer=answer,
        )
        return await loaded.grammars.compile(constraint)
    except InvalidRequest:
        if needed:
            raise
        return None


async def limit_thinking(
    model: ServedModel, prefix: str, request: SamplingRequest, num_tokens: int, param: str
) -> SamplingRequest:
    """Return the request with a grammar that ends the model's thoughts after `num_tokens` tokens, beside the one that it has.

    `prefix` is the text of the rendered prompt. Raise UnsupportedParameter for `param` where thoughts have no markers, or none
    that the model's tokens can spell.
    """
    reasoning = model.loaded.chat.reasoning(prefix)
    if reasoning is None:
        raise UnsupportedParameter(
            f"`{param}` is not supported by this model: its thoughts are not between markers that are known here.",
            param=param,
        )
    grammar = await model.loaded.grammars.with_budget(request.grammar, reasoning, num_tokens, param)
    return replace(request, grammar=grammar, grammar_param=request.grammar_param or param)
