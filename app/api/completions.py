"""Owns /v1/completions and its legacy spelling /v1/engines/{model}/completions. Knows no chat."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from litestar import Request, post
from msgspec import UNSET

from app.api.completion_logprobs import add_prompt, add_token
from app.api.context import Context, new_id
from app.api.generate import Candidate, Generation, Prompt
from app.api.lenient import may_be_lenient
from app.api.openapi import documented
from app.api.prompt_logprobs import check_scores_prompts, prompt_logprobs
from app.api.requests import read_body, respond
from app.api.schemas.common import check_token_id
from app.api.schemas.completions import (
    REFUSED,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from app.engine.sequence import SamplingParams
from app.errors import InvalidRequest, UnsupportedParameter
from app.registry import ServedModel
from app.text.output import TextDelta, TokenText
from app.text.truncation import Truncation

if TYPE_CHECKING:
    from app.text.infill import Infill

# OpenAI's default for max_tokens here.
DEFAULT_MAX_TOKENS = 16


@post(
    "/v1/completions",
    status_code=200,
    operation_class=documented("Create a completion", CompletionRequest, Completion, streams=True),
)
@may_be_lenient
async def create_completion(request: Request[Any, Any, Any], context: Context) -> Any:
    return await _complete(request, context, await read_body(request, CompletionRequest, REFUSED))


@post(
    "/v1/engines/{model_name:str}/completions",
    status_code=200,
    operation_class=documented("Create a completion (legacy path)", CompletionRequest, Completion, streams=True),
)
@may_be_lenient
async def create_engine_completion(request: Request[Any, Any, Any], context: Context, model_name: str) -> Any:
    """The path names the model, as in OpenAI's API of 2022 and in transformers-openai-api."""
    body = await read_body(request, CompletionRequest, REFUSED, {"model": model_name})
    if body.model != model_name:
        raise InvalidRequest(f"`model` ({body.model[:100]}) is not the model of the path ({model_name[:100]}).", param="model")
    return await _complete(request, context, body)


async def _complete(request: Request[Any, Any, Any], context: Context, body: CompletionRequest) -> Any:
    body.check()
    prompts = body.prompts
    generation = context.begin(request.scope, body.model, len(prompts) * body.num_candidates, "text_completion")
    return await respond(request, _Answer(body, generation, prompts), stream=bool(body.stream))


# Characters, or ids, that are encoded on the event loop: a tenth of a millisecond or two.
SHORT_PROMPTS = 1000


async def _encode(
    model: ServedModel,
    body: CompletionRequest,
    prompts: list[str | list[int]],
    infill: "Infill | None",
    truncation: Truncation | None,
) -> list[Prompt]:
    """Return the prompts as ids, made off the event loop unless they are short.

    Texts get the tokenizer's special tokens, ids are taken as they are. With `infill` they are prompts for the text between
    each of them and the suffix.
    """
    loaded, suffix = model.loaded, body.suffix or ""
    tokenizer, with_specials = loaded.tokenizer, body.add_special_tokens is not False

    def one(index: int, prompt: str | list[int]) -> Prompt:
        if isinstance(prompt, str):
            if infill:
                return Prompt(infill.prompt_ids(prompt, suffix), prompt)
            ids = tokenizer.encode(prompt, add_special_tokens=with_specials) or _beginning_of_text(model)
        else:
            for token_id in prompt:
                check_token_id(token_id, loaded.vocab_size, "prompt" if len(prompts) == 1 else f"prompt.[{index}]")
            ids = infill.prompt_ids(prompt, suffix) if infill else prompt
        if truncation is not None and len(ids) > truncation.num_tokens:
            ids = truncation.cut(ids, tokenizer.affixes if isinstance(prompt, str) and with_specials else ((), ()))
        elif isinstance(prompt, str):
            return Prompt(ids, prompt)
        shown = prompt if infill and not isinstance(prompt, str) else ids
        return Prompt(ids, tokenizer.decode(shown, skip_special_tokens=body.skip_special_tokens) if body.echo else "")

    def all_of_them() -> list[Prompt]:
        return [one(index, prompt) for index, prompt in enumerate(prompts)]

    # Short ones take less time than a thread's turn at the interpreter.
    is_short = sum(len(prompt) for prompt in prompts) + len(suffix) <= SHORT_PROMPTS
    return all_of_them() if is_short else await asyncio.to_thread(all_of_them)


