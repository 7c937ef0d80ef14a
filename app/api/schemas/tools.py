"""Owns the tools of a chat request: which are offered, which may or must be called, and how, from all the fields that say so.

`tools`, `tool_choice` and `parallel_tool_calls`, and their predecessors `functions` and `function_call`. Knows no models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from app.errors import Inapplicable, InvalidRequest, UnsupportedParameter
from app.text.call_constraint import Function

MAX_TOOLS = 128

_NAME = r"^[A-Za-z0-9_.-]+$"
_Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=_NAME)]


class FunctionDefinition(msgspec.Struct, forbid_unknown_fields=True):
    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema(self) -> dict[str, Any]:
        """The schema of the arguments; of a function without parameters (OpenAI's meaning of none) that of an empty object."""
        return {"type": "object", "additionalProperties": False} if self.parameters is None else self.parameters

    def for_template(self) -> dict[str, Any]:
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    """It has to be one of those that are given, which may be longer than OpenAI's."""

    name: Annotated[str, Meta(min_length=1, max_length=128, pattern=_NAME)]


class _NamedTool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: NamedFunction


class _AllowedTools(msgspec.Struct, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[_NamedTool], Meta(min_length=1, max_length=MAX_TOOLS)]


class _AllowedToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["allowed_tools"]
    allowed_tools: _AllowedTools


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """What a request says of tools.

    `tools` are those that the template shows, None for none. `functions` are those that may be called; `names` are theirs where
    they are not all. At most `limit` calls are made, and at least one if `must_call`. `param` is where the request says so.
    `is_legacy`: the request has `functions`, and is answered with `function_call`.
    """

    tools: list[dict[str, Any]] | None = None
    names: frozenset[str] | None = None
    limit: int | None = None
    must_call: bool = False
    functions: tuple[Function, ...] = ()
    param: str = "tools"
    is_legacy: bool = False

    @property
    def needs_grammar(self) -> bool:
        """Whether the model must be made to write something, and not only kept from it."""
        return self.tools is not None and (self.must_call or any(function.is_strict for function in self.functions))

    @property
    def wants_grammar(self) -> bool:
        """Whether a grammar makes a difference; what is not needed, the parser takes care of where there can be none."""
        return self.tools is not None and (self.needs_grammar or self.names is not None or self.limit is not None)


def offered_tools(
    tools: Sequence[Tool] | None,
    tool_choice: str | dict[str, Any] | None,
    parallel_tool_calls: bool | None,
    functions: Sequence[FunctionDefinition] | None,
    function_call: str | NamedFunction | None,
) -> OfferedTools:
    """Put the fields together; raise InvalidRequest for contradictions, UnsupportedParameter for what is not honoured."""
    if functions:
        if tools or tool_choice is not None:
            raise Inapplicable("`functions` is the older name of `tools`; give one of them.", param="functions")
        _refuse_strict(functions)
        choice: str | dict[str, Any] | None = function_call if isinstance(function_call, str) else None
        if isinstance(function_call, NamedFunction):
            choice = {"type": "function", "function": {"name": function_call.name}}
        place = "functions.[{}].parameters"
        return chosen_tools(functions, choice, limit=1, param="function_call", place=place, is_legacy=True)
    if function_call not in (None, "none"):
        raise Inapplicable("`function_call` is only allowed when `functions` are given.", param="function_call")
    limit = 1 if parallel_tool_calls is False else None
    return chosen_tools([tool.function for tool in tools or ()], tool_choice, limit=limit)


def chosen_tools(
    functions: Sequence[FunctionDefinition],
    choice: str | dict[str, Any] | None,
    *,
    limit: int | None,
    param: str = "tool_choice",
    place: str = "tools.[{}].function.parameters",
    is_legacy: bool = False,
) -> OfferedTools:
    """Put tools and choice together, the latter as /v1/chat/completions spells it; raise as `offered_tools` does.

    `place` is where the request has the parameters of its tools.
    """
    shown = [function.for_template() for function in functions]
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"There are two functions of the name {twice!r}.", param="functions" if is_legacy else "tools")
    if choice not in (None, "none") and not shown:
        raise Inapplicable("`tool_choice` is only allowed when `tools` are given.", param=param)
    if choice == "none" or not shown:
        return OfferedTools()
    callable_ = tuple(
        Function(function.name, function.schema, place.format(index), bool(function.strict))
        for index, function in enumerate(functions)
    )
    offered = OfferedTools(shown, None, limit, functions=callable_, param=param, is_legacy=is_legacy)
    if choice in (None, "auto"):
        return replace(offered, param="parallel_tool_calls" if limit is not None and not offered.needs_grammar else "tools")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = _convert(choice, _AllowedToolChoice, param).allowed_tools
        wanted = frozenset(_known(tool.function.name, names, param) for tool in allowed.tools)
        seen = [tool for tool in shown if tool["function"]["name"] in wanted]
        return replace(_only(offered, wanted), tools=seen, must_call=allowed.mode == "required")
    if isinstance(choice, dict):
        name = _known(_convert(choice, _NamedTool, param).function.name, names, param)
        return replace(_only(offered, frozenset({name})), limit=1, must_call=True)
    if choice == "required":
        return replace(offered, must_call=True)
    raise InvalidRequest(f"`{param}` must be 'none', 'auto', 'required' or an object; found {choice[:40]!r}.", param=param)


def _only(offered: OfferedTools, names: frozenset[str]) -> OfferedTools:
    return replace(offered, names=names, functions=tuple(one for one in offered.functions if one.name in names))


def _refuse_strict(functions: Sequence[FunctionDefinition]) -> None:
    for index, function in enumerate(functions):
        if function.strict:
            raise UnsupportedParameter(
                "`strict` came with `tools`; `functions` do not have it.", param=f"functions.[{index}].strict"
            )


def _convert(value: Any, kind: Any, param: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Invalid value for '{param}': {str(error)[:300]}.", param=param, code="invalid_value") from error


def _known(name: str, names: Sequence[str], param: str) -> str:
    if name not in names:
        raise InvalidRequest(f"`{param}` names the function {name!r}, which is not among those that are given.", param=param)
    return name
