"""The exception tree; each error knows how to tell its user what happened. Knows nothing of HTTP frameworks or torch.

TfoaiError
├── ConfigError                     start-up stops with exit code 2 and one line
└── RequestError                    one request fails, as an OpenAI error object
    ├── InvalidRequest              400  malformed, out of range, contradictory
    │   ├── UnknownParameter        400  a name the API does not have
    │   ├── UnsupportedParameter    400  a name the API has and this server or model can not honour
    │   ├── Inapplicable            400  a parameter that means nothing beside the others
    │   └── ContextLengthExceeded   400  prompt + max_tokens do not fit the model
    ├── Unauthorized                401  missing or wrong bearer token
    ├── NotFound                    404  unknown URL
    │   └── ModelNotFound           404  unknown served name
    ├── RequestTooLarge             413  a body over MAX_BODY_BYTES
    ├── QueueFull                   429  admission refused; the client should come back
    ├── EngineError                 500  the engine failed this sequence
    └── Unavailable                 503  nothing can be served now
        ├── ModelLoading            503  come back when the model is loaded
        ├── Draining                503  the server is going down
        └── EngineDead              503  the model's engine has stopped
"""

from typing import Any, ClassVar


class TfoaiError(Exception):
    """Base of every error that tfoai raises on purpose."""


class ConfigError(TfoaiError):
    """The configuration, or what it points to, can not be used.

    `path` is the place in the file as dotted JSON path (`MODELS.gpt2.TYPE`), empty for the file as a whole. `str()` is one
    line: the place, what was found, what was expected.
    """

    def __init__(self, path: str, found: str, expected: str) -> None:
        self.path = path
        self.found = " ".join(found.split())
        self.expected = " ".join(expected.split())
        place = f"{path}: " if path else ""
        super().__init__(f"{place}found {self.found}; expected {self.expected}")


class RequestError(TfoaiError):
    """One request fails. `str()` is the message the client sees.

    `type`, `code` and `param` are the fields of OpenAI's error object (openapi.yaml, components/schemas/Error);
    `retry_after` is in seconds and goes out as `Retry-After` (openai-python gives up on values above 120).
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    # The part of the request that the error is about, where the class alone says it.
    param: str | None = None

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.param = self.param if param is None else param
        self.retry_after = retry_after
        if code is not None:
            self.code = code

    def body(self) -> dict[str, Any]:
        """Return the OpenAI error object; all four keys are always there."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(RequestError):
    status = 400
    type = "invalid_request_error"


class UnknownParameter(InvalidRequest):
    code = "unknown_parameter"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class Inapplicable(InvalidRequest):
    pass


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"

    def __init__(self, limit: int, prompt_tokens: int, max_tokens: int, *, what: str, param: str) -> None:
        """Word the message as OpenAI does: clients match it with regular expressions to shorten and retry."""
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, you requested {prompt_tokens + max_tokens} "
            f"tokens ({prompt_tokens} in the {what}, {max_tokens} in the completion). Please reduce the length of the {what} "
            "or completion.",
            param=param,
        )


class Unauthorized(RequestError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    param = "Authorization"


class NotFound(RequestError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class RequestTooLarge(RequestError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"

    def __init__(self, limit: int, num_bytes: int | None) -> None:
        """`num_bytes` is None for a body that does not say how long it is."""
        found = f"more than {limit}" if num_bytes is None else str(num_bytes)
        super().__init__(f"The body of the request has {found} bytes; at most {limit} are possible (MAX_BODY_BYTES).")


class ModelNotFound(NotFound):
    code = "model_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"The model `{name[:200]}` does not exist.", param="model")


class QueueFull(RequestError):
    status = 429
    type = "rate_limit_error"
    code = "engine_overloaded"
    param = "model"


class EngineError(RequestError):
    status = 500
    type = "server_error"
    code = "engine_error"


class Unavailable(RequestError):
    status = 503
    type = "service_unavailable"
    code = "service_unavailable"
    param = "model"


class ModelLoading(Unavailable):
    code = "model_loading"


class Draining(Unavailable):
    code = "draining"


class EngineDead(Unavailable):
    code = "engine_dead"
