"""Owns what an answer is held to when tools must be called, or called in a certain way. Knows no HTTP.

The grammar is made from how the model's format spells calls: what it lets through is what the parser of the format reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.errors import InvalidRequest, UnsupportedParameter
from app.text.call_arguments import NotEnforceableError
from app.text.call_grammar import Marker, Parts, call_grammar
from app.text.constraint import Constraint
from app.text.formats import ToolFormat
from app.text.json_schema import constraining

if TYPE_CHECKING:
    from app.text.chat import ChatTemplate

# The schema of any arguments, for functions that are not strict and whose own schema can not be enforced.
_ANY = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Function:
    """A function that may be called. `param` is where the request has the schema of its arguments."""

    name: str
    schema: dict[str, Any]
    param: str
    is_strict: bool


def call_constraint(
    chat: "ChatTemplate",
    marker: Marker,
    functions: Sequence[Function],
    prefix: str,
    *,
    must_call: bool,
    single: bool,
    param: str,
    answer: Constraint | None = None,
) -> Constraint:
    """Return what an answer to the prompt whose text is `prefix` is held to. Slow at the first call.

    Only these functions may be called, one of them must be if `must_call`, and one at most if `single`. The schemas of strict
    ones are enforced; so are the others, as far as that is possible. With `answer`, what is no call is held to that. Raise
    UnsupportedParameter if the model's format can not be enforced, or a strict schema, or `answer` beside calls.
    """
    format = chat.spelled_format
    if format is None:
        raise UnsupportedParameter(
            f"This model can not honour `{param}`: its tool calls are written in a way that can not be enforced.", param=param
        )
    if answer is not None and format.is_bare:
        raise UnsupportedParameter(
            f"This model can not honour `{answer.param}` beside `tools`: its calls begin as JSON does.", param=answer.param
        )
    parts = Parts(format, marker)
    schemas = {function.name: _schema(function, format, parts) for function in functions}
    rule = "" if answer is None else answer.answer_rule()
    lark = call_grammar(format, schemas, marker=marker, must_call=must_call, single=single, answer=rule)
    return Constraint("lark", lark, param, reasoning=chat.reasoning(prefix))


def _schema(function: Function, format: ToolFormat, parts: Parts) -> dict[str, Any]:
    schema = {"type": "object", **function.schema}
    try:
        if schema["type"] != "object":
            raise InvalidRequest(f"`{function.param}` must be the schema of an object.", param=function.param)
        constraining(schema, function.param)
        format.spelling.arguments.rules("arguments", schema, parts)
    except NotEnforceableError as error:
        if function.is_strict:
            raise UnsupportedParameter(
                f"The JSON schema keyword `{error.keyword}` at {error.place} can not be enforced in this model's tool calls,"
                " whose arguments are not JSON.",
                param=function.param,
                code="unsupported_json_schema",
            ) from error
        return _ANY
    except (InvalidRequest, UnsupportedParameter):
        if function.is_strict:
            raise
        return _ANY
    return schema
