"""Sources of grammars that were made to hurt: by depth, by size, by what becomes of them."""

from collections.abc import Callable
from typing import Any


def chain(count: int, line: Callable[[int], str]) -> str:
    return "\n".join(line(index) for index in range(count))


HOSTILE: dict[str, tuple[Any, Callable[[], Any]]] = {
    "parentheses": ("lark", lambda: "start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "rule_chain": ("lark", lambda: "start: r0\n" + chain(9_000, lambda i: f"r{i}: r{i + 1}") + '\nr9000: "a"'),
    "terminal_chain": ("lark", lambda: "start: R0\n" + chain(9_000, lambda i: f"R{i}: R{i + 1}") + '\nR9000: "a"'),
    "doubling": ("lark", lambda: "start: R0\n" + chain(60, lambda i: f"R{i}: R{i + 1} R{i + 1}") + '\nR60: "a"'),
    "optional": ("lark", lambda: "start: " + '"a"? ' * 5_000),
    "repeats": ("lark", lambda: 'start: (("a"{1,1000}){1,1000}){1,1000}'),
    "left_recursion": ("lark", lambda: 'start: start start | "a" |'),
    "itself": ("lark", lambda: "start: start"),
    "alternatives": ("lark", lambda: "start: " + " | ".join(f'"a{i}"' for i in range(9_000))),
    "long_regex": ("regex", lambda: "a" * 120_000),
    "nested_regex": ("regex", lambda: "(" * 20_000 + "a" + ")*" * 20_000),
    "counted_regex": ("regex", lambda: "((a{1,1000}b){1,1000}c){1,1000}"),
    "look_back_regex": ("regex", lambda: "(a|b)*a(a|b){25}"),
    "unicode_regex": ("regex", lambda: r"(\w|\p{L}|\d){0,1000}x\w{500}"),
    "properties": ("json_schema", lambda: {"properties": {f"p{i}": {"type": "string"} for i in range(3_000)}}),
    "doubling_all_of": (
        "json_schema",
        lambda: {
            "$defs": {f"{i}": {"allOf": [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(50)} | {"50": {}},
            "$ref": "#/$defs/0",
        },
    ),
    "multiple": ("json_schema", lambda: {"type": "integer", "multipleOf": 99991}),
    "patterns": ("json_schema", lambda: {"allOf": [{"type": "string", "pattern": f"a{i}.*b{i}"} for i in range(14)]}),
    "itself_only": ("json_schema", lambda: {"$ref": "#"}),
    "long_strings": ("json_schema", lambda: {"type": "string", "minLength": 900_000, "maxLength": 1_000_000}),
    "numbers": ("json_schema", lambda: {"type": "number", "minimum": -0.123456789012345, "multipleOf": 0.0007}),
}  # fmt: skip