def _beginning_of_text(model: ServedModel) -> list[int]:
    """An empty prompt begins a new document: the model's own sign for that."""
    tokenizer = model.loaded.tokenizer.hf
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return [token_id]
    raise InvalidRequest("`prompt` is empty, and this model has no token to begin a text with.", param="prompt")


def _infill_of(model: ServedModel) -> "Infill":
    infill = model.loaded.infill
    if infill is None:
        raise UnsupportedParameter(
            f"`suffix` is not supported by the model `{model.name}`: its tokenizer has no fill-in-the-middle tokens that are "
            "known here (FIM_TEMPLATE in the server's configuration names them).",
            param="suffix",
        )
    return infill


class _Answer:
    """Submits the prompts and turns their generation into the response object, or into its chunks."""

    def __init__(self, body: CompletionRequest, generation: Generation, prompts: list[str | list[int]]) -> None:
        self._body = body
        self._generation = generation
        self._prompts = prompts
        self._id = new_id("cmpl")
        self._created = int(time.time())
        # In a stream, of each choice that has begun, how many token ids are sent.
        self._num_sent_ids: dict[int, int] = {}
        self._fingerprint = generation.model.system_fingerprint

    async def submit(self) -> None:
        body, model = self._body, self._generation.model
        loaded = model.loaded
        for param, is_asked in (("echo", self._scores_prompt), ("prompt_logprobs", body.prompt_logprobs is not None)):
            if is_asked:
                check_scores_prompts(is_encoder_decoder=loaded.is_encoder_decoder, param=param)
        ranks = body.num_candidates > (body.n or 1)
        constraint = body.constraint
        request = body.sampling_request(
            loaded.vocab_size,
            **body.sampling_extras(loaded.vocab_size, loaded.tokenizer),
            grammar=None if constraint is None else await loaded.grammars.compile(constraint),
            grammar_param="" if constraint is None else constraint.param,
            n=body.num_candidates,
            # Candidates are ranked by their tokens' logprobs.
            logprobs=0 if body.logprobs is None and ranks else body.logprobs,
            logprobs_param="best_of" if body.logprobs is None else "logprobs",
            prompt_logprobs=max(body.logprobs or 0, body.prompt_logprobs or 0),
        )
        infill = _infill_of(model) if body.suffix else None
        if infill is not None and not body.ignore_eos:
            request = replace(request, stop_token_ids=(*request.stop_token_ids, *sorted(infill.end_ids)))
        truncation = body.truncation(loaded.context_length, model.prompt_room(body.max_tokens, otherwise=DEFAULT_MAX_TOKENS))
        checked: list[tuple[Prompt, SamplingParams]] = []
        for prompt in await _encode(model, body, self._prompts, infill, truncation):
            max_tokens = body.max_tokens
            if max_tokens is None:
                max_tokens = model.default_max_tokens(len(prompt.ids), otherwise=DEFAULT_MAX_TOKENS)
            model.check_length(len(prompt.ids), max_tokens, what="prompt")
            for choice in range(body.num_candidates):
                # One candidate of each prompt is enough, unless every one repeats the prompt with its logprobs.
                scores = self._scores_prompt or (choice == 0 and body.prompt_logprobs is not None)
                one = request if scores else replace(request, prompt_logprobs=None)
                checked.append((prompt, model.resolve(one, max_tokens=max_tokens, choice=choice)))
        num_prompt_tokens = sum(len(prompt.ids) for prompt, _ in checked)
        self._generation.check_tokens(num_prompt_tokens, sum(params.max_tokens for _, params in checked), "prompt")
        # Only now, so that a prompt which is refused leaves nothing running.
        for prompt, params in checked:
            self._generation.submit(prompt, params, body.output_options)

    async def whole(self) -> Completion:
        tokens: dict[int, list[TokenText]] = {}
        async for candidate, delta in self._generation.deltas():
            tokens.setdefault(candidate.index, []).extend(delta.tokens)
        # Off the event loop: to score long prompts, every token of them is decoded.
        choices = await asyncio.to_thread(lambda: [self._choice(*pair, tokens) for pair in enumerate(self._best())])
        return self._completion(choices, usage=self._generation.usage())

    def _choice(self, index: int, candidate: Candidate, tokens: dict[int, list[TokenText]]) -> CompletionChoice:
        return CompletionChoice(
            index,
            self._prefix(candidate) + candidate.text,
            self._logprobs(candidate, tokens.get(candidate.index, []), with_prompt=True),
            _finish_reason(candidate),
            *self._ids(candidate, with_prompt=True),
            self._prompt_logprobs(candidate),
        )

    def _prompt_logprobs(self, candidate: Candidate) -> Any:
        num_top = self._body.prompt_logprobs
        if num_top is None:
            return UNSET
        first = self._generation.candidates[candidate.index - candidate.index % self._body.num_candidates]
        return prompt_logprobs(first, self._generation.model.loaded.tokenizer, num_top)

    async def chunks(self) -> AsyncIterator[Completion]:
        begun: set[int] = set()
        async for candidate, delta in self._generation.deltas():
            is_first = candidate.index not in begun
            if is_first and self._awaits_prompt_logprobs(candidate, delta):
                continue
            begun.add(candidate.index)
            text = (self._prefix(candidate) if is_first else "") + delta.text
            if text or delta.tokens or self._has_new_ids(candidate) or delta.finish_reason is not None:
                logprobs = partial(self._logprobs, candidate, delta.tokens, with_prompt=is_first)
                # Off the event loop: to score a long prompt, every token of it is decoded.
                decodes_prompt = is_first and self._scores_prompt
                choice = CompletionChoice(
                    candidate.index,
                    text,
                    await asyncio.to_thread(logprobs) if decodes_prompt else logprobs(),
                    None if delta.finish_reason is None else _finish_reason(candidate),
                    *self._ids(candidate, with_prompt=candidate.index not in self._num_sent_ids),
                )
                yield self._completion([choice], **self._body.usage_of_chunk(self._generation.usage))
        if self._body.includes_usage:
            yield self._completion([], usage=self._generation.usage())

    def _awaits_prompt_logprobs(self, candidate: Candidate, delta: TextDelta) -> bool:
        """Prompt logprobs may come in pieces before the first token; the first chunk has them all."""
        return self._scores_prompt and not delta.tokens and delta.finish_reason is None

    @property
    def _scores_prompt(self) -> bool:
        return bool(self._body.echo and self._body.logprobs is not None)

    def _completion(self, choices: list[CompletionChoice], **usage: Any) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._generation.model.name,
            choices=choices,
            system_fingerprint=self._fingerprint,
            **usage,
        )

    def _prefix(self, candidate: Candidate) -> str:
        return candidate.prompt.text if self._body.echo else ""

    def _best(self) -> list[Candidate]:
        """Return the n best of each prompt's candidates, by mean logprob per token, best first."""
        per_prompt, n = self._body.num_candidates, self._body.n or 1
        candidates = self._generation.candidates
        if per_prompt == n:
            return candidates
        best: list[Candidate] = []
        for start in range(0, len(candidates), per_prompt):
            ranked = sorted(
                candidates[start : start + per_prompt], key=lambda one: -one.sum_logprob / max(1, one.output.num_tokens)
            )
            best += ranked[:n]
        return best

    def _logprobs(self, candidate: Candidate, tokens: list[TokenText], *, with_prompt: bool) -> CompletionLogprobs | None:
        if self._body.logprobs is None:
            return None
        body = self._body
        logprobs = CompletionLogprobs([], [], [], [])
        prefix, as_ids = self._prefix(candidate), bool(body.return_tokens_as_token_ids)
        if with_prompt and body.echo:
            tokenizer, skip = self._generation.model.loaded.tokenizer, body.skip_special_tokens
            num_top = body.logprobs or 0
            add_prompt(logprobs, candidate, tokenizer, num_top=num_top, skip_special_tokens=skip, as_ids=as_ids)
        for token in tokens:
            add_token(logprobs, token, token.offset + len(prefix), as_ids=as_ids)
        return logprobs

    def _has_new_ids(self, candidate: Candidate) -> bool:
        sent = self._num_sent_ids.get(candidate.index, 0)
        return bool(self._body.return_token_ids) and sent < len(candidate.token_ids)

    def _ids(self, candidate: Candidate, *, with_prompt: bool) -> tuple[Any, Any]:
        """Return the ids that were not yet sent, and the prompt's, where the request asks for them."""
        if not self._body.return_token_ids:
            return UNSET, UNSET
        new = candidate.token_ids[self._num_sent_ids.get(candidate.index, 0) :]
        self._num_sent_ids[candidate.index] = len(candidate.token_ids)
        return new, candidate.prompt.ids if with_prompt else UNSET


def _finish_reason(candidate: Candidate) -> Any:
    return None if candidate.finish_reason is None else candidate.finish_reason.value
