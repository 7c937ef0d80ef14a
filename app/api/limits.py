"""Owns enforcing LIMITS on decoded bodies: one table of what is counted, for all endpoints. Knows no endpoint."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from app.config_limits import Limits
from app.errors import InvalidRequest

Count = Callable[[Any], int | None]


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _items(value: Any) -> int | None:
    return len(value) if isinstance(value, list | dict) else None


def _texts_or_lists(value: Any) -> int | None:
    """Prompts in a list of them; a list of token ids is one."""
    return len(value) if isinstance(value, list) and value and isinstance(value[0], str | list) else None


def _items_of_conversation(value: Any) -> int | None:
    return len(value) if isinstance(value, list) and value and isinstance(value[0], msgspec.Struct | dict) else None


def _longest_text(value: Any) -> int | None:
    texts = value if isinstance(value, list) else [value]
    return max((len(text) for text in texts if isinstance(text, str)), default=None)


def _longest_ids(value: Any) -> int | None:
    if not isinstance(value, list) or not value:
        return None
    if isinstance(value[0], int):
        return len(value)
    return max((len(ids) for ids in value if isinstance(ids, list)), default=None)


class _Rule(NamedTuple):
    """`limit` names a field of Limits, `unit` what is counted of the parameter, for the message."""

    parameter: str
    limit: str
    measure: Count
    unit: str


RULES = (
    _Rule("n", "n", _number, ""),
    _Rule("best_of", "n", _number, ""),
    _Rule("num_beams", "beams", _number, ""),
    _Rule("prompt", "prompts", _texts_or_lists, "prompts"),
    _Rule("prompt", "text_characters", _longest_text, "characters"),
    _Rule("prompt", "prompt_tokens", _longest_ids, "token ids"),
    _Rule("suffix", "text_characters", _longest_text, "characters"),
    _Rule("input", "inputs", _texts_or_lists, "inputs"),
    _Rule("input", "items", _items_of_conversation, "items"),
    _Rule("input", "text_characters", _longest_text, "characters"),
    _Rule("input", "prompt_tokens", _longest_ids, "token ids"),
    _Rule("system", "items", _items, "blocks"),
    _Rule("state", "text_characters", _longest_text, "characters"),
    _Rule("tokens", "prompt_tokens", _items, "token ids"),
    _Rule("messages", "messages", _items, "messages"),
    _Rule("documents", "items", _items, "documents"),
    _Rule("tools", "tools", _items, "tools"),
    _Rule("functions", "tools", _items, "functions"),
    _Rule("questions", "questions", _items, "questions"),
    _Rule("stop", "stop", _items, "texts"),
    _Rule("stop", "stop_characters", _longest_text, "characters"),
    _Rule("stop_sequences", "stop", _items, "texts"),
    _Rule("stop_sequences", "stop_characters", _longest_text, "characters"),
    _Rule("stop_token_ids", "stop_token_ids", _items, "token ids"),
    _Rule("allowed_token_ids", "allowed_token_ids", _items, "token ids"),
    _Rule("bad_words", "bad_words", _items, "words"),
    _Rule("bad_words", "stop_characters", _longest_text, "characters"),
    _Rule("logit_bias", "logit_bias", _items, "entries"),
    _Rule("chat_template_kwargs", "template_variables", _items, "entries"),
)
_BY_STRUCT: dict[type[msgspec.Struct], tuple[_Rule, ...]] = {}


def check_limits(body: msgspec.Struct, limits: Limits) -> None:
    """Raise InvalidRequest, with the limit and the value, for the first parameter that has too much of something."""
    kind = type(body)
    if kind not in _BY_STRUCT:
        _BY_STRUCT[kind] = tuple(rule for rule in RULES if rule.parameter in kind.__struct_fields__)
    for parameter, limit, measure, unit in _BY_STRUCT[kind]:
        found, most = measure(getattr(body, parameter)), getattr(limits, limit)
        if found is not None and found > most:
            what = f"has {found} {unit}" if unit else f"is {found}"
            raise too_much(f"`{parameter}` {what}", most, limit, parameter)


def check_depth(body: dict[str, Any], limits: Limits) -> None:
    """Raise InvalidRequest for a parameter that is deeper than whatever writes it out again could follow."""
    for name, value in body.items():
        if is_deeper(value, limits.json_depth - 1):
            raise too_much(f"`{name[:100]}` is nested too deeply", limits.json_depth, "json_depth", name[:100], unit=" levels")


def is_deeper(value: Any, most: int) -> bool:
    """Return whether more than `most` lists and objects are inside of each other; without recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
        level = [child for child in level if isinstance(child, dict | list)]
        if not level:
            return False
    return bool(level)


def check_request_tokens(num_tokens: int, limits: Limits, param: str) -> None:
    """Raise InvalidRequest for a request whose sequences may take more tokens together than one may have."""
    if limits.request_tokens is not None and num_tokens > limits.request_tokens:
        found = f"This request may take {num_tokens} tokens (prompts and max_tokens of all sequences)"
        raise too_much(found, limits.request_tokens, "request_tokens", param)


def too_much(found: str, most: int, limit: str, param: str, *, unit: str = "") -> InvalidRequest:
    return InvalidRequest(
        f"{found}; at most {most}{unit} are possible (LIMITS.{limit.upper()} in the server's configuration).",
        param=param,
        code="invalid_value",
    )


def describe_limits(schemas: dict[str, Any], limits: Limits) -> None:
    """Write the limits into the JSON Schemas of requests, so that the OpenAPI document says what is enforced."""
    for name, schema in schemas.items():
        if name.endswith("Request"):
            for rule in RULES:
                described = schema.get("properties", {}).get(rule.parameter)
                if described is not None:
                    _describe(described, rule, getattr(limits, rule.limit))


def _describe(described: dict[str, Any], rule: _Rule, most: int) -> None:
    for one in described.get("anyOf", [described]):
        kind = one.get("type")
        if rule.measure is _number and kind == "integer":
            one["maximum"] = most
        elif rule.measure is _items and kind in ("array", "object"):
            one["maxItems" if kind == "array" else "maxProperties"] = most
        elif rule.measure is _longest_text and kind == "string":
            one["maxLength"] = most
