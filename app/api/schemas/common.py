"""Owns what completions and chat share: sampling fields, usage, the model list, decoding of bodies. Knows no endpoint."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app.engine.defaults import SamplingRequest
from app.errors import Inapplicable, InvalidRequest, UnknownParameter, UnsupportedParameter
from app.text.constraint import Constraint, Kind

# JSON has no infinity; OpenAI writes this for it.
LOWEST_LOGPROB = -9999.0
# Any 64-bit seed is legal (openapi.yaml: minimum -9223372036854776000).
_Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenCount = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_StopText = Annotated[str, Meta(min_length=1)]
# vLLM's words for what a text is held to, in `structured_outputs` and, older, as `guided_json` and so on.
_KINDS: dict[str, Kind] = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "lark"}


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`include_obfuscation` pads events against traffic analysis at OpenAI; it is accepted, and no padding is sent.

    `continuous_usage_stats` is vLLM's (guidellm and aiperf send it): with `include_usage`, every chunk has the usage so far.
    """

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """vLLM's spelling of what a text is held to: exactly one of the first five; `disable_any_whitespace` is for JSON."""

    json: dict[str, Any] | str | bool | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    disable_any_whitespace: bool | None = None

    def constraint(self) -> Constraint:
        given = [name for name in _KINDS if getattr(self, name) is not None]
        given += ["json_object"] if self.json_object else []
        if len(given) != 1:
            raise InvalidRequest(
                "`structured_outputs` needs exactly one of json, json_object, regex, choice and grammar; "
                f"it has {', '.join(given) or 'none'}.",
                param="structured_outputs",
            )
        (name,) = given
        param, compact = f"structured_outputs.{name}", bool(self.disable_any_whitespace)
        if compact and name not in ("json", "json_object"):
            raise InvalidRequest(f"`disable_any_whitespace` is for JSON, not for `{name}`.", param="structured_outputs")
        if name == "json_object":
            return Constraint("json_object", None, param, compact)
        return Constraint(_KINDS[name], getattr(self, name), param, compact)


class SamplingFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Parameters with the same meaning on every endpoint that generates text; app/api/limits.py bounds their lengths.

    The ones after `user` are not OpenAI's; openai-python sends them with `extra_body`.
    """

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    n: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: _Seed | None = None
    stop: _StopText | list[_StopText] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Meta(max_length=4096)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: TokenCount | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenCount] | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @property
    def constraint(self) -> Constraint | None:
        """What the answer is held to; raise InvalidRequest if more than one parameter says so."""
        constraints = self.constraints()
        if len(constraints) > 1:
            names = " and ".join(f"`{constraint.param}`" for constraint in constraints)
            raise InvalidRequest(f"Only one of {names} is possible in a request.", param=constraints[1].param)
        return constraints[0] if constraints else None

    def constraints(self) -> list[Constraint]:
        found = [] if self.structured_outputs is None else [self.structured_outputs.constraint()]
        for name, kind in _KINDS.items():
            value = getattr(self, f"guided_{name}")
            if value is not None:
                found.append(Constraint(kind, value, f"guided_{name}"))
        return found

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def usage_of_chunk(self, usage: Callable[[], "Usage"]) -> dict[str, Any]:
        """Return what a chunk that is not the last one says of the usage so far."""
        if not self.includes_usage:
            return {}
        assert self.stream_options is not None
        return {"usage": usage() if self.stream_options.continuous_usage_stats else None}

    def check_stream_options(self) -> None:
        options = self.stream_options
        if options is not None and options.continuous_usage_stats and not options.include_usage:
            raise InvalidRequest(
                "`continuous_usage_stats` needs `include_usage`.", param="stream_options.continuous_usage_stats"
            )
        if self.stream_options is not None and not self.stream:
            raise Inapplicable("`stream_options` is only allowed when `stream` is true.", param="stream_options")

    def sampling_request(self, vocab_size: int, *, n: int, **more: Any) -> SamplingRequest:
        """Return the engine's view of these fields for `n` choices; raise InvalidRequest for ids outside the vocabulary."""
        stop_token_ids = tuple(self.stop_token_ids or ())
        for token_id in stop_token_ids:
            check_token_id(token_id, vocab_size, "stop_token_ids")
        return SamplingRequest(
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=self._logit_bias(vocab_size),
            seed=self.seed,
            n=n,
            stop_token_ids=stop_token_ids,
            ignore_eos=bool(self.ignore_eos),
            priority=self.priority or 0,
            **more,
        )

    def _logit_bias(self, vocab_size: int) -> dict[int, float] | None:
        if not self.logit_bias:
            return None
        bias: dict[int, float] = {}
        for key, value in self.logit_bias.items():
            if not re.fullmatch(r"[0-9]{1,10}", key):
                raise Inapplicable(f"`logit_bias` maps token ids to numbers; {key[:20]!r} is no token id.", param="logit_bias")
            check_token_id(int(key), vocab_size, "logit_bias")
            bias[int(key)] = value
        return bias


