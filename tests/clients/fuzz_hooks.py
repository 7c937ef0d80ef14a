"""What Schemathesis is told about the models, and to ask for short answers. It loads this file by SCHEMATHESIS_HOOKS."""

from typing import Any

import schemathesis

MODEL, EMBEDDER = "tfoai-demo", "embedder"
MAX_TOKENS = 4
# Every id below it is a token of both models.
NUM_IDS = 200


def _bound(value: Any) -> Any:
    """Make token ids of the numbers in (lists of) lists."""
    if isinstance(value, list):
        return [one % NUM_IDS if type(one) is int else _bound(one) for one in value]
    return value


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Name a model that is there, most of the time, so that more than its name is looked at; bound the work of a case."""
    model = EMBEDDER if "embeddings" in case.operation.path else MODEL
    body = case.body
    if isinstance(body, dict):
        if isinstance(body.get("model"), str) and len(body["model"]) % 8 != 7:
            body["model"] = model
        for name in ("prompt", "input", "tokens", "stop_token_ids"):
            if name in body:
                body[name] = _bound(body[name])
        if body.get("max_completion_tokens") is None and case.operation.path.endswith("/completions"):
            # Null is no number: with `best_of`, thousands of tokens would be made.
            body["max_tokens"] = MAX_TOKENS if body.get("max_tokens") is None else body["max_tokens"]
        for name in ("max_tokens", "max_completion_tokens"):
            if type(body.get(name)) is int and body[name] > MAX_TOKENS:
                body[name] = MAX_TOKENS
    names = case.path_parameters
    if isinstance(names, dict) and len(str(names.get("model_name", ""))) % 4:
        names["model_name"] = model
