"""Owns how a request's sampling parameters meet the model's defaults. Plain data: knows no torch and no transformers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from app.engine.sequence import SamplingParams
from app.errors import Inapplicable, InvalidRequest, UnsupportedParameter

if TYPE_CHECKING:
    from app.engine.grammar import Grammar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRequest:
    """The sampling parameters of one request, checked for type and range; None means not sent.

    `grammar_param` and `logprobs_param` are the parameters that `grammar` and `logprobs` were made from, for messages.
    """

    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    logprobs_param: str = "logprobs"
    prompt_logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    ignore_eos: bool = False
    priority: int = 0
    grammar: "Grammar | None" = None
    grammar_param: str = ""

    @property
    def asks_for_beams(self) -> bool:
        return self.num_beams is not None and self.num_beams > 1

    @property
    def contradicts_grammar(self) -> str | None:
        """The first parameter that would keep a grammar from what it asks for, None if there is none."""
        given = {
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
            "allowed_token_ids": self.allowed_token_ids,
            "bad_words": self.bad_words_ids,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "encoder_no_repeat_ngram_size": self.encoder_no_repeat_ngram_size,
            "forced_bos_token_id": self.forced_bos_token_id is not None,
            "forced_eos_token_id": self.forced_eos_token_id is not None,
        }
        return next((name for name, value in given.items() if value), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What holds when a request does not say otherwise: GENERATE_CONFIG, over the model's generation_config.json.

    Like transformers' `generate`, decoding is greedy unless one of the two, or the request, asks for sampling.
    `max_length` counts the decoder's prompt too, `max_new_tokens` does not (transformers' meaning of both). The first
    `num_forced_tokens` of a generation are dictated by the configuration (`forced_bos_token_id`).
    """

    eos_token_ids: frozenset[int] = frozenset()
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_forced_tokens: int = 0

    def max_tokens(self, num_decoder_prompt_tokens: int) -> int | None:
        """Return the default number of generation tokens, None if nothing sets one."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is not None:
            return max(1, self.max_length - num_decoder_prompt_tokens)
        return None

    def resolve(self, request: SamplingRequest, *, max_tokens: int, choice: int = 0) -> SamplingParams:
        """Return the parameters of choice number `choice`; raise InvalidRequest for what contradicts a grammar, and
        UnsupportedParameter for what beam search can not honour.

        Naming any of temperature (above 0), top_p, top_k or min_p asks for sampling, as does n > 1 without a temperature,
        since equal choices help nobody. A request for beams is none for sampling, and its choices are the best beams.
        """
        num_beams = self.beams(request)
        if num_beams > 1:
            _refuse_with_beams(request, num_beams)
        else:
            _refuse_without_beams(request)
        min_tokens = _first(request.min_tokens, min(self.min_new_tokens, max_tokens))
        if request.grammar is not None:
            _refuse_with_grammar(request)
            min_tokens = 0  # the model's default yields to what the request asks for
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            temperature=self._temperature(request),
            top_p=_first(request.top_p, self.top_p),
            top_k=_first(request.top_k, self.top_k),
            min_p=_first(request.min_p, self.min_p),
            repetition_penalty=_first(request.repetition_penalty, self.repetition_penalty),
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            logit_bias=request.logit_bias or {},
            seed=request.seed,
            choice=choice,
            logprobs=request.logprobs,
            prompt_logprobs=request.prompt_logprobs,
            stop_token_ids=frozenset(request.stop_token_ids) | (frozenset() if request.ignore_eos else self.eos_token_ids),
            allowed_token_ids=request.allowed_token_ids,
            bad_words_ids=request.bad_words_ids,
            no_repeat_ngram_size=request.no_repeat_ngram_size,
            encoder_no_repeat_ngram_size=request.encoder_no_repeat_ngram_size,
            forced_bos_token_id=request.forced_bos_token_id,
            forced_eos_token_id=request.forced_eos_token_id,
            num_beams=num_beams,
            length_penalty=_first(request.length_penalty, self.length_penalty),
            early_stopping=_first(request.early_stopping, self.early_stopping),
            priority=request.priority,
            grammar=request.grammar,
            num_forced_tokens=self._num_forced_tokens(request),
        )

    def beams(self, request: SamplingRequest) -> int:
        """Return how many beams a request is decoded with; 1 is no beam search."""
        if self._temperature(request) > 0 and not request.asks_for_beams:
            return 1
        return _first(request.num_beams, self.num_beams)

    def _temperature(self, request: SamplingRequest) -> float:
        asked = (request.top_p, request.top_k, request.min_p) != (None, None, None) or request.n > 1
        if request.temperature is not None:
            return request.temperature
        return self.temperature if (asked or self.do_sample) and not request.asks_for_beams else 0.0

    def _num_forced_tokens(self, request: SamplingRequest) -> int:
        """Return how many tokens are dictated before a grammar, or what the request allows, decides."""
        if request.grammar is None and request.allowed_token_ids is None and not request.bad_words_ids:
            return 0
        return self.num_forced_tokens if request.forced_bos_token_id is None else 1


def _first(requested: T | None, default: T) -> T:
    return default if requested is None else requested


def _refuse_with_grammar(request: SamplingRequest) -> None:
    name = request.contradicts_grammar
    if name is not None:
        says = "where the text ends" if name in ("ignore_eos", "min_tokens") else "what comes next"
        raise InvalidRequest(f"`{name}` contradicts `{request.grammar_param}`, which says {says}.", param=name)


def _refuse_with_beams(request: SamplingRequest, num_beams: int) -> None:
    if request.n > num_beams:
        raise InvalidRequest(f"`n` ({request.n}) must not be more than the number of beams ({num_beams}).", param="n")
    if request.grammar is not None:
        raise _not_with_beams(request.grammar_param, request)
    for name in ("logprobs", "prompt_logprobs", "logit_bias", "frequency_penalty", "presence_penalty"):
        value = getattr(request, name)
        # 0 asks for logprobs (of the sampled token only), but leaves a penalty off.
        if value is not None and (value or name.endswith("logprobs")):
            raise _not_with_beams(request.logprobs_param if name == "logprobs" else name, request)
    if request.asks_for_beams:
        for name, off in (("temperature", 0), ("top_p", 1), ("top_k", 0), ("min_p", 0)):
            if getattr(request, name) not in (None, off):
                raise _not_with_beams(name, request)


def _refuse_without_beams(request: SamplingRequest) -> None:
    for name, off in (("length_penalty", 1), ("early_stopping", False)):
        if getattr(request, name) not in (None, off):
            raise Inapplicable(f"`{name}` is for beam search: it needs `num_beams` of at least 2.", param=name)


def _not_with_beams(param: str, request: SamplingRequest) -> UnsupportedParameter:
    if request.asks_for_beams:
        return UnsupportedParameter(f"Beam search (`num_beams` above 1) can not honour `{param}`.", param=param)
    return UnsupportedParameter(
        f"This model decodes with beam search (num_beams in its GENERATE_CONFIG or generation_config.json), which can "
        f"not honour `{param}`. Leave it out, or send a `temperature` above 0 to sample instead.",
        param=param,
    )