def check_token_id(token_id: int, vocab_size: int, param: str) -> None:
    if not 0 <= token_id < vocab_size:
        raise InvalidRequest(f"`{param}`: {token_id} is no token id of this model (0 to {vocab_size - 1}).", param=param)


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    """`reasoning_tokens` are part of the completion's tokens; those of predictions are 0, for none is used."""

    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = msgspec.field(default_factory=PromptTokensDetails)
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class ModelObject(msgspec.Struct, kw_only=True):
    """One entry of the model list; the fields after `owned_by` are tfoai's own.

    `root` is the served name: that of which `id` is an alias, or `id` itself.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "tfoai"
    root: str
    state: str
    type: str
    runner: str | None = None
    context_length: int | None = None
    embedding_dimensions: int | UnsetType = UNSET
    pooling: str | UnsetType = UNSET


class ModelList(msgspec.Struct):
    data: list[ModelObject]
    object: Literal["list"] = "list"


class EngineObject(msgspec.Struct):
    """One entry of the legacy engine list, as the 2023 server sent it."""

    id: str
    ready: bool
    object: Literal["engine"] = "engine"
    owner: str = "openai"
    permissions: None = None
    created: None = None


class EngineList(msgspec.Struct):
    data: list[EngineObject]
    object: Literal["list"] = "list"


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct):
    """openapi.yaml, components/schemas/ErrorResponse: all four keys are always there."""

    error: ErrorDetail


S = TypeVar("S", bound=msgspec.Struct)

_AT = re.compile(r"^(?P<message>.*?)(?: - at `\$?\.?(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`")


def decode_body(
    body: bytes,
    kind: type[S],
    refused: Mapping[str, str],
    defaults: Mapping[str, Any] | None = None,
    without: Callable[[dict[str, Any]], None] | None = None,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> S:
    """Decode a JSON body; raise InvalidRequest or a subclass that names the parameter.

    `refused` maps names that OpenAI documents and tfoai does not honour to the reason; null is as good as absent for them.
    `without` takes out what is to be left out, `check` refuses what is no matter of single parameters.
    """
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The request body is not valid JSON: {str(error)[:200]}.") from error
    if not isinstance(data, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    data = {**(defaults or {}), **data}
    if without is not None:
        without(data)
    if check is not None:
        check(data)
    return convert_object(data, kind, refused)


def convert_object(data: dict[str, Any], kind: type[S], refused: Mapping[str, str], place: str = "") -> S:
    """Convert an object of a body that lies at `place` (`tools[0]`); raise and refuse as `decode_body` does."""
    data = dict(data)
    for name in refused.keys() & data.keys():
        if data.pop(name) is not None:
            param = _param(f"{place}.{name}" if place else name)
            raise UnsupportedParameter(f"`{param}` is not supported: {refused[name]}", param=param)
    try:
        return msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), place) from error


def _invalid(text: str, place: str = "") -> InvalidRequest:
    match = _AT.match(text)
    assert match is not None  # the pattern matches every text
    message, path = match["message"], ".".join(part for part in (place, match["path"]) if part)
    unknown = _UNKNOWN.fullmatch(message)
    if unknown:
        name = unknown["name"][:100]
        param = _param(f"{path}.{name}" if path else name)
        return UnknownParameter(f"Unrecognized request argument supplied: {param}", param=param)
    required = re.fullmatch(r"Object missing required field `(.*)`", message)
    if required:
        param = _param(f"{path}.{required[1]}" if path else required[1])
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    param = _param(path)
    return InvalidRequest(f"Invalid value for '{param}': {message[:300]}.", param=param, code="invalid_value")


def _param(path: str) -> str:
    """Spell a path as OpenAI does: `messages.[0].role`."""
    return path.replace("[", ".[")[:200]
