"""Owns the tools of a chat request: which are offered, which may or must be called, and how, from all the fields that say so.

`tools`, `tool_choice` and `parallel_tool_calls`, and their predecessors `functions` and `function_call`. Knows no models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from app.errors import Inapplicable, InvalidRequest, UnsupportedParameter

MAX_TOOLS = 128

_Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


class FunctionDefinition(msgspec.Struct, forbid_unknown_fields=True):
    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def for_template(self, place: str) -> dict[str, Any]:
        if self.strict:
            raise UnsupportedParameter(
                "`strict` tools need constrained decoding, which is not there yet.", param=f"{place}.strict"
            )
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: _Name


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

    `tools` are those that the template shows, None for none. `names`, when given, are the only ones that may be called; at most
    `limit` calls are made. `is_legacy`: the request has `functions`, and is answered with `function_call`.
    """

    tools: list[dict[str, Any]] | None = None
    names: frozenset[str] | None = None
    limit: int | None = None
    is_legacy: bool = False


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
        shown = [function.for_template(f"functions.[{index}]") for index, function in enumerate(functions)]
        choice: str | dict[str, Any] | None = function_call if isinstance(function_call, str) else None
        if isinstance(function_call, NamedFunction):
            choice = {"type": "function", "function": {"name": function_call.name}}
        return _chosen(shown, choice, limit=1, param="function_call", is_legacy=True)
    if function_call not in (None, "none"):
        raise Inapplicable("`function_call` is only allowed when `functions` are given.", param="function_call")
    shown = [tool.function.for_template(f"tools.[{index}].function") for index, tool in enumerate(tools or ())]
    return _chosen(shown, tool_choice, limit=1 if parallel_tool_calls is False else None, param="tool_choice", is_legacy=False)


def _chosen(
    shown: list[dict[str, Any]], choice: str | dict[str, Any] | None, *, limit: int | None, param: str, is_legacy: bool
) -> OfferedTools:
    names = [tool["function"]["name"] for tool in shown]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"There are two functions of the name {twice!r}.", param="functions" if is_legacy else "tools")
    if choice not in (None, "none") and not shown:
        raise Inapplicable("`tool_choice` is only allowed when `tools` are given.", param=param)
    if choice == "none" or not shown:
        return OfferedTools()
    if choice in (None, "auto"):
        return OfferedTools(shown, None, limit, is_legacy)
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = _convert(choice, _AllowedToolChoice, param).allowed_tools
        wanted = [_known(tool.function.name, names, param) for tool in allowed.tools]
        if allowed.mode == "auto":
            return OfferedTools([tool for tool in shown if tool["function"]["name"] in wanted], frozenset(wanted), limit)
    elif isinstance(choice, dict):
        _known(_convert(choice, _NamedTool, param).function.name, names, param)
    elif choice != "required":
        raise InvalidRequest(f"`{param}` must be 'none', 'auto', 'required' or an object; found {choice[:40]!r}.", param=param)
    raise UnsupportedParameter(f"`{param}` that makes the model call a tool is not supported yet.", param=param)


def _convert(value: Any, kind: Any, param: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Invalid value for '{param}': {str(error)[:300]}.", param=param, code="invalid_value") from error


def _known(name: str, names: Sequence[str], param: str) -> str:
    if name not in names:
        raise InvalidRequest(f"`{param}` names the function {name!r}, which is not among those that are given.", param=param)
    return name
