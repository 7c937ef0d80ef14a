"""What Schemathesis is told about the models, and to ask for short answers. It loads this file by SCHEMATHESIS_HOOKS."""

from typing import Any

import schemathesis

MODEL, EMBEDDER = "tfoai-demo", "embedder"
MAX_TOKENS = 4


def _model(context: Any) -> str:
    return EMBEDDER if "embeddings" in context.operation.path else MODEL


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Name a model that is there, most of the time, so that more than its name is looked at; bound the work of a case."""
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("model"), str) and len(body["model"]) % 8:
        body["model"] = _model(context)
    for name in ("max_tokens", "max_completion_tokens"):
        if name not in body or (isinstance(body[name], int) and body[name] > MAX_TOKENS):
            body[name] = MAX_TOKENS
            break
    return body


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    if isinstance(path_parameters, dict) and len(str(path_parameters.get("model_name", ""))) % 4:
        path_parameters["model_name"] = _model(context)
    return path_parameters
